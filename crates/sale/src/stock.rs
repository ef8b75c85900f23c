//! The stock of one item: which unit is sold next, which units were released, and how the stock is
//! rebuilt from orders. It does not know buyers' names, keys or the time.

use std::collections::{HashSet, VecDeque};

use crate::SALE_TOTAL_MAX;

/// One numbered piece of an item's stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unit {
    /// 1 to the item's total.
    pub number: u32,
    /// 1 when first sold. Increases by one each time the unit is released.
    pub generation: u32,
}

impl Unit {
    /// The unit as it is sold again after its release.
    #[must_use]
    pub fn next_generation(self) -> Self {
        Self {
            generation: self.generation + 1,
            ..self
        }
    }
}

/// A unit that was taken from the stock, with what is needed to undo that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub unit: Unit,
    fresh: bool,
}

/// The free units of an item: those never sold, as one counter, and those that were released.
/// A released unit whose number is above a lowered total is withheld: it is not for sale, and keeps
/// its generation until the total is raised again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stock {
    total: u32,
    /// The highest unit number ever sold.
    handed_out: u32,
    returned: VecDeque<Unit>,
    withheld: Vec<Unit>,
}

impl Stock {
    /// A stock from which nothing has been sold.
    pub fn new(total: u32) -> Self {
        Self {
            total,
            ..Self::default()
        }
    }

    pub fn free(&self) -> u32 {
        let never_sold = self.total.saturating_sub(self.handed_out);
        let free = never_sold + self.returned.len() as u32;
        assert!(
            free <= self.total,
            "{free} of {} units are free",
            self.total
        );
        free
    }

    pub fn total(&self) -> u32 {
        self.total
    }

    /// Takes the next unit: a released one if there is one, otherwise a fresh one.
    pub fn take(&mut self) -> Option<Taken> {
        if let Some(unit) = self.returned.pop_front() {
            return Some(Taken { unit, fresh: false });
        }
        if self.handed_out >= self.total {
            return None;
        }
        self.handed_out += 1;
        let unit = Unit {
            number: self.handed_out,
            generation: 1,
        };
        Some(Taken { unit, fresh: true })
    }

    /// Undoes the latest [`Stock::take`]. Steps must be undone in reverse order.
    pub fn undo_take(&mut self, taken: Taken) {
        if taken.fresh {
            assert_eq!(
                self.handed_out, taken.unit.number,
                "steps must be undone in reverse order"
            );
            self.handed_out -= 1;
        } else {
            self.returned.push_front(taken.unit);
        }
    }

    /// Puts a unit back on sale, at its next generation.
    pub fn release(&mut self, ended: Unit) {
        assert!(
            ended.number >= 1 && ended.number <= self.handed_out && ended.number <= self.total,
            "unit {} was released but not sold",
            ended.number
        );
        self.returned.push_back(ended.next_generation());
    }

    /// Undoes the latest [`Stock::release`].
    pub fn undo_release(&mut self) {
        let undone = self.returned.pop_back();
        assert!(
            undone.is_some(),
            "a release must be undone before its unit is taken"
        );
    }

    /// The highest unit number that an order holds; 0 if there is none. Takes time proportional to
    /// the number of released units.
    pub fn highest_sold(&self) -> u32 {
        let free: HashSet<u32> = self
            .returned
            .iter()
            .chain(&self.withheld)
            .map(|unit| unit.number)
            .collect();
        (1..=self.handed_out)
            .rev()
            .find(|number| !free.contains(number))
            .unwrap_or(0)
    }

    /// Sets a new total, which must not be below [`Stock::highest_sold`].
    pub fn set_total(&mut self, total: u32) {
        let all = self.returned.drain(..).chain(self.withheld.drain(..));
        let (returned, withheld): (Vec<_>, Vec<_>) = all.partition(|unit| unit.number <= total);
        assert!(
            self.handed_out.saturating_sub(total) as usize == withheld.len(),
            "total {total} is below a sold unit"
        );
        self.returned = returned.into();
        self.withheld = withheld;
        self.total = total;
    }

    /// The highest unit number ever sold, at most the total, and the released units that are for
    /// sale. A gate outside this process is filled with them.
    pub fn into_parts(self) -> (u32, VecDeque<Unit>) {
        (self.handed_out.min(self.total), self.returned)
    }
}

