//! An item: what a sale sells, such as a size or a seat class. Its stock is in `stock`.

use std::fmt;
use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

use crate::ItemId;

/// The maximum number of items in a sale.
pub const SALE_ITEMS_MAX: usize = 64;
pub const ITEM_TITLE_MAX_BYTES: usize = 200;

/// The position of an item in its sale, from 1. It never changes, so gates and stores use it
/// instead of the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct ItemNo(NonZeroU8);

impl ItemNo {
    /// The only item of a simple sale.
    pub const FIRST: Self = Self(NonZeroU8::MIN);

    /// `None` unless the number is in 1..=[`SALE_ITEMS_MAX`].
    pub fn new(number: u8) -> Option<Self> {
        NonZeroU8::new(number)
            .filter(|_| usize::from(number) <= SALE_ITEMS_MAX)
            .map(Self)
    }

    /// The number of the item at this index of [`crate::Sale::items`].
    pub fn of_index(index: usize) -> Option<Self> {
        Self::new(u8::try_from(index + 1).ok()?)
    }

    pub fn get(self) -> u8 {
        self.0.get()
    }

    /// The index in [`crate::Sale::items`].
    pub fn index(self) -> usize {
        usize::from(self.0.get()) - 1
    }
}

impl TryFrom<u8> for ItemNo {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        Self::new(number).ok_or_else(|| format!("{number} is not an item number"))
    }
}

impl From<ItemNo> for u8 {
    fn from(number: ItemNo) -> Self {
        number.get()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub id: ItemId,
    pub title: String,
    /// Units, sold ones included.
    pub total: u32,
    pub price: Option<Price>,
}

/// The terms of an item of a new sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewItem {
    pub id: ItemId,
    /// Defaults to the id if empty; for the only item of a sale, to the sale's title.
    pub title: String,
    /// 0 makes an item that is sold out from the start.
    pub total: u32,
    pub price: Option<Price>,
}

/// The price of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// In the currency's minor unit, such as cents.
    pub amount: u64,
    pub currency: Currency,
}

impl Price {
    /// So that no sum of prices overflows, and every JSON reader keeps the number exact.
    pub const AMOUNT_MAX: u64 = 1_000_000_000_000;
}

/// An ISO 4217 code: three capital letters. Whether the code is assigned is not checked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency([u8; 3]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("currency {0:?}: a currency is an ISO 4217 code of three capital letters, such as CNY")]
pub struct InvalidCurrency(String);

impl Currency {
    pub fn new(code: &str) -> Result<Self, InvalidCurrency> {
        match <[u8; 3]>::try_from(code.as_bytes()) {
            Ok(code) if code.iter().all(u8::is_ascii_uppercase) => Ok(Self(code)),
            _ => Err(InvalidCurrency(code.chars().take(16).collect())),
        }
    }

    pub fn as_str(&self) -> &str {
        // The constructor accepts only ASCII letters.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(&code).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn item_numbers_are_positions() {
        assert_eq!(ItemNo::of_index(0), Some(ItemNo::FIRST));
        assert_eq!(ItemNo::of_index(63).map(ItemNo::get), Some(64));
        assert_eq!(ItemNo::of_index(64), None);
        assert_eq!(ItemNo::new(0), None);
        assert_eq!(ItemNo::new(7).map(ItemNo::index), Some(6));
    }

    #[test]
    fn a_currency_has_three_capital_letters() {
        assert_eq!(Currency::new("CNY").unwrap().as_str(), "CNY");
        for bad in ["", "cny", "CN", "CNYX", "C1Y", "元"] {
            assert!(Currency::new(bad).is_err(), "{bad}");
        }
    }
}
