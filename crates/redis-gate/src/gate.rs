//! The operations of the gate, each one atomic step in Redis. What they decide is up to the script
//! and the rules, not to this file.

use std::sync::LazyLock;

use redis::{Cmd, Value};
use seckill_cluster_codec::{digest, order_id};
use seckill_engine::Fault;
use seckill_sale::{Digest, OrderId, Sale, Unit};

use crate::asked::Asked;
use crate::keys::{GateKeys, item_field};
use crate::link::Redis;
use crate::options::{GateOptions, Strategy};
use crate::reply::{self, Claims, GateReply, Head};
use crate::stored::{key_claim, unit_of};
use crate::url::InvalidRedisUrl;
use crate::watch::Watch;

const SCRIPT: &str = include_str!("gate.lua");
static SCRIPT_SHA: LazyLock<String> =
    LazyLock::new(|| sha1_smol::Sha1::from(SCRIPT).digest().to_string());

/// Maximum number of attempts in one call. The script unpacks at most three values per attempt into
/// one command, well below Lua's limit.
pub const CLAIM_MAX: usize = 256;
/// Maximum number of entries in one `load` or `trim` call.
pub const ENTRIES_MAX: usize = 400;

/// The units of an item that the gate offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// Released units, in the order in which they are sold.
    pub returned: Vec<Unit>,
    /// The highest unit number handed out so far.
    pub handed_out: u32,
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
        sale: &Sale,
        asked: &[Asked],
    ) -> Result<GateReply<Claims>, Fault> {
        debug_assert!(asked.len() <= CLAIM_MAX);
        if self.strategy == Strategy::Watch {
            let watch = &self.watch;
            return watch.claim(&self.redis, keys, epoch, sale, asked).await;
        }
        let more = |command: &mut Cmd| {
            for asked in asked {
                push_attempt(command, asked);
            }
        };
        Ok(match self.run("claim", keys, epoch, more).await? {
            Ok(parts) => Ok(reply::claims(parts, sale, asked)?),
            Err(refusal) => Err(refusal),
        })
    }

    /// Releases the units of an ended order. Returns whether the gate knows the order.
    pub async fn give_back(
        &self,
        keys: &GateKeys,
        epoch: u32,
        order_id: &OrderId,
    ) -> Result<GateReply<(Head, bool)>, Fault> {
        let more = |command: &mut Cmd| push_order_id(command, order_id);
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
        let more = |command: &mut Cmd| push_terms(command, sale);
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
        let more = |command: &mut Cmd| push_order_id(command, order_id);
        let said = self.run("look", keys, epoch, more).await?;
        Ok(said.map(|parts| {
            let found = parts.first().and_then(reply::bytes);
            found.is_some_and(|found| !found.is_empty())
        }))
    }

    /// Returns the order id of a key's claim.
    pub async fn order_of_key(
        &self,
        keys: &GateKeys,
        epoch: u32,
        key: Digest,
    ) -> Result<GateReply<Option<OrderId>>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg("").arg(&digest::to_bytes(key)[..]);
        };
        let said = self.run("look", keys, epoch, more).await?;
        Ok(said.map(|parts| {
            let found = parts.first().and_then(reply::bytes).and_then(key_claim);
            found.map(|(id, _)| order_id::from_bytes(&id))
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

    /// Returns the units of each item that the gate offers.
    pub async fn offered(&self, keys: &GateKeys) -> Result<Vec<Offered>, Fault> {
        let mut offered = Vec::with_capacity(keys.items());
        for (item, key) in keys.returned() {
            let mut list = redis::cmd("LRANGE");
            list.arg(key).arg(1).arg(-1);
            let mut next = redis::cmd("HGET");
            next.arg(keys.terms()).arg(item_field("next", item));
            let (list, next) = (self.redis.call(&list).await?, self.redis.call(&next).await?);
            let Value::Array(units) = &list else {
                return Err(reply::strange(&list));
            };
            let unit = |value: &Value| unit_of(reply::text(value)?);
            let returned: Option<Vec<Unit>> = units.iter().map(unit).collect();
            let handed_out = reply::text(&next).and_then(|next| next.parse().ok());
            offered.push(Offered {
                returned: returned.ok_or_else(|| reply::strange(&list))?,
                handed_out: handed_out.ok_or_else(|| reply::strange(&next))?,
            });
        }
        Ok(offered)
    }

    /// Deletes the keys of a sale.
    pub async fn forget(&self, keys: &GateKeys) -> Result<(), Fault> {
        let mut command = redis::cmd("DEL");
        command.arg(keys.all());
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
                .arg(keys.all())
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

fn push_attempt(command: &mut Cmd, asked: &Asked) {
    let digest = |digest: Option<Digest>| digest.map(digest::to_bytes);
    let (buyer, key) = (digest(asked.names.buyer), digest(asked.names.key));
    let fingerprint = key.map(|_| asked.attempt.fingerprint().to_be_bytes());
    command
        .arg(&asked.id[..])
        .arg(buyer.as_ref().map_or(&[][..], |digest| digest))
        .arg(key.as_ref().map_or(&[][..], |digest| digest))
        .arg(fingerprint.as_ref().map_or(&[][..], |bytes| bytes))
        .arg(asked.lines_text().as_ref())
        .arg(&asked.part);
}

/// The gate knows no id other than those of 24 bytes.
fn push_order_id(command: &mut Cmd, order_id: &OrderId) {
    let id = order_id::to_bytes(order_id);
    command.arg(id.as_ref().map_or(&[][..], |id| id));
}

pub(crate) fn push_terms(command: &mut Cmd, sale: &Sale) {
    let optional = |value: Option<i64>| value.map_or_else(String::new, |value| value.to_string());
    command
        .arg(sale.version)
        .arg(optional(sale.buyer_limit.map(i64::from)))
        .arg(optional(sale.opens_at_ms))
        .arg(optional(sale.closes_at_ms));
    for item in &sale.items {
        command.arg(item.total);
    }
}
