//! An attempt to buy: the body of `POST /seckill` and `POST /v1/sales/{sale}/orders`, and the
//! answers to it. Rejections are in `problems`.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::objects::{ObjectOnly, not_null};
use crate::{OrderState, Unit, single_unit};

/// The most lines of one order.
pub const ORDER_LINES_MAX: usize = 16;

/// The body of an attempt. All members are optional, and so is the body. Clients write quantities
/// as `u32`; the service reads them as [`Quantity`](crate::Quantity).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
#[serde(bound(deserialize = "Q: Deserialize<'de> + From<u32>"))]
pub struct AttemptBody<'a, Q = u32> {
    /// Who buys: 1 to 128 bytes of UTF-8 without control characters. A sale with a limit per buyer
    /// requires it.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub buyer: Option<Cow<'a, str>>,
    /// Units of the sale's only item, 1 to 16; 1 if neither this nor `lines` is given.
    #[serde(
        default,
        deserialize_with = "not_null",
        skip_serializing_if = "Option::is_none"
    )]
    pub quantity: Option<Q>,
    /// Units of named items: 1 to [`ORDER_LINES_MAX`] lines, with at most 16 units in all. Excludes
    /// `quantity`.
    #[serde(
        borrow,
        default,
        deserialize_with = "not_null",
        skip_serializing_if = "Option::is_none"
    )]
    pub lines: Option<Vec<Line<'a, Q>>>,
}

/// The units of one item in an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
#[serde(bound(deserialize = "Q: Deserialize<'de> + From<u32>"))]
pub struct Line<'a, Q = u32> {
    /// The item's id.
    #[serde(borrow)]
    pub item: Cow<'a, str>,
    /// 1 to 16; 1 if absent.
    #[serde(default = "one")]
    pub quantity: Q,
}

fn one<Q: From<u32>>() -> Q {
    Q::from(1)
}

impl<Q> Default for AttemptBody<'_, Q> {
    fn default() -> Self {
        Self {
            buyer: None,
            quantity: None,
            lines: None,
        }
    }
}

impl<'de: 'a, 'a, Q: Deserialize<'de> + From<u32>> Deserialize<'de> for AttemptBody<'a, Q> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(ObjectOnly(deserializer))
    }
}

impl<'de: 'a, 'a, Q: Deserialize<'de> + From<u32>> Deserialize<'de> for Line<'a, Q> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(ObjectOnly(deserializer))
    }
}

impl<Q: Serialize> Serialize for AttemptBody<'_, Q> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<Q: Serialize> Serialize for Line<'_, Q> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// The member `result` of every answer to an attempt that is not a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptResult {
    /// The order is stored.
    Won,
    /// The outcome is not known yet.
    Pending,
    /// The gate granted the units, but the order may still fail.
    Accepted,
    /// No unit is free. Only `POST /seckill` answers so; `/v1` answers with a problem.
    SoldOut,
}

/// The whole answer of `POST /seckill` when the sale is sold out. Also reads the result of any
/// other answer, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptAnswer {
    pub result: AttemptResult,
}

/// 200 or 201: the order is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation<'a> {
    /// [`AttemptResult::Won`].
    pub result: AttemptResult,
    pub order_id: Cow<'a, str>,
    /// The unit's number, only where the order has exactly one unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<u32>,
    /// The unit's generation, only where the order has exactly one unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    pub units: Cow<'a, [Unit<'a>]>,
    /// The order's current state.
    pub state: OrderState,
    /// Free units of the whole sale right after the purchase; in a repeat, at the time of the
    /// repeat.
    pub remaining: u64,
}

impl<'a> Confirmation<'a> {
    pub fn new(
        order_id: &'a str,
        units: &'a [Unit<'a>],
        state: OrderState,
        remaining: u64,
    ) -> Self {
        let single = single_unit(units);
        Self {
            result: AttemptResult::Won,
            order_id: order_id.into(),
            unit: single.map(|unit| unit.unit),
            generation: single.map(|unit| unit.generation),
            units: units.into(),
            state,
            remaining,
        }
    }
}

