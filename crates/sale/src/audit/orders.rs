//! What the audit knows of one order: whether it has all of its lines, whether its events fit, and
//! what clients were told about it.

use std::fmt;

use super::{HistoryEntry, HistoryUnit, Invariant, RowFacts};
use crate::{ORDER_UNITS_MAX, OrderState};

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

/// A confirmation that clients received. A history may have millions, so it stays small.
#[derive(Debug)]
pub(super) struct Promise {
    /// `None` if the client bought from the service's default sale without naming it.
    sale: Option<Box<str>>,
    units: Box<[HistoryUnit]>,
    buyer: Option<Box<str>>,
    key: Option<Box<str>>,
    /// The rows of the order.
    found: Vec<HistoryUnit>,
    /// How the order's first row that has another sale, buyer or key differs.
    difference: Option<Box<str>>,
}

impl Promise {
    pub(super) fn new(entry: &HistoryEntry) -> Self {
        let mut units = entry.units.clone();
        units.sort_unstable();
        let boxed = |text: &Option<String>| text.as_deref().map(Into::into);
        Self {
            sale: boxed(&entry.sale),
            units: units.into(),
            buyer: boxed(&entry.buyer),
            key: boxed(&entry.key),
            found: Vec::new(),
            difference: None,
        }
    }

    /// Whether another line of the history can be of the same confirmation.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.sale == other.sale
            && can_be_equal(&self.buyer, &other.buyer)
            && can_be_equal(&self.key, &other.key)
            && self.units.len() == other.units.len()
            && self
                .units
                .iter()
                .zip(&other.units)
                .all(|(a, b)| can_be_same(a, b))
    }

    /// Adds what only the other line has.
    pub(super) fn add(&mut self, other: Self) {
        self.buyer = self.buyer.take().or(other.buyer);
        self.key = self.key.take().or(other.key);
        for (unit, other) in self.units.iter_mut().zip(other.units) {
            unit.item = unit.item.take().or(other.item);
            unit.generation = unit.generation.or(other.generation);
        }
    }

    pub(super) fn sale(&self) -> Option<&str> {
        self.sale.as_deref()
    }

    pub(super) fn found(&mut self, row: &RowFacts<'_>, item: Option<&str>) {
        if self.difference.is_none() {
            self.difference = self.difference_of(row).map(Into::into);
        }
        self.found.push(HistoryUnit {
            item: item.map(str::to_owned),
            number: row.unit.number,
            generation: Some(row.unit.generation),
        });
    }

    fn difference_of(&self, row: &RowFacts<'_>) -> Option<String> {
        if self.sale().is_some_and(|sale| sale != row.sale) {
            return Some(format!("is of sale {}", row.sale));
        }
        if self
            .buyer
            .as_deref()
            .is_some_and(|buyer| buyer != row.buyer)
        {
            return Some(match row.buyer {
                "" => "has no buyer".to_owned(),
                buyer => format!("has the buyer {buyer:?}"),
            });
        }
        // Only the first line has the key.
        if row.line == 1 && self.key.is_some() && self.key.as_deref() != row.key {
            return Some(match row.key {
                Some(key) => format!("has the key {key:?}"),
                None => "has no key".to_owned(),
            });
        }
        None
    }

    /// How the promise was broken, if it was.
    pub(super) fn broken(&self) -> Option<String> {
        if self.found.is_empty() {
            let detail = "a client received a confirmation, but no order has its id";
            return Some(detail.to_owned());
        }
        let told = |difference: &str| {
            format!("a client received a confirmation for {self}, but the order {difference}")
        };
        if let Some(difference) = &self.difference {
            return Some(told(difference));
        }
        let mut found: Vec<&HistoryUnit> = self.found.iter().collect();
        found.sort_unstable();
        let is_kept = found.len() == self.units.len()
            && self
                .units
                .iter()
                .zip(&found)
                .all(|(a, b)| can_be_same(a, b));
        (!is_kept).then(|| told(&format!("has {}", units_text(found))))
    }
}

/// A history of the older form lacks item and generation.
fn can_be_same(a: &HistoryUnit, b: &HistoryUnit) -> bool {
    a.number == b.number
        && can_be_equal(&a.item, &b.item)
        && can_be_equal(&a.generation, &b.generation)
}

/// What a history leaves out can be anything.
fn can_be_equal<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
    a.is_none() || b.is_none() || a == b
}

fn units_text<'a>(units: impl IntoIterator<Item = &'a HistoryUnit>) -> String {
    let text = |unit: &HistoryUnit| {
        let mut text = format!("unit {}", unit.number);
        if let Some(generation) = unit.generation {
            text.push_str(&format!(" (generation {generation})"));
        }
        if let Some(item) = &unit.item {
            text.push_str(&format!(" of item {item}"));
        }
        text
    };
    units.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units_text(&self.units))?;
        if let Some(sale) = &self.sale {
            write!(f, " of sale {sale}")?;
        }
        if let Some(buyer) = &self.buyer {
            write!(f, " to buyer {buyer:?}")?;
        }
        match &self.key {
            Some(key) => write!(f, " with key {key:?}"),
            None => Ok(()),
        }
    }
}
