//! The units of an order, as they appear in several resources.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// One unit of an order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
