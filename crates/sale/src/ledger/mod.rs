//! The ledger: the state machine that decides, `(state, command, now) → (outcome, write)`. Whoever
//! owns it stores the writes, then commits; what could not be stored is undone. It does no I/O,
//! reads no clock and does not lock.

mod outcome;
mod rebuild;
mod sale_ledger;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::{
    Attempt, ClaimedUnit, ClaimedUnits, Context, Decision, Holding, Invalid, ItemNo, ItemUnit,
    KeyedClaim, NewSale, NotAllowed, OrderChange, OrderState, OrderUnits, Sale, SaleChange, SaleId,
    SaleRefused, Slots, Stock, Taken, decide,
};

pub use outcome::{
    Attempted, Change, HeldOrder, Inconsistent, Names, NewClaim, OrderWrite, SaleWrite,
};
pub use rebuild::{RebuildFault, SaleRebuild};
pub use sale_ledger::{Holdings, SaleLedger};

/// Identifies a buyer, or a buyer's key, within a sale. Callers compute it with a keyed hash, so
/// that the length of a name does not matter and no client can make two names collide.
pub type Digest = u128;

/// Uses a digest as its own hash: digests are already uniformly distributed.
#[derive(Default)]
pub struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        // Only u128 is ever hashed; this satisfies the trait for anything else.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }
}

pub type ByDigest = BuildHasherDefault<DigestHasher>;

/// The number of a sale in its ledger, from 1. It never changes, so stores use it as a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaleNo(u32);

impl SaleNo {
    pub fn get(self) -> u32 {
        self.0
    }

    pub fn index(self) -> usize {
        self.0 as usize - 1
    }

    fn of_index(index: usize) -> Self {
        Self(index as u32 + 1)
    }
}

/// The durable claims that were made with keys.
pub trait ClaimIndex<Id> {
    fn find(&self, key: Digest) -> Option<KeyedClaim<Id>>;
}

impl<Id: Clone, S: std::hash::BuildHasher> ClaimIndex<Id> for HashMap<Digest, KeyedClaim<Id>, S> {
    fn find(&self, key: Digest) -> Option<KeyedClaim<Id>> {
        self.get(&key).cloned()
    }
}

enum Undo {
    Numbered(SaleNo),
    Taken(SaleNo, ItemNo, Taken),
    Released(SaleNo, ItemNo),
    Held {
        sale: SaleNo,
        buyer: Digest,
        before: Holding,
    },
    Created(SaleNo),
    Changed(SaleNo, Box<(Sale, Vec<Stock>)>),
}

/// The state of all sales. `Id` is how the owner identifies orders.
pub struct Ledger<Id> {
    sales: Vec<SaleLedger>,
    numbers: HashMap<SaleId, SaleNo>,
    /// Claims with keys since the last commit; the earlier ones are in the owner's index.
    claims: HashMap<Digest, KeyedClaim<Id>, ByDigest>,
    undo: Vec<Undo>,
}

impl<Id> Default for Ledger<Id> {
    fn default() -> Self {
        Self {
            sales: Vec::new(),
            numbers: HashMap::new(),
            claims: HashMap::default(),
            undo: Vec::new(),
        }
    }
}

impl<Id: Clone> Ledger<Id> {
    /// A ledger with these sales, which get the numbers from 1 on.
    pub fn new(sales: Vec<SaleLedger>) -> Self {
        let number = |(index, ledger): (usize, &SaleLedger)| {
            (ledger.sale.id.clone(), SaleNo::of_index(index))
        };
        Self {
            numbers: sales.iter().enumerate().map(number).collect(),
            sales,
            ..Self::default()
        }
    }

    /// By number.
    pub fn sales(&self) -> &[SaleLedger] {
        &self.sales
    }

    pub fn number(&self, id: &SaleId) -> Option<SaleNo> {
        self.numbers.get(id).copied()
    }

    pub fn sale(&self, id: &SaleId) -> Option<&SaleLedger> {
        Some(&self.sales[self.number(id)?.index()])
    }

    /// Whether there is anything to commit or to undo.
    pub fn is_changed(&self) -> bool {
        !self.undo.is_empty()
    }

