//! Changes of a sale's terms while it runs. A change never invalidates an order.

use std::collections::HashSet;

use smallvec::SmallVec;

use crate::sale::check;
use crate::{InvalidSale, Item, ItemId, ItemNo, Price, Sale, SaleId};

/// A change of a sale's terms. `None` leaves a term unchanged. All values are absolute, so that a
/// change that is sent twice has the same effect as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaleChange {
    /// The version that the sale is expected to have. If it has another, the change is refused.
    pub if_version: Option<u64>,
    pub title: Option<String>,
    /// Of the only item.
    pub total: Option<u32>,
    pub items: Vec<ItemChange>,
    /// `Some(None)` removes the limit.
    pub buyer_limit: Option<Option<u32>>,
    /// Unix milliseconds; `Some(None)` removes the opening time.
    pub opens_at_ms: Option<Option<i64>>,
    /// Unix milliseconds; `Some(None)` removes the closing time.
    pub closes_at_ms: Option<Option<i64>>,
}

/// A change of one item's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemChange {
    pub id: ItemId,
    pub title: Option<String>,
    pub total: Option<u32>,
    /// `Some(None)` removes the price.
    pub price: Option<Option<Price>>,
}

/// What the terms of a sale must respect because of its active orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaleUsage {
    /// The most units that one named buyer holds.
    pub most_held: u32,
    /// The highest unit number of each item that an active order holds; 0 if there is none.
    pub highest_sold: SmallVec<[u32; 1]>,
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    #[error(transparent)]
    InvalidSale(#[from] InvalidSale),
    #[error(
        "the sale has version {found}, and the change was for version {wanted}: read the sale again, then repeat the change if you still want it"
    )]
    VersionDiffers { wanted: u64, found: u64 },
    #[error("item {item}: the sale has no such item; items cannot be added or removed")]
    NoSuchItem { item: ItemId },
    #[error("the sale has several items: name the item whose total should change")]
    ItemRequired,
    #[error(
        "buyer limit {limit}: a buyer already holds {most_held} units; orders are never revoked, so the limit must be at least {most_held}"
    )]
    LimitBelowHeld { limit: u32, most_held: u32 },
    #[error(
        "total {total} of item {item}: unit {highest_sold} is sold; orders are never revoked, so the total must be at least {highest_sold}"
    )]
    TotalBelowSold {
        item: ItemId,
        total: u32,
        highest_sold: u32,
    },
    #[error(
        "nothing to change: give a title, a total, a price, a limit, or an opening or closing time"
    )]
    NothingToChange,
}

