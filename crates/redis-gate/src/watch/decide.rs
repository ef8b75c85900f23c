//! The decision step of the watch strategy: verdicts by the rules that all engines share, and the
//! same writes that the script makes. No I/O.

use std::collections::{BTreeMap, HashSet};

use redis::Pipeline;
use seckill_cluster_codec::digest;
use seckill_sale::{
    ClaimedUnit, ClaimedUnits, Context, Decision, Digest, Holding, ItemNo, KeyedClaim, OrderState,
    Slots, TakenLines, Unit, WindowState, decide,
};

use super::read::Read;
use crate::asked::Asked;
use crate::keys::{GateKeys, item_field};
use crate::reply::{Claims, Decided};
use crate::stored::{stored_claim, stored_holding, stored_key, units_text};

/// What a batch writes.
#[derive(Default)]
struct Writes {
    claims: Vec<(Vec<u8>, Vec<u8>)>,
    keys: Vec<(Vec<u8>, Vec<u8>)>,
    /// The message part and the units of each claim.
    entry: Vec<(String, String)>,
    buyers: HashSet<Digest>,
    /// Of each item that has a claim, how many released units were taken.
    taken_returned: BTreeMap<ItemNo, usize>,
    units: usize,
}

/// Decides a batch like phase 1 of the script. Also returns the writes, if there are any.
pub(super) fn decide_batch(
    mut read: Read,
    keys: &GateKeys,
    epoch: u32,
    asked: &[Asked],
) -> (Claims, Option<Pipeline>) {
    let (win, window_now_ms) = window(&read);
    let mut writes = Writes::default();
    let mut decided = Vec::with_capacity(asked.len());
    for (index, asked) in asked.iter().enumerate() {
        decided.push(match &read.known[index] {
            Some(units) => Decided::ClaimedBefore {
                units: units.iter().map(|unit| unit.item_unit()).collect(),
            },
            None => decide_one(&mut read, &mut writes, asked, window_now_ms),
        });
    }
    read.head.n += writes.claims.len() as u64;
    let mut entry = String::new();
    let mut commands = Pipeline::new();
    commands.atomic();
    if writes.units > 0 {
        entry = format!("{epoch}-{}", read.head.n);
        writes.push_commands(&mut commands, keys, &read, win, &entry);
    } else if win != read.win {
        commands.cmd("HSET").arg(keys.terms()).arg("win").arg(win);
    }
    let commands = (!commands.is_empty()).then_some(commands);
    let head = read.head;
    (
        Claims {
            head,
            entry,
            decided,
        },
        commands,
    )
}

fn decide_one(read: &mut Read, writes: &mut Writes, asked: &Asked, now_ms: i64) -> Decided {
    let holding = asked
        .names
        .buyer
        .and_then(|buyer| read.holdings.get(&buyer));
    let holding = holding.copied().unwrap_or_default();
    let context = Context {
        keyed: asked
            .names
            .key
            .and_then(|key| read.by_key.get(&key))
            .cloned(),
        holding,
        free: &read.head.free,
    };
    let (lines, slots) = match decide(&read.sale, &asked.attempt, context, now_ms) {
        Decision::Take { lines, slots } => (lines, slots),
        Decision::Repeat(claim) => {
            return Decided::Repeat {
                order_id: claim.order_id,
                units: claim.units,
            };
        }
        Decision::Mismatch => return Decided::Mismatch,
        Decision::Rejected(rejection) => return Decided::Rejected(rejection),
        Decision::Invalid(invalid) => return Decided::Invalid(invalid),
    };
    let units = take(read, writes, lines, slots);
    // Units count against a limit only while there is one.
    let buyer = asked.names.buyer.filter(|_| slots.is_some());
    if let (Some(buyer), Some(slots)) = (buyer, slots) {
        let next = Holding {
            held: holding.held + units.len() as u32,
            slots: holding.slots.union(slots),
        };
        read.holdings.insert(buyer, next);
        writes.buyers.insert(buyer);
    }
    if let Some(key) = asked.names.key {
        let claim = KeyedClaim {
            order_id: asked.order_id.clone(),
            units: units.iter().map(|unit| unit.item_unit()).collect(),
            fingerprint: asked.attempt.fingerprint(),
            state: OrderState::Reserved,
        };
        let value = stored_key(&asked.id, claim.fingerprint);
        read.by_key.insert(key, claim);
        writes.keys.push((digest::to_bytes(key).into(), value));
    }
    let value = stored_claim(&units, buyer, true);
    writes.claims.push((asked.id.into(), value));
    writes.entry.push((asked.part.clone(), units_text(&units)));
    Decided::Claimed { units }
}

/// Takes the units of lines that `decide` found to be free.
fn take(
    read: &mut Read,
    writes: &mut Writes,
    lines: TakenLines,
    slots: Option<Slots>,
) -> ClaimedUnits {
    let mut slots = slots.unwrap_or_default().iter();
    let mut units = ClaimedUnits::new();
    for (item, quantity) in lines {
        let stock = &mut read.stocks[item.index()];
        let taken_returned = writes.taken_returned.entry(item).or_default();
        read.head.free[item.index()] -= quantity;
        for _ in 0..quantity {
            let unit = match stock.returned.pop_front() {
                Some(unit) => {
                    *taken_returned += 1;
                    unit
                }
                None => {
                    stock.next += 1;
                    Unit {
                        number: stock.next,
                        generation: 1,
                    }
                }
            };
            let slot = slots.next();
            units.push(ClaimedUnit { item, unit, slot });
        }
    }
    writes.units += units.len();
    units
}

impl Writes {
    /// Like phase 2 of the script.
    fn push_commands(
        self,
        commands: &mut Pipeline,
        keys: &GateKeys,
        read: &Read,
        win: u8,
        entry: &str,
    ) {
        commands.cmd("DECRBY").arg(keys.stock()).arg(self.units);
        commands.cmd("HSET").arg(keys.terms());
        for item in self.taken_returned.keys() {
            let next = read.stocks[item.index()].next;
            commands.arg(item_field("next", *item)).arg(next);
        }
        commands.arg("n").arg(read.head.n);
        commands.arg("outn").arg(read.outn + 1).arg("win").arg(win);
        commands.cmd("HSET").arg(keys.claims()).arg(&self.claims);
        if !self.keys.is_empty() {
            commands.cmd("HSET").arg(keys.by_key()).arg(&self.keys);
        }
        if !self.buyers.is_empty() {
            commands.cmd("HSET").arg(keys.buyers());
            for buyer in &self.buyers {
                let holding = read.holdings.get(buyer).copied().unwrap_or_default();
                let buyer = digest::to_bytes(*buyer);
                commands.arg(&buyer[..]).arg(stored_holding(holding));
            }
        }
        for (item, list) in keys.returned() {
            let taken = self.taken_returned.get(&item).copied().unwrap_or(0);
            if taken > 0 {
                commands.cmd("LPOP").arg(list).arg(taken + 1);
                commands.cmd("LPUSH").arg(list).arg("-");
            }
        }
        commands
            .cmd("XADD")
            .arg(keys.outbox())
            .arg(entry)
            .arg("at")
            .arg(read.head.now_ms)
            .arg(&self.entry);
    }
}

/// Returns the window state, which only moves forward, and a time at which the rules see that
/// state.
fn window(read: &Read) -> (u8, i64) {
    let (sale, now_ms) = (&read.sale, read.head.now_ms);
    let now_win = match sale.window(now_ms) {
        WindowState::NotOpen { .. } => 0,
        WindowState::Open => 1,
        WindowState::Closed { .. } => 2,
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
