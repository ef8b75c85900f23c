//! The audit: checks every order against the invariants, unit by unit, in one pass over the rows.
//! It does not trust values that an engine derived. It reads the terms of the sales, the rows, and
//! the confirmations that clients recorded.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{OrderId, OrderState, Sale, Unit};

/// The invariants that an audit can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invariant {
    /// Active orders ≤ total, at most one active order per unit, units in 1..=total.
    NoOversell,
    /// Free + active = total, once no attempt is in progress.
    NoUndersell,
    /// Every confirmation has exactly one order with its content.
    ConfirmationKept,
    /// At most one order per order id, per key, and per unit and generation.
    NoDuplicates,
    /// Active orders per buyer ≤ the sale's limit.
    LimitHolds,
    /// Every order belongs to a sale, and its row was not modified.
    NoPhantoms,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoOversell => "no oversell",
            Self::NoUndersell => "no undersell",
            Self::ConfirmationKept => "a confirmation is kept",
            Self::NoDuplicates => "no duplicates",
            Self::LimitHolds => "the limit holds",
            Self::NoPhantoms => "no phantoms",
        })
    }
}

/// One broken invariant and the orders that break it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    pub invariant: Invariant,
    pub sale: String,
    /// The unit that the violation concerns, if any.
    pub unit: Option<u32>,
    pub order_ids: Vec<String>,
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaleReport {
    pub sale: String,
    pub total: u32,
    /// Orders in any state.
    pub orders: u64,
    /// Orders that hold a unit.
    pub active: u64,
    /// Units that the gate still offers.
    pub gate_left: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    pub sales: Vec<SaleReport>,
    /// Rows in the order store.
    pub store_rows: u64,
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
    #[serde(default)]
    pub notes: Vec<String>,
}

impl AuditReport {
    /// The maximum number of violations that a report lists.
    pub const NAMED_MAX: usize = 1_000;

    /// Whether every invariant holds.
    pub fn is_clean(&self) -> bool {
        self.violation_count == 0
    }

    /// `clean` or `broken`.
    pub fn verdict(&self) -> &'static str {
        if self.is_clean() { "clean" } else { "broken" }
    }

    /// Adds a violation that was found outside the rows, such as a damaged page.
    pub fn add(&mut self, violation: Violation) {
        self.violation_count += 1;
        if self.violations.len() < Self::NAMED_MAX {
            self.violations.push(violation);
        }
    }
}

/// The data of an order that the audit checks.
#[derive(Debug, Clone, Copy)]
pub struct OrderFacts<'a> {
    pub order_id: &'a str,
    pub sale: &'a str,
    pub unit: Unit,
    /// Empty for the anonymous buyer.
    pub buyer: &'a str,
    pub key: Option<&'a str>,
    /// `None` if the stored text is not a state.
    pub state: Option<OrderState>,
    /// The result of checking the row's checksums.
    pub integrity: RowIntegrity,
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

#[derive(Debug)]
struct UnitHolder {
    active: u32,
    order_id: Box<str>,
}

#[derive(Debug)]
struct SaleAudit {
    sale: Sale,
    gate_left: Option<u32>,
    orders: u64,
    active: u64,
    holders: HashMap<u32, UnitHolder>,
    generations: HashSet<Unit>,
    keys: HashSet<(Box<str>, Box<str>)>,
    held: HashMap<Box<str>, u32>,
}

#[derive(Debug)]
struct Promise {
    /// `None` if the client bought from the service's default sale without naming it.
    sale: Option<Box<str>>,
    unit: u32,
    kept: bool,
}

/// Checks orders one by one, and collects the violations of the invariants.
#[derive(Debug)]
pub struct Auditor {
    sales: HashMap<String, SaleAudit>,
    order_ids: HashSet<Box<str>>,
    promises: HashMap<Box<str>, Promise>,
    report: AuditReport,
}

