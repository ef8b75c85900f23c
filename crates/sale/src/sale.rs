//! A sale: its terms and their validation. How they may change is in `change`; the stock is in
//! `stock`.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ITEM_TITLE_MAX_BYTES, Item, ItemId, ItemNo, NewItem, Price, SALE_ITEMS_MAX, SaleId};

/// The maximum number of units in a sale, over all its items.
pub const SALE_TOTAL_MAX: u32 = 1_000_000_000;
/// The bits of [`crate::Slots`], one for each unit.
pub const BUYER_LIMIT_MAX: u32 = 64;
pub const SALE_TITLE_MAX_BYTES: usize = 200;

/// The terms of a sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sale {
    pub id: SaleId,
    pub title: String,
    /// At least one. Items are never added, removed or reordered.
    pub items: Vec<Item>,
    /// Units that one buyer may hold, over all items. `None` means no limit, and allows anonymous
    /// buyers.
    pub buyer_limit: Option<u32>,
    /// Unix milliseconds; `None` means that the sale is open from the start.
    pub opens_at_ms: Option<i64>,
    /// Unix milliseconds; `None` means that the sale does not close.
    pub closes_at_ms: Option<i64>,
    /// 1 for a new sale. Increases by one with each change.
    pub version: u64,
}

/// Where a point in time is relative to the window of a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowState {
    NotOpen {
        /// Unix milliseconds.
        opens_at_ms: i64,
    },
    Open,
    Closed {
        /// Unix milliseconds.
        closed_at_ms: i64,
    },
}

impl Sale {
    /// The opening time is inclusive, the closing time exclusive.
    pub fn window(&self, now_ms: i64) -> WindowState {
        match (self.opens_at_ms, self.closes_at_ms) {
            (_, Some(closed_at_ms)) if now_ms >= closed_at_ms => {
                WindowState::Closed { closed_at_ms }
            }
            (Some(opens_at_ms), _) if now_ms < opens_at_ms => WindowState::NotOpen { opens_at_ms },
            _ => WindowState::Open,
        }
    }

    /// Units of all items, sold ones included.
    pub fn total(&self) -> u32 {
        self.items.iter().map(|item| item.total).sum()
    }

    pub fn item_no(&self, id: &ItemId) -> Option<ItemNo> {
        let index = self.items.iter().position(|item| item.id == *id)?;
        ItemNo::of_index(index)
    }

    /// The items with their numbers.
    pub fn numbered_items(&self) -> impl Iterator<Item = (ItemNo, &Item)> {
        let numbered = |(index, item)| Some((ItemNo::of_index(index)?, item));
        self.items.iter().enumerate().filter_map(numbered)
    }
}

/// The terms of a sale to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSale {
    pub id: SaleId,
    /// Defaults to the id if empty.
    pub title: String,
    /// 1..=[`SALE_ITEMS_MAX`].
    pub items: Vec<NewItem>,
    /// Units that one buyer may hold, 1..=64; `None` means no limit.
    pub buyer_limit: Option<u32>,
    /// Unix milliseconds.
    pub opens_at_ms: Option<i64>,
    /// Unix milliseconds.
    pub closes_at_ms: Option<i64>,
}

impl NewSale {
    /// A sale of one item with this many units, without a limit, and always open.
    pub fn units(id: SaleId, total: u32) -> Self {
        let item = NewItem {
            id: ItemId::default(),
            title: String::new(),
            total,
            price: None,
        };
        Self {
            id,
            title: String::new(),
            items: vec![item],
            buyer_limit: None,
            opens_at_ms: None,
            closes_at_ms: None,
        }
    }

    /// Checks the terms and returns them as version 1 of the sale.
    pub fn validate(self) -> Result<Sale, InvalidSale> {
        let title = if self.title.is_empty() {
            self.id.to_string()
        } else {
            self.title
        };
        let is_only_item = self.items.len() == 1;
        let item = |new: NewItem| Item {
            title: match new.title {
                given if !given.is_empty() => given,
                // Nobody has named this item.
                _ if is_only_item && new.id == ItemId::default() => title.clone(),
                _ => new.id.to_string(),
            },
            id: new.id,
            total: new.total,
            price: new.price,
        };
        let items = self.items.into_iter().map(item).collect();
        let sale = Sale {
            id: self.id,
            title,
            items,
            buyer_limit: self.buyer_limit,
            opens_at_ms: self.opens_at_ms,
            closes_at_ms: self.closes_at_ms,
            version: 1,
        };
        check(&sale)?;
        Ok(sale)
    }
}