/// 202: the outcome is not final. The order's address will have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed<'a> {
    /// [`AttemptResult::Pending`] or [`AttemptResult::Accepted`].
    pub result: AttemptResult,
    pub order_id: Cow<'a, str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quantity;
    use crate::testing::is_json;

    fn read(text: &str) -> Result<AttemptBody<'_, Quantity<'_>>, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Borrowed bodies are not `DeserializeOwned`, so `is_json` cannot check them.
    fn is_body(body: &AttemptBody<'_>, text: &str) {
        assert_eq!(serde_json::to_string(body).unwrap(), text);
        assert_eq!(
            &serde_json::from_str::<AttemptBody<'_>>(text).unwrap(),
            body
        );
    }

    #[test]
    fn all_members_of_a_body_are_optional() {
        is_body(&AttemptBody::default(), "{}");
        let ann = AttemptBody {
            buyer: Some("ann".into()),
            quantity: Some(2),
            lines: None,
        };
        is_body(&ann, r#"{"buyer":"ann","quantity":2}"#);
        let line = |item, quantity| Line {
            item: Cow::Borrowed(item),
            quantity,
        };
        let two = AttemptBody {
            lines: Some(vec![line("S", 1), line("M", 2)]),
            ..AttemptBody::default()
        };
        is_body(
            &two,
            r#"{"lines":[{"item":"S","quantity":1},{"item":"M","quantity":2}]}"#,
        );
        let one = read(r#"{"lines":[{"item":"S"}]}"#).unwrap();
        let line = Line {
            item: "S".into(),
            quantity: Quantity::Whole(1),
        };
        assert_eq!(one.lines.unwrap(), [line]);
    }

    #[test]
    fn unknown_members_are_refused() {
        for text in [
            r#"{"byuer":"ann"}"#,
            r#"{"lines":[{"item":"S","count":1}]}"#,
            r#"{"lines":[{}]}"#,
            r#"{"quantity":"1"}"#,
            r#"{"quantity":null}"#,
            r#"{"lines":[{"item":"S","quantity":null}]}"#,
            r#"{"lines":null}"#,
            r#"{"lines":[["S",1]]}"#,
            r#"{"lines":[["S"]]}"#,
            r#"["ann",1]"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_quantity_is_read_as_it_was_written() {
        let read = read(r#"{"quantity":1e400,"lines":[{"item":"S","quantity":-1}]}"#).unwrap();
        assert_eq!(read.quantity, Some(Quantity::Other("1e400")));
        assert_eq!(read.lines.unwrap()[0].quantity, Quantity::Other("-1"));
    }

    #[test]
    fn a_confirmation_of_one_unit_has_it_twice() {
        let unit = |unit, item| Unit {
            item: Cow::Borrowed(item),
            unit,
            generation: 1,
        };
        let one = [unit(7, "default")];
        is_json(
            &Confirmation::new("01a2", &one, OrderState::Reserved, 93),
            r#"{"result":"won","order_id":"01a2","unit":7,"generation":1,"units":[{"item":"default","unit":7,"generation":1}],"state":"reserved","remaining":93}"#,
        );
        let two = [unit(7, "S"), unit(1, "M")];
        is_json(
            &Confirmation::new("01a2", &two, OrderState::Paid, 0),
            r#"{"result":"won","order_id":"01a2","units":[{"item":"S","unit":7,"generation":1},{"item":"M","unit":1,"generation":1}],"state":"paid","remaining":0}"#,
        );
    }

    #[test]
    fn other_answers_have_a_result() {
        let answer = |result| AttemptAnswer { result };
        is_json(&answer(AttemptResult::SoldOut), r#"{"result":"sold_out"}"#);
        let unconfirmed = |result| Unconfirmed {
            result,
            order_id: "01a2".into(),
        };
        is_json(
            &unconfirmed(AttemptResult::Pending),
            r#"{"result":"pending","order_id":"01a2"}"#,
        );
        let accepted = r#"{"result":"accepted","order_id":"01a2"}"#;
        is_json(&unconfirmed(AttemptResult::Accepted), accepted);
        let read: AttemptAnswer = serde_json::from_str(accepted).unwrap();
        assert_eq!(read, answer(AttemptResult::Accepted));
    }
}