/// Why the unit of an order does not fit the stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitFault {
    #[error("unit {} is not in 1..={total}", unit.number)]
    OutOfRange { unit: Unit, total: u32 },
    #[error("unit {} has generation 0", unit.number)]
    NoGeneration { unit: Unit },
    #[error("unit {} is sold twice", unit.number)]
    SoldTwice { unit: Unit },
    /// An order of a later generation exists although this one never ended.
    #[error("unit {} was sold again at generation {} while an earlier order still holds it", unit.number, unit.generation)]
    SoldWhileHeld { unit: Unit },
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    latest: u32,
    active: u32,
}

/// Rebuilds a stock from the units of orders. They may come in any order.
#[derive(Debug, Clone)]
pub struct StockRebuild {
    total: u32,
    seen: Vec<Seen>,
}

impl StockRebuild {
    pub fn new(total: u32) -> Self {
        Self {
            total,
            seen: Vec::new(),
        }
    }

    /// Adds the unit of an order. Only the unit of an active order must be within the total: the total may
    /// have been lowered below a released unit.
    pub fn see(&mut self, unit: Unit, active: bool) -> Result<(), UnitFault> {
        let highest = if active { self.total } else { SALE_TOTAL_MAX };
        if unit.number == 0 || unit.number > highest {
            let total = self.total;
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

    /// The stock that these orders leave: units of active orders are taken, units of ended orders
    /// are free at their next generation, and units in gaps between sold ones are free at their
    /// first.
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
        let mut stock = Stock {
            total: self.total,
            handed_out: self.seen.len() as u32,
            returned,
            withheld: Vec::new(),
        };
        stock.set_total(self.total);
        Ok(stock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(number: u32, generation: u32) -> Unit {
        Unit { number, generation }
    }

    #[test]
    fn units_are_sold_once_each_and_return_at_the_next_generation() {
        let mut stock = Stock::new(2);
        assert_eq!(stock.take().unwrap().unit, unit(1, 1));
        assert_eq!(stock.take().unwrap().unit, unit(2, 1));
        assert_eq!(stock.take(), None);
        stock.release(unit(1, 1));
        assert_eq!(stock.free(), 1);
        assert_eq!(stock.take().unwrap().unit, unit(1, 2));
    }

    #[test]
    fn undoing_in_reverse_order_restores_the_stock() {
        let mut stock = Stock::new(3);
        stock.take();
        stock.release(unit(1, 1));
        let before = stock.clone();
        let first = stock.take().unwrap();
        let second = stock.take().unwrap();
        stock.release(first.unit);
        stock.undo_release();
        stock.undo_take(second);
        stock.undo_take(first);
        assert_eq!(stock, before);
    }

    #[test]
    fn a_rebuild_fills_gaps_and_refuses_contradictions() {
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
    fn the_total_shrinks_to_the_highest_sold_unit_and_grows_again() {
        let mut stock = Stock::new(10);
        for _ in 0..6 {
            stock.take();
        }
        stock.release(unit(6, 1));
        stock.release(unit(2, 1));
        assert_eq!(stock.highest_sold(), 5);
        stock.set_total(5);
        assert_eq!(stock.free(), 1);
        assert_eq!(stock.take().unwrap().unit, unit(2, 2));
        assert_eq!(stock.take(), None);
        stock.set_total(7);
        // Unit 6 kept its generation while it was not for sale.
        assert_eq!(stock.take().unwrap().unit, unit(6, 2));
        assert_eq!(stock.take().unwrap().unit, unit(7, 1));
        assert_eq!(stock.free(), 0);
    }

    #[test]
    #[should_panic(expected = "below a sold unit")]
    fn the_total_never_shrinks_below_a_sold_unit() {
        let mut stock = Stock::new(10);
        stock.take();
        stock.take();
        stock.set_total(1);
    }

    #[test]
    fn a_rebuild_withholds_released_units_above_the_total() {
        let mut rebuild = StockRebuild::new(2);
        rebuild.see(unit(1, 1), true).unwrap();
        rebuild.see(unit(4, 1), false).unwrap();
        let mut stock = rebuild.finish().unwrap();
        assert_eq!(stock.free(), 1);
        assert_eq!(stock.take().unwrap().unit.number, 2);
        stock.set_total(4);
        let free: Vec<Unit> = std::iter::from_fn(|| stock.take())
            .map(|t| t.unit)
            .collect();
        assert!(free.contains(&unit(4, 2)), "{free:?}");
    }
}
