//! Errors as RFC 9457 problem details: the registry of their types, and their members. A released
//! type must never change.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::{OrderState, Unit, single_unit};

pub const PROBLEM_TYPE_PREFIX: &str = "urn:seckill:problem:";

macro_rules! problem_types {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $status:literal, $title:literal;)+) => {
        /// The types of problems. In JSON, each is `urn:seckill:problem:` and its name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemType {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ProblemType {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The inverse of [`ProblemType::name`].
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The member `type`.
            pub fn urn(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!("urn:seckill:problem:", $name),)+
                }
            }

            /// The status code of the response.
            pub fn status(self) -> u16 {
                match self {
                    $(Self::$variant => $status,)+
                }
            }

            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)+
                }
            }
        }
    };
}

problem_types! {
    /// The body, the key, the buyer or the sale's id is not valid; `detail` names it and the rule.
    BadRequest = "bad-request", 400, "The request is not valid";
    /// The sale has a limit per buyer, and the request names no buyer.
    BuyerRequired = "buyer-required", 400, "A buyer is required";
    /// The key is too easy to guess for a request without a buyer.
    KeyNeedsBuyer = "key-needs-buyer", 400, "The key needs a buyer";
    /// A quantity is not a whole number from 1, or the order would have more than `max` units;
    /// `item` if it is the quantity of a line.
    QuantityNotSold = "quantity-not-sold", 400, "This quantity cannot be bought";
    /// The sale, whose items are `items`, does not have the item `item`.
    NoSuchItem = "no-such-item", 400, "There is no such item";
    /// The sale has several items, `items`, and the attempt names none.
    ItemRequired = "item-required", 400, "An item is required";
    /// The sale has not opened; `opens_at`.
    NotOpen = "not-open", 403, "The sale is not open yet";
    /// No sale has this id.
    NoSuchSale = "no-such-sale", 404, "There is no such sale";
    /// Nothing was bought under this id, and nothing ever will be.
    NoSuchOrder = "no-such-order", 404, "There is no such order";
    /// The path does not exist.
    NoSuchPage = "no-such-page", 404, "There is no such path";
    /// The path does not support the method; the header `Allow` lists the methods that it supports.
    WrongMethod = "wrong-method", 405, "The method is not supported here";
    /// The whole body did not arrive within `service.body_wait_ms`.
    BodyTooSlow = "body-too-slow", 408, "The body did not arrive in time";
    /// None of the items that the attempt named has a free unit.
    SoldOut = "sold-out", 409, "Sold out";
    /// The items that the attempt named have free units, but not as many as it asked for;
    /// `remaining` lists them.
    NotEnoughLeft = "not-enough-left", 409, "Not enough units are left";
    /// With this order, the buyer would hold more units than the sale allows; `limit`.
    LimitReached = "limit-reached", 409, "The limit per buyer is reached";
    /// The key's order has ended, and no longer holds its units; `order_id`, `state`, `units`.
    OrderEnded = "order-ended", 409, "The order of this key has ended";
    /// The order is paid or expired; `state`.
    NotCancellable = "not-cancellable", 409, "The order cannot be cancelled";
    /// The sale has closed; `closed_at`.
    Closed = "closed", 410, "The sale is closed";
    /// The body is larger than `service.body_max_bytes`.
    BodyTooLarge = "body-too-large", 413, "The body is too large";
    /// The body is not `application/json`.
    NotJson = "not-json", 415, "The body is not declared as JSON";
    /// The key belongs to an attempt with different content; nothing was done.
    IdempotencyKeyReused = "idempotency-key-reused", 422, "The key was used with different content";
    /// Only on the control socket: a sale was not created or changed. The status is 404 if there is
    /// no such sale, 409 if it exists already, 412 if its version differs, otherwise 422.
    SaleRefused = "sale-refused", 422, "Refused";
    /// The service failed unexpectedly. It is unknown whether the request took effect.
    Internal = "internal", 500, "The request failed";
    /// The metrics could not be written.
    NoMetrics = "no-metrics", 500, "Metrics unavailable";
    /// Only from `/livez`: the process must be restarted.
    NotAlive = "not-alive", 503, "The service needs a restart";
    /// More requests are waiting than the service accepts; `effect`.
    Overloaded = "overloaded", 503, "Too many requests are waiting";
    /// The engine is rebuilding its state from the order store; `effect`.
    Rebuilding = "rebuilding", 503, "The sale is being rebuilt";
    /// The order store cannot be used; `effect`.
    StoreUnavailable = "store-unavailable", 503, "The order store is unavailable";
    /// There was no result in time; `effect`.
    NoAnswerInTime = "no-answer-in-time", 503, "No answer in time";
    /// The service is stopping; `effect`.
    Stopping = "stopping", 503, "The service is stopping";
}

