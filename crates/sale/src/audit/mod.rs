//! The audit: checks every row against the invariants, unit by unit, in one pass over the rows and
//! events. It does not trust values that an engine derived. It reads the terms of the sales, the
//! rows, the events, and the confirmations that clients recorded.

mod feed;
mod orders;
mod report;
mod sale;

use std::collections::HashMap;

use crate::{ItemNo, ItemUnit, OrderState, Sale, Unit};
use feed::FeedAudit;
use orders::{OrderAudit, Promise};
use sale::SaleAudit;

pub use feed::{AuditedEvent, EventFacts};
pub use report::{
    AuditReport, HistoryEntry, HistoryUnit, Invariant, ItemReport, SaleReport, Violation,
};

/// The data of a row, which is one unit of an order.
#[derive(Debug, Clone, Copy)]
pub struct RowFacts<'a> {
    pub order_id: &'a str,
    /// From 1.
    pub line: u32,
    /// The number of lines that the order has.
    pub lines: u32,
    pub sale: &'a str,
    pub item: ItemNo,
    pub unit: Unit,
    /// Empty for the anonymous buyer.
    pub buyer: &'a str,
    /// Only the first line has it.
    pub key: Option<&'a str>,
    /// `None` if the stored text is not a state.
    pub state: Option<OrderState>,
    /// The number of the event that the order was reserved. Only the first line has it.
    pub sequence: Option<u64>,
    /// The result of checking the row's checksums.
    pub integrity: RowIntegrity,
    /// An operator has edited the state, and no event tells of it yet.
    pub is_edited: bool,
}

impl RowFacts<'_> {
    fn item_unit(&self) -> ItemUnit {
        ItemUnit {
            item: self.item,
            unit: self.unit,
        }
    }
}

/// Whether a row still matches its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowIntegrity {
    Intact,
    /// A column that must never change was modified.
    ContentDiffers,
    /// The state is not the one that this program wrote last.
    StateDiffers,
}

impl RowIntegrity {
    /// A description of the damage, or `None` for an intact row.
    pub fn damage(self) -> Option<&'static str> {
        match self {
            Self::Intact => None,
            Self::ContentDiffers => Some("the row was modified: its checksum differs"),
            Self::StateDiffers => Some("the state was modified: its state_checksum differs"),
        }
    }
}

/// Checks rows and events one by one, and collects the violations of the invariants.
#[derive(Debug)]
pub struct Auditor {
    sales: HashMap<String, SaleAudit>,
    orders: HashMap<Box<str>, OrderAudit>,
    promises: HashMap<Box<str>, Promise>,
    /// Events of orders that have no rows: the sale and the number.
    orphans: Vec<(String, u64)>,
    report: AuditReport,
}

impl Auditor {
    pub fn new(sales: impl IntoIterator<Item = Sale>) -> Self {
        let audit = |sale: Sale| (sale.id.to_string(), SaleAudit::new(sale));
        Self {
            sales: sales.into_iter().map(audit).collect(),
            orders: HashMap::new(),
            promises: HashMap::new(),
            orphans: Vec::new(),
            report: AuditReport::default(),
        }
    }

    /// Records how many units of each item the gate of a sale offers. Without this, the audit
    /// assumes the numbers that a rebuild from the orders would give.
    pub fn gate_left(&mut self, sale: &str, free: &[u32]) {
        if let Some(audit) = self.sales.get_mut(sale) {
            audit.gate_left = Some(free.to_vec());
        }
    }

    /// Records a confirmation that a client received. Call it before [`Auditor::row`].
    pub fn confirmed(&mut self, entry: &HistoryEntry) {
        self.report.confirmations_checked += 1;
        let order_id = entry.order_id.as_str();
        let promise = Promise::new(entry);
        // A repeated confirmation is the same promise, unless it names another sale or unit.
        if let Some(first) = self.promises.get_mut(order_id) {
            if first.is_same(&promise) {
                first.add(promise);
            } else {
                let detail =
                    format!("clients received confirmations for {first} and for {promise}");
                let sale = entry.sale.clone().unwrap_or_default();
                self.add(
                    Invariant::ConfirmationKept,
                    Place::sale(&sale),
                    &[order_id],
                    detail,
                );
            }
            return;
        }
        self.promises.insert(order_id.into(), promise);
    }

