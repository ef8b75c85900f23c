//! The operations of the gate, each one atomic step in Redis. What they decide is up to the script
//! and the rules, not to this file.

use std::sync::LazyLock;

use redis::{Cmd, Value};
use seckill_cluster_codec::message;
use seckill_engine::Fault;
use seckill_sale::{OrderId, Sale};

use crate::asked::Asked;
use crate::keys::GateKeys;
use crate::link::Redis;
use crate::options::{GateOptions, Strategy};
use crate::reply::{self, Claims, GateReply, Head};
use crate::url::InvalidRedisUrl;
use crate::watch::Watch;

const SCRIPT: &str = include_str!("gate.lua");
static SCRIPT_SHA: LazyLock<String> =
    LazyLock::new(|| sha1_smol::Sha1::from(SCRIPT).digest().to_string());

/// Maximum number of attempts in one call. The script unpacks at most three values per attempt into
/// one command, well below Lua's limit.
pub const CLAIM_MAX: usize = 256;
/// Maximum number of items in one `load` or `trim` call.
pub const ITEMS_MAX: usize = 400;

/// The key that a rebuild loads items into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoadKey {
    Claims,
    Keys,
    Buyers,
    Returned,
}

/// A client of the gates of all sales.
pub struct Gate {
    pub(crate) redis: Redis,
    strategy: Strategy,
    watch: Watch,
    /// The key of the list of hints.
    pub(crate) hints: String,
}

impl Gate {
    /// Does not connect yet.
    pub fn new(options: GateOptions) -> Result<Self, InvalidRedisUrl> {
        Ok(Self {
            redis: Redis::new(&options.url, options.ca, options.reply_wait)?,
            strategy: options.strategy,
            watch: Watch::new(options.conflicts_wait),
            hints: format!("{}seckill:hints", options.key_prefix),
        })
    }

    /// Connects if there is no connection yet.
    pub async fn reach(&self) -> Result<(), Fault> {
        self.redis.reach().await
    }

    /// Checks whether Redis replies.
    pub async fn ping(&self) -> Result<(), Fault> {
        self.redis.call(&redis::cmd("PING")).await.map(|_| ())
    }

    /// Decides up to [`CLAIM_MAX`] attempts on one sale.
    pub async fn claim(
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

    /// Releases the unit of an ended order. Returns whether the gate knows the order.
    pub async fn give_back(
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
    pub async fn sync(
        &self,
        keys: &GateKeys,
        epoch: u32,
        sale: &Sale,
    ) -> Result<GateReply<Head>, Fault> {
        let more = |command: &mut Cmd| terms(command, sale);
        self.headed("sync", keys, epoch, more).await
    }

    /// Returns the head of the gate's state if the gate is usable.
    pub async fn peek(&self, keys: &GateKeys, epoch: u32) -> Result<GateReply<Head>, Fault> {
        self.headed("peek", keys, epoch, |_| {}).await
    }

    pub async fn knows(
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

    pub async fn order_of_key(
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
    pub async fn close(&self, keys: &GateKeys, epoch: u32) -> Result<GateReply<u64>, Fault> {
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
    pub async fn reset(
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
    /// for [`LoadKey::Returned`].
    pub async fn load(
        &self,
        keys: &GateKeys,
        epoch: u32,
        leader: &str,
        into: LoadKey,
        items: &[String],
    ) -> Result<GateReply<()>, Fault> {
        let name = match into {
            LoadKey::Claims => "c",
            LoadKey::Keys => "k",
            LoadKey::Buyers => "b",
            LoadKey::Returned => "f",
        };
        let more = |command: &mut Cmd| {
            command.arg(leader).arg(name).arg(items);
        };
        Ok(self.run("load", keys, epoch, more).await?.map(|_| ()))
    }

    /// Opens a loaded gate. `handed_out` counts the units given so far, `returned` those of
    /// them that were released.
    pub async fn open(
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

    /// Returns the released units, and the highest unit number handed out so far.
    pub async fn offered(&self, keys: &GateKeys) -> Result<(Vec<u32>, u32), Fault> {
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

    /// Deletes the keys of a sale.
    pub async fn forget(&self, keys: &GateKeys) -> Result<(), Fault> {
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
    pub(crate) async fn run(
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
