//! An attempt to buy: the body of `POST /seckill` and `POST /v1/sales/{sale}/orders`, and the
//! answers to it. Rejections are in `problems`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::units::{quantity, some_quantity};
use crate::{OrderState, Unit, single_unit};

/// The most units of one order.
pub const ORDER_UNITS_MAX: u32 = 16;
/// The most lines of one order.
pub const ORDER_LINES_MAX: usize = 16;

/// The body of an attempt. All members are optional, and so is the body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptBody<'a> {
    /// Who buys: 1 to 128 bytes of UTF-8 without control characters. A sale with a limit per buyer
    /// requires it.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub buyer: Option<Cow<'a, str>>,
    /// Units of the sale's only item, 1 to [`ORDER_UNITS_MAX`]; 1 if neither this nor `lines` is
    /// given. A number that is not a whole one is read as 0.
    #[serde(
        default,
        deserialize_with = "some_quantity",
        skip_serializing_if = "Option::is_none"
    )]
    pub quantity: Option<u32>,
    /// Units of named items: 1 to [`ORDER_LINES_MAX`] lines, with at most [`ORDER_UNITS_MAX`] units
    /// in all. Excludes `quantity`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<Vec<Line<'a>>>,
}

/// The units of one item in an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line<'a> {
    /// The item's id.
    #[serde(borrow)]
    pub item: Cow<'a, str>,
    /// 1 to [`ORDER_UNITS_MAX`]; 1 if absent. A number that is not a whole one is read as 0.
    #[serde(default = "one", deserialize_with = "quantity")]
    pub quantity: u32,
}

fn one() -> u32 {
    1
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
    use crate::testing::is_json;

    fn read(text: &str) -> Result<AttemptBody<'_>, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Borrowed bodies are not `DeserializeOwned`, so `is_json` cannot check them.
    fn is_body(body: &AttemptBody<'_>, text: &str) {
        assert_eq!(serde_json::to_string(body).unwrap(), text);
        assert_eq!(&read(text).unwrap(), body);
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
        assert_eq!(one.lines.unwrap(), [line("S", 1)]);
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
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_quantity_that_is_not_a_whole_number_is_zero() {
        for number in [
            "-1",
            "0",
            "1.0",
            "1e0",
            "4294967296",
            "99999999999999999999",
        ] {
            let text = format!(r#"{{"quantity":{number}}}"#);
            assert_eq!(read(&text).unwrap().quantity, Some(0), "{number}");
            let text = format!(r#"{{"lines":[{{"item":"S","quantity":{number}}}]}}"#);
            assert_eq!(read(&text).unwrap().lines.unwrap()[0].quantity, 0);
        }
        assert_eq!(read(r#"{"quantity":16}"#).unwrap().quantity, Some(16));
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
