//! The gate: decides attempts in Redis, with a script or with the tutorial's WATCH/MULTI/EXEC, and
//! maintains the outbox. Its claims are only proposals. It must not use the log or the store.

pub(crate) mod keys;
pub(crate) mod link;
pub(crate) mod reply;
pub(crate) mod stored;
mod watch;

use std::sync::LazyLock;

use redis::{Cmd, Value};
use seckill_engine::Fault;
use seckill_sale::{Attempt, OrderId, Sale, SaleId, Unit};

use self::keys::GateKeys;
use self::link::Redis;
use self::reply::{Claims, GateReply, Head};
use crate::codec::digest::Digester;
use crate::codec::message::{self, OutboxClaim};
use crate::options::Strategy;

const SCRIPT: &str = include_str!("gate.lua");
static SCRIPT_SHA: LazyLock<String> =
    LazyLock::new(|| sha1_smol::Sha1::from(SCRIPT).digest().to_string());

/// Maximum number of attempts in one call. The script unpacks at most three values per attempt into
/// one command, well below Lua's limit.
pub(crate) const CLAIM_MAX: usize = 256;
/// Maximum number of items in one `load` or `trim` call.
pub(crate) const ITEMS_MAX: usize = 400;

/// An attempt with its order id and digests. Sending it again is idempotent.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) order_id: OrderId,
    pub(crate) attempt: Attempt,
    pub(crate) buyer_digest: String,
    pub(crate) key_digest: String,
    /// The attempt's part of the claim message.
    pub(crate) part: String,
}

impl Asked {
    pub(crate) fn new(order_id: OrderId, attempt: Attempt, digester: &Digester) -> Self {
        let key = attempt.key.as_ref();
        Self {
            buyer_digest: digester.buyer(&attempt.buyer),
            key_digest: key.map_or_else(String::new, |key| digester.key(&attempt.buyer, key)),
            part: message::attempt_part(&order_id, &attempt),
            order_id,
            attempt,
        }
    }
}

/// The key that a rebuild loads items into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Into {
    Claims,
    Keys,
    Buyers,
    Returned,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutboxEntry {
    pub(crate) id: String,
    pub(crate) at_ms: i64,
    pub(crate) claims: Vec<OutboxClaim>,
}

/// An outbox entry to forward to the log, with its location.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) sale: SaleId,
    pub(crate) keys: GateKeys,
    pub(crate) epoch: u32,
    pub(crate) entry: OutboxEntry,
}

pub(crate) struct Gate {
    pub(crate) redis: Redis,
    strategy: Strategy,
    watch: watch::Watch,
}

impl Gate {
    pub(crate) fn new(
        redis: Redis,
        strategy: Strategy,
        conflicts_wait: std::time::Duration,
    ) -> Self {
        Self {
            redis,
            strategy,
            watch: watch::Watch::new(conflicts_wait),
        }
    }

