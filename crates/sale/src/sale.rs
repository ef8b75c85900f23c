//! A sale: its terms, what makes terms valid, and how they may change while it runs.
//! The stock that is left stands in `stock`.

use serde::{Deserialize, Serialize};

use crate::SaleId;

/// The most units of one sale.
pub const SALE_TOTAL_MAX: u32 = 1_000_000_000;
/// The highest limit per buyer that can be set.
pub const BUYER_LIMIT_MAX: u32 = 64;
/// The longest title, in bytes.
pub const SALE_TITLE_MAX_BYTES: usize = 200;

/// The terms of a sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sale {
    /// Its name.
    pub id: SaleId,
    /// What people call it.
    pub title: String,
    /// Units in all. Only ever grows.
    pub total: u32,
    /// Active orders that one buyer may hold; none means no limit, and anonymous buyers are let in.
    pub buyer_limit: Option<u32>,
    /// When it opens, in Unix milliseconds; none means it is open.
    pub opens_at_ms: Option<i64>,
    /// When it closes, in Unix milliseconds; none means it stays open.
    pub closes_at_ms: Option<i64>,
    /// 1 when made; grows by one with each change.
    pub version: u64,
}

/// Where a moment stands in a sale's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowState {
    /// Before it opens.
    NotOpen {
        /// When it opens, in Unix milliseconds.
        opens_at_ms: i64,
    },
    /// Inside the window.
    Open,
    /// After it closed.
    Closed {
        /// When it closed, in Unix milliseconds.
        closed_at_ms: i64,
    },
}

impl Sale {
    /// Where `now_ms` stands in the window: opening is inclusive, closing exclusive.
    pub fn window(&self, now_ms: i64) -> WindowState {
        match (self.opens_at_ms, self.closes_at_ms) {
            (_, Some(closed_at_ms)) if now_ms >= closed_at_ms => {
                WindowState::Closed { closed_at_ms }
            }
            (Some(opens_at_ms), _) if now_ms < opens_at_ms => WindowState::NotOpen { opens_at_ms },
            _ => WindowState::Open,
        }
    }
}

/// The terms of a sale that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSale {
    /// Its name.
    pub id: SaleId,
    /// What people call it; its id where empty.
    #[serde(default)]
    pub title: String,
    /// Units in all; 0 is a sale that is sold out from the start.
    pub total: u32,
    /// Active orders that one buyer may hold, 1..=64; none means no limit.
    #[serde(default)]
    pub buyer_limit: Option<u32>,
    /// When it opens, in Unix milliseconds.
    #[serde(default)]
    pub opens_at_ms: Option<i64>,
    /// When it closes, in Unix milliseconds.
    #[serde(default)]
    pub closes_at_ms: Option<i64>,
}

impl NewSale {
    /// Terms with units alone: no limit, always open.
    pub fn units(id: SaleId, total: u32) -> Self {
        Self {
            id,
            title: String::new(),
            total,
            buyer_limit: None,
            opens_at_ms: None,
            closes_at_ms: None,
        }
    }

    /// Checks the terms and makes the sale's first version of them.
    pub fn validate(self) -> Result<Sale, InvalidSale> {
        let title = if self.title.is_empty() {
            self.id.to_string()
        } else {
            self.title
        };
        let sale = Sale {
            id: self.id,
            title,
            total: self.total,
            buyer_limit: self.buyer_limit,
            opens_at_ms: self.opens_at_ms,
            closes_at_ms: self.closes_at_ms,
            version: 1,
        };
        check(&sale)?;
        Ok(sale)
    }
}

/// A change of a sale's terms; what is none stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaleChange {
    /// A new title.
    pub title: Option<String>,
    /// Units to add.
    pub add_units: u32,
    /// A new limit per buyer; `Some(None)` lifts it.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub buyer_limit: Option<Option<u32>>,
    /// A new opening time; `Some(None)` means open now.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub opens_at_ms: Option<Option<i64>>,
    /// A new closing time; `Some(None)` means never.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub closes_at_ms: Option<Option<i64>>,
}

/// Tells `null` (lift it) from an absent member (leave it), which serde's default for nested options does not.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

impl SaleChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The terms after the change. `most_held` is the most active orders that one named buyer holds now: a limit below
    /// that is refused, since no order is taken away.
    pub fn apply(&self, sale: &Sale, most_held: u32) -> Result<Sale, ChangeRefused> {
        if self.is_empty() {
            return Err(ChangeRefused::NothingToChange);
        }
        let total = sale
            .total
            .checked_add(self.add_units)
            .ok_or(InvalidSale::Total {
                total: u64::from(sale.total) + u64::from(self.add_units),
            })?;
        let changed = Sale {
            id: sale.id.clone(),
            title: self.title.clone().unwrap_or_else(|| sale.title.clone()),
            total,
            buyer_limit: self.buyer_limit.unwrap_or(sale.buyer_limit),
            opens_at_ms: self.opens_at_ms.unwrap_or(sale.opens_at_ms),
            closes_at_ms: self.closes_at_ms.unwrap_or(sale.closes_at_ms),
            version: sale.version + 1,
        };
        check(&changed)?;
        match changed.buyer_limit {
            Some(limit) if limit < most_held => {
                Err(ChangeRefused::LimitBelowHeld { limit, most_held })
            }
            _ => Ok(changed),
        }
    }
}