    /// Checks one row of the order store.
    pub fn row(&mut self, row: &RowFacts<'_>) {
        self.report.store_rows += 1;
        let id = row.order_id;
        let item = self.sales.get(row.sale);
        let item = item.and_then(|audit| audit.sale.items.get(row.item.index()));
        let item = item.map(|item| item.id.to_string());
        let place = Place {
            sale: row.sale,
            item: item.as_deref(),
            unit: Some(row.unit.number),
        };
        if let Some(damage) = row.integrity.damage() {
            self.add(Invariant::NoPhantoms, place, &[id], damage.to_owned());
        }
        if let Some(promise) = self.promises.get_mut(id) {
            promise.found(row, item.as_deref());
        }
        let is_first = match self.orders.get_mut(id) {
            None => {
                self.orders.insert(id.into(), OrderAudit::new(row));
                true
            }
            Some(order) => {
                if let Err((invariant, detail)) = order.add(row) {
                    self.report.duplicates += u64::from(invariant == Invariant::NoDuplicates);
                    self.add(invariant, place, &[id], detail);
                }
                false
            }
        };
        let Some(state) = row.state else {
            let detail = "its state is not a valid order state".to_owned();
            self.add(Invariant::NoPhantoms, place, &[id], detail);
            return;
        };
        let Some(audit) = self.sales.get_mut(row.sale) else {
            let detail = "its sale does not exist".to_owned();
            self.add(Invariant::NoPhantoms, place, &[id], detail);
            return;
        };
        audit.orders += u64::from(is_first);
        // The number of a damaged row may be anything.
        let is_intact = row.integrity == RowIntegrity::Intact;
        if let Some(sequence) = row.sequence.filter(|_| is_intact) {
            self.report.events += 1;
            audit.feed.see(sequence);
        }
        for (invariant, others, detail) in audit.row(row, state) {
            match invariant {
                Invariant::NoOversell => self.report.oversold += 1,
                Invariant::NoDuplicates => self.report.duplicates += 1,
                _ => {}
            }
            let mut ids: Vec<&str> = others.iter().map(|id| &**id).collect();
            ids.push(id);
            self.add(invariant, place, &ids, detail);
        }
    }

    /// Checks one event that has no row of its own. Call it after all rows.
    pub fn event(&mut self, event: &EventFacts<'_>) {
        self.report.events += 1;
        let Some(audit) = self.sales.get_mut(event.sale) else {
            let detail = format!(
                "event {} belongs to a sale that does not exist",
                event.sequence
            );
            let place = Place::sale(event.sale);
            self.add(Invariant::FeedTellsAll, place, &[], detail);
            return;
        };
        audit.feed.see(event.sequence);
        let place = Place::sale(event.sale);
        match event.event {
            AuditedEvent::Created(sale) => audit.feed.created(event.sequence, sale),
            AuditedEvent::Changed(sale) => audit.feed.terms(event.sequence, sale),
            AuditedEvent::Order { order_id, state } => {
                let problem = match self.orders.get_mut(order_id) {
                    Some(order) if *order.sale != *event.sale => {
                        let (number, sale) = (event.sequence, &order.sale);
                        Some(format!("event {number} is of an order of sale {sale}"))
                    }
                    Some(order) => order.changed(event.sequence, state),
                    None => {
                        self.orphans.push((event.sale.to_owned(), event.sequence));
                        None
                    }
                };
                if let Some(detail) = problem {
                    self.add(Invariant::FeedTellsAll, place, &[order_id], detail);
                }
            }
        }
    }