    /// Decides up to [`CLAIM_MAX`] attempts on one sale.
    pub(crate) async fn claim(
        &self,
        keys: &GateKeys,
        epoch: u32,
        asked: &[Asked],
    ) -> Result<GateReply<Claims>, Fault> {
        debug_assert!(asked.len() <= CLAIM_MAX);
        if self.strategy == Strategy::Watch {
            return self.watch.claim(&self.redis, keys, epoch, asked).await;
        }
        let more = |command: &mut Cmd| {
            for asked in asked {
                command
                    .arg(asked.order_id.as_str())
                    .arg(&asked.buyer_digest)
                    .arg(&asked.key_digest)
                    .arg(message::fingerprint_text(asked.attempt.fingerprint()))
                    .arg(asked.attempt.quantity)
                    .arg(&asked.part);
            }
        };
        match self.run("claim", keys, epoch, more).await? {
            Ok(parts) => {
                let claims = reply::claims(parts)?;
                if claims.decided.len() != asked.len() {
                    return Err(reply::strange(&Value::Nil));
                }
                Ok(Ok(claims))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Removes entries from the outbox.
    pub(crate) async fn trim(
        &self,
        keys: &GateKeys,
        epoch: u32,
        entries: &[String],
    ) -> Result<GateReply<()>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg(entries);
        };
        Ok(self.run("trim", keys, epoch, more).await?.map(|_| ()))
    }

    /// Releases the unit of an ended order. Returns whether the gate knows the order.
    pub(crate) async fn give_back(
        &self,
        keys: &GateKeys,
        epoch: u32,
        order_id: &OrderId,
    ) -> Result<GateReply<(Head, bool)>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg(order_id.as_str());
        };
        Ok(match self.run("give_back", keys, epoch, more).await? {
            Ok(mut parts) => {
                let head = reply::head(&mut parts)?;
                Ok((head, parts.first().and_then(reply::text) != Some("unknown")))
            }
            Err(refusal) => Err(refusal),
        })
    }

    /// Applies newer terms of the sale.
    pub(crate) async fn sync(
        &self,
        keys: &GateKeys,
        epoch: u32,
        sale: &Sale,
    ) -> Result<GateReply<Head>, Fault> {
        let more = |command: &mut Cmd| terms(command, sale);
        self.headed("sync", keys, epoch, more).await
    }

    /// Returns the head of the gate's state if the gate is usable.
    pub(crate) async fn peek(&self, keys: &GateKeys, epoch: u32) -> Result<GateReply<Head>, Fault> {
        self.headed("peek", keys, epoch, |_| {}).await
    }

    pub(crate) async fn knows(
        &self,
        keys: &GateKeys,
        epoch: u32,
        order_id: &OrderId,
    ) -> Result<GateReply<bool>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg(order_id.as_str());
        };
        let said = self.run("look", keys, epoch, more).await?;
        Ok(said.map(|parts| {
            parts
                .first()
                .and_then(reply::text)
                .is_some_and(|found| !found.is_empty())
        }))
    }

    pub(crate) async fn order_of_key(
        &self,
        keys: &GateKeys,
        epoch: u32,
        key_digest: &str,
    ) -> Result<GateReply<Option<OrderId>>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg("").arg(key_digest);
        };
        let said = self.run("look", keys, epoch, more).await?;
        Ok(said.map(|parts| {
            parts
                .first()
                .and_then(reply::text)
                .and_then(|id| OrderId::new(id).ok())
        }))
    }

    /// Stops new claims in this epoch. Returns the number of entries left in the outbox.
    pub(crate) async fn close(&self, keys: &GateKeys, epoch: u32) -> Result<GateReply<u64>, Fault> {
        let said = self.run("close", keys, epoch, |_| {}).await?;
        Ok(said.map(|parts| {
            parts
                .first()
                .and_then(reply::text)
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        }))
    }

    /// Starts an epoch with an empty, closed gate.
    pub(crate) async fn reset(
        &self,
        keys: &GateKeys,
        epoch: u32,
        leader: &str,
    ) -> Result<GateReply<()>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg(leader);
        };
        Ok(self.run("reset", keys, epoch, more).await?.map(|_| ()))
    }

    /// Loads up to [`ITEMS_MAX`] items into a closed gate: alternating fields and values, or units
    /// for [`Into::Returned`].
    pub(crate) async fn load(
        &self,
        keys: &GateKeys,
        epoch: u32,
        leader: &str,
        into: Into,
        items: &[String],
    ) -> Result<GateReply<()>, Fault> {
        let name = match into {
            Into::Claims => "c",
            Into::Keys => "k",
            Into::Buyers => "b",
            Into::Returned => "f",
        };
        let more = |command: &mut Cmd| {
            command.arg(leader).arg(name).arg(items);
        };
        Ok(self.run("load", keys, epoch, more).await?.map(|_| ()))
    }

    /// Opens a loaded gate. `handed_out` counts the units given so far, `returned` those of
    /// them that were released.
    pub(crate) async fn open(
        &self,
        keys: &GateKeys,
        epoch: u32,
        leader: &str,
        sale: &Sale,
        handed_out: u32,
        returned: usize,
    ) -> Result<GateReply<()>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg(leader);
            terms(command, sale);
            command.arg(handed_out).arg(returned);
        };
        Ok(self.run("open", keys, epoch, more).await?.map(|_| ()))
    }

    /// Returns up to `count` outbox entries that follow `after`. A missing outbox counts as empty.
    pub(crate) async fn outbox(
        &self,
        keys: &GateKeys,
        after: Option<&str>,
        count: usize,
    ) -> Result<Vec<OutboxEntry>, Fault> {
        let from = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        self.outbox_range(keys, &from, "+", count).await
    }

    pub(crate) async fn outbox_entry(
        &self,
        keys: &GateKeys,
        id: &str,
    ) -> Result<Option<OutboxEntry>, Fault> {
        Ok(self.outbox_range(keys, id, id, 1).await?.pop())
    }

    /// Returns the released units, and the highest unit number handed out so far.
    pub(crate) async fn offered(&self, keys: &GateKeys) -> Result<(Vec<u32>, u32), Fault> {
        let mut list = redis::cmd("LRANGE");
        list.arg(keys.returned()).arg(1).arg(-1);
        let mut next = redis::cmd("HGET");
        next.arg(keys.terms()).arg("next");
        let (returned, next) = (self.redis.call(&list).await?, self.redis.call(&next).await?);
        let Value::Array(returned) = &returned else {
            return Err(reply::strange(&returned));
        };
        let number = |value: &Value| reply::text(value)?.split(':').next()?.parse().ok();
        let units: Option<Vec<u32>> = returned.iter().map(number).collect();
        units
            .zip(number(&next))
            .ok_or_else(|| reply::strange(&next))
    }

    async fn outbox_range(
        &self,
        keys: &GateKeys,
        from: &str,
        to: &str,
        count: usize,
    ) -> Result<Vec<OutboxEntry>, Fault> {
        let mut command = redis::cmd("XRANGE");
        command
            .arg(keys.outbox())
            .arg(from)
            .arg(to)
            .arg("COUNT")
            .arg(count);
        let value = self.redis.call(&command).await?;
        let Value::Array(entries) = &value else {
            return Err(reply::strange(&value));
        };
        let read: Option<Vec<OutboxEntry>> = entries.iter().map(entry).collect();
        read.ok_or_else(|| reply::strange(&value))
    }

    /// Deletes the keys of a sale.
    pub(crate) async fn forget(&self, keys: &GateKeys) -> Result<(), Fault> {
        let mut command = redis::cmd("DEL");
        command.arg(keys.all().as_slice());
        self.redis.call(&command).await.map(|_| ())
    }

    async fn headed(
        &self,
        operation: &str,
        keys: &GateKeys,
        epoch: u32,
        more: impl Fn(&mut Cmd),
    ) -> Result<GateReply<Head>, Fault> {
        Ok(match self.run(operation, keys, epoch, more).await? {
            Ok(mut parts) => Ok(reply::head(&mut parts)?),
            Err(refusal) => Err(refusal),
        })
    }

    /// Runs an operation of the script. Sends the script again if Redis does not have it, for
    /// example after a restart.
    async fn run(
        &self,
        operation: &str,
        keys: &GateKeys,
        epoch: u32,
        more: impl Fn(&mut Cmd),
    ) -> Result<GateReply<Vec<Value>>, Fault> {
        let command = |name: &str, script: &str| {
            let mut command = redis::cmd(name);
            command
                .arg(script)
                .arg(keys.all().len())
                .arg(keys.all().as_slice())
                .arg(operation)
                .arg(epoch);
            more(&mut command);
            command
        };
        let called = self.redis.call(&command("EVALSHA", &SCRIPT_SHA)).await;
        let value = match called {
            Err(fault)
                if fault.detail.contains("NoScript") || fault.detail.contains("NOSCRIPT") =>
            {
                self.redis.call(&command("EVAL", SCRIPT)).await?
            }
            called => called?,
        };
        reply::read(value)
    }
}

