//! The decision step of the watch strategy: verdicts by the rules that all engines share, and the
//! same writes that the script makes. No I/O.

use std::collections::{HashMap, HashSet};

use redis::Pipeline;
use seckill_cluster_codec::message::fingerprint_text;
use seckill_sale::{
    Context, Decision, Holding, Invalid, KeyedClaim, OrderState, Rejection, Unit, decide,
};

use super::read::Read;
use crate::asked::Asked;
use crate::keys::GateKeys;
use crate::reply::{Claims, Decided, Head};
use crate::stored::{slots_text, stored_claim, unit_of};

/// Decides a batch like phase 1 of the script. Also returns the writes, if there are any.
pub(super) fn decide_batch(
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
                let context = Context {
                    keyed: read.by_key.get(&asked.key_digest).cloned(),
                    holding: Holding::of_slots(*slots),
                    free: read.head.free - taken,
                };
                match decide(&read.sale, &asked.attempt, &context, window_now_ms) {
                    Decision::Take { slot } => {
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
                    decision => said(decision),
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
        state: OrderState::Reserved,
    };
    by_key.insert(asked.key_digest.clone(), claim);
    new_keys.push((asked.key_digest.clone(), asked.order_id.to_string()));
}

fn said(decision: Decision) -> Decided {
    match decision {
        Decision::Repeat(claim) => Decided::Repeat {
            order_id: claim.order_id,
            unit: claim.unit,
        },
        Decision::Mismatch => Decided::Mismatch,
        Decision::Rejected(Rejection::SoldOut) => Decided::SoldOut,
        Decision::Rejected(Rejection::LimitReached { .. }) => Decided::Limit,
        Decision::Rejected(Rejection::NotOpen { .. }) => Decided::NotOpen,
        Decision::Rejected(Rejection::Closed { .. }) => Decided::Closed,
        Decision::Invalid(Invalid::Quantity { .. }) => Decided::Quantity,
        // A gate belongs to one sale, so `NoSuchSale` cannot occur here.
        Decision::Invalid(_) | Decision::Take { .. } => Decided::BuyerRequired,
    }
}

/// Returns the window state, which only moves forward, and a time at which the rules see that
/// state.
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
