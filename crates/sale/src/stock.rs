//! The stock of one sale: which unit goes next, which came back, and how it is rebuilt from orders.
//! It knows nothing of buyers, keys or time.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::BUYER_LIMIT_MAX;

/// One numbered piece of a sale's stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unit {
    /// 1 to the sale's total.
    #[serde(rename = "unit")]
    pub number: u32,
    /// 1 when first sold; grows by one each time the unit is given back.
    pub generation: u32,
}

impl Unit {
    /// The unit as it goes back on sale.
    pub fn next_generation(self) -> Self {
        Self {
            generation: self.generation + 1,
            ..self
        }
    }
}

/// A unit taken from the stock, with what is needed to put it back as if it had never been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The unit.
    pub unit: Unit,
    fresh: bool,
}

/// The free units of a sale: those never handed out, as one counter, and those given back, in that order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stock {
    total: u32,
    handed_out: u32,
    returned: VecDeque<Unit>,
}

impl Stock {
    /// A stock that nothing was sold from.
    pub fn new(total: u32) -> Self {
        Self {
            total,
            ..Self::default()
        }
    }

    /// Units free now.
    pub fn free(&self) -> u32 {
        // The free list never holds more units than were handed out, so the sum is at most the total.
        self.total - self.handed_out + self.returned.len() as u32
    }

    /// Units in all.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Takes the next unit: one given back if there is one, else a fresh one.
    pub fn take(&mut self) -> Option<Taken> {
        if let Some(unit) = self.returned.pop_front() {
            return Some(Taken { unit, fresh: false });
        }
        if self.handed_out == self.total {
            return None;
        }
        self.handed_out += 1;
        let unit = Unit {
            number: self.handed_out,
            generation: 1,
        };
        Some(Taken { unit, fresh: true })
    }

    /// Puts the latest taken unit back where it was. Undoing goes strictly backwards through what was done.
    pub fn undo_take(&mut self, taken: Taken) {
        if taken.fresh {
            debug_assert_eq!(self.handed_out, taken.unit.number);
            self.handed_out -= 1;
        } else {
            self.returned.push_front(taken.unit);
        }
    }

    /// Puts a unit back on sale, at its next generation.
    pub fn give_back(&mut self, ended: Unit) {
        debug_assert!(ended.number <= self.handed_out);
        self.returned.push_back(ended.next_generation());
    }

    /// Takes back the latest `give_back`.
    pub fn undo_give_back(&mut self) {
        self.returned.pop_back();
    }

    /// Sets a new total, which is never below what was handed out: totals only grow.
    pub fn set_total(&mut self, total: u32) {
        debug_assert!(total >= self.handed_out);
        self.total = total;
    }
}

/// The places 1..=64 that one buyer's active orders of a sale take up; a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Slots(u64);

impl Slots {
    /// How many are taken.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether none is taken.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest slot that is not taken, 1..=64.
    pub fn lowest_free(self) -> Option<u8> {
        let slot = self.0.trailing_ones();
        (slot < BUYER_LIMIT_MAX).then_some(slot as u8 + 1)
    }

    /// With this slot taken; `None` where it was taken already or is out of 1..=64.
    pub fn with(self, slot: u8) -> Option<Self> {
        let bit = Self::bit(slot)?;
        (self.0 & bit == 0).then_some(Self(self.0 | bit))
    }

    /// With this slot free.
    pub fn without(self, slot: u8) -> Self {
        Self(self.0 & !Self::bit(slot).unwrap_or(0))
    }

    fn bit(slot: u8) -> Option<u64> {
        (1..=64).contains(&slot).then(|| 1 << (slot - 1))
    }
}

/// An order that does not fit the sale's stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitFault {
    /// The unit's number is not in 1..=total.
    #[error("unit {} is not in 1..={total}", unit.number)]
    OutOfRange {
        /// The unit.
        unit: Unit,
        /// The sale's total.
        total: u32,
    },
    /// The generation is 0.
    #[error("unit {} has generation 0", unit.number)]
    NoGeneration {
        /// The unit.
        unit: Unit,
    },
    /// Two active orders hold the unit.
    #[error("unit {} is sold twice", unit.number)]
    SoldTwice {
        /// The unit.
        unit: Unit,
    },
    /// An order of a later generation exists though this one never ended.
    #[error("unit {} was sold again at generation {} while an earlier order holds it", unit.number, unit.generation)]
    SoldWhileHeld {
        /// The unit, at the later generation.
        unit: Unit,
    },
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    latest: u32,
    active: u32,
}

