//! What the audit knows of one sale: its terms, who holds each unit, and what each buyer holds.

use std::collections::{HashMap, HashSet};

use super::{FeedAudit, Invariant, RowFacts};
use crate::{ItemNo, ItemUnit, OrderState, Sale};

#[derive(Debug)]
struct UnitHolder {
    active: u32,
    order_id: Box<str>,
}

#[derive(Debug)]
pub(super) struct SaleAudit {
    pub(super) sale: Sale,
    /// By item.
    pub(super) gate_left: Option<Vec<u32>>,
    pub(super) orders: u64,
    /// Units that orders hold, by item.
    pub(super) active: Vec<u64>,
    pub(super) feed: FeedAudit,
    holders: HashMap<(ItemNo, u32), UnitHolder>,
    generations: HashSet<ItemUnit>,
    keys: HashSet<(Box<str>, Box<str>)>,
    held: HashMap<Box<str>, u32>,
}

/// A broken invariant, the other orders that break it, and how.
pub(super) type Broken = (Invariant, Vec<Box<str>>, String);

impl SaleAudit {
    pub(super) fn new(sale: Sale) -> Self {
        Self {
            active: vec![0; sale.items.len()],
            sale,
            gate_left: None,
            orders: 0,
            feed: FeedAudit::default(),
            holders: HashMap::new(),
            generations: HashSet::new(),
            keys: HashSet::new(),
            held: HashMap::new(),
        }
    }

    pub(super) fn row(&mut self, row: &RowFacts<'_>, state: OrderState) -> Vec<Broken> {
        let mut broken = Vec::new();
        let Some(item) = self.sale.items.get(row.item.index()) else {
            let detail = format!("the sale has no item {}", row.item.get());
            broken.push((Invariant::NoPhantoms, Vec::new(), detail));
            return broken;
        };
        let (unit, total) = (row.unit, item.total);
        if !self.generations.insert(row.item_unit()) {
            let detail = format!(
                "two orders have generation {} of this unit",
                unit.generation
            );
            broken.push((Invariant::NoDuplicates, Vec::new(), detail));
        }
        if let Some(key) = row.key
            && !self.keys.insert((row.buyer.into(), key.into()))
        {
            let detail = format!("buyer {:?} has two claims under key {key:?}", row.buyer);
            broken.push((Invariant::NoDuplicates, Vec::new(), detail));
        }
        if !state.is_active() {
            return broken;
        }
        self.active[row.item.index()] += 1;
        if unit.number == 0 || unit.number > total {
            let detail = format!("the unit is not in 1..={total}");
            broken.push((Invariant::NoOversell, Vec::new(), detail));
        }
        let holder = self.holders.entry((row.item, unit.number));
        let holder = holder.or_insert_with(|| UnitHolder {
            active: 0,
            order_id: row.order_id.into(),
        });
        holder.active += 1;
        if holder.active > 1 {
            let detail = format!("{} active orders hold this unit", holder.active);
            let first = vec![holder.order_id.clone()];
            broken.push((Invariant::NoOversell, first, detail));
        }
        if self.sale.buyer_limit.is_some() && !row.buyer.is_empty() {
            *self.held.entry(row.buyer.into()).or_default() += 1;
        }
        broken
    }

    /// Units of the item, within its total, that orders hold.
    pub(super) fn sold(&self, item: ItemNo) -> u32 {
        let total = self.sale.items[item.index()].total;
        let is_sold = |(of, unit): &&(ItemNo, u32)| *of == item && (1..=total).contains(unit);
        self.holders.keys().filter(is_sold).count() as u32
    }

    pub(super) fn gate_left(&self, item: ItemNo) -> Option<u32> {
        self.gate_left.as_ref()?.get(item.index()).copied()
    }

    /// The buyers who hold more units than the sale allows.
    pub(super) fn above_limit(&self) -> impl Iterator<Item = (&str, u32)> {
        let limit = self.sale.buyer_limit.unwrap_or(u32::MAX);
        let held = self.held.iter().map(|(buyer, held)| (&**buyer, *held));
        held.filter(move |(_, held)| *held > limit)
    }
}