impl Serialize for ProblemType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.urn())
    }
}

impl<'de> Deserialize<'de> for ProblemType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(UrnVisitor)
    }
}

struct UrnVisitor;

impl Visitor<'_> for UrnVisitor {
    type Value = ProblemType;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a known type of the form {PROBLEM_TYPE_PREFIX}NAME")
    }

    fn visit_str<E: Error>(self, urn: &str) -> Result<ProblemType, E> {
        let name = urn.strip_prefix(PROBLEM_TYPE_PREFIX);
        let found = name.and_then(ProblemType::from_name);
        found.ok_or_else(|| E::invalid_value(Unexpected::Str(urn), &self))
    }
}

/// Whether a request that got a fault took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It took effect; only the response failed.
    Happened,
    /// Nothing was done.
    None,
    /// The request may have taken effect.
    Unknown,
}

/// Free units of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemRemaining {
    /// The item's id.
    pub item: String,
    pub remaining: u32,
}

/// The body of every response that is an error. The documentation of each [`ProblemType`] tells
/// which of the optional members it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    #[serde(rename = "type")]
    pub problem_type: ProblemType,
    /// For people; may change.
    pub title: Cow<'static, str>,
    /// The status code of the response.
    pub status: u16,
    /// For people; may change.
    pub detail: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// Active units that one buyer may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The most units of one order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// The items that the attempt named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remaining: Vec<ItemRemaining>,
    /// The item whose line is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// The ids of the sale's items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
    /// The state of the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<OrderState>,
    /// The unit's number, only where the order has exactly one unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<u32>,
    /// The unit's generation, only where the order has exactly one unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The units that the order held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<Unit<'static>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opens_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<String>,
}

impl Problem {
    /// A problem without optional members.
    pub fn new(problem_type: ProblemType, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            problem_type,
            title: problem_type.title().into(),
            status: problem_type.status(),
            detail: detail.into(),
            effect: None,
            limit: None,
            max: None,
            remaining: Vec::new(),
            item: None,
            items: Vec::new(),
            order_id: None,
            state: None,
            unit: None,
            generation: None,
            units: Vec::new(),
            opens_at: None,
            closed_at: None,
        }
    }

    /// Adds the units of an order.
    #[must_use]
    pub fn with_units(mut self, units: Vec<Unit<'static>>) -> Self {
        let single = single_unit(&units);
        self.unit = single.map(|unit| unit.unit);
        self.generation = single.map(|unit| unit.generation);
        self.units = units;
        self
    }
}

