//! What a recorder remembers of the sales whose claims it stores, so that it need not read them for
//! the next batch. The store's guards notice when it is out of date. No I/O.

use seckill_cluster_codec::message::ClaimMessage;
use seckill_mysql_store::recording::Locked;

use super::plan::{Known, Plan};

/// Above this number of sales, all are forgotten.
const SALES_MAX: usize = 10_000;

impl Known {
    /// Whether these claims can be planned without reading their sales.
    pub(crate) fn has_sales_of(&self, claims: &[&ClaimMessage]) -> bool {
        claims.iter().all(|claim| {
            let sale = self.sales.get(&claim.sale_id);
            sale.is_some_and(|sale| sale.has_all_voids)
        })
    }

    /// Replaces what it knows of the sales of these claims by what was read under their locks.
    pub(crate) fn read(&mut self, claims: &[&ClaimMessage], locked: Locked) {
        if self.sales.len() > SALES_MAX {
            *self = Self::default();
        }
        for claim in claims {
            self.sales.remove(&claim.sale_id);
        }
        let sales = locked.sales.into_iter();
        let sales = sales.map(|sale| (sale.row.sale.id.clone(), sale));
        self.sales.extend(sales);
        self.voids = locked.voids;
        self.orders.clear();
    }

    /// Records that a plan was stored.
    pub(crate) fn stored(&mut self, plan: &Plan<'_>) {
        for (claim, _) in &plan.voids {
            if let Some(sale) = self.sales.get_mut(&claim.sale_id) {
                sale.row.voids += 1;
                if claim.epoch == sale.row.epoch {
                    sale.voids.insert(claim.order_id.clone());
                }
            }
        }
        // The claims of a batch do not come again, except after a failure, and then they are read.
        self.orders.clear();
        self.voids.clear();
    }
}
