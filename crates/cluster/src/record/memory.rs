//! What a recorder remembers of the sales whose claims it stores, so that it need not read them for
//! the next batch. The store's guards notice when it is out of date. No I/O.

use std::collections::{HashMap, HashSet};

use seckill_cluster_codec::message::ClaimMessage;
use seckill_mysql_store::recording::Locked;
use seckill_sale::{OrderId, SaleId};

use super::plan::{Known, Plan};

/// Above this number of sales, all are forgotten.
const SALES_MAX: usize = 10_000;
/// Among how many rows that this recorder stores, of any sale, one says where it is. So readers of
/// a sale's feed never search more of them, times the number of recorders.
const POINTER_EVERY_ROWS: u64 = 4_096;

#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) known: Known,
    /// How many rows there were at each sale's latest pointer.
    pointers: HashMap<SaleId, u64>,
    /// How many rows this recorder has stored.
    rows: u64,
}

impl Memory {
    /// Whether these claims can be planned without reading their sales.
    pub(crate) fn has_sales_of(&self, claims: &[&ClaimMessage]) -> bool {
        claims.iter().all(|claim| {
            let sale = self.known.sales.get(&claim.sale_id);
            sale.is_some_and(|sale| sale.has_all_voids)
        })
    }

    /// Replaces what it knows of the sales of these claims by what was read under their locks.
    pub(crate) fn read(&mut self, claims: &[&ClaimMessage], locked: Locked) {
        if self.known.sales.len() > SALES_MAX {
            *self = Self {
                rows: self.rows,
                ..Self::default()
            };
        }
        for claim in claims {
            self.known.sales.remove(&claim.sale_id);
        }
        let sales = locked.sales.into_iter();
        let sales = sales.map(|sale| (sale.row.sale.id.clone(), sale));
        self.known.sales.extend(sales);
        self.known.voids = locked.voids;
        self.known.orders.clear();
    }

    /// The first claim of each sale whose place in the table readers would have to search for.
    pub(crate) fn pointers<'a>(&self, orders: &[&'a ClaimMessage]) -> Vec<&'a OrderId> {
        let rows = self.rows + rows_of(orders);
        let is_due = |sale: &SaleId| {
            let latest = self.pointers.get(sale);
            latest.is_none_or(|latest| rows - latest > POINTER_EVERY_ROWS)
        };
        let mut seen = HashSet::new();
        let orders = orders.iter();
        let first = orders.filter(|claim| seen.insert(&claim.sale_id) && is_due(&claim.sale_id));
        first.map(|claim| &claim.order_id).collect()
    }

    /// Records that a plan was stored, with these pointers.
    pub(crate) fn stored(&mut self, plan: &Plan<'_>, pointers: &[&OrderId]) {
        let pointers: HashSet<&OrderId> = pointers.iter().copied().collect();
        let orders = plan.orders.iter();
        for claim in orders.filter(|claim| pointers.contains(&claim.order_id)) {
            self.pointers.insert(claim.sale_id.clone(), self.rows);
        }
        self.rows += rows_of(&plan.orders);
        for (claim, _) in &plan.voids {
            if let Some(sale) = self.known.sales.get_mut(&claim.sale_id) {
                sale.row.voids += 1;
                if claim.epoch == sale.row.epoch {
                    sale.voids.insert(claim.order_id.clone());
                }
            }
        }
        // The claims of a batch do not come again, except after a failure, and then they are read.
        self.known.orders.clear();
        self.known.voids.clear();
    }
}

fn rows_of(orders: &[&ClaimMessage]) -> u64 {
    orders.iter().map(|claim| claim.units.len() as u64).sum()
}