impl Auditor {
    pub fn new(sales: impl IntoIterator<Item = Sale>) -> Self {
        let audit = |sale: Sale| SaleAudit {
            sale,
            gate_left: None,
            orders: 0,
            active: 0,
            holders: HashMap::new(),
            generations: HashSet::new(),
            keys: HashSet::new(),
            held: HashMap::new(),
        };
        Self {
            sales: sales
                .into_iter()
                .map(|s| (s.id.to_string(), audit(s)))
                .collect(),
            order_ids: HashSet::new(),
            promises: HashMap::new(),
            report: AuditReport {
                sales: Vec::new(),
                store_rows: 0,
                log_records: None,
                in_flight: 0,
                gate_left: 0,
                oversold: 0,
                undersold: 0,
                duplicates: 0,
                confirmations_checked: 0,
                violations: Vec::new(),
                violation_count: 0,
                notes: Vec::new(),
            },
        }
    }

    /// Records how many units the gate of a sale offers. Without this, the audit assumes the number
    /// that a rebuild from the orders would give.
    pub fn gate_left(&mut self, sale: &str, units: u32) {
        if let Some(audit) = self.sales.get_mut(sale) {
            audit.gate_left = Some(units);
        }
    }

    /// Records a confirmation that a client received. Call it before [`Auditor::order`].
    pub fn confirmed(&mut self, order_id: &str, sale: Option<&str>, unit: u32) {
        self.report.confirmations_checked += 1;
        let promise = Promise {
            sale: sale.map(Into::into),
            unit,
            kept: false,
        };
        // A repeated confirmation is the same promise, unless it names another sale or unit.
        if let Some(first) = self.promises.insert(order_id.into(), promise)
            && (first.sale.as_deref(), first.unit) != (sale, unit)
        {
            let detail = format!(
                "clients received confirmations for unit {} and for unit {unit}",
                first.unit
            );
            let sale = sale.unwrap_or_default();
            self.add_violation(
                Invariant::ConfirmationKept,
                sale,
                Some(unit),
                &[order_id],
                detail,
            );
        }
    }

    /// Checks one row of the order store.
    pub fn order(&mut self, order: &OrderFacts<'_>) {
        self.report.store_rows += 1;
        let (unit, id) = (order.unit.number, order.order_id);
        if !self.order_ids.insert(id.into()) {
            self.report.duplicates += 1;
            let detail = "two orders have this order id".to_owned();
            self.add_violation(
                Invariant::NoDuplicates,
                order.sale,
                Some(unit),
                &[id],
                detail,
            );
        }
        if let Some(damage) = order.integrity.damage() {
            let detail = damage.to_owned();
            self.add_violation(Invariant::NoPhantoms, order.sale, Some(unit), &[id], detail);
        }
        self.check_promise(order);
        let Some(state) = order.state else {
            let detail = "its state is not a valid order state".to_owned();
            self.add_violation(Invariant::NoPhantoms, order.sale, Some(unit), &[id], detail);
            return;
        };
        let Some(audit) = self.sales.get_mut(order.sale) else {
            let detail = "its sale does not exist".to_owned();
            self.add_violation(Invariant::NoPhantoms, order.sale, Some(unit), &[id], detail);
            return;
        };
        for (invariant, others, detail) in audit.order(order, state) {
            match invariant {
                Invariant::NoOversell => self.report.oversold += 1,
                Invariant::NoDuplicates => self.report.duplicates += 1,
                _ => {}
            }
            let mut ids: Vec<&str> = others.iter().map(|id| &**id).collect();
            ids.push(id);
            self.add_violation(invariant, order.sale, Some(unit), &ids, detail);
        }
    }

    fn check_promise(&mut self, order: &OrderFacts<'_>) {
        let Some(promise) = self.promises.get_mut(order.order_id) else {
            return;
        };
        promise.kept = true;
        let sale = promise.sale.as_deref().unwrap_or(order.sale);
        if (sale, promise.unit) != (order.sale, order.unit.number) {
            let detail = format!(
                "a client received a confirmation for unit {} of sale {sale}",
                promise.unit
            );
            let unit = Some(order.unit.number);
            self.add_violation(
                Invariant::ConfirmationKept,
                order.sale,
                unit,
                &[order.order_id],
                detail,
            );
        }
    }