/// Terms that no sale can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSale {
    /// Too many units.
    #[error("total {total}: a sale has 0 to {SALE_TOTAL_MAX} units")]
    Total {
        /// What was asked for.
        total: u64,
    },
    /// Not a limit.
    #[error("buyer limit {limit}: a limit is 1 to {BUYER_LIMIT_MAX}; leave it out for no limit")]
    BuyerLimit {
        /// What was asked for.
        limit: u32,
    },
    /// The window has no inside.
    #[error(
        "closes at {closes_at_ms} ms, opens at {opens_at_ms} ms: a sale must close after it opens"
    )]
    Window {
        /// The opening, in Unix milliseconds.
        opens_at_ms: i64,
        /// The closing, in Unix milliseconds.
        closes_at_ms: i64,
    },
    /// Not a time that can be written down.
    #[error("time {at_ms} ms: a time lies in the years 1970 to 9998")]
    Time {
        /// What was asked for, in Unix milliseconds.
        at_ms: i64,
    },
    /// Not a title.
    #[error(
        "title of {bytes} bytes: a title has at most {SALE_TITLE_MAX_BYTES} bytes and no control characters"
    )]
    Title {
        /// Its length.
        bytes: usize,
    },
}

/// A change that was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// The changed terms would not be valid.
    #[error(transparent)]
    InvalidSale(#[from] InvalidSale),
    /// Somebody holds more than the new limit.
    #[error(
        "buyer limit {limit}: a buyer already holds {most_held} units; no order is taken away, so the limit must be at least {most_held}"
    )]
    LimitBelowHeld {
        /// The limit asked for.
        limit: u32,
        /// The most that one buyer holds.
        most_held: u32,
    },
    /// The change is empty.
    #[error(
        "nothing to change: give a title, units to add, a limit, or an opening or closing time"
    )]
    NothingToChange,
}

fn check(sale: &Sale) -> Result<(), InvalidSale> {
    // 9998-12-31T23:59:59.999Z: RFC 3339 has four digits for a year, and its readers stop within 9999.
    const LAST_MS: i64 = 253_370_764_799_999;
    if sale.total > SALE_TOTAL_MAX {
        return Err(InvalidSale::Total {
            total: sale.total.into(),
        });
    }
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
    if sale.title.len() > SALE_TITLE_MAX_BYTES || sale.title.chars().any(char::is_control) {
        return Err(InvalidSale::Title {
            bytes: sale.title.len(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_sale() -> NewSale {
        NewSale::units(SaleId::new("phone").unwrap(), 10)
    }

    #[test]
    fn terms_are_checked() {
        assert_eq!(new_sale().validate().unwrap().title, "phone");
        let bad = |edit: fn(&mut NewSale)| {
            let mut sale = new_sale();
            edit(&mut sale);
            sale.validate().unwrap_err()
        };
        assert_eq!(
            bad(|s| s.buyer_limit = Some(0)),
            InvalidSale::BuyerLimit { limit: 0 }
        );
        assert_eq!(
            bad(|s| s.buyer_limit = Some(65)),
            InvalidSale::BuyerLimit { limit: 65 }
        );
        assert!(matches!(
            bad(|s| s.total = u32::MAX),
            InvalidSale::Total { .. }
        ));
        assert!(matches!(
            bad(|s| s.title = "x".repeat(201)),
            InvalidSale::Title { .. }
        ));
        assert!(matches!(
            bad(|s| s.opens_at_ms = Some(-1)),
            InvalidSale::Time { .. }
        ));
        let upside_down = bad(|s| {
            s.opens_at_ms = Some(5);
            s.closes_at_ms = Some(5);
        });
        assert!(matches!(upside_down, InvalidSale::Window { .. }));
    }

    #[test]
    fn the_window_opens_inclusively_and_closes_exclusively() {
        let sale = Sale {
            opens_at_ms: Some(10),
            closes_at_ms: Some(20),
            ..new_sale().validate().unwrap()
        };
        assert_eq!(sale.window(9), WindowState::NotOpen { opens_at_ms: 10 });
        assert_eq!(sale.window(10), WindowState::Open);
        assert_eq!(sale.window(19), WindowState::Open);
        assert_eq!(sale.window(20), WindowState::Closed { closed_at_ms: 20 });
    }

    #[test]
    fn changes_grow_the_total_and_never_undercut_a_buyer() {
        let sale = new_sale().validate().unwrap();
        let more = SaleChange {
            add_units: 5,
            ..SaleChange::default()
        };
        let changed = more.apply(&sale, 0).unwrap();
        assert_eq!((changed.total, changed.version), (15, 2));
        let limit = SaleChange {
            buyer_limit: Some(Some(2)),
            ..SaleChange::default()
        };
        assert!(limit.apply(&sale, 2).is_ok());
        let refused = limit.apply(&sale, 3).unwrap_err();
        assert!(matches!(refused, ChangeRefused::LimitBelowHeld { .. }));
        let nothing = SaleChange::default().apply(&sale, 0).unwrap_err();
        assert_eq!(nothing, ChangeRefused::NothingToChange);
        let overflow = SaleChange {
            add_units: u32::MAX,
            ..SaleChange::default()
        };
        assert!(overflow.apply(&sale, 0).is_err());
    }
}
