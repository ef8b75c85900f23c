//! The ledger of one sale: its terms, the stock of each item, and what each buyer holds.

use std::collections::{BTreeMap, HashMap};

use smallvec::SmallVec;

use super::{ByDigest, Digest};
use crate::{Holding, ItemNo, OrderUnit, Sale, SaleChange, SaleUsage, Stock, Taken, Unit};

/// The holdings of named buyers.
pub type Holdings = HashMap<Digest, Holding, ByDigest>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleLedger {
    pub sale: Sale,
    /// One for each item.
    stocks: Vec<Stock>,
    /// The free units of each stock, as `decide` reads them.
    free: SmallVec<[u32; 1]>,
    /// Of every named buyer with an active order, also while the sale has no limit: one may be set.
    holdings: Holdings,
    holders: Holders,
    /// The number of the latest event.
    sequence: u64,
}

impl SaleLedger {
    /// The ledger of a new sale.
    pub(super) fn new(sale: Sale) -> Self {
        let stocks = sale.items.iter().map(|item| Stock::new(item.total));
        let stocks = stocks.collect();
        Self::rebuilt(sale, stocks, Holdings::default(), 0)
    }

    pub(super) fn rebuilt(
        sale: Sale,
        stocks: Vec<Stock>,
        holdings: Holdings,
        sequence: u64,
    ) -> Self {
        let mut holders = Holders::default();
        for holding in holdings.values() {
            holders.change(0, holding.held);
        }
        Self {
            free: stocks.iter().map(Stock::free).collect(),
            sale,
            stocks,
            holdings,
            holders,
            sequence,
        }
    }

    /// The free units of each item.
    pub fn free(&self) -> &[u32] {
        &self.free
    }

    /// The free units of all items.
    pub fn remaining(&self) -> u32 {
        self.free.iter().sum()
    }

    /// One for each item.
    pub fn stocks(&self) -> &[Stock] {
        &self.stocks
    }

    pub fn into_stocks(self) -> Vec<Stock> {
        self.stocks
    }

    /// The number of the latest event in the sale's feed.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What a named buyer holds.
    pub fn holding(&self, buyer: Digest) -> Holding {
        self.holdings.get(&buyer).copied().unwrap_or_default()
    }

    /// What all named buyers with active orders hold.
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// Sets what a named buyer holds, and returns what it held before.
    pub(super) fn set_holding(&mut self, buyer: Digest, next: Holding) -> Holding {
        let before = if next.held == 0 {
            self.holdings.remove(&buyer)
        } else {
            self.holdings.insert(buyer, next)
        };
        let before = before.unwrap_or_default();
        self.holders.change(before.held, next.held);
        before
    }

    pub(super) fn has_item(&self, item: ItemNo) -> bool {
        item.index() < self.stocks.len()
    }

    pub(super) fn take(&mut self, item: ItemNo) -> Option<(Taken, OrderUnit)> {
        let taken = self.stocks.get_mut(item.index())?.take()?;
        self.free[item.index()] -= 1;
        let unit = OrderUnit {
            item: self.sale.items[item.index()].id.clone(),
            unit: taken.unit,
        };
        Some((taken, unit))
    }

    pub(super) fn undo_take(&mut self, item: ItemNo, taken: Taken) {
        self.stocks[item.index()].undo_take(taken);
        self.free[item.index()] += 1;
    }

    pub(super) fn release(&mut self, item: ItemNo, ended: Unit) {
        self.stocks[item.index()].release(ended);
        self.free[item.index()] += 1;
    }

    pub(super) fn undo_release(&mut self, item: ItemNo) {
        self.stocks[item.index()].undo_release();
        self.free[item.index()] -= 1;
    }

    pub(super) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(super) fn undo_sequence(&mut self) {
        self.sequence -= 1;
    }

    /// Sets new terms, and returns what restores the old ones.
    pub(super) fn set_terms(&mut self, sale: Sale) -> (Sale, Vec<Stock>) {
        let stocks = self.stocks.clone();
        for (stock, item) in self.stocks.iter_mut().zip(&sale.items) {
            if stock.total() != item.total {
                stock.set_total(item.total);
            }
        }
        self.free = self.stocks.iter().map(Stock::free).collect();
        (std::mem::replace(&mut self.sale, sale), stocks)
    }

    pub(super) fn restore_terms(&mut self, (sale, stocks): (Sale, Vec<Stock>)) {
        self.free = stocks.iter().map(Stock::free).collect();
        (self.sale, self.stocks) = (sale, stocks);
    }

    /// What existing orders require of the change.
    pub fn usage(&self, change: &SaleChange) -> SaleUsage {
        // Finding the highest sold unit takes time, and only a new total needs it.
        let highest_sold = if change.sets_total() {
            self.stocks.iter().map(Stock::highest_sold).collect()
        } else {
            SmallVec::new()
        };
        SaleUsage {
            most_held: self.holders.most_held(),
            highest_sold,
        }
    }
}

/// Counts the named buyers by the number of units that they hold. It shows what a new limit must
/// respect, without reading any order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Holders {
    buyers_by_held: BTreeMap<u32, u32>,
}

impl Holders {
    fn change(&mut self, from: u32, to: u32) {
        if from > 0 {
            let buyers = self.buyers_by_held.get_mut(&from);
            let left = buyers.map_or(0, |buyers| {
                *buyers -= 1;
                *buyers
            });
            if left == 0 {
                self.buyers_by_held.remove(&from);
            }
        }
        if to > 0 {
            *self.buyers_by_held.entry(to).or_default() += 1;
        }
    }

    fn most_held(&self) -> u32 {
        self.buyers_by_held
            .last_key_value()
            .map_or(0, |(held, _)| *held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_held_follows_every_change() {
        let mut holders = Holders::default();
        holders.change(0, 1);
        holders.change(0, 1);
        holders.change(1, 2);
        assert_eq!(holders.most_held(), 2);
        holders.change(2, 1);
        assert_eq!(holders.most_held(), 1);
        holders.change(1, 0);
        holders.change(1, 0);
        assert_eq!(holders.most_held(), 0);
        assert!(holders.buyers_by_held.is_empty());
    }
}