    /// Runs the checks that need all rows, and returns the report.
    pub fn finish(mut self) -> AuditReport {
        let lost: Vec<_> = self
            .promises
            .extract_if(|_, promise| !promise.kept)
            .collect();
        for (order_id, promise) in lost {
            let detail = "a client received a confirmation, but no order has its id".to_owned();
            let unit = Some(promise.unit);
            self.add_violation(
                Invariant::ConfirmationKept,
                promise.sale.as_deref().unwrap_or_default(),
                unit,
                &[&order_id],
                detail,
            );
        }
        let mut sales: Vec<SaleAudit> = std::mem::take(&mut self.sales).into_values().collect();
        sales.sort_by(|a, b| a.sale.id.cmp(&b.sale.id));
        for audit in sales {
            self.finish_sale(&audit);
        }
        self.report
    }

    fn finish_sale(&mut self, audit: &SaleAudit) {
        let name = audit.sale.id.as_str();
        if let Some(limit) = audit.sale.buyer_limit {
            for (buyer, held) in audit.held.iter().filter(|(_, held)| **held > limit) {
                let detail = format!("buyer {buyer:?} holds {held} units; the limit is {limit}");
                self.add_violation(Invariant::LimitHolds, name, None, &[], detail);
            }
        }
        let sold = audit
            .holders
            .keys()
            .filter(|unit| (1..=audit.sale.total).contains(unit));
        let unsold = audit.sale.total - sold.count() as u32;
        let gate_left = audit.gate_left.unwrap_or(unsold);
        if gate_left > unsold {
            self.report.oversold += u64::from(gate_left - unsold);
            let detail = format!("the gate offers {gate_left} units, but only {unsold} are unsold");
            self.add_violation(Invariant::NoOversell, name, None, &[], detail);
        }
        if gate_left < unsold {
            self.report.undersold += u64::from(unsold - gate_left);
            let detail = format!("{unsold} units are unsold, but the gate offers only {gate_left}");
            self.add_violation(Invariant::NoUndersell, name, None, &[], detail);
        }
        self.report.gate_left += u64::from(gate_left);
        self.report.sales.push(SaleReport {
            sale: name.to_owned(),
            total: audit.sale.total,
            orders: audit.orders,
            active: audit.active,
            gate_left,
        });
    }

    fn add_violation(
        &mut self,
        invariant: Invariant,
        sale: &str,
        unit: Option<u32>,
        order_ids: &[&str],
        detail: String,
    ) {
        self.report.add(Violation {
            invariant,
            sale: sale.to_owned(),
            unit,
            order_ids: order_ids.iter().map(|&id| id.to_owned()).collect(),
            detail,
        });
    }
}

type Broken = (Invariant, Vec<Box<str>>, String);

impl SaleAudit {
    fn order(&mut self, order: &OrderFacts<'_>, state: OrderState) -> Vec<Broken> {
        let mut broken = Vec::new();
        let (unit, total) = (order.unit, self.sale.total);
        self.orders += 1;
        if !self.generations.insert(unit) {
            let detail = format!(
                "two orders have generation {} of this unit",
                unit.generation
            );
            broken.push((Invariant::NoDuplicates, Vec::new(), detail));
        }
        if let Some(key) = order.key
            && !self.keys.insert((order.buyer.into(), key.into()))
        {
            let detail = format!("buyer {:?} has two claims under key {key:?}", order.buyer);
            broken.push((Invariant::NoDuplicates, Vec::new(), detail));
        }
        if !state.is_active() {
            return broken;
        }
        self.active += 1;
        if unit.number == 0 || unit.number > total {
            let detail = format!("the unit is not in 1..={total}");
            broken.push((Invariant::NoOversell, Vec::new(), detail));
        }
        let holder = self
            .holders
            .entry(unit.number)
            .or_insert_with(|| UnitHolder {
                active: 0,
                order_id: order.order_id.into(),
            });
        holder.active += 1;
        if holder.active > 1 {
            let detail = format!("{} active orders hold this unit", holder.active);
            let first = vec![holder.order_id.clone()];
            broken.push((Invariant::NoOversell, first, detail));
        }
        if self.sale.buyer_limit.is_some() && !order.buyer.is_empty() {
            *self.held.entry(order.buyer.into()).or_default() += 1;
        }
        broken
    }
}