fn terms(command: &mut Cmd, sale: &Sale) {
    let optional = |value: Option<i64>| value.map_or_else(String::new, |value| value.to_string());
    command
        .arg(sale.version)
        .arg(sale.total)
        .arg(optional(sale.buyer_limit.map(i64::from)))
        .arg(optional(sale.opens_at_ms))
        .arg(optional(sale.closes_at_ms));
}

fn entry(value: &Value) -> Option<OutboxEntry> {
    let Value::Array(parts) = value else {
        return None;
    };
    let [id, Value::Array(fields)] = parts.as_slice() else {
        return None;
    };
    let mut fields = fields
        .chunks_exact(2)
        .map(|pair| Some((reply::text(&pair[0])?, reply::text(&pair[1])?)));
    let (_, at_ms) = fields.next()??;
    let id = reply::text(id)?;
    // The claims of a batch have consecutive numbers, and the entry id contains the last one.
    let last_n: u64 = id.split_once('-')?.1.parse().ok()?;
    let first_n = (last_n + 1).checked_sub(fields.len() as u64)?;
    let claims: Option<Vec<OutboxClaim>> = fields
        .zip(first_n..)
        .map(|(field, n)| claim(field?, n))
        .collect();
    Some(OutboxEntry {
        id: id.to_owned(),
        at_ms: at_ms.parse().ok()?,
        claims: claims?,
    })
}