    /// Decides an attempt, and takes its units under this order id.
    pub fn attempt(
        &mut self,
        order_id: &Id,
        attempt: &Attempt,
        names: Names,
        index: &impl ClaimIndex<Id>,
        now_ms: i64,
    ) -> Attempted<Id> {
        let Some(number) = self.number(&attempt.sale) else {
            return Attempted::Invalid(Invalid::NoSuchSale);
        };
        let ledger = &self.sales[number.index()];
        let keyed = names.key.and_then(|key| match self.claims.get(&key) {
            Some(claim) => Some(claim.clone()),
            None => index.find(key),
        });
        let holding = names
            .buyer
            .map_or_else(Holding::default, |buyer| ledger.holding(buyer));
        let context = Context {
            keyed,
            holding,
            free: ledger.free(),
        };
        let (lines, slots) = match decide(&ledger.sale, attempt, context, now_ms) {
            Decision::Take { lines, slots } => (lines, slots),
            Decision::Repeat(claim) => return Attempted::repeat(ledger, claim),
            Decision::Mismatch => return Attempted::Mismatch,
            Decision::Rejected(rejection) => return Attempted::Rejected(rejection),
            Decision::Invalid(invalid) => return Attempted::Invalid(invalid),
        };
        let ledger = &mut self.sales[number.index()];
        let mut free_slots = slots.unwrap_or_default().iter();
        let mut units = ClaimedUnits::new();
        let mut order_units = OrderUnits::new();
        for (item, quantity) in lines {
            for _ in 0..quantity {
                let Some((taken, order_unit)) = ledger.take(item) else {
                    unreachable!("the units of item {} were counted", item.get())
                };
                self.undo.push(Undo::Taken(number, item, taken));
                units.push(ClaimedUnit {
                    item,
                    unit: taken.unit,
                    slot: free_slots.next(),
                });
                order_units.push(order_unit);
            }
        }
        let sequence = ledger.next_sequence();
        self.undo.push(Undo::Numbered(number));
        if let Some(buyer) = names.buyer {
            let next = Holding {
                held: holding.held + units.len() as u32,
                slots: holding.slots.union(slots.unwrap_or_default()),
            };
            let before = ledger.set_holding(buyer, next);
            self.undo.push(Undo::Held {
                sale: number,
                buyer,
                before,
            });
        }
        let remaining = ledger.remaining();
        let fingerprint = names.key.map(|key| {
            let fingerprint = attempt.fingerprint();
            let claim = KeyedClaim {
                order_id: order_id.clone(),
                units: units.iter().map(|unit| unit.item_unit()).collect(),
                fingerprint,
                state: OrderState::Reserved,
            };
            self.claims.insert(key, claim);
            fingerprint
        });
        Attempted::Claimed(NewClaim {
            sale: number,
            units,
            order_units,
            fingerprint,
            sequence,
            remaining,
        })
    }

    /// Changes the state of an order, and releases its units if it ends. `None` if the change was
    /// made already.
    pub fn change_order(
        &mut self,
        order: &HeldOrder<'_, Id>,
        change: OrderChange,
    ) -> Result<Result<Option<OrderWrite>, NotAllowed>, Inconsistent> {
        let next = match change.apply(order.state) {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(Ok(None)),
            Err(refused) => return Ok(Err(refused)),
        };
        let number = self.number(order.sale).ok_or(Inconsistent::NoSuchSale)?;
        let sequence = self.set_state(number, order, next)?;
        Ok(Ok(Some(OrderWrite {
            sale: number,
            state: next,
            sequence,
        })))
    }

    fn set_state(
        &mut self,
        number: SaleNo,
        order: &HeldOrder<'_, Id>,
        next: OrderState,
    ) -> Result<u64, Inconsistent> {
        if order.state.is_active() && !next.is_active() {
            self.release(number, order)?;
        }
        if let Some(key) = order.names.key {
            // So that a repeat of the key returns the state.
            let claim = KeyedClaim {
                order_id: order.order_id.clone(),
                units: order.units.iter().map(|unit| unit.item_unit()).collect(),
                fingerprint: order.fingerprint,
                state: next,
            };
            self.claims.insert(key, claim);
        }
        self.undo.push(Undo::Numbered(number));
        Ok(self.sales[number.index()].next_sequence())
    }

    fn release(&mut self, number: SaleNo, order: &HeldOrder<'_, Id>) -> Result<(), Inconsistent> {
        let ledger = &mut self.sales[number.index()];
        let count = order.units.len() as u32;
        // Everything is checked before anything changes.
        if let Some(unit) = order.units.iter().find(|unit| !ledger.has_item(unit.item)) {
            return Err(Inconsistent::NoSuchItem(unit.item));
        }
        if let Some(buyer) = order.names.buyer {
            let Holding { held, slots } = ledger.holding(buyer);
            let rest = held
                .checked_sub(count)
                .ok_or(Inconsistent::NotHeld { held })?;
            let freed = order.units.iter().filter_map(|unit| unit.slot);
            let freed = freed.fold(Slots::default(), |all, slot| all.with(slot).unwrap_or(all));
            let next = Holding {
                held: rest,
                slots: slots.difference(freed),
            };
            let before = ledger.set_holding(buyer, next);
            self.undo.push(Undo::Held {
                sale: number,
                buyer,
                before,
            });
        }
        for &ClaimedUnit { item, unit, .. } in order.units {
            ledger.release(item, unit);
            self.undo.push(Undo::Released(number, item));
        }
        Ok(())
    }