/// A confirmation as a client recorded it: one line of a history file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub order_id: OrderId,
    /// `None` if the request did not name a sale, so that it went to the service's default sale.
    #[serde(default)]
    pub sale: Option<String>,
    pub unit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewSale, SaleId};

    fn auditor(total: u32) -> Auditor {
        let mut new = NewSale::units(SaleId::new("s").unwrap(), total);
        new.buyer_limit = Some(1);
        Auditor::new([new.validate().unwrap()])
    }

    fn order(order_id: &str, number: u32, generation: u32) -> OrderFacts<'_> {
        OrderFacts {
            order_id,
            sale: "s",
            unit: Unit { number, generation },
            buyer: order_id,
            key: None,
            state: Some(OrderState::Reserved),
            integrity: RowIntegrity::Intact,
        }
    }

    fn broken(report: &AuditReport) -> Vec<Invariant> {
        report.violations.iter().map(|v| v.invariant).collect()
    }

    #[test]
    fn a_consistent_store_is_clean() {
        let mut audit = auditor(3);
        audit.confirmed("a", Some("s"), 1);
        audit.gate_left("s", 1);
        audit.order(&OrderFacts {
            state: Some(OrderState::Cancelled),
            ..order("b", 2, 1)
        });
        audit.order(&order("a", 1, 1));
        audit.order(&order("c", 2, 2));
        let report = audit.finish();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!((report.store_rows, report.gate_left), (3, 1));
        assert_eq!(report.sales[0].active, 2);
    }

    #[test]
    fn every_kind_of_violation_is_reported() {
        let mut audit = auditor(2);
        audit.order(&order("a", 1, 1));
        audit.order(&order("b", 1, 2));
        let report = audit.finish();
        assert_eq!(broken(&report), [Invariant::NoOversell]);
        assert_eq!(report.violations[0].order_ids, ["a", "b"]);
        assert_eq!(report.oversold, 1);

        let mut audit = auditor(2);
        audit.gate_left("s", 0);
        audit.confirmed("lost", None, 2);
        audit.confirmed("a", Some("s"), 2);
        audit.order(&order("a", 1, 1));
        audit.order(&OrderFacts {
            integrity: RowIntegrity::ContentDiffers,
            ..order("a", 3, 1)
        });
        let found = broken(&audit.finish());
        for invariant in [
            Invariant::NoDuplicates,
            Invariant::NoPhantoms,
            Invariant::NoOversell,
            Invariant::LimitHolds,
            Invariant::ConfirmationKept,
            Invariant::NoUndersell,
        ] {
            assert!(found.contains(&invariant), "{invariant} not in {found:?}");
        }
    }

    #[test]
    fn a_gate_that_offers_sold_units_oversells() {
        let mut audit = auditor(1);
        audit.gate_left("s", 1);
        audit.order(&order("a", 1, 1));
        let report = audit.finish();
        assert_eq!((report.oversold, report.verdict()), (1, "broken"));
    }

    #[test]
    fn one_key_has_one_claim() {
        let mut audit = auditor(2);
        let keyed = |order_id, number| OrderFacts {
            buyer: "ann",
            key: Some("k"),
            state: Some(OrderState::Cancelled),
            ..order(order_id, number, 1)
        };
        audit.order(&keyed("a", 1));
        audit.order(&keyed("b", 2));
        assert_eq!(audit.finish().duplicates, 1);
    }
}
