//! The read step of the watch strategy: reads the state under WATCH in one round trip, with the
//! same checks as the script. It makes no decisions.

use std::collections::{HashMap, HashSet};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Pipeline, Value};
use seckill_engine::{Cause, Fault};
use seckill_sale::{KeyedClaim, OrderId, OrderState, Sale, Slots, Unit};

use crate::asked::Asked;
use crate::keys::GateKeys;
use crate::link::Redis;
use crate::reply::{self, GateReply, Head, Refusal};
use crate::stored::{slots_of, unit_of};

pub(super) struct Read {
    pub(super) head: Head,
    pub(super) sale: Sale,
    pub(super) win: u8,
    pub(super) next: u32,
    pub(super) outn: u64,
    pub(super) returned: Vec<Unit>,
    pub(super) known: Vec<Option<String>>,
    pub(super) by_key: HashMap<String, KeyedClaim>,
    pub(super) slots: HashMap<String, Slots>,
}

pub(super) async fn read(
    redis: &Redis,
    link: &mut MultiplexedConnection,
    keys: &GateKeys,
    epoch: u32,
    asked: &[Asked],
) -> Result<GateReply<Read>, Fault> {
    let distinct = |of: fn(&Asked) -> &String| {
        let mut seen = HashSet::new();
        let named = asked.iter().map(of).filter(|digest| !digest.is_empty());
        named
            .filter(|digest| seen.insert(*digest))
            .collect::<Vec<_>>()
    };
    let (key_digests, buyer_digests) = (distinct(|a| &a.key_digest), distinct(|a| &a.buyer_digest));
    let mut pipeline = Pipeline::new();
    pipeline.cmd("WATCH").arg(keys.all().as_slice());
    pipeline.cmd("INFO").arg("server");
    pipeline.cmd("TIME");
    pipeline.cmd("GET").arg(keys.stock());
    pipeline.cmd("HMGET").arg(keys.terms()).arg(&[
        "epoch", "run", "gate", "version", "total", "limit", "opens", "closes", "win", "next", "n",
        "outn",
    ]);
    pipeline.cmd("LLEN").arg(keys.returned());
    pipeline.cmd("XLEN").arg(keys.outbox());
    for hash in [keys.claims(), keys.by_key(), keys.buyers()] {
        pipeline.cmd("HLEN").arg(hash);
    }
    pipeline
        .cmd("LRANGE")
        .arg(keys.returned())
        .arg(1)
        .arg(asked.len());
    pipeline.cmd("HMGET").arg(keys.claims());
    asked.iter().for_each(|asked| {
        pipeline.arg(asked.order_id.as_str());
    });
    // HMGET needs at least one field. Every hash contains the sentinel.
    pipeline
        .cmd("HMGET")
        .arg(keys.by_key())
        .arg("-")
        .arg(&key_digests);
    pipeline
        .cmd("HMGET")
        .arg(keys.buyers())
        .arg("-")
        .arg(&buyer_digests);
    let replies = match link.req_packed_commands(&pipeline, 0, pipeline.len()).await {
        Ok(replies) => replies,
        Err(error) => return Err(redis.fault(&error)),
    };
    if let Some(Value::ServerError(error)) = replies
        .iter()
        .find(|value| matches!(value, Value::ServerError(_)))
    {
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
        returned_len,
        outbox_len,
        hash_lens @ ..,
        returned,
        known,
        ids,
        slots,
    ] = replies.as_slice()
    else {
        return Err(strange());
    };
    let now_ms = time_ms(time).ok_or_else(strange)?;
    let terms = texts(terms);
    let Some(terms) = terms.as_deref().filter(|terms| terms.len() == 12) else {
        return Err(strange());
    };
    let [in_epoch, run, gate, ..] = terms else {
        return Err(strange());
    };
    let Some(in_epoch) = in_epoch else {
        return Ok(Err(Refusal::Gone(format!(
            "{} does not exist",
            keys.terms()
        ))));
    };
    if run.as_deref() != run_id(info) {
        return Ok(Err(Refusal::Run(
            "Redis has restarted or failed over since the gate was opened".into(),
        )));
    }
    if *in_epoch != epoch.to_string() {
        return Ok(Err(Refusal::Epoch(in_epoch.parse().unwrap_or(0))));
    }
    if gate.as_deref() != Some("open") {
        return Ok(Err(Refusal::Rebuilding));
    }
    let number = |at: usize| {
        terms[at]
            .as_deref()
            .and_then(|text| text.parse::<i64>().ok())
    };
    let numbers = (|| {
        Some((
            number(3)?,
            number(4)?,
            number(8)?,
            number(9)?,
            number(10)?,
            number(11)?,
        ))
    })();
    let Some((version, total, win, next, n, outn)) = numbers else {
        return Ok(Err(Refusal::Drift(format!(
            "{} is missing a field",
            keys.terms()
        ))));
    };
    let free = total - next + int(returned_len) - 1;
    let mirror = reply::text(stock).and_then(|text| text.parse::<i64>().ok());
    let emptied = hash_lens.iter().any(|len| int(len) < 1) || int(returned_len) < 1;
    if mirror != Some(free) || int(outbox_len) != outn || emptied {
        let detail = format!(
            "{} is {mirror:?} (expected {free}); the outbox has {} entries (expected {outn})",
            keys.stock(),
            int(outbox_len)
        );
        return Ok(Err(Refusal::Drift(detail)));
    }
    let head = Head {
        epoch,
        version: version as u64,
        n: n as u64,
        free: free as u32,
        now_ms,
        limit: number(5).map(|limit| limit as u32),
        opens_at_ms: number(6),
        closes_at_ms: number(7),
    };
    let known_values = texts(known).ok_or_else(strange)?;
    let found = texts(ids).ok_or_else(strange)?;
    let named: Vec<(&String, String)> = key_digests
        .iter()
        .zip(found.into_iter().skip(1))
        .filter_map(|(digest, id)| Some((*digest, id?)))
        .collect();
    let by_key = match keyed(redis, link, keys, &named).await? {
        Ok(by_key) => by_key,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let slot_texts = texts(slots).ok_or_else(strange)?;
    let taken = buyer_digests.iter().zip(slot_texts.into_iter().skip(1));
    let slots = taken
        .map(|(digest, text)| ((*digest).clone(), slots_of(&text.unwrap_or_default())))
        .collect();
    let returned: Option<Vec<Unit>> = texts(returned)
        .ok_or_else(strange)?
        .iter()
        .map(|text| unit_of(text.as_deref()?))
        .collect();
    let Some(sale_id) = asked.first().map(|asked| asked.attempt.sale.clone()) else {
        return Err(strange());
    };
    let sale = Sale {
        id: sale_id,
        title: String::new(),
        total: total as u32,
        buyer_limit: head.limit,
        opens_at_ms: head.opens_at_ms,
        closes_at_ms: head.closes_at_ms,
        version: head.version,
    };
    Ok(Ok(Read {
        head,
        sale,
        win: win as u8,
        next: next as u32,
        outn: outn as u64,
        returned: returned.ok_or_else(strange)?,
        known: known_values,
        by_key,
        slots,
    }))
}

/// Reads the claims stored under idempotency keys.
async fn keyed(
    redis: &Redis,
    link: &mut MultiplexedConnection,
    keys: &GateKeys,
    named: &[(&String, String)],
) -> Result<GateReply<HashMap<String, KeyedClaim>>, Fault> {
    if named.is_empty() {
        return Ok(Ok(HashMap::new()));
    }
    let mut command = redis::cmd("HMGET");
    command.arg(keys.claims());
    named.iter().for_each(|(_, id)| {
        command.arg(id);
    });
    let value = redis.call_on(link, &command).await?;
    let claims = texts(&value).ok_or_else(|| reply::strange(&value))?;
    let mut by_key = HashMap::new();
    for ((digest, id), claim) in named.iter().zip(claims) {
        let claim = claim.as_deref().and_then(|text| keyed_claim(id, text));
        let Some(claim) = claim else {
            let detail = format!("an idempotency key refers to an unknown order: {id}");
            return Ok(Err(Refusal::Drift(detail)));
        };
        by_key.insert((*digest).clone(), claim);
    }
    Ok(Ok(by_key))
}

fn keyed_claim(id: &str, text: &str) -> Option<KeyedClaim> {
    let fingerprint = text.split(':').nth(3)?;
    Some(KeyedClaim {
        order_id: OrderId::new(id).ok()?,
        unit: unit_of(text)?,
        fingerprint: u64::from_str_radix(fingerprint, 16).ok()?,
        // Only the store knows the state; the confirmation of a repeat reads it there.
        state: OrderState::Reserved,
    })
}

fn run_id(info: &Value) -> Option<&str> {
    let (_, rest) = reply::text(info)?.split_once("run_id:")?;
    rest.split(['\r', '\n']).next()
}

fn time_ms(time: &Value) -> Option<i64> {
    let parts = texts(time)?;
    let [Some(seconds), Some(micros)] = parts.as_slice() else {
        return None;
    };
    Some(seconds.parse::<i64>().ok()? * 1_000 + micros.parse::<i64>().ok()? / 1_000)
}

fn int(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        _ => -1,
    }
}

fn texts(value: &Value) -> Option<Vec<Option<String>>> {
    let Value::Array(values) = value else {
        return None;
    };
    let text = |value: &Value| match value {
        Value::Nil => Some(None),
        value => reply::text(value).map(|text| Some(text.to_owned())),
    };
    values.iter().map(text).collect()
}
