//! The read step of the watch strategy: reads the state under WATCH in one round trip, with the
//! same checks as the script. It makes no decisions.

use std::collections::{BTreeSet, HashMap, VecDeque};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Pipeline, Value};
use seckill_cluster_codec::{digest, order_id};
use seckill_engine::{Cause, Fault};
use seckill_sale::{
    ClaimedUnits, Digest, Holding, ItemNo, KeyedClaim, OrderId, OrderState, Sale, Unit,
};
use smallvec::SmallVec;

use crate::asked::Asked;
use crate::keys::{GateKeys, item_field};
use crate::link::Redis;
use crate::reply::{self, GateReply, Head, Refusal};
use crate::stored::{claim_units, holding_of, key_claim, unit_of};

pub(super) struct Read {
    pub(super) head: Head,
    /// With the gate's terms.
    pub(super) sale: Sale,
    pub(super) win: u8,
    pub(super) outn: u64,
    /// Of each item.
    pub(super) stocks: Vec<ReadStock>,
    pub(super) known: Vec<Option<ClaimedUnits>>,
    pub(super) by_key: HashMap<Digest, KeyedClaim<OrderId>>,
    pub(super) holdings: HashMap<Digest, Holding>,
}

pub(super) struct ReadStock {
    /// As many released units as the batch may take.
    pub(super) returned: VecDeque<Unit>,
    pub(super) next: u32,
}

/// The fields of the terms before those of the items.
const FIELDS: [&str; 10] = [
    "epoch", "run", "gate", "version", "limit", "opens", "closes", "win", "n", "outn",
];

