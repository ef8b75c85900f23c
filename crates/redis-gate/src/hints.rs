//! Hints of new outbox entries: a bounded list in Redis, for relays in other processes. Nothing may
//! depend on a hint.

use redis::Value;
use redis::aio::MultiplexedConnection;
use seckill_engine::Fault;
use seckill_sale::SaleId;

use crate::gate::Gate;
use crate::reply;

/// Maximum number of hints written or taken at once.
pub const HINTS_PER_CALL_MAX: usize = 64;
/// Maximum number of hints kept while no relay takes them.
const HINTS_MAX: i64 = 10_000;
/// Maximum time that Redis blocks a pop from an empty list.
const BLOCK_MAX_MS: u64 = 300;

/// Where to find a new outbox entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    pub sale: SaleId,
    /// The id of the entry.
    pub entry: String,
}

/// Takes hints on a connection of its own, because the blocking pop would delay everything else on
/// it. After a fault, another reader is needed.
pub struct HintReader<'a> {
    gate: &'a Gate,
    link: MultiplexedConnection,
}

impl Gate {
    /// Adds hints to the list, and drops the oldest if there are too many.
    pub async fn write_hints(&self, hints: impl IntoIterator<Item = Hint>) -> Result<(), Fault> {
        let hints = hints
            .into_iter()
            .map(|hint| format!("{} {}", hint.sale, hint.entry));
        let mut push = redis::cmd("LPUSH");
        push.arg(&self.hints).arg(hints.collect::<Vec<_>>());
        let pushed = self.redis.call(&push).await?;
        if matches!(pushed, Value::Int(length) if length > HINTS_MAX) {
            let mut trim = redis::cmd("LTRIM");
            trim.arg(&self.hints).arg(0).arg(HINTS_MAX - 1);
            self.redis.call(&trim).await?;
        }
        Ok(())
    }

    pub async fn hint_reader(&self) -> Result<HintReader<'_>, Fault> {
        let link = self.redis.private(&self.hints).await?;
        Ok(HintReader { gate: self, link })
    }
}

impl HintReader<'_> {
    /// Waits for a short time, and takes the oldest hints. Skips those that cannot be read.
    pub async fn take(&mut self) -> Result<Vec<Hint>, Fault> {
        let redis = &self.gate.redis;
        // Well within the deadline for a reply.
        let block_ms = (redis.wait().as_millis() as u64 / 3).clamp(1, BLOCK_MAX_MS);
        let mut command = redis::cmd("BLMPOP");
        command
            .arg(format!("{:.3}", block_ms as f64 / 1e3))
            .arg(1)
            .arg(&self.gate.hints)
            .arg("RIGHT")
            .arg("COUNT")
            .arg(HINTS_PER_CALL_MAX);
        let value = redis.call_on(&mut self.link, &command).await?;
        let Value::Array(parts) = &value else {
            return Ok(Vec::new());
        };
        let [_, Value::Array(hints)] = parts.as_slice() else {
            return Err(reply::strange(&value));
        };
        Ok(hints
            .iter()
            .filter_map(reply::text)
            .filter_map(hint)
            .collect())
    }
}

fn hint(text: &str) -> Option<Hint> {
    let (sale, entry) = text.split_once(' ')?;
    Some(Hint {
        sale: SaleId::new(sale).ok()?,
        entry: entry.to_owned(),
    })
}
