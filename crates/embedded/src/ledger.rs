//! The writer's state of each sale, which is ahead of memory while a batch is being stored.
//! Requests never see it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use seckill_sale::{Holding, Sale, SaleChange, SaleId, SaleUsage, Stock};

use crate::memory::{ByDigest, Digest, SaleMemory};

#[derive(Debug)]
pub(crate) struct SaleLedger {
    pub(crate) sale: Sale,
    pub(crate) stock: Stock,
    pub(crate) memory: Arc<SaleMemory>,
    /// Of every named buyer with an active order, also while the sale has no limit: one may be set.
    holdings: Holdings,
    holders: Holders,
}

/// The holdings of named buyers, by the digest of sale and buyer.
pub(crate) type Holdings = HashMap<Digest, Holding, ByDigest>;

pub(crate) type SaleLedgers = HashMap<SaleId, SaleLedger>;

impl SaleLedger {
    pub(crate) fn new(sale: Sale, stock: Stock, holdings: Holdings) -> Self {
        let memory = Arc::new(SaleMemory::new(sale.clone(), stock.free()));
        let mut holders = Holders::default();
        for holding in holdings.values() {
            holders.change(0, holding.held);
        }
        Self {
            sale,
            stock,
            memory,
            holdings,
            holders,
        }
    }

    /// What a named buyer holds.
    pub(crate) fn holding(&self, buyer: Digest) -> Holding {
        self.holdings.get(&buyer).copied().unwrap_or_default()
    }

    /// Sets what a named buyer holds, and returns what it held before.
    pub(crate) fn set_holding(&mut self, buyer: Digest, next: Holding) -> Holding {
        let before = if next.held == 0 {
            self.holdings.remove(&buyer)
        } else {
            self.holdings.insert(buyer, next)
        };
        let before = before.unwrap_or_default();
        self.holders.change(before.held, next.held);
        before
    }

    /// What existing orders require of the change.
    pub(crate) fn usage(&self, change: &SaleChange) -> SaleUsage {
        let highest_sold = change.total.map_or(0, |_| self.stock.highest_sold());
        SaleUsage {
            most_held: self.holders.most_held(),
            highest_sold,
        }
    }
}

/// Counts the named buyers by the number of orders that they hold. It shows what a new limit must
/// respect, without reading any order.
#[derive(Debug, Default)]
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