/// Why a sale was not created or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaleRefused {
    #[error("sale {} exists already, with {} units", .0.id, .0.total())]
    Exists(Box<Sale>),
    #[error("there is no sale {0}; `seckill sale list` shows the existing sales")]
    NoSuchSale(SaleId),
    #[error(transparent)]
    InvalidSale(#[from] InvalidSale),
    #[error(transparent)]
    Change(#[from] ChangeRefused),
}

impl SaleChange {
    /// Sets the total of a sale's only item.
    pub fn of_total(total: u32) -> Self {
        Self {
            total: Some(total),
            ..Self::default()
        }
    }

    /// Whether it changes no term.
    pub fn is_empty(&self) -> bool {
        let Self {
            if_version: _,
            title,
            total,
            items,
            buyer_limit,
            opens_at_ms,
            closes_at_ms,
        } = self;
        title.is_none()
            && total.is_none()
            && items.iter().all(ItemChange::is_empty)
            && buyer_limit.is_none()
            && opens_at_ms.is_none()
            && closes_at_ms.is_none()
    }

    /// Whether it sets the total of any item, which must respect the units that are sold.
    pub fn sets_total(&self) -> bool {
        self.total.is_some() || self.items.iter().any(|item| item.total.is_some())
    }

    /// Returns the changed terms. Refuses a change that would invalidate an active order.
    pub fn apply(&self, sale: &Sale, usage: &SaleUsage) -> Result<Sale, ChangeRefused> {
        if let Some(wanted) = self.if_version
            && wanted != sale.version
        {
            return Err(ChangeRefused::VersionDiffers {
                wanted,
                found: sale.version,
            });
        }
        if self.is_empty() {
            return Err(ChangeRefused::NothingToChange);
        }
        let changed = Sale {
            id: sale.id.clone(),
            title: self.title.clone().unwrap_or_else(|| sale.title.clone()),
            items: self.items(sale)?,
            buyer_limit: self.buyer_limit.unwrap_or(sale.buyer_limit),
            opens_at_ms: self.opens_at_ms.unwrap_or(sale.opens_at_ms),
            closes_at_ms: self.closes_at_ms.unwrap_or(sale.closes_at_ms),
            version: sale.version + 1,
        };
        check(&changed)?;
        for (item, &highest_sold) in changed.items.iter().zip(&usage.highest_sold) {
            if item.total < highest_sold {
                return Err(ChangeRefused::TotalBelowSold {
                    item: item.id.clone(),
                    total: item.total,
                    highest_sold,
                });
            }
        }
        let most_held = usage.most_held;
        match self.buyer_limit.flatten() {
            Some(limit) if limit < most_held => {
                Err(ChangeRefused::LimitBelowHeld { limit, most_held })
            }
            _ => Ok(changed),
        }
    }

    fn items(&self, sale: &Sale) -> Result<Vec<Item>, ChangeRefused> {
        let mut items = sale.items.clone();
        let mut numbers = HashSet::new();
        if let Some(total) = self.total {
            let [item] = &mut items[..] else {
                return Err(ChangeRefused::ItemRequired);
            };
            item.total = total;
        }
        for change in &self.items {
            let no_such_item = || ChangeRefused::NoSuchItem {
                item: change.id.clone(),
            };
            let number = sale.item_no(&change.id).ok_or_else(no_such_item)?;
            let is_total_twice = self.total.is_some() && change.total.is_some();
            if !numbers.insert(number) || is_total_twice {
                let item = change.id.clone();
                return Err(InvalidSale::ItemTwice { item }.into());
            }
            change.apply(&mut items[ItemNo::index(number)]);
        }
        Ok(items)
    }
}

impl ItemChange {
    fn is_empty(&self) -> bool {
        self.title.is_none() && self.total.is_none() && self.price.is_none()
    }

    fn apply(&self, item: &mut Item) {
        if let Some(title) = &self.title {
            item.title.clone_from(title);
        }
        item.total = self.total.unwrap_or(item.total);
        item.price = self.price.unwrap_or(item.price);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewItem, NewSale};

    fn sale() -> Sale {
        NewSale::units(SaleId::new("phone").unwrap(), 10)
            .validate()
            .unwrap()
    }

    fn usage(most_held: u32, highest_sold: &[u32]) -> SaleUsage {
        SaleUsage {
            most_held,
            highest_sold: highest_sold.into(),
        }
    }

    #[test]
    fn a_change_respects_the_active_orders() {
        let sale = sale();
        let changed = SaleChange::of_total(5).apply(&sale, &usage(0, &[5]));
        assert_eq!(changed.map(|sale| (sale.total(), sale.version)), Ok((5, 2)));
        let refused = SaleChange::of_total(4).apply(&sale, &usage(0, &[5]));
        assert!(matches!(
            refused,
            Err(ChangeRefused::TotalBelowSold {
                total: 4,
                highest_sold: 5,
                ..
            })
        ));
        let limit = SaleChange {
            buyer_limit: Some(Some(2)),
            ..SaleChange::default()
        };
        assert!(limit.apply(&sale, &usage(2, &[2])).is_ok());
        let refused = limit.apply(&sale, &usage(3, &[3])).unwrap_err();
        assert!(matches!(refused, ChangeRefused::LimitBelowHeld { .. }));
        let empty = SaleChange {
            if_version: Some(1),
            ..SaleChange::default()
        };
        let refused = empty.apply(&sale, &usage(0, &[])).unwrap_err();
        assert_eq!(refused, ChangeRefused::NothingToChange);
        let too_many = SaleChange::of_total(u32::MAX).apply(&sale, &usage(0, &[]));
        assert!(too_many.is_err());
    }

    #[test]
    fn items_change_by_their_ids() {
        let item = |id: &str| NewItem {
            id: ItemId::new(id).unwrap(),
            title: String::new(),
            total: 5,
            price: None,
        };
        let new = NewSale {
            items: vec![item("S"), item("M")],
            ..NewSale::units(SaleId::new("shirt").unwrap(), 0)
        };
        let sale = new.validate().unwrap();
        let total_of = |id: &str, total| SaleChange {
            items: vec![ItemChange {
                id: ItemId::new(id).unwrap(),
                title: None,
                total: Some(total),
                price: None,
            }],
            ..SaleChange::default()
        };
        let changed = total_of("M", 7).apply(&sale, &usage(0, &[5, 5])).unwrap();
        assert_eq!((changed.items[0].total, changed.items[1].total), (5, 7));
        let refused = total_of("M", 4).apply(&sale, &usage(0, &[0, 5]));
        assert!(
            matches!(refused, Err(ChangeRefused::TotalBelowSold { item, .. }) if item.as_str() == "M")
        );
        let mut untitled = total_of("M", 7);
        untitled.items[0].title = Some(String::new());
        let untitled = untitled.apply(&sale, &usage(0, &[]));
        let expected = InvalidSale::Title {
            bytes: 0,
            max: crate::ITEM_TITLE_MAX_BYTES,
        };
        assert_eq!(untitled, Err(expected.into()));
        let unnamed = SaleChange::of_total(9).apply(&sale, &usage(0, &[]));
        assert_eq!(unnamed, Err(ChangeRefused::ItemRequired));
        let missing = total_of("XL", 9).apply(&sale, &usage(0, &[]));
        assert!(matches!(missing, Err(ChangeRefused::NoSuchItem { .. })));
        let twice = SaleChange {
            items: [total_of("M", 7).items, total_of("M", 8).items].concat(),
            ..SaleChange::default()
        };
        let twice = twice.apply(&sale, &usage(0, &[]));
        assert_eq!(twice, item_twice("M"));
    }

    fn item_twice(id: &str) -> Result<Sale, ChangeRefused> {
        let item = ItemId::new(id).unwrap();
        Err(InvalidSale::ItemTwice { item }.into())
    }

    #[test]
    fn the_total_of_the_only_item_is_given_once() {
        let of_default = |total| ItemChange {
            id: ItemId::default(),
            title: Some("Phone".into()),
            total,
            price: None,
        };
        let change = |total| SaleChange {
            items: vec![of_default(total)],
            ..SaleChange::of_total(11)
        };
        let changed = change(None).apply(&sale(), &usage(0, &[])).unwrap();
        assert_eq!((changed.total(), &*changed.items[0].title), (11, "Phone"));
        let twice = change(Some(12)).apply(&sale(), &usage(0, &[]));
        assert_eq!(twice, item_twice("default"));
    }

    #[test]
    fn a_change_for_another_version_is_refused() {
        let sale = sale();
        let change = |if_version| SaleChange {
            if_version: Some(if_version),
            ..SaleChange::of_total(11)
        };
        let changed = change(1).apply(&sale, &usage(0, &[])).unwrap();
        let again = change(1).apply(&changed, &usage(0, &[])).unwrap_err();
        let expected = ChangeRefused::VersionDiffers {
            wanted: 1,
            found: 2,
        };
        assert_eq!(again, expected);
    }
}