    /// Runs the checks that need all rows and events, and returns the report. `lost_orders` are
    /// those whose rows were deleted, and whose loss an operator has accepted.
    pub fn finish(mut self, lost_orders: u64) -> AuditReport {
        for (order_id, promise) in std::mem::take(&mut self.promises) {
            if let Some(detail) = promise.broken() {
                let sale = promise.sale().unwrap_or_default().to_owned();
                let place = Place::sale(&sale);
                self.add(Invariant::ConfirmationKept, place, &[&order_id], detail);
            }
        }
        for (order_id, order) in std::mem::take(&mut self.orders) {
            for (invariant, detail) in order.finish() {
                let sale = order.sale.to_string();
                self.add(invariant, Place::sale(&sale), &[&order_id], detail);
            }
        }
        let mut sales: Vec<SaleAudit> = std::mem::take(&mut self.sales).into_values().collect();
        sales.sort_by(|a, b| a.sale.id.cmp(&b.sale.id));
        let orphans = std::mem::take(&mut self.orphans);
        for (sale, sequence) in orphans.into_iter().skip(lost_orders as usize) {
            let detail = format!("event {sequence} is of an order without rows");
            self.add(Invariant::FeedTellsAll, Place::sale(&sale), &[], detail);
        }
        let mut accepted = lost_orders;
        for audit in sales {
            self.finish_sale(&audit, &mut accepted);
        }
        self.report
    }

    fn finish_sale(&mut self, audit: &SaleAudit, accepted: &mut u64) {
        let name = audit.sale.id.as_str();
        for (buyer, held) in audit.above_limit() {
            let limit = audit.sale.buyer_limit.unwrap_or_default();
            let detail = format!("buyer {buyer:?} holds {held} units; the limit is {limit}");
            self.add(Invariant::LimitHolds, Place::sale(name), &[], detail);
        }
        let mut items = Vec::with_capacity(audit.sale.items.len());
        for (number, item) in audit.sale.numbered_items() {
            let place = Place {
                sale: name,
                item: Some(item.id.as_str()),
                unit: None,
            };
            let unsold = item.total - audit.sold(number);
            let left = audit.gate_left(number).unwrap_or(unsold);
            if left > unsold {
                self.report.oversold += u64::from(left - unsold);
                let detail = format!("the gate offers {left} units, but only {unsold} are unsold");
                self.add(Invariant::NoOversell, place, &[], detail);
            }
            if left < unsold {
                self.report.undersold += u64::from(unsold - left);
                let detail = format!("{unsold} units are unsold, but the gate offers only {left}");
                self.add(Invariant::NoUndersell, place, &[], detail);
            }
            items.push(ItemReport {
                item: item.id.to_string(),
                total: item.total,
                active: audit.active[number.index()],
                gate_left: left,
            });
        }
        for detail in audit.feed.finish(&audit.sale, accepted) {
            self.add(Invariant::FeedTellsAll, Place::sale(name), &[], detail);
        }
        let gate_left = items.iter().map(|item| item.gate_left).sum();
        self.report.gate_left += u64::from(gate_left);
        self.report.sales.push(SaleReport {
            sale: name.to_owned(),
            total: audit.sale.total(),
            orders: audit.orders,
            active: audit.active.iter().sum(),
            gate_left,
            items,
        });
    }

    fn add(&mut self, invariant: Invariant, place: Place<'_>, order_ids: &[&str], detail: String) {
        self.report.add(Violation {
            invariant,
            sale: place.sale.to_owned(),
            item: place.item.map(str::to_owned),
            unit: place.unit,
            order_ids: order_ids.iter().map(|&id| id.to_owned()).collect(),
            detail,
        });
    }
}

/// What a violation concerns.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    sale: &'a str,
    item: Option<&'a str>,
    unit: Option<u32>,
}

impl<'a> Place<'a> {
    fn sale(sale: &'a str) -> Self {
        Self {
            sale,
            item: None,
            unit: None,
        }
    }
}

#[cfg(test)]
mod tests;
