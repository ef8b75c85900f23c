//! Hints from servers without a relay to relays in other processes: a bounded list in Redis.
//! Nothing may depend on a hint: losing one only delays its entry until a sweep.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use seckill_engine::Fault;
use seckill_sale::SaleId;
use tokio::sync::{mpsc, watch};

use crate::gate::Offer;
use crate::gate::reply;
use crate::serve::Core;
use crate::stop::stopped;

/// Maximum number of hints kept while no relay takes them.
const HINTS_MAX: i64 = 10_000;
/// Maximum number of hints written or taken at once.
const TAKE_MAX: usize = 64;
/// Maximum time that Redis blocks a pop from an empty list.
const BLOCK_MAX_MS: u64 = 300;
const PAUSE: Duration = Duration::from_millis(300);

fn list(core: &Core) -> String {
    format!("{}seckill:hints", core.options.key_prefix)
}

/// Writes a hint for each offer, until the channel closes.
pub(crate) async fn write(core: Arc<Core>, mut offers: mpsc::Receiver<Offer>) {
    let list = list(&core);
    let mut batch = Vec::new();
    while offers.recv_many(&mut batch, TAKE_MAX).await > 0 {
        let hints = batch
            .drain(..)
            .map(|offer| format!("{} {}", offer.sale, offer.entry.id));
        let mut push = redis::cmd("LPUSH");
        push.arg(&list).arg(hints.collect::<Vec<_>>());
        let pushed = core.gate.redis.call(&push).await;
        let cut = match pushed {
            Ok(Value::Int(length)) if length > HINTS_MAX => {
                let mut trim = redis::cmd("LTRIM");
                trim.arg(&list).arg(0).arg(HINTS_MAX - 1);
                core.gate.redis.call(&trim).await
            }
            pushed => pushed,
        };
        if let Err(fault) = cut {
            tracing::debug!(%fault, "could not write hints for the relay");
        }
    }
}

/// Takes hints and offers the entries that they name, until `stop` is set.
pub(crate) async fn read(
    core: Arc<Core>,
    offers: mpsc::Sender<Offer>,
    mut stop: watch::Receiver<bool>,
) {
    let mut link = None;
    loop {
        let taken = tokio::select! {
            taken = take(&core, &mut link) => taken,
            () = stopped(&mut stop) => return,
        };
        match taken {
            Ok(taken) => {
                for offer in taken {
                    if offers.send(offer).await.is_err() {
                        return;
                    }
                }
            }
            Err(fault) => {
                tracing::debug!(%fault, "could not read hints from Redis");
                link = None;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Uses a connection of its own, because the blocking pop would delay everything else on it.
async fn take(core: &Core, link: &mut Option<MultiplexedConnection>) -> Result<Vec<Offer>, Fault> {
    let redis = &core.gate.redis;
    let link = match link {
        Some(link) => link,
        None => link.insert(redis.private(&list(core)).await?),
    };
    // Well within the deadline for a reply.
    let block_ms = (core.options.gate_wait_ms / 3).clamp(1, BLOCK_MAX_MS);
    let mut command = redis::cmd("BLMPOP");
    command
        .arg(format!("{:.3}", block_ms as f64 / 1e3))
        .arg(1)
        .arg(list(core))
        .arg("RIGHT")
        .arg("COUNT")
        .arg(TAKE_MAX);
    let value = command
        .query_async::<Value>(link)
        .await
        .map_err(|error| redis.fault(&error))?;
    let Value::Array(parts) = &value else {
        return Ok(Vec::new());
    };
    let [_, Value::Array(hints)] = parts.as_slice() else {
        return Err(reply::strange(&value));
    };
    let mut offers = Vec::new();
    for hint in hints.iter().filter_map(reply::text) {
        let named = hint
            .split_once(' ')
            .and_then(|(sale, entry)| Some((SaleId::new(sale).ok()?, entry)));
        let Some((sale, id)) = named else {
            continue;
        };
        let Some(cached) = core.cached(&sale).await? else {
            continue;
        };
        let Some(entry) = core.gate.outbox_entry(&cached.row.keys, id).await? else {
            continue;
        };
        let epoch = id.split_once('-').and_then(|(epoch, _)| epoch.parse().ok());
        if let Some(epoch) = epoch {
            offers.push(Offer {
                sale,
                keys: cached.row.keys.clone(),
                epoch,
                entry,
            });
        }
    }
    Ok(offers)
}
