//! Rebuilds the ledger of a sale from its orders, which may come in any order. It must not guess:
//! it refuses orders that contradict each other.

use super::{Digest, Holdings, SaleLedger};
use crate::{ClaimedUnit, ItemNo, Sale, StockRebuild, UnitFault};

pub struct SaleRebuild {
    sale: Sale,
    stocks: Vec<StockRebuild>,
    held: Holdings,
    sequence: u64,
}

/// Why an order contradicts the terms or the other orders of its sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RebuildFault {
    #[error("the sale has no item {}", .0.get())]
    NoSuchItem(ItemNo),
    #[error("item {}: {fault}", item.get())]
    Unit { item: ItemNo, fault: UnitFault },
    #[error("its buyer has another unit in slot {slot}")]
    SlotTwice { slot: u8 },
    #[error("{slot} is not a slot")]
    NotASlot { slot: u8 },
}

impl SaleRebuild {
    pub fn new(sale: Sale) -> Self {
        let stocks = sale.items.iter().map(|item| StockRebuild::new(item.total));
        Self {
            stocks: stocks.collect(),
            sale,
            held: Holdings::default(),
            sequence: 0,
        }
    }

    pub fn sale(&self) -> &Sale {
        &self.sale
    }

    /// Adds one unit of an order; `buyer` is `None` for the anonymous buyer.
    pub fn unit(
        &mut self,
        claimed: ClaimedUnit,
        is_active: bool,
        buyer: Option<Digest>,
    ) -> Result<(), RebuildFault> {
        let ClaimedUnit { item, unit, slot } = claimed;
        let stock = self.stocks.get_mut(item.index());
        let stock = stock.ok_or(RebuildFault::NoSuchItem(item))?;
        stock
            .see(unit, is_active)
            .map_err(|fault| RebuildFault::Unit { item, fault })?;
        let Some(buyer) = buyer.filter(|_| is_active) else {
            return Ok(());
        };
        let holding = self.held.entry(buyer).or_default();
        holding.held += 1;
        if let Some(slot) = slot {
            let is_slot = (1..=64).contains(&slot);
            let fault = if is_slot {
                RebuildFault::SlotTwice { slot }
            } else {
                RebuildFault::NotASlot { slot }
            };
            holding.slots = holding.slots.with(slot).ok_or(fault)?;
        }
        Ok(())
    }

    /// Adds the number of an event in the sale's feed.
    pub fn event(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
    }

    pub fn finish(self) -> Result<SaleLedger, RebuildFault> {
        let mut stocks = Vec::with_capacity(self.stocks.len());
        for ((item, _), stock) in self.sale.numbered_items().zip(self.stocks) {
            let stock = stock.finish();
            stocks.push(stock.map_err(|fault| RebuildFault::Unit { item, fault })?);
        }
        let held = self.held;
        Ok(SaleLedger::rebuilt(self.sale, stocks, held, self.sequence))
    }
}