/// Why terms are invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSale {
    #[error("total {total}: a sale can have 0 to {SALE_TOTAL_MAX} units")]
    Total { total: u64 },
    #[error("{items} items: a sale has 1 to {SALE_ITEMS_MAX} items")]
    Items { items: usize },
    #[error("item {item} is named twice: the items of a sale have different ids")]
    ItemTwice { item: ItemId },
    #[error(
        "price {amount} of item {item}: a price is 0 to {} minor units of its currency",
        Price::AMOUNT_MAX
    )]
    Price { item: ItemId, amount: u64 },
    #[error("buyer limit {limit}: a limit must be 1 to {BUYER_LIMIT_MAX}, or none")]
    BuyerLimit { limit: u32 },
    #[error(
        "the sale closes at {} and opens at {}: it must close after it opens",
        Time(*.closes_at_ms),
        Time(*.opens_at_ms)
    )]
    Window {
        /// Unix milliseconds.
        opens_at_ms: i64,
        /// Unix milliseconds.
        closes_at_ms: i64,
    },
    #[error("time {}: a time must be in the years 1970 to 9998", Time(*.at_ms))]
    Time {
        /// Unix milliseconds.
        at_ms: i64,
    },
    #[error("title of {bytes} bytes: a title must have 1 to {max} bytes and no control characters")]
    Title { bytes: usize, max: usize },
}

