//! The tutorial's watch strategy: WATCH, read, decide in this process, MULTI, write, EXEC, and
//! retry on a conflict. Must read and write exactly what the script does: both can serve one sale.

mod decide;
mod read;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use redis::Value;
use redis::aio::MultiplexedConnection;
use seckill_engine::{Cause, Fault};
use seckill_sale::Sale;

use self::decide::decide_batch;
use self::read::read;
use crate::asked::Asked;
use crate::keys::GateKeys;
use crate::link::Redis;
use crate::reply::{Claims, GateReply};

/// Maximum number of idle connections kept for later calls.
const IDLE_MAX: usize = 64;
/// The longest pause after a conflict, in milliseconds.
const PAUSE_MAX_MS: u64 = 8;

/// A pool of private connections. WATCH is bound to its connection, and a connection that
/// reconnects by itself would lose it.
pub(crate) struct Watch {
    idle: Mutex<Vec<(String, MultiplexedConnection)>>,
    conflicts_wait: Duration,
}

impl Watch {
    pub(crate) fn new(conflicts_wait: Duration) -> Self {
        Self {
            idle: Mutex::default(),
            conflicts_wait,
        }
    }

    pub(crate) async fn claim(
        &self,
        redis: &Redis,
        keys: &GateKeys,
        epoch: u32,
        sale: &Sale,
        asked: &[Asked],
    ) -> Result<GateReply<Claims>, Fault> {
        let mut link = match self.take(keys) {
            Some(link) => link,
            None => redis.private(keys.stock()).await?,
        };
        let until = Instant::now() + self.conflicts_wait;
        let mut conflicts = 0_u32;
        loop {
            let read = match read(redis, &mut link, keys, epoch, sale, asked).await? {
                Ok(read) => read,
                Err(refusal) => {
                    redis.call_on(&mut link, &redis::cmd("UNWATCH")).await?;
                    self.give(keys, link);
                    return Ok(Err(refusal));
                }
            };
            let (claims, writes) = decide_batch(read, keys, epoch, asked);
            let Some(writes) = writes else {
                redis.call_on(&mut link, &redis::cmd("UNWATCH")).await?;
                self.give(keys, link);
                return Ok(Ok(claims));
            };
            let written = writes.query_async::<Value>(&mut link).await;
            match written.map_err(|error| redis.fault(&error))? {
                Value::Nil => {}
                _ => {
                    self.give(keys, link);
                    return Ok(Ok(claims));
                }
            }
            conflicts += 1;
            if Instant::now() > until {
                self.give(keys, link);
                let detail = format!(
                    "{conflicts} conflicts on {} within {:?}; no unit was taken",
                    keys.stock(),
                    self.conflicts_wait
                );
                return Err(Fault::without_effect(Cause::Overloaded, detail));
            }
            tokio::time::sleep(Duration::from_millis(jitter_ms(conflicts))).await;
        }
    }

    fn take(&self, keys: &GateKeys) -> Option<MultiplexedConnection> {
        let mut idle = self
            .idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = idle.iter().position(|(key, _)| key == keys.stock())?;
        Some(idle.swap_remove(at).1)
    }

    fn give(&self, keys: &GateKeys, link: MultiplexedConnection) {
        let mut idle = self
            .idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if idle.len() == IDLE_MAX {
            idle.swap_remove(0);
        }
        idle.push((keys.stock().to_owned(), link));
    }
}

/// A random pause from 0 to a bound that doubles with each conflict, so that clients that
/// conflicted do not conflict again.
fn jitter_ms(conflicts: u32) -> u64 {
    let bound = PAUSE_MAX_MS.min(1 << conflicts.min(10));
    let mut random = [0; 8];
    // Without random bytes, every client uses the upper bound.
    if getrandom::fill(&mut random).is_err() {
        return bound;
    }
    u64::from_le_bytes(random) % (bound + 1)
}
