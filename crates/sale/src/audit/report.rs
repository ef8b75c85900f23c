//! The result of an audit: which invariants are broken, by which orders.

use crate::OrderId;

/// The invariants that an audit can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// Active units of an item ≤ its total, at most one active order per unit, units in 1..=total.
    NoOversell,
    /// Free + active = total, once no attempt is in progress.
    NoUndersell,
    /// Every confirmation has exactly one order with its content.
    ConfirmationKept,
    /// At most one order per order id, per key, and per unit and generation.
    NoDuplicates,
    /// Active units per buyer ≤ the sale's limit.
    LimitHolds,
    /// Every order belongs to a sale, and its row was not modified.
    NoPhantoms,
    /// An order has all of its lines, in the same state.
    AllOrNothing,
    /// Replaying a sale's events gives the store's state.
    FeedTellsAll,
}

/// One broken invariant and the orders that break it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: Invariant,
    pub sale: String,
    /// The item of the unit.
    pub item: Option<String>,
    /// The unit that the violation concerns, if any.
    pub unit: Option<u32>,
    pub order_ids: Vec<String>,
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleReport {
    pub sale: String,
    pub total: u32,
    /// Orders in any state.
    pub orders: u64,
    /// Units that orders hold.
    pub active: u64,
    /// Units that the gate still offers.
    pub gate_left: u32,
    pub items: Vec<ItemReport>,
}

/// The numbers of one item of a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemReport {
    pub item: String,
    pub total: u32,
    /// Units that orders hold.
    pub active: u64,
    /// Units that the gate still offers.
    pub gate_left: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditReport {
    pub sales: Vec<SaleReport>,
    /// Rows in the order store, one for each unit of an order.
    pub store_rows: u64,
    /// Events in the feeds of all sales.
    pub events: u64,
    /// Messages in the order log; `None` if the engine has no log.
    pub log_records: Option<u64>,
    /// Claims that are neither stored nor void yet, which is not a violation.
    pub in_flight: u64,
    /// Units that the gates still offer, over all sales.
    pub gate_left: u64,
    /// Active orders beyond the first of each unit, and sold units that the gate still offers.
    pub oversold: u64,
    /// Units that are neither sold nor offered.
    pub undersold: u64,
    /// Duplicate orders, by order id, by key, or by unit and generation.
    pub duplicates: u64,
    /// Confirmations from the clients' history that were checked.
    pub confirmations_checked: u64,
    /// The first [`AuditReport::NAMED_MAX`] violations.
    pub violations: Vec<Violation>,
    /// The number of all violations, including those that are not listed.
    pub violation_count: u64,
    /// What could not be checked, and why.
    pub notes: Vec<String>,
}

impl AuditReport {
    /// The maximum number of violations that a report lists.
    pub const NAMED_MAX: usize = 1_000;

    /// Whether every invariant holds.
    pub fn is_clean(&self) -> bool {
        self.violation_count == 0
    }

    /// Adds a violation that was found outside the rows, such as a damaged page.
    pub fn add(&mut self, violation: Violation) {
        self.violation_count += 1;
        if self.violations.len() < Self::NAMED_MAX {
            self.violations.push(violation);
        }
    }
}

/// A confirmation as a client recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    pub order_id: OrderId,
    /// `None` if the request did not name a sale, so that it went to the service's default sale.
    pub sale: Option<String>,
    pub units: Vec<HistoryUnit>,
    /// `None` if the history does not name the buyer; then any is accepted.
    pub buyer: Option<String>,
    /// `None` if the history does not have the key; then any is accepted.
    pub key: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HistoryUnit {
    /// `None` in a history from the time when sales had only one item.
    pub item: Option<String>,
    pub number: u32,
    /// `None` in such a history, too.
    pub generation: Option<u32>,
}