/// Unix milliseconds as RFC 3339 in UTC.
struct Time(i64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

/// Checks the terms of a new or changed sale.
pub(crate) fn check(sale: &Sale) -> Result<(), InvalidSale> {
    // 9998-12-31T23:59:59.999Z: years in RFC 3339 have four digits, and some parsers do not accept
    // all of 9999.
    const LAST_MS: i64 = 253_370_764_799_999;
    check_items(&sale.items)?;
    if let Some(limit) = sale.buyer_limit
        && !(1..=BUYER_LIMIT_MAX).contains(&limit)
    {
        return Err(InvalidSale::BuyerLimit { limit });
    }
    for at_ms in [sale.opens_at_ms, sale.closes_at_ms].into_iter().flatten() {
        if !(0..=LAST_MS).contains(&at_ms) {
            return Err(InvalidSale::Time { at_ms });
        }
    }
    if let (Some(opens_at_ms), Some(closes_at_ms)) = (sale.opens_at_ms, sale.closes_at_ms)
        && opens_at_ms >= closes_at_ms
    {
        return Err(InvalidSale::Window {
            opens_at_ms,
            closes_at_ms,
        });
    }
    check_title(&sale.title, SALE_TITLE_MAX_BYTES)
}

fn check_items(items: &[Item]) -> Result<(), InvalidSale> {
    if items.is_empty() || items.len() > SALE_ITEMS_MAX {
        let items = items.len();
        return Err(InvalidSale::Items { items });
    }
    let mut ids = HashSet::new();
    for item in items {
        if !ids.insert(&item.id) {
            let item = item.id.clone();
            return Err(InvalidSale::ItemTwice { item });
        }
        if let Some(Price { amount, .. }) = item.price
            && amount > Price::AMOUNT_MAX
        {
            let item = item.id.clone();
            return Err(InvalidSale::Price { item, amount });
        }
        check_title(&item.title, ITEM_TITLE_MAX_BYTES)?;
    }
    let total: u64 = items.iter().map(|item| u64::from(item.total)).sum();
    if total > u64::from(SALE_TOTAL_MAX) {
        return Err(InvalidSale::Total { total });
    }
    Ok(())
}

fn check_title(title: &str, max: usize) -> Result<(), InvalidSale> {
    if title.is_empty() || title.len() > max || title.chars().any(char::is_control) {
        let bytes = title.len();
        return Err(InvalidSale::Title { bytes, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_sale() -> NewSale {
        NewSale::units(SaleId::new("phone").unwrap(), 10)
    }

    fn item(id: &str, total: u32) -> NewItem {
        NewItem {
            id: ItemId::new(id).unwrap(),
            title: String::new(),
            total,
            price: None,
        }
    }

    #[test]
    fn terms_are_checked() {
        let sale = new_sale().validate().unwrap();
        assert_eq!((&*sale.title, &*sale.items[0].title), ("phone", "phone"));
        let error_after = |edit: fn(&mut NewSale)| {
            let mut sale = new_sale();
            edit(&mut sale);
            sale.validate().unwrap_err()
        };
        assert_eq!(
            error_after(|s| s.buyer_limit = Some(0)),
            InvalidSale::BuyerLimit { limit: 0 }
        );
        assert_eq!(
            error_after(|s| s.buyer_limit = Some(65)),
            InvalidSale::BuyerLimit { limit: 65 }
        );
        let total = u64::from(u32::MAX);
        assert_eq!(
            error_after(|s| s.items[0].total = u32::MAX),
            InvalidSale::Total { total }
        );
        assert!(matches!(
            error_after(|s| s.title = "a\nb".into()),
            InvalidSale::Title { .. }
        ));
        assert!(matches!(
            error_after(|s| s.opens_at_ms = Some(-1)),
            InvalidSale::Time { .. }
        ));
        let window = error_after(|s| {
            s.opens_at_ms = Some(5);
            s.closes_at_ms = Some(5);
        });
        assert!(matches!(window, InvalidSale::Window { .. }));
    }

    #[test]
    fn items_are_checked() {
        let validate = |items: Vec<NewItem>| {
            let new = NewSale {
                items,
                ..new_sale()
            };
            new.validate()
        };
        let sale = validate(vec![item("S", 40), item("M", 60)]).unwrap();
        assert_eq!(sale.total(), 100);
        assert_eq!(sale.items[1].title, "M");
        assert_eq!(sale.item_no(&ItemId::new("M").unwrap()), ItemNo::new(2));
        assert_eq!(sale.item_no(&ItemId::new("L").unwrap()), None);
        let none = validate(Vec::new()).unwrap_err();
        assert_eq!(none, InvalidSale::Items { items: 0 });
        let one = validate(vec![item("S", 40)]).unwrap();
        assert_eq!((&*one.title, &*one.items[0].title), ("phone", "S"));
        let many = (0..65).map(|i| item(&i.to_string(), 1)).collect();
        assert_eq!(
            validate(many).unwrap_err(),
            InvalidSale::Items { items: 65 }
        );
        let twice = validate(vec![item("S", 1), item("S", 1)]).unwrap_err();
        assert!(matches!(twice, InvalidSale::ItemTwice { .. }));
        let sum = validate(vec![item("S", SALE_TOTAL_MAX), item("M", 1)]).unwrap_err();
        assert!(matches!(sum, InvalidSale::Total { .. }));
        let mut dear = item("S", 1);
        dear.price = Some(Price {
            amount: Price::AMOUNT_MAX + 1,
            currency: crate::Currency::new("CNY").unwrap(),
        });
        let dear = validate(vec![dear]).unwrap_err();
        assert!(matches!(dear, InvalidSale::Price { .. }));
    }

    #[test]
    fn the_window_includes_the_opening_and_excludes_the_closing() {
        let mut new = new_sale();
        new.opens_at_ms = Some(10);
        new.closes_at_ms = Some(20);
        let sale = new.validate().unwrap();
        let opens = WindowState::NotOpen { opens_at_ms: 10 };
        assert_eq!(sale.window(9), opens);
        assert_eq!(sale.window(10), WindowState::Open);
        assert_eq!(sale.window(19), WindowState::Open);
        let closed = WindowState::Closed { closed_at_ms: 20 };
        assert_eq!(sale.window(20), closed);
    }

    #[test]
    fn refusals_show_times_as_rfc_3339() {
        let mut new = new_sale();
        new.opens_at_ms = Some(1_798_761_600_000);
        new.closes_at_ms = Some(1_798_761_600_000);
        let text = new.clone().validate().unwrap_err().to_string();
        assert!(text.contains("2027-01-01T00:00:00.000Z"), "{text}");
        new.opens_at_ms = Some(-62_135_596_800_000);
        let text = new.validate().unwrap_err().to_string();
        assert!(text.contains("0001-01-01T00:00:00.000Z"), "{text}");
    }
}
