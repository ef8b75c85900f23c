//! A sale: its terms and its stock, and the operators' requests to create and change it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::objects::objects_only;

/// The sales on the control socket: `GET` lists them, `POST` creates one, and below it, an id's
/// `GET` shows and `PATCH` changes one.
pub const CONTROL_SALES_PATH: &str = "/sales";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaleStatus {
    NotOpen,
    Open,
    /// No unit is free now. It may become open again.
    SoldOut,
    Closed,
}

impl SaleStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotOpen => "not_open",
            Self::Open => "open",
            Self::SoldOut => "sold_out",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for SaleStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A sale's terms and its free units: the answer of `GET /v1/sales/{sale}` and of the control
/// socket, and the output of `seckill sale --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sale {
    /// 1 to 64 characters of `A-Z a-z 0-9 _ . -`, the first a letter or digit.
    pub id: String,
    pub title: String,
    pub status: SaleStatus,
    /// Units of all items.
    pub total: u64,
    /// Free units of all items.
    pub remaining: u64,
    /// Active units that one buyer may hold, 1 to 64; null for no limit.
    pub buyer_limit: Option<u32>,
    /// Null means open from the start.
    pub opens_at: Option<String>,
    /// Null means that the sale does not close.
    pub closes_at: Option<String>,
    /// 1 for a new sale. Each change adds 1.
    pub version: u64,
    /// 1 to 64; a sale that was created without naming items has the item `default`.
    pub items: Vec<Item>,
}

/// What a sale sells, such as a size, with its free units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub id: String,
    pub title: String,
    /// Units in total, sold ones included.
    pub total: u32,
    /// Free units.
    pub remaining: u32,
    pub price: Option<Price>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Price {
    /// In minor units of the currency, such as cents: 0 to 1,000,000,000,000.
    pub amount: u64,
    /// The code of ISO 4217, such as `CNY`.
    pub currency: String,
}

/// The terms of a sale, without its stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaleTerms {
    pub id: String,
    pub title: String,
    pub items: Vec<ItemTerms>,
    /// Active units that one buyer may hold, 1 to 64; null for no limit.
    pub buyer_limit: Option<u32>,
    pub opens_at: Option<String>,
    pub closes_at: Option<String>,
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemTerms {
    pub id: String,
    pub title: String,
    /// Units in total, sold ones included.
    pub total: u32,
    pub price: Option<Price>,
}

/// The query of the control socket's list of sales.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SalesQuery {
    /// The list starts after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A request to create a sale. It has either `total` or `items`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NewSale {
    pub id: String,
    /// At most 200 bytes; the id if empty or absent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// The units of the only item, `default`: 0 to 1,000,000,000. 0 makes a sale that is sold out
    /// from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
    /// 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<NewItem>>,
    /// Active units that one buyer may hold, 1 to 64; null or absent for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buyer_limit: Option<u32>,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opens_at_ms: Option<i64>,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closes_at_ms: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NewItem {
    pub id: String,
    /// The id if empty or absent; the sale's title for the only item if that is `default`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// 0 to 1,000,000,000.
    pub total: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

/// A request to change a sale. An absent member leaves its term unchanged. All values are absolute,
/// so that a change that is sent twice has the same effect as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct SaleChange {
    /// The version that the sale is expected to have. If it has another, the change is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Only for a sale with one item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
    /// Changes of named items.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<ItemChange>,
    /// Null removes the limit.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub buyer_limit: Option<Option<u32>>,
    /// Unix milliseconds; null removes the opening time.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub opens_at_ms: Option<Option<i64>>,
    /// Unix milliseconds; null removes the closing time.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub closes_at_ms: Option<Option<i64>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ItemChange {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
    /// Null removes the price.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub price: Option<Option<Price>>,
}

objects_only!(Price, NewSale, NewItem, SaleChange, ItemChange);