/// Reads the type of a problem, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemKind {
    #[serde(rename = "type")]
    pub problem_type: ProblemType,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_json;

    #[test]
    fn each_type_is_registered_once() {
        for (index, one) in ProblemType::ALL.iter().enumerate() {
            assert_eq!(one.urn(), format!("{PROBLEM_TYPE_PREFIX}{}", one.name()));
            assert_eq!(ProblemType::from_name(one.name()), Some(*one));
            assert!((400..600).contains(&one.status()), "{one:?}");
            for other in &ProblemType::ALL[index + 1..] {
                assert_ne!(one.name(), other.name());
            }
        }
        assert!(serde_json::from_str::<ProblemType>(r#""sold-out""#).is_err());
        assert!(serde_json::from_str::<ProblemType>(r#""urn:seckill:problem:x""#).is_err());
    }

    /// The rows of docs/HTTP.md that document a type: `| status | `name` …`, or in the section of
    /// the faults, `| `name` …`.
    #[test]
    fn each_type_is_documented_with_its_status() {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/HTTP.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        let name_of = |cell: &str| Some(cell.strip_prefix('`')?.split_once('`')?.0.to_owned());
        let mut documented = Vec::new();
        let mut section = "";
        for line in docs.lines() {
            section = line.strip_prefix("## ").unwrap_or(section);
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let found = match cells[..] {
                ["", first, second, ..] if first.parse::<u16>().is_ok() => {
                    Some(first).zip(name_of(second))
                }
                ["", first, ..] if section == "503" && !first.ends_with("ends in") => {
                    Some("503").zip(name_of(first))
                }
                _ => None,
            };
            if let Some((status, name)) = found
                && name.starts_with(|first: char| first.is_ascii_lowercase())
            {
                let known = ProblemType::from_name(&name);
                let known = known.unwrap_or_else(|| panic!("{name} is not a type: {line}"));
                assert_eq!(known.status().to_string(), status, "{line}");
                documented.push(known);
            }
        }
        for one in ProblemType::ALL {
            // The control socket is not part of the HTTP API.
            let is_documented = documented.contains(one) || *one == ProblemType::SaleRefused;
            assert!(is_documented, "docs/HTTP.md has no row of {}", one.name());
        }
    }

    #[test]
    fn a_problem_has_the_members_of_its_type() {
        let sold_out = Problem::new(ProblemType::SoldOut, "no unit of this sale is free");
        let text = r#"{"type":"urn:seckill:problem:sold-out","title":"Sold out","status":409,"detail":"no unit of this sale is free"}"#;
        is_json(&sold_out, text);
        let kind: ProblemKind = serde_json::from_str(text).unwrap();
        assert_eq!(kind.problem_type, ProblemType::SoldOut);
        is_json(&kind, r#"{"type":"urn:seckill:problem:sold-out"}"#);
        is_json(
            &Problem {
                effect: Some(Effect::Unknown),
                ..Problem::new(ProblemType::Stopping, "d")
            },
            r#"{"type":"urn:seckill:problem:stopping","title":"The service is stopping","status":503,"detail":"d","effect":"unknown"}"#,
        );
        is_json(
            &Problem {
                limit: Some(2),
                ..Problem::new(ProblemType::LimitReached, "d")
            },
            r#"{"type":"urn:seckill:problem:limit-reached","title":"The limit per buyer is reached","status":409,"detail":"d","limit":2}"#,
        );
        is_json(
            &Problem {
                opens_at: Some("2099-01-01T00:00:00.000Z".into()),
                ..Problem::new(ProblemType::NotOpen, "d")
            },
            r#"{"type":"urn:seckill:problem:not-open","title":"The sale is not open yet","status":403,"detail":"d","opens_at":"2099-01-01T00:00:00.000Z"}"#,
        );
        is_json(
            &Problem {
                closed_at: Some("2099-01-01T00:00:00.000Z".into()),
                ..Problem::new(ProblemType::Closed, "d")
            },
            r#"{"type":"urn:seckill:problem:closed","title":"The sale is closed","status":410,"detail":"d","closed_at":"2099-01-01T00:00:00.000Z"}"#,
        );
    }

    #[test]
    fn a_problem_of_an_attempt_names_items_and_units() {
        let remaining = |item: &str, remaining| ItemRemaining {
            item: item.into(),
            remaining,
        };
        is_json(
            &Problem {
                remaining: vec![remaining("S", 1), remaining("M", 0)],
                ..Problem::new(ProblemType::NotEnoughLeft, "d")
            },
            r#"{"type":"urn:seckill:problem:not-enough-left","title":"Not enough units are left","status":409,"detail":"d","remaining":[{"item":"S","remaining":1},{"item":"M","remaining":0}]}"#,
        );
        is_json(
            &Problem {
                item: Some("XL".into()),
                ..Problem::new(ProblemType::NoSuchItem, "d")
            },
            r#"{"type":"urn:seckill:problem:no-such-item","title":"There is no such item","status":400,"detail":"d","item":"XL"}"#,
        );
        is_json(
            &Problem {
                items: vec!["S".into(), "M".into()],
                ..Problem::new(ProblemType::ItemRequired, "d")
            },
            r#"{"type":"urn:seckill:problem:item-required","title":"An item is required","status":400,"detail":"d","items":["S","M"]}"#,
        );
        is_json(
            &Problem {
                max: Some(16),
                ..Problem::new(ProblemType::QuantityNotSold, "d")
            },
            r#"{"type":"urn:seckill:problem:quantity-not-sold","title":"This quantity cannot be bought","status":400,"detail":"d","max":16}"#,
        );
        let unit = Unit {
            item: "default".into(),
            unit: 1,
            generation: 2,
        };
        let ended = Problem {
            order_id: Some("01a2".into()),
            state: Some(OrderState::Cancelled),
            ..Problem::new(ProblemType::OrderEnded, "d")
        };
        is_json(
            &ended.with_units(vec![unit]),
            r#"{"type":"urn:seckill:problem:order-ended","title":"The order of this key has ended","status":409,"detail":"d","order_id":"01a2","state":"cancelled","unit":1,"generation":2,"units":[{"item":"default","unit":1,"generation":2}]}"#,
        );
    }
}