/// Rebuilds a stock from the orders of a sale, in any order of rows.
#[derive(Debug, Clone)]
pub struct StockRebuild {
    total: u32,
    seen: Vec<Seen>,
}

impl StockRebuild {
    /// Begins with no orders.
    pub fn new(total: u32) -> Self {
        Self {
            total,
            seen: Vec::new(),
        }
    }

    /// Takes note of one order.
    pub fn see(&mut self, unit: Unit, active: bool) -> Result<(), UnitFault> {
        let total = self.total;
        if unit.number == 0 || unit.number > total {
            return Err(UnitFault::OutOfRange { unit, total });
        }
        if unit.generation == 0 {
            return Err(UnitFault::NoGeneration { unit });
        }
        let index = unit.number as usize - 1;
        if index >= self.seen.len() {
            self.seen.resize(index + 1, Seen::default());
        }
        let seen = &mut self.seen[index];
        if active && seen.active != 0 {
            return Err(UnitFault::SoldTwice { unit });
        }
        if active {
            seen.active = unit.generation;
        }
        seen.latest = seen.latest.max(unit.generation);
        Ok(())
    }

    /// The stock that these orders leave: active units taken, ended ones free at their next generation, and a gap
    /// between sold units free as new.
    pub fn finish(self) -> Result<Stock, UnitFault> {
        let mut returned = VecDeque::new();
        for (index, seen) in self.seen.iter().enumerate() {
            let unit = Unit {
                number: index as u32 + 1,
                generation: seen.latest,
            };
            if seen.active == 0 {
                returned.push_back(unit.next_generation());
            } else if seen.active != seen.latest {
                return Err(UnitFault::SoldWhileHeld { unit });
            }
        }
        Ok(Stock {
            total: self.total,
            handed_out: self.seen.len() as u32,
            returned,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(number: u32, generation: u32) -> Unit {
        Unit { number, generation }
    }

    #[test]
    fn units_go_once_each_and_come_back_at_the_next_generation() {
        let mut stock = Stock::new(2);
        assert_eq!(stock.take().unwrap().unit, unit(1, 1));
        assert_eq!(stock.take().unwrap().unit, unit(2, 1));
        assert_eq!(stock.take(), None);
        stock.give_back(unit(1, 1));
        assert_eq!(stock.free(), 1);
        assert_eq!(stock.take().unwrap().unit, unit(1, 2));
    }

    #[test]
    fn undoing_backwards_restores_the_stock_exactly() {
        let mut stock = Stock::new(3);
        stock.take();
        stock.give_back(unit(1, 1));
        let before = stock.clone();
        let first = stock.take().unwrap();
        let second = stock.take().unwrap();
        stock.give_back(first.unit);
        stock.undo_give_back();
        stock.undo_take(second);
        stock.undo_take(first);
        assert_eq!(stock, before);
    }

    #[test]
    fn a_rebuild_fills_gaps_and_refuses_what_cannot_be() {
        let mut rebuild = StockRebuild::new(5);
        rebuild.see(unit(4, 1), true).unwrap();
        rebuild.see(unit(1, 2), true).unwrap();
        rebuild.see(unit(1, 1), false).unwrap();
        let mut stock = rebuild.clone().finish().unwrap();
        let mut free: Vec<Unit> = std::iter::from_fn(|| stock.take())
            .map(|t| t.unit)
            .collect();
        free.sort_unstable();
        assert_eq!(free, [unit(2, 1), unit(3, 1), unit(5, 1)]);

        assert!(rebuild.see(unit(4, 2), true).is_err());
        assert!(rebuild.see(unit(6, 1), true).is_err());
        assert!(rebuild.see(unit(0, 1), true).is_err());
        rebuild.see(unit(1, 3), false).unwrap();
        let fault = rebuild.finish().unwrap_err();
        assert_eq!(fault, UnitFault::SoldWhileHeld { unit: unit(1, 3) });
    }

    #[test]
    fn slots_fill_from_the_lowest() {
        let slots = Slots::default().with(1).unwrap().with(3).unwrap();
        assert_eq!(slots.lowest_free(), Some(2));
        assert_eq!(slots.with(3), None);
        assert_eq!(slots.without(1).count(), 1);
        let full = (1..=64).fold(Slots::default(), |s, slot| s.with(slot).unwrap());
        assert_eq!(full.lowest_free(), None);
        assert_eq!(full.with(65), None);
    }
}
