//! What the audit knows of one order: whether it has all of its lines, whether its events fit, and
//! what clients were told about it.

use std::fmt;

use super::{HistoryEntry, HistoryUnit, Invariant, RowFacts};
use crate::{ORDER_UNITS_MAX, OrderState, Unit};

#[derive(Debug)]
pub(super) struct OrderAudit {
    pub(super) sale: Box<str>,
    lines: u32,
    /// One bit for each line.
    seen: u64,
    state: Option<OrderState>,
    has_mixed_states: bool,
    is_edited: bool,
    buyer: Box<str>,
    /// The event that the order was reserved.
    reserved: Option<u64>,
    /// The state that the order's last event set.
    told: OrderState,
}

impl OrderAudit {
    pub(super) fn new(row: &RowFacts<'_>) -> Self {
        Self {
            sale: row.sale.into(),
            lines: row.lines,
            seen: bit(row.line),
            state: row.state,
            has_mixed_states: false,
            is_edited: row.is_edited,
            buyer: row.buyer.into(),
            reserved: row.sequence,
            told: OrderState::Reserved,
        }
    }

    /// Adds another row with the same order id.
    pub(super) fn add(&mut self, row: &RowFacts<'_>) -> Result<(), (Invariant, String)> {
        let bit = bit(row.line);
        if self.seen & bit != 0 || row.sale != &*self.sale {
            let detail = "two orders have this order id".to_owned();
            return Err((Invariant::NoDuplicates, detail));
        }
        self.seen |= bit;
        self.reserved = self.reserved.or(row.sequence);
        self.has_mixed_states |= row.state != self.state;
        if *row.buyer != *self.buyer {
            let detail = format!(
                "its lines have the buyers {:?} and {:?}",
                self.buyer, row.buyer
            );
            return Err((Invariant::AllOrNothing, detail));
        }
        if row.lines != self.lines {
            let detail = format!(
                "its rows say that it has {} and {} lines",
                self.lines, row.lines
            );
            return Err((Invariant::AllOrNothing, detail));
        }
        Ok(())
    }

    /// Adds the event that the order's state has changed. Returns what is wrong with it.
    pub(super) fn changed(&mut self, sequence: u64, state: OrderState) -> Option<String> {
        if !self.told.is_active() {
            return Some(format!("event {sequence} changes the order after its end"));
        }
        self.told = state;
        let reserved = self.reserved?;
        (sequence <= reserved)
            .then(|| format!("event {sequence} changes the order that event {reserved} reserves"))
    }

    pub(super) fn finish(&self) -> Vec<(Invariant, String)> {
        let mut broken = Vec::new();
        let all = (1..=self.lines.min(ORDER_UNITS_MAX)).fold(0, |all, line| all | bit(line));
        if self.seen != all || self.lines == 0 || self.lines > ORDER_UNITS_MAX {
            let found = self.seen.count_ones();
            let detail = format!("it has {found} of its {} lines", self.lines);
            broken.push((Invariant::AllOrNothing, detail));
        }
        if self.has_mixed_states {
            let detail = "its lines are in different states".to_owned();
            broken.push((Invariant::AllOrNothing, detail));
        }
        if self.reserved.is_none() {
            let detail = "no event tells that it was reserved".to_owned();
            broken.push((Invariant::FeedTellsAll, detail));
        }
        // An edit that the service will adopt has no event yet.
        let is_adoptable =
            |state| self.is_edited && self.told.is_active() && state != OrderState::Reserved;
        if let Some(state) = self.state
            && state != self.told
            && !is_adoptable(state)
        {
            let (told, state) = (self.told.as_str(), state.as_str());
            let detail = format!("its events lead to the state {told}, but it is {state}");
            broken.push((Invariant::FeedTellsAll, detail));
        }
        broken
    }
}

fn bit(line: u32) -> u64 {
    1_u64.checked_shl(line).unwrap_or(0)
}

/// A confirmation that clients received.
#[derive(Debug)]
pub(super) struct Promise {
    /// `None` if the client bought from the service's default sale without naming it.
    sale: Option<Box<str>>,
    units: Vec<HistoryUnit>,
    /// The rows of the order.
    found: Vec<HistoryUnit>,
    is_elsewhere: bool,
}

impl Promise {
    pub(super) fn new(entry: &HistoryEntry) -> Self {
        let mut units = entry.units.clone();
        units.sort_unstable();
        Self {
            sale: entry.sale.as_deref().map(Into::into),
            units,
            found: Vec::new(),
            is_elsewhere: false,
        }
    }

    /// Whether another line of the history can be of the same confirmation.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.sale == other.sale
            && self.units.len() == other.units.len()
            && self
                .units
                .iter()
                .zip(&other.units)
                .all(|(a, b)| can_be_same(a, b))
    }

    /// Adds what only the other line has.
    pub(super) fn add(&mut self, other: Self) {
        for (unit, other) in self.units.iter_mut().zip(other.units) {
            unit.item = unit.item.take().or(other.item);
            unit.generation = unit.generation.or(other.generation);
        }
    }

    pub(super) fn sale(&self) -> Option<&str> {
        self.sale.as_deref()
    }

    pub(super) fn found(&mut self, sale: &str, item: Option<&str>, unit: Unit) {
        self.is_elsewhere |= self
            .sale
            .as_deref()
            .is_some_and(|promised| promised != sale);
        self.found.push(HistoryUnit {
            item: item.map(str::to_owned),
            number: unit.number,
            generation: Some(unit.generation),
        });
    }

    /// How the promise was broken, if it was.
    pub(super) fn broken(&self) -> Option<String> {
        if self.found.is_empty() {
            let detail = "a client received a confirmation, but no order has its id";
            return Some(detail.to_owned());
        }
        let mut found: Vec<&HistoryUnit> = self.found.iter().collect();
        found.sort_unstable();
        let is_kept = found.len() == self.units.len()
            && self.units.iter().zip(found).all(|(a, b)| can_be_same(a, b));
        (!is_kept || self.is_elsewhere)
            .then(|| format!("a client received a confirmation for {self}"))
    }
}

/// A history of the older form lacks item and generation.
fn can_be_same(a: &HistoryUnit, b: &HistoryUnit) -> bool {
    let has_both = a.item.is_some() && b.item.is_some();
    let has_generations = a.generation.is_some() && b.generation.is_some();
    a.number == b.number
        && (!has_both || a.item == b.item)
        && (!has_generations || a.generation == b.generation)
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = |unit: &HistoryUnit| match &unit.item {
            Some(item) => format!("unit {} of item {item}", unit.number),
            None => format!("unit {}", unit.number),
        };
        let units: Vec<String> = self.units.iter().map(unit).collect();
        f.write_str(&units.join(", "))?;
        match &self.sale {
            Some(sale) => write!(f, " of sale {sale}"),
            None => Ok(()),
        }
    }
}
