//! Names of a sale's keys in Redis. All share one hash tag, so a Cluster stores them in one slot.

use std::sync::Arc;

use seckill_sale::ItemNo;

/// The key of the first item's released units in [`GateKeys::all`].
const RETURNED: usize = 5;
/// The number of keys before those of the other items' released units.
const FIXED: usize = 7;

/// The keys of a sale, in the order that the script expects: seven, and one more for each item
/// after the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateKeys(Arc<[String]>);

impl GateKeys {
    /// `items` is the number of items, which never changes.
    pub fn new(stock_key: &str, items: usize) -> Self {
        let key = |suffix: &str| format!("{{{stock_key}}}:{suffix}");
        let fixed = ["m", "c", "k", "b", "f", "o"].map(key);
        let lists = (2..=items).map(|item| key(&format!("f{item}")));
        let all = std::iter::once(stock_key.to_owned()).chain(fixed);
        Self(all.chain(lists).collect())
    }

    pub(crate) fn all(&self) -> &[String] {
        &self.0
    }

    /// The number of items.
    pub fn items(&self) -> usize {
        self.0.len() + 1 - FIXED
    }

    /// The number of free units, the tutorial's `counter`.
    pub fn stock(&self) -> &str {
        &self.0[0]
    }

    /// The terms and the state of the gate.
    pub fn terms(&self) -> &str {
        &self.0[1]
    }

    pub(crate) fn claims(&self) -> &str {
        &self.0[2]
    }

    pub(crate) fn by_key(&self) -> &str {
        &self.0[3]
    }

    pub(crate) fn buyers(&self) -> &str {
        &self.0[4]
    }

    pub(crate) fn outbox(&self) -> &str {
        &self.0[6]
    }

    /// The released units of each item.
    pub(crate) fn returned(&self) -> impl Iterator<Item = (ItemNo, &str)> {
        let others = &self.0[FIXED..];
        let lists = std::iter::once(&self.0[RETURNED]).chain(others);
        lists
            .enumerate()
            .filter_map(|(index, key)| Some((ItemNo::of_index(index)?, key.as_str())))
    }
}

/// The name of an item's field among the terms.
pub(crate) fn item_field(name: &str, item: ItemNo) -> String {
    match item {
        ItemNo::FIRST => name.to_owned(),
        item => format!("{name}{}", item.get()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_after_the_first_has_one_more_key() {
        let simple = GateKeys::new("counter", 1);
        assert_eq!((simple.all().len(), simple.items()), (7, 1));
        assert_eq!(simple.outbox(), "{counter}:o");
        let keys = GateKeys::new("counter", 3);
        assert_eq!((keys.all().len(), keys.items()), (9, 3));
        let lists: Vec<_> = keys
            .returned()
            .map(|(item, key)| (item.get(), key))
            .collect();
        let expected = [(1, "{counter}:f"), (2, "{counter}:f2"), (3, "{counter}:f3")];
        assert_eq!(lists, expected);
    }
}
