//! The tutorial's way to take a unit: WATCH, read, decide here by the rules, MULTI, write, EXEC, and again on a conflict.
//! It reads and writes exactly what the script does, so that both may serve one sale.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, Value};
use seckill_engine::{Cause, Fault};
use seckill_sale::{
    Invalid, KeyedClaim, No, OrderId, Sale, Screened, Slots, Standing, Unit, screen,
};

use super::Asked;
use super::keys::GateKeys;
use super::link::Redis;
use super::reply::{self, Claims, Decided, Head, Refusal, Said};
use crate::words::message::fingerprint_text;

/// Connections kept for the next call.
const IDLE_MAX: usize = 64;
/// The longest pause after a conflict.
const PAUSE_MAX_MS: u64 = 8;
/// As the script writes slots: a character each.
const SLOT_ZERO: u8 = b'0';

/// Connections of one's own: WATCH belongs to a connection, and one that came back by itself would have lost it.
pub(crate) struct Watch {
    idle: Mutex<Vec<(String, MultiplexedConnection)>>,
    conflicts_wait: Duration,
}

/// What was read under WATCH.
struct Read {
    head: Head,
    sale: Sale,
    win: u8,
    next: u32,
    outn: u64,
    returned: Vec<Unit>,
    known: Vec<Option<String>>,
    by_key: HashMap<String, KeyedClaim>,
    slots: HashMap<String, Slots>,
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
        asked: &[Asked],
    ) -> Result<Said<Claims>, Fault> {
        let mut link = match self.take(keys) {
            Some(link) => link,
            None => redis.private(keys.stock()).await?,
        };
        let until = Instant::now() + self.conflicts_wait;
        let mut conflicts = 0_u32;
        loop {
            let read = match read(redis, &mut link, keys, epoch, asked).await? {
                Ok(read) => read,
                Err(refusal) => {
                    call(redis, &mut link, &redis::cmd("UNWATCH")).await?;
                    self.give(keys, link);
                    return Ok(Err(refusal));
                }
            };
            let (claims, writes) = decide(read, keys, epoch, asked);
            let Some(writes) = writes else {
                call(redis, &mut link, &redis::cmd("UNWATCH")).await?;
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
                    "{conflicts} conflicts over {} within {:?}; nothing was taken",
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

/// 0 to a bound that doubles with each conflict: clients that met must not meet again.
fn jitter_ms(conflicts: u32) -> u64 {
    let bound = PAUSE_MAX_MS.min(1 << conflicts.min(10));
    let mut random = [0; 8];
    // Without random bytes everybody waits the longest.
    if getrandom::fill(&mut random).is_err() {
        return bound;
    }
    u64::from_le_bytes(random) % (bound + 1)
}

async fn call(
    redis: &Redis,
    link: &mut MultiplexedConnection,
    command: &Cmd,
) -> Result<Value, Fault> {
    let called = command.query_async::<Value>(link).await;
    called.map_err(|error| redis.fault(&error))
}

async fn read(
    redis: &Redis,
    link: &mut MultiplexedConnection,
    keys: &GateKeys,
    epoch: u32,
    asked: &[Asked],
) -> Result<Said<Read>, Fault> {
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
        "epoch", "run", "gate", "ver", "total", "limit", "opens", "closes", "win", "next", "n",
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
    // A command must have an argument; the sentinel is one that every hash has.
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
        return Ok(Err(Refusal::Gone(format!("there is no {}", keys.terms()))));
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
    let Some((ver, total, win, next, n, outn)) = numbers else {
        return Ok(Err(Refusal::Drift(format!(
            "{} lacks a field",
            keys.terms()
        ))));
    };
    let free = total - next + int(returned_len) - 1;
    let mirror = reply::text(stock).and_then(|text| text.parse::<i64>().ok());
    let emptied = hash_lens.iter().any(|len| int(len) < 1) || int(returned_len) < 1;
    if mirror != Some(free) || int(outbox_len) != outn || emptied {
        let detail = format!(
            "{} is {mirror:?}, its sale has {free} free; the outbox has {} entries, not {outn}",
            keys.stock(),
            int(outbox_len)
        );
        return Ok(Err(Refusal::Drift(detail)));
    }
    let head = Head {
        epoch,
        ver: ver as u64,
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
        ver: head.ver,
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

/// The claims under the keys that have one.
async fn keyed(
    redis: &Redis,
    link: &mut MultiplexedConnection,
    keys: &GateKeys,
    named: &[(&String, String)],
) -> Result<Said<HashMap<String, KeyedClaim>>, Fault> {
    if named.is_empty() {
        return Ok(Ok(HashMap::new()));
    }
    let mut command = redis::cmd("HMGET");
    command.arg(keys.claims());
    named.iter().for_each(|(_, id)| {
        command.arg(id);
    });
    let value = call(redis, link, &command).await?;
    let claims = texts(&value).ok_or_else(|| reply::strange(&value))?;
    let mut by_key = HashMap::new();
    for ((digest, id), claim) in named.iter().zip(claims) {
        let claim = claim.as_deref().and_then(|text| keyed_claim(id, text));
        let Some(claim) = claim else {
            let detail = format!("a key names an order that the gate does not know: {id}");
            return Ok(Err(Refusal::Drift(detail)));
        };
        by_key.insert((*digest).clone(), claim);
    }
    Ok(Ok(by_key))
}

/// Phase 1 as the script has it, by the rules that all engines share; and what is to be written, if anything.
fn decide(
    mut read: Read,
    keys: &GateKeys,
    epoch: u32,
    asked: &[Asked],
) -> (Claims, Option<Pipeline>) {
    let (win, window_now_ms) = window(&read);
    let (mut taken, mut taken_returned, mut n) = (0_u32, 0, read.head.n);
    let mut fresh = read.next;
    let (mut decided, mut touched) = (Vec::with_capacity(asked.len()), HashSet::new());
    let (mut claims, mut new_keys, mut entry) = (Vec::new(), Vec::new(), Vec::new());
    for (asked, known) in asked.iter().zip(&read.known) {
        let said = match known.as_deref().map(unit_of) {
            Some(Some(unit)) => Decided::ClaimedBefore { unit },
            _ => {
                let slots = read.slots.entry(asked.buyer_digest.clone()).or_default();
                let standing = Standing {
                    keyed: read.by_key.get(&asked.key_digest).cloned(),
                    slots: *slots,
                    free: read.head.free - taken,
                };
                match screen(&read.sale, &asked.attempt, &standing, window_now_ms) {
                    Screened::Take { slot } => {
                        let unit = match read.returned.get(taken_returned) {
                            Some(unit) => {
                                taken_returned += 1;
                                *unit
                            }
                            None => {
                                fresh += 1;
                                Unit {
                                    number: fresh,
                                    generation: 1,
                                }
                            }
                        };
                        taken += 1;
                        n += 1;
                        if let Some(slot) = slot {
                            *slots = slots.with(slot).unwrap_or(*slots);
                            touched.insert(asked.buyer_digest.clone());
                        }
                        take_note(&mut read.by_key, &mut new_keys, asked, unit);
                        claims.push((asked.order_id.to_string(), claim_text(asked, unit, slot)));
                        let given =
                            format!("{}:{}:{}", unit.number, unit.generation, slot.unwrap_or(0));
                        entry.push((asked.part.clone(), given));
                        Decided::Claimed { unit, slot }
                    }
                    screened => said(screened),
                }
            }
        };
        decided.push(said);
    }
    let mut writes = Pipeline::new();
    writes.atomic();
    let mut entry_id = String::new();
    if taken > 0 {
        entry_id = format!("{epoch}-{n}");
        writes.cmd("DECRBY").arg(keys.stock()).arg(taken);
        let fields = [
            ("next", u64::from(fresh)),
            ("n", n),
            ("outn", read.outn + 1),
            ("win", win.into()),
        ];
        writes.cmd("HSET").arg(keys.terms()).arg(&fields);
        writes.cmd("HSET").arg(keys.claims()).arg(&claims);
        if !new_keys.is_empty() {
            writes.cmd("HSET").arg(keys.by_key()).arg(&new_keys);
        }
        if !touched.is_empty() {
            let changed = touched.iter().map(|digest| {
                (
                    digest,
                    slots_text(read.slots.get(digest).copied().unwrap_or_default()),
                )
            });
            writes
                .cmd("HSET")
                .arg(keys.buyers())
                .arg(changed.collect::<Vec<_>>());
        }
        if taken_returned > 0 {
            writes
                .cmd("LPOP")
                .arg(keys.returned())
                .arg(taken_returned + 1);
            writes.cmd("LPUSH").arg(keys.returned()).arg("-");
        }
        writes
            .cmd("XADD")
            .arg(keys.outbox())
            .arg(&entry_id)
            .arg("at")
            .arg(read.head.now_ms)
            .arg(&entry);
    } else if win != read.win {
        writes.cmd("HSET").arg(keys.terms()).arg("win").arg(win);
    }
    let head = Head {
        n,
        free: read.head.free - taken,
        ..read.head
    };
    let writes = (!writes.is_empty()).then_some(writes);
    (
        Claims {
            head,
            entry: entry_id,
            decided,
        },
        writes,
    )
}

fn take_note(
    by_key: &mut HashMap<String, KeyedClaim>,
    new_keys: &mut Vec<(String, String)>,
    asked: &Asked,
    unit: Unit,
) {
    if asked.key_digest.is_empty() {
        return;
    }
    let claim = KeyedClaim {
        order_id: asked.order_id.clone(),
        unit,
        fingerprint: asked.attempt.fingerprint(),
    };
    by_key.insert(asked.key_digest.clone(), claim);
    new_keys.push((asked.key_digest.clone(), asked.order_id.to_string()));
}

fn said(screened: Screened) -> Decided {
    match screened {
        Screened::Repeat(claim) => Decided::Repeat {
            order_id: claim.order_id,
            unit: claim.unit,
        },
        Screened::Mismatch => Decided::Mismatch,
        Screened::No(No::SoldOut) => Decided::SoldOut,
        Screened::No(No::LimitReached { .. }) => Decided::Limit,
        Screened::No(No::NotOpen { .. }) => Decided::NotOpen,
        Screened::No(No::Closed { .. }) => Decided::Closed,
        Screened::Invalid(Invalid::Quantity { .. }) => Decided::Quantity,
        // A gate has one sale, so that `NoSuchSale` cannot be said here.
        Screened::Invalid(_) | Screened::Take { .. } => Decided::BuyerRequired,
    }
}

/// The window's state, which only moves on, and a moment that shows the rules that state.
fn window(read: &Read) -> (u8, i64) {
    let (sale, now_ms) = (&read.sale, read.head.now_ms);
    let now_win = match sale.window(now_ms) {
        seckill_sale::WindowState::NotOpen { .. } => 0,
        seckill_sale::WindowState::Open => 1,
        seckill_sale::WindowState::Closed { .. } => 2,
    };
    if now_win >= read.win {
        return (now_win, now_ms);
    }
    let shown_ms = if read.win == 2 {
        sale.closes_at_ms
    } else {
        sale.opens_at_ms
    };
    (read.win, shown_ms.unwrap_or(now_ms))
}

fn claim_text(asked: &Asked, unit: Unit, slot: Option<u8>) -> String {
    let fingerprint = fingerprint_text(asked.attempt.fingerprint());
    stored_claim(unit, slot, &fingerprint, &asked.buyer_digest, true)
}

/// A claim as the gate's hash has it.
pub(crate) fn stored_claim(
    unit: Unit,
    slot: Option<u8>,
    fingerprint: &str,
    buyer_digest: &str,
    is_live: bool,
) -> String {
    format!(
        "{}:{}:{}:{fingerprint}:{buyer_digest}:{}",
        unit.number,
        unit.generation,
        slot.unwrap_or(0),
        if is_live { "live" } else { "ended" }
    )
}

fn keyed_claim(id: &str, text: &str) -> Option<KeyedClaim> {
    let fingerprint = text.split(':').nth(3)?;
    Some(KeyedClaim {
        order_id: OrderId::new(id).ok()?,
        unit: unit_of(text)?,
        fingerprint: u64::from_str_radix(fingerprint, 16).ok()?,
    })
}

fn unit_of(text: &str) -> Option<Unit> {
    let mut parts = text.split(':');
    Some(Unit {
        number: parts.next()?.parse().ok()?,
        generation: parts.next()?.parse().ok()?,
    })
}

fn slots_of(text: &str) -> Slots {
    let slots = text.bytes().map(|byte| byte.wrapping_sub(SLOT_ZERO));
    slots.fold(Slots::default(), |slots, slot| {
        slots.with(slot).unwrap_or(slots)
    })
}

/// Slots as the script writes them.
pub(crate) fn slots_text(slots: Slots) -> String {
    let all = (1..=64).filter(|slot| slots.with(*slot).is_none());
    all.map(|slot| char::from(SLOT_ZERO + slot)).collect()
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

/// An array of texts, each of which may be absent.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_written_as_the_script_reads_them() {
        let slots = Slots::default()
            .with(1)
            .unwrap()
            .with(3)
            .unwrap()
            .with(64)
            .unwrap();
        assert_eq!(slots_text(slots), "13p");
        assert_eq!(slots_of("13p"), slots);
        assert_eq!(slots_of(""), Slots::default());
    }
}