    pub fn create_sale(&mut self, new: NewSale) -> Result<SaleWrite, SaleRefused> {
        if let Some(ledger) = self.sale(&new.id) {
            return Err(SaleRefused::Exists(Box::new(ledger.sale.clone())));
        }
        let sale = new.validate()?;
        let mut ledger = SaleLedger::new(sale.clone());
        let sequence = ledger.next_sequence();
        let number = SaleNo::of_index(self.sales.len());
        self.numbers.insert(sale.id.clone(), number);
        self.sales.push(ledger);
        self.undo.push(Undo::Created(number));
        Ok(SaleWrite {
            number,
            sale,
            sequence,
        })
    }

    pub fn change_sale(
        &mut self,
        id: &SaleId,
        change: &SaleChange,
    ) -> Result<SaleWrite, SaleRefused> {
        let Some(number) = self.number(id) else {
            return Err(SaleRefused::NoSuchSale(id.clone()));
        };
        let ledger = &mut self.sales[number.index()];
        let sale = change.apply(&ledger.sale, &ledger.usage(change))?;
        let before = ledger.set_terms(sale.clone());
        self.undo.push(Undo::Changed(number, Box::new(before)));
        let sequence = ledger.next_sequence();
        self.undo.push(Undo::Numbered(number));
        Ok(SaleWrite {
            number,
            sale,
            sequence,
        })
    }

    /// Restores the state of the last commit.
    pub fn undo(&mut self) {
        self.claims.clear();
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            match step {
                Undo::Numbered(sale) => self.sales[sale.index()].undo_sequence(),
                Undo::Taken(sale, item, taken) => self.sales[sale.index()].undo_take(item, taken),
                Undo::Released(sale, item) => self.sales[sale.index()].undo_release(item),
                Undo::Held {
                    sale,
                    buyer,
                    before,
                } => {
                    self.sales[sale.index()].set_holding(buyer, before);
                }
                Undo::Created(_) => {
                    if let Some(created) = self.sales.pop() {
                        self.numbers.remove(&created.sale.id);
                    }
                }
                Undo::Changed(sale, before) => self.sales[sale.index()].restore_terms(*before),
            }
        }
    }

    /// Makes everything since the last commit permanent, and hands it to `publish`: claims and
    /// holdings first, free units last, so that a reader who sees a sold-out sale also sees the
    /// claims that sold it out.
    pub fn commit(&mut self, mut publish: impl FnMut(Change<'_, Id>)) {
        for (key, claim) in &self.claims {
            publish(Change::Claim(*key, claim));
        }
        self.claims.clear();
        for step in &self.undo {
            if let &Undo::Held { sale, buyer, .. } = step {
                let sale = &self.sales[sale.index()];
                publish(Change::Holding {
                    sale,
                    buyer,
                    holding: sale.holding(buyer),
                });
            }
        }
        let mut changed: Vec<(SaleNo, bool)> = Vec::new();
        for step in self.undo.drain(..) {
            let (number, has_new_terms) = match step {
                Undo::Held { .. } => continue,
                Undo::Taken(sale, ..) | Undo::Released(sale, _) | Undo::Numbered(sale) => {
                    (sale, false)
                }
                Undo::Created(sale) | Undo::Changed(sale, _) => (sale, true),
            };
            match changed.last_mut() {
                Some((last, is_new)) if *last == number => *is_new |= has_new_terms,
                _ => changed.push((number, has_new_terms)),
            }
        }
        // Each sale once, with its latest state.
        changed.sort_unstable_by_key(|&(number, has_new_terms)| (number, !has_new_terms));
        changed.dedup_by_key(|(number, _)| *number);
        for (number, has_new_terms) in changed {
            publish(Change::Sale {
                number,
                ledger: &self.sales[number.index()],
                has_new_terms,
            });
        }
    }
}

impl<Id> Attempted<Id> {
    fn repeat(ledger: &SaleLedger, claim: KeyedClaim<Id>) -> Self {
        let units: Vec<ItemUnit> = claim.units.to_vec();
        match ledger.sale.order_units(units) {
            Some(units) => Self::Repeat {
                claim,
                units,
                remaining: ledger.remaining(),
            },
            None => unreachable!("items are never removed from a sale"),
        }
    }
}

#[cfg(test)]
mod tests;
