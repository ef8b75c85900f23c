//! The units of an order, as they appear in several resources.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

/// The item of a sale that was created without naming items.
pub const DEFAULT_ITEM_ID: &str = "default";

/// One unit of an order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, DeriveDeserialize)]
pub struct Unit<'a> {
    /// The item's id.
    pub item: Cow<'a, str>,
    /// The unit's number, 1 to the item's total.
    pub unit: u32,
    /// 1 when the unit is first sold. Increases by one each time it is released.
    pub generation: u32,
}

/// The unit of an order that has exactly one. Such an order also has the members `unit` and
/// `generation` beside `units`.
pub fn single_unit<'a, 'b>(units: &'a [Unit<'b>]) -> Option<&'a Unit<'b>> {
    match units {
        [unit] => Some(unit),
        _ => None,
    }
}

/// A quantity as a client sent it. Any JSON number can be read, so that one that cannot be bought
/// gets its own problem: a number that is not a whole one from 0 to `u32::MAX` is 0.
struct Quantity(u32);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(QuantityVisitor)
    }
}

struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Quantity, E> {
        Ok(Quantity(u32::try_from(number).unwrap_or(0)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Quantity, E> {
        Ok(Quantity(u32::try_from(number).unwrap_or(0)))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Quantity, E> {
        Ok(Quantity(0))
    }
}

pub(crate) fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Quantity::deserialize(deserializer).map(|quantity| quantity.0)
}

pub(crate) fn some_quantity<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    quantity(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_json;

    #[test]
    fn a_unit_names_its_item() {
        let unit = Unit {
            item: "default".into(),
            unit: 7,
            generation: 1,
        };
        is_json(&unit, r#"{"item":"default","unit":7,"generation":1}"#);
        assert_eq!(single_unit(std::slice::from_ref(&unit)), Some(&unit));
        assert_eq!(single_unit(&[unit.clone(), unit]), None);
        assert_eq!(single_unit(&[]), None);
    }
}