pub(super) async fn read(
    redis: &Redis,
    link: &mut MultiplexedConnection,
    keys: &GateKeys,
    epoch: u32,
    sale: &Sale,
    asked: &[Asked],
) -> Result<GateReply<Read>, Fault> {
    let key_digests: BTreeSet<Digest> = asked.iter().filter_map(|a| a.names.key).collect();
    let buyer_digests: BTreeSet<Digest> = asked.iter().filter_map(|a| a.names.buyer).collect();
    let pipeline = request(keys, asked, &key_digests, &buyer_digests);
    let replies = match link.req_packed_commands(&pipeline, 0, pipeline.len()).await {
        Ok(replies) => replies,
        Err(error) => return Err(redis.fault(&error)),
    };
    let is_error = |value: &&Value| matches!(value, Value::ServerError(_));
    if let Some(Value::ServerError(error)) = replies.iter().find(is_error) {
        let detail = format!("{}: {}", error.code(), error.details().unwrap_or_default());
        return match error.code() {
            "WRONGTYPE" => Ok(Err(Refusal::Type(detail))),
            _ => Err(Fault::without_effect(
                Cause::Store,
                format!("Redis: {detail}"),
            )),
        };
    }
    let strange = || reply::strange(&Value::Array(replies.clone()));
    let [
        _,
        info,
        time,
        stock,
        terms,
        outbox_len,
        claims_len,
        keys_len,
        buyers_len,
        known,
        found,
        held,
        lists @ ..,
    ] = replies.as_slice()
    else {
        return Err(strange());
    };
    let terms = texts(terms).ok_or_else(strange)?;
    if terms.len() != FIELDS.len() + 2 * keys.items() || lists.len() != 2 * keys.items() {
        return Err(strange());
    }
    if let Err(refusal) = check_gate(&terms, info, keys, epoch) {
        return Ok(Err(refusal));
    }
    let number = |at: usize| terms[at]?.parse::<i64>().ok();
    let (Some(version), Some(win), Some(n), Some(outn)) =
        (number(3), number(7), number(8), number(9))
    else {
        return Ok(Err(no_field(keys)));
    };
    let mut head = Head {
        epoch,
        version: version as u64,
        n: n as u64,
        free: SmallVec::new(),
        now_ms: time_ms(time).ok_or_else(strange)?,
        limit: number(4).map(|limit| limit as u32),
        opens_at_ms: number(5),
        closes_at_ms: number(6),
    };
    let mut stocks = Vec::with_capacity(keys.items());
    for (index, list) in lists.chunks_exact(2).enumerate() {
        let at = FIELDS.len() + 2 * index;
        let (Some(total), Some(next)) = (number(at), number(at + 1)) else {
            return Ok(Err(no_field(keys)));
        };
        let (fresh, returned) = (total - next, int(&list[0]) - 1);
        if fresh < 0 || returned < 0 {
            let item = index + 1;
            let detail = format!("item {item} has {fresh} fresh and {returned} released units");
            return Ok(Err(Refusal::Drift(detail)));
        }
        head.free.push((fresh + returned) as u32);
        let units = texts(&list[1]).ok_or_else(strange)?;
        let units: Option<_> = units.into_iter().map(|text| unit_of(text?)).collect();
        stocks.push(ReadStock {
            returned: units.ok_or_else(strange)?,
            next: next as u32,
        });
    }
    let free = i64::from(head.remaining());
    let mirror = reply::text(stock).and_then(|text| text.parse::<i64>().ok());
    let is_emptied = [claims_len, keys_len, buyers_len].map(int).contains(&0);
    if mirror != Some(free) || int(outbox_len) != outn || is_emptied {
        let detail = format!(
            "{} is {mirror:?} (expected {free}); the outbox has {} entries (expected {outn}), or a key was emptied",
            keys.stock(),
            int(outbox_len)
        );
        return Ok(Err(Refusal::Drift(detail)));
    }
    let known = optionals(known).ok_or_else(strange)?.into_iter();
    let known: Option<_> = known
        .map(|value| {
            value
                .map(claim_units)
                .map_or(Some(None), |units| units.map(Some))
        })
        .collect();
    // After the sentinel's.
    let found = optionals(found).ok_or_else(strange)?.into_iter().skip(1);
    let named = key_digests.into_iter().zip(found);
    let named = named.filter_map(|(digest, value)| Some((digest, value?)));
    let by_key = match keyed(redis, link, keys, named).await? {
        Ok(by_key) => by_key,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let held = optionals(held).ok_or_else(strange)?.into_iter().skip(1);
    let holdings = held.map(|value| value.map(holding_of).unwrap_or_default());
    let sale = Sale {
        buyer_limit: head.limit,
        opens_at_ms: head.opens_at_ms,
        closes_at_ms: head.closes_at_ms,
        version: head.version,
        ..sale.clone()
    };
    Ok(Ok(Read {
        head,
        sale,
        win: win as u8,
        outn: outn as u64,
        stocks,
        known: known.ok_or_else(strange)?,
        by_key,
        holdings: buyer_digests.into_iter().zip(holdings).collect(),
    }))
}

fn request(
    keys: &GateKeys,
    asked: &[Asked],
    key_digests: &BTreeSet<Digest>,
    buyer_digests: &BTreeSet<Digest>,
) -> Pipeline {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("WATCH").arg(keys.all());
    pipeline.cmd("INFO").arg("server");
    pipeline.cmd("TIME");
    pipeline.cmd("GET").arg(keys.stock());
    pipeline.cmd("HMGET").arg(keys.terms()).arg(&FIELDS);
    for (item, _) in keys.returned() {
        pipeline.arg(item_field("total", item));
        pipeline.arg(item_field("next", item));
    }
    pipeline.cmd("XLEN").arg(keys.outbox());
    for hash in [keys.claims(), keys.by_key(), keys.buyers()] {
        pipeline.cmd("HLEN").arg(hash);
    }
    pipeline.cmd("HMGET").arg(keys.claims());
    for asked in asked {
        pipeline.arg(&asked.id[..]);
    }
    // HMGET needs at least one field. Every hash contains the sentinel.
    for (hash, digests) in [(keys.by_key(), key_digests), (keys.buyers(), buyer_digests)] {
        pipeline.cmd("HMGET").arg(hash).arg("-");
        for digest in digests {
            pipeline.arg(&digest::to_bytes(*digest)[..]);
        }
    }
    for (item, list) in keys.returned() {
        pipeline.cmd("LLEN").arg(list);
        pipeline
            .cmd("LRANGE")
            .arg(list)
            .arg(1)
            .arg(wanted(asked, item));
    }
    pipeline
}

/// The number of units of an item that a batch wants.
fn wanted(asked: &[Asked], item: ItemNo) -> u32 {
    let lines = asked.iter().filter_map(|asked| asked.lines.as_ref().ok());
    let of_item = lines.flatten().filter(|(of, _)| *of == item);
    of_item.map(|(_, quantity)| quantity).sum()
}

/// Whether the gate is of this epoch, of this run of Redis, and open.
fn check_gate(
    terms: &[Option<&str>],
    info: &Value,
    keys: &GateKeys,
    epoch: u32,
) -> Result<(), Refusal> {
    let [in_epoch, run, gate, ..] = *terms else {
        return Err(no_field(keys));
    };
    let Some(in_epoch) = in_epoch else {
        return Err(Refusal::Gone(format!("{} does not exist", keys.terms())));
    };
    if run != run_id(info) {
        return Err(Refusal::Run(
            "Redis has restarted or failed over since the gate was opened".into(),
        ));
    }
    if in_epoch != epoch.to_string() {
        return Err(Refusal::Epoch(in_epoch.parse().unwrap_or(0)));
    }
    match gate {
        Some("open") => Ok(()),
        _ => Err(Refusal::Rebuilding),
    }
}

fn no_field(keys: &GateKeys) -> Refusal {
    Refusal::Drift(format!("{} is missing a field", keys.terms()))
}

/// Reads the claims stored under idempotency keys.
async fn keyed(
    redis: &Redis,
    link: &mut MultiplexedConnection,
    keys: &GateKeys,
    named: impl Iterator<Item = (Digest, &[u8])>,
) -> Result<GateReply<HashMap<Digest, KeyedClaim<OrderId>>>, Fault> {
    let drift = |why: &str| Refusal::Drift(format!("an idempotency key refers to {why}"));
    let mut command = redis::cmd("HMGET");
    command.arg(keys.claims());
    let mut found = Vec::new();
    for (digest, value) in named {
        let Some((id, fingerprint)) = key_claim(value) else {
            return Ok(Err(drift("something other than an order")));
        };
        command.arg(&id[..]);
        found.push((digest, id, fingerprint));
    }
    if found.is_empty() {
        return Ok(Ok(HashMap::new()));
    }
    let value = redis.call_on(link, &command).await?;
    let claims = optionals(&value).ok_or_else(|| reply::strange(&value))?;
    let mut by_key = HashMap::new();
    for ((digest, id, fingerprint), claim) in found.into_iter().zip(claims) {
        let Some(units) = claim.and_then(claim_units) else {
            return Ok(Err(drift("an unknown order")));
        };
        let claim = KeyedClaim {
            order_id: order_id::from_bytes(&id),
            units: units.iter().map(|unit| unit.item_unit()).collect(),
            fingerprint,
            // Only the store knows the state; the confirmation of a repeat reads it there.
            state: OrderState::Reserved,
        };
        by_key.insert(digest, claim);
    }
    Ok(Ok(by_key))
}

fn run_id(info: &Value) -> Option<&str> {
    let (_, rest) = reply::text(info)?.split_once("run_id:")?;
    rest.split(['\r', '\n']).next()
}

fn time_ms(time: &Value) -> Option<i64> {
    let parts = texts(time)?;
    let [Some(seconds), Some(micros)] = parts[..] else {
        return None;
    };
    Some(seconds.parse::<i64>().ok()? * 1_000 + micros.parse::<i64>().ok()? / 1_000)
}

fn int(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        _ => 0,
    }
}

fn optionals(value: &Value) -> Option<Vec<Option<&[u8]>>> {
    let Value::Array(values) = value else {
        return None;
    };
    let bytes = |value| match value {
        &Value::Nil => Some(None),
        value => reply::bytes(value).map(Some),
    };
    values.iter().map(bytes).collect()
}

fn texts(value: &Value) -> Option<Vec<Option<&str>>> {
    let text = |bytes: Option<_>| match bytes {
        Some(bytes) => std::str::from_utf8(bytes).ok().map(Some),
        None => Some(None),
    };
    optionals(value)?.into_iter().map(text).collect()
}