/// Distinguishes `null` (remove the term) from an absent member (keep it). By default, serde reads
/// both as `None`.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_json;

    fn price() -> Price {
        Price {
            amount: 1_999,
            currency: "CNY".into(),
        }
    }

    #[test]
    fn a_sale_lists_its_items() {
        let item = |id: &str, title: &str, price| Item {
            id: id.into(),
            title: title.into(),
            total: 40,
            remaining: 12,
            price,
        };
        let sale = Sale {
            id: "shirt".into(),
            title: "Shirt".into(),
            status: SaleStatus::Open,
            total: 80,
            remaining: 24,
            buyer_limit: Some(2),
            opens_at: None,
            closes_at: Some("2099-01-01T00:00:00.000Z".into()),
            version: 3,
            items: vec![item("S", "Small", Some(price())), item("M", "M", None)],
        };
        is_json(
            &sale,
            r#"{"id":"shirt","title":"Shirt","status":"open","total":80,"remaining":24,"buyer_limit":2,"opens_at":null,"closes_at":"2099-01-01T00:00:00.000Z","version":3,"items":[{"id":"S","title":"Small","total":40,"remaining":12,"price":{"amount":1999,"currency":"CNY"}},{"id":"M","title":"M","total":40,"remaining":12,"price":null}]}"#,
        );
        for status in [
            SaleStatus::NotOpen,
            SaleStatus::Open,
            SaleStatus::SoldOut,
            SaleStatus::Closed,
        ] {
            is_json(&status, &format!("\"{status}\""));
        }
        let query = SalesQuery {
            after: Some("shirt".into()),
        };
        is_json(&query, r#"{"after":"shirt"}"#);
    }

    #[test]
    fn a_new_sale_has_a_total_or_items() {
        let simple = NewSale {
            id: "counter".into(),
            total: Some(100),
            ..NewSale::default()
        };
        is_json(&simple, r#"{"id":"counter","total":100}"#);
        let item = |id: &str, title: &str, price| NewItem {
            id: id.into(),
            title: title.into(),
            total: 40,
            price,
        };
        let shirt = NewSale {
            id: "shirt".into(),
            title: "Shirt".into(),
            items: Some(vec![item("S", "Small", Some(price())), item("M", "", None)]),
            buyer_limit: Some(2),
            opens_at_ms: Some(1),
            closes_at_ms: Some(2),
            ..NewSale::default()
        };
        is_json(
            &shirt,
            r#"{"id":"shirt","title":"Shirt","items":[{"id":"S","title":"Small","total":40,"price":{"amount":1999,"currency":"CNY"}},{"id":"M","total":40}],"buyer_limit":2,"opens_at_ms":1,"closes_at_ms":2}"#,
        );
        for text in [
            r#"{"id":"s","units":1}"#,
            r#"{"total":1}"#,
            r#"["s","",1]"#,
            r#"{"id":"s","items":[["S","",1]]}"#,
            r#"{"id":"s","items":[{"id":"S","total":1,"price":[1,"CNY"]}]}"#,
        ] {
            assert!(serde_json::from_str::<NewSale>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn null_removes_a_term_and_absence_keeps_it() {
        is_json(&SaleChange::default(), "{}");
        let change = SaleChange {
            if_version: Some(2),
            title: Some("Shirts".into()),
            total: None,
            items: vec![
                ItemChange {
                    id: "S".into(),
                    total: Some(50),
                    price: Some(None),
                    ..ItemChange::default()
                },
                ItemChange {
                    id: "M".into(),
                    title: Some("Medium".into()),
                    price: Some(Some(price())),
                    ..ItemChange::default()
                },
            ],
            buyer_limit: Some(None),
            opens_at_ms: Some(Some(1)),
            closes_at_ms: None,
        };
        is_json(
            &change,
            r#"{"if_version":2,"title":"Shirts","items":[{"id":"S","total":50,"price":null},{"id":"M","title":"Medium","price":{"amount":1999,"currency":"CNY"}}],"buyer_limit":null,"opens_at_ms":1}"#,
        );
        for text in [
            r#"{"limit":1}"#,
            "[2]",
            r#"{"items":[["S"]]}"#,
            r#"{"items":[{"id":"S","price":[1,"CNY"]}]}"#,
        ] {
            assert!(serde_json::from_str::<SaleChange>(text).is_err(), "{text}");
        }
    }
}