fn claim((part, given): (&str, &str), n: u64) -> Option<OutboxClaim> {
    let mut given = given.split(':');
    let unit = Unit {
        number: given.next()?.parse().ok()?,
        generation: given.next()?.parse().ok()?,
    };
    let slot: u8 = given.next()?.parse().ok()?;
    if given.next().is_some() {
        return None;
    }
    Some(OutboxClaim {
        order_id: OrderId::new(message::order_id_of(part)?).ok()?,
        part: part.to_owned(),
        n,
        line: message::Line {
            unit: unit.number,
            generation: unit.generation,
            slot: (slot > 0).then_some(slot),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox_entry(id: &str, given: &[&str]) -> Value {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let mut fields = vec![text("at"), text("5")];
        for (index, given) in given.iter().enumerate() {
            fields.push(text(&format!(r#""order_id":"id-{index}","buyer":"""#)));
            fields.push(text(given));
        }
        Value::Array(vec![text(id), Value::Array(fields)])
    }

    #[test]
    fn claims_are_numbered_up_to_the_number_of_their_entry() {
        let read = entry(&outbox_entry("4-9", &["7:1:0", "8:1:2", "3:5:0"])).unwrap();
        assert_eq!((read.id.as_str(), read.at_ms), ("4-9", 5));
        let claims = read.claims.iter().enumerate();
        let seen: Vec<_> = claims
            .map(|(index, claim)| {
                assert_eq!(claim.order_id.as_str(), format!("id-{index}"));
                (
                    claim.n,
                    claim.line.unit,
                    claim.line.generation,
                    claim.line.slot,
                )
            })
            .collect();
        assert_eq!(seen, [(7, 7, 1, None), (8, 8, 1, Some(2)), (9, 3, 5, None)]);
    }

    #[test]
    fn malformed_entries_are_rejected() {
        for (id, given) in [
            ("4-9", "7:1"),
            ("4-9", "9:7:1:0"),
            ("4-9", "a:1:0"),
            ("4-x", "7:1:0"),
            ("4", "7:1:0"),
        ] {
            assert_eq!(entry(&outbox_entry(id, &[given])), None, "{id} {given}");
        }
        assert_eq!(
            entry(&outbox_entry("4-1", &["1:1:0", "2:1:0", "3:1:0"])),
            None
        );
        assert_eq!(entry(&Value::Nil), None);
    }
}
