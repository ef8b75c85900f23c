//! A sale: its terms, their validation, and how they may change while the sale runs.
//! The stock is in `stock`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::SaleId;

pub const SALE_TOTAL_MAX: u32 = 1_000_000_000;
/// The bits of [`crate::Slots`], one per order.
pub const BUYER_LIMIT_MAX: u32 = 64;
pub const SALE_TITLE_MAX_BYTES: usize = 200;

/// The terms of a sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sale {
    pub id: SaleId,
    pub title: String,
    /// Units, sold ones included.
    pub total: u32,
    /// Active orders that one buyer may hold. `None` means no limit, and allows anonymous buyers.
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
}

/// The terms of a sale to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSale {
    pub id: SaleId,
    /// Defaults to the id if empty.
    #[serde(default)]
    pub title: String,
    /// 0 makes a sale that is sold out from the start.
    pub total: u32,
    /// Active orders that one buyer may hold, 1..=64; `None` means no limit.
    #[serde(default)]
    pub buyer_limit: Option<u32>,
    /// Unix milliseconds.
    #[serde(default)]
    pub opens_at_ms: Option<i64>,
    /// Unix milliseconds.
    #[serde(default)]
    pub closes_at_ms: Option<i64>,
}

impl NewSale {
    /// A sale with this many units, without a limit, and always open.
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

    /// Checks the terms and returns them as version 1 of the sale.
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

/// A change of a sale's terms. `None` leaves a term unchanged. All values are absolute, so that a
/// change that is sent twice has the same effect as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaleChange {
    /// The version that the sale is expected to have. If it has another, the change is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
    /// `Some(None)` removes the limit.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub buyer_limit: Option<Option<u32>>,
    /// Unix milliseconds; `Some(None)` removes the opening time.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub opens_at_ms: Option<Option<i64>>,
    /// Unix milliseconds; `Some(None)` removes the closing time.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub closes_at_ms: Option<Option<i64>>,
}

/// Distinguishes `null` (remove the term) from an absent field (keep it). By default, serde reads
/// both as `None`.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

/// What the terms of a sale must respect because of its active orders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaleUsage {
    /// The most active orders that one named buyer holds.
    pub most_held: u32,
    /// The highest unit number that an active order holds.
    pub highest_sold: u32,
}

impl SaleChange {
    /// Whether it changes no term.
    pub fn is_empty(&self) -> bool {
        let Self {
            if_version: _,
            title,
            total,
            buyer_limit,
            opens_at_ms,
            closes_at_ms,
        } = self;
        title.is_none()
            && total.is_none()
            && buyer_limit.is_none()
            && opens_at_ms.is_none()
            && closes_at_ms.is_none()
    }

    /// Returns the changed terms. Refuses a change that would invalidate an active order.
    pub fn apply(&self, sale: &Sale, usage: SaleUsage) -> Result<Sale, ChangeRefused> {
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
            total: self.total.unwrap_or(sale.total),
            buyer_limit: self.buyer_limit.unwrap_or(sale.buyer_limit),
            opens_at_ms: self.opens_at_ms.unwrap_or(sale.opens_at_ms),
            closes_at_ms: self.closes_at_ms.unwrap_or(sale.closes_at_ms),
            version: sale.version + 1,
        };
        check(&changed)?;
        let SaleUsage {
            most_held,
            highest_sold,
        } = usage;
        if changed.total < highest_sold {
            let total = changed.total;
            return Err(ChangeRefused::TotalBelowSold {
                total,
                highest_sold,
            });
        }
        match self.buyer_limit.flatten() {
            Some(limit) if limit < most_held => {
                Err(ChangeRefused::LimitBelowHeld { limit, most_held })
            }
            _ => Ok(changed),
        }
    }
}

/// Why terms are invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSale {
    #[error("total {total}: a sale can have 0 to {SALE_TOTAL_MAX} units")]
    Total { total: u64 },
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
    #[error(
        "title of {bytes} bytes: a title can have at most {SALE_TITLE_MAX_BYTES} bytes and no control characters"
    )]
    Title { bytes: usize },
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

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    #[error(transparent)]
    InvalidSale(#[from] InvalidSale),
    #[error(
        "the sale has version {found}, and the change was for version {wanted}: read the sale again, then repeat the change if you still want it"
    )]
    VersionDiffers { wanted: u64, found: u64 },
    #[error(
        "buyer limit {limit}: a buyer already holds {most_held} units; orders are never revoked, so the limit must be at least {most_held}"
    )]
    LimitBelowHeld { limit: u32, most_held: u32 },
    #[error(
        "total {total}: unit {highest_sold} is sold; orders are never revoked, so the total must be at least {highest_sold}"
    )]
    TotalBelowSold { total: u32, highest_sold: u32 },
    #[error("nothing to change: give a title, a total, a limit, or an opening or closing time")]
    NothingToChange,
}

fn check(sale: &Sale) -> Result<(), InvalidSale> {
    // 9998-12-31T23:59:59.999Z: years in RFC 3339 have four digits, and some parsers do not accept
    // all of 9999.
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
        assert!(matches!(
            error_after(|s| s.total = u32::MAX),
            InvalidSale::Total { .. }
        ));
        assert!(matches!(
            error_after(|s| s.title = "x".repeat(201)),
            InvalidSale::Title { .. }
        ));
        assert!(matches!(
            error_after(|s| s.opens_at_ms = Some(-1)),
            InvalidSale::Time { .. }
        ));
        let empty_window = error_after(|s| {
            s.opens_at_ms = Some(5);
            s.closes_at_ms = Some(5);
        });
        assert!(matches!(empty_window, InvalidSale::Window { .. }));
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

    fn usage(most_held: u32, highest_sold: u32) -> SaleUsage {
        SaleUsage {
            most_held,
            highest_sold,
        }
    }

    #[test]
    fn a_change_never_invalidates_an_order() {
        let sale = new_sale().validate().unwrap();
        let units = |total| SaleChange {
            total: Some(total),
            ..SaleChange::default()
        };
        let changed = units(15).apply(&sale, usage(0, 10)).unwrap();
        assert_eq!((changed.total, changed.version), (15, 2));
        assert_eq!(units(7).apply(&sale, usage(0, 7)).unwrap().total, 7);
        let refused = units(7).apply(&sale, usage(0, 8)).unwrap_err();
        assert!(matches!(refused, ChangeRefused::TotalBelowSold { .. }));
        let limit = SaleChange {
            buyer_limit: Some(Some(2)),
            ..SaleChange::default()
        };
        assert!(limit.apply(&sale, usage(2, 2)).is_ok());
        let refused = limit.apply(&sale, usage(3, 3)).unwrap_err();
        assert!(matches!(refused, ChangeRefused::LimitBelowHeld { .. }));
        let empty = SaleChange {
            if_version: Some(1),
            ..SaleChange::default()
        };
        let refused = empty.apply(&sale, SaleUsage::default()).unwrap_err();
        assert_eq!(refused, ChangeRefused::NothingToChange);
        assert!(units(u32::MAX).apply(&sale, SaleUsage::default()).is_err());
    }

    #[test]
    fn a_change_for_another_version_is_refused() {
        let sale = new_sale().validate().unwrap();
        let change = |if_version| SaleChange {
            if_version: Some(if_version),
            total: Some(11),
            ..SaleChange::default()
        };
        let changed = change(1).apply(&sale, SaleUsage::default()).unwrap();
        let again = change(1).apply(&changed, SaleUsage::default()).unwrap_err();
        let expected = ChangeRefused::VersionDiffers {
            wanted: 1,
            found: 2,
        };
        assert_eq!(again, expected);
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
