//! Units as parts of claims and orders: with their items, in the order of the attempt's lines.

use smallvec::SmallVec;

use crate::{ItemId, ItemNo, Sale, Unit};

/// The maximum number of units in one order.
pub const ORDER_UNITS_MAX: u32 = 16;

/// A unit of an item, by the item's position in the sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemUnit {
    pub item: ItemNo,
    pub unit: Unit,
}

/// The units of one claim. Most claims have one.
pub type ItemUnits = SmallVec<[ItemUnit; 1]>;

/// A unit that a claim takes, and the buyer's slot that it occupies if the sale has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClaimedUnit {
    pub item: ItemNo,
    pub unit: Unit,
    /// 1..=64.
    pub slot: Option<u8>,
}

impl ClaimedUnit {
    pub fn item_unit(self) -> ItemUnit {
        ItemUnit {
            item: self.item,
            unit: self.unit,
        }
    }
}

pub type ClaimedUnits = SmallVec<[ClaimedUnit; 1]>;

/// A unit of an order, as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderUnit {
    pub item: ItemId,
    pub unit: Unit,
}

pub type OrderUnits = SmallVec<[OrderUnit; 1]>;

impl Sale {
    /// The units with the ids of their items. `None` if the sale lacks one of the items.
    pub fn order_units(&self, units: impl IntoIterator<Item = ItemUnit>) -> Option<OrderUnits> {
        let named = |unit: ItemUnit| {
            Some(OrderUnit {
                item: self.items.get(unit.item.index())?.id.clone(),
                unit: unit.unit,
            })
        };
        units.into_iter().map(named).collect()
    }
}
