//! The writer's state of each sale, which is ahead of memory while a batch is being stored.
//! Requests never see it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use seckill_sale::{Sale, SaleChange, SaleId, SaleUsage, Stock};

use crate::memory::SaleMemory;

#[derive(Debug)]
pub(crate) struct SaleLedger {
    pub(crate) sale: Sale,
    pub(crate) stock: Stock,
    pub(crate) memory: Arc<SaleMemory>,
    holders: Holders,
}

pub(crate) type SaleLedgers = HashMap<SaleId, SaleLedger>;

impl SaleLedger {
    /// `held` is the number of active orders of each named buyer.
    pub(crate) fn new(sale: Sale, stock: Stock, held: impl IntoIterator<Item = u32>) -> Self {
        let memory = Arc::new(SaleMemory::new(sale.clone(), stock.free()));
        let mut holders = Holders::default();
        held.into_iter().for_each(|held| holders.change(0, held));
        Self {
            sale,
            stock,
            memory,
            holders,
        }
    }

    /// Records that one named buyer holds `to` active orders instead of `from`.
    pub(crate) fn holding_changed(&mut self, from: u32, to: u32) {
        self.holders.change(from, to);
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
