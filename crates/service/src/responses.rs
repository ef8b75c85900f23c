//! Turns verdicts into the responses of `POST /seckill` and `POST /v1/sales/{sale}/orders`.
//! Nothing here calls the engine.

use std::fmt;
use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};
use seckill_api::{
    self as api, AttemptAnswer, AttemptResult, Confirmation, ProblemType, Quantity, Unconfirmed,
    order_path,
};
use seckill_engine::Fault;
use seckill_sale::{
    Claim, Invalid, ItemId, ItemRemaining, OrderId, OrderState, Rejection, Verdict,
};

use crate::context::LoopContext;
use crate::convert::{self, time};
use crate::json::to_json;
use crate::metrics::ResponseKind;
use crate::problem::{PROBLEM_JSON, Problem};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Marks the confirmation of an order that an earlier request bought.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// `POST /seckill`, as in the tutorial: 200 both for won and for sold out.
    Tutorial,
    /// `/v1`: the status code tells the verdict.
    V1,
}

/// `asked` is the number of units that the attempt asked for.
pub(crate) fn respond(
    context: &LoopContext,
    style: Style,
    asked: u32,
    verdict: Result<Verdict, Fault>,
) -> Response<Full<Bytes>> {
    let retry_after_s = context.options().retry_after_s;
    let verdict = match verdict {
        Ok(verdict) => verdict,
        Err(fault) => {
            context.counts.responded(ResponseKind::Fault);
            return Problem::of_fault(&fault, retry_after_s).response();
        }
    };
    context.counts.responded(ResponseKind::of(&verdict));
    match verdict {
        Verdict::Rejected(Rejection::SoldOut) => sold_out(style),
        Verdict::Claimed(claim) => won(style, &claim, OrderState::Reserved),
        Verdict::Repeat { claim, state } if state.is_active() => {
            let mut response = won(style, &claim, state);
            let replayed = HeaderValue::from_static("true");
            response.headers_mut().insert(REPLAYED, replayed);
            response
        }
        Verdict::Repeat { claim, state } => order_ended(&claim, state).response(),
        Verdict::Pending(order_id) => later(AttemptResult::Pending, &order_id, retry_after_s),
        Verdict::Accepted(order_id) => later(AttemptResult::Accepted, &order_id, retry_after_s),
        Verdict::Mismatch => Problem::new(
            ProblemType::IdempotencyKeyReused,
            "this Idempotency-Key has an order with different content; nothing was done",
        )
        .response(),
        Verdict::Rejected(rejection) => rejected(rejection, asked).response(),
        Verdict::Invalid(invalid) => not_decidable(invalid, asked).response(),
    }
}

/// The most frequent response, so its bytes are built once.
fn sold_out(style: Style) -> Response<Full<Bytes>> {
    static ANSWER: LazyLock<Bytes> = LazyLock::new(|| {
        let result = AttemptResult::SoldOut;
        to_json(&AttemptAnswer { result })
    });
    static PROBLEM: LazyLock<Bytes> = LazyLock::new(|| sold_out_problem().to_json());
    let (status, content_type, body) = match style {
        Style::Tutorial => (StatusCode::OK, JSON, ANSWER.clone()),
        Style::V1 => (StatusCode::CONFLICT, PROBLEM_JSON, PROBLEM.clone()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn won(style: Style, claim: &Claim, state: OrderState) -> Response<Full<Bytes>> {
    let units: Vec<_> = claim.units.iter().map(convert::unit).collect();
    let state = convert::order_state(state);
    let confirmation = Confirmation::new(
        claim.order_id.as_str(),
        &units,
        state,
        claim.remaining.into(),
    );
    let mut response = Response::new(Full::new(to_json(&confirmation)));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    if style == Style::V1 {
        *response.status_mut() = StatusCode::CREATED;
        locate(&mut response, &claim.order_id);
    }
    response
}

/// The key's order no longer holds its units, which may belong to other buyers by now. This is an
/// error, so that no client can take it for a confirmation.
fn order_ended(claim: &Claim, state: OrderState) -> Problem {
    let state = convert::order_state(state);
    let detail =
        format!("the order of this Idempotency-Key is {state}; a new attempt needs a new key");
    let problem = api::Problem {
        order_id: Some(claim.order_id.to_string()),
        state: Some(state),
        ..api::Problem::new(ProblemType::OrderEnded, detail)
    };
    problem
        .with_units(convert::owned_units(&claim.units))
        .into()
}

/// 202: the outcome is not final, and `Location` is the address that will have it.
fn later(result: AttemptResult, order_id: &OrderId, retry_after_s: u32) -> Response<Full<Bytes>> {
    let unconfirmed = Unconfirmed {
        result,
        order_id: order_id.as_str().into(),
    };
    let mut response = Response::new(Full::new(to_json(&unconfirmed)));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
    locate(&mut response, order_id);
    response
}

fn locate(response: &mut Response<Full<Bytes>>, order_id: &OrderId) {
    if let Ok(address) = HeaderValue::from_maybe_shared(order_path(order_id.as_str())) {
        response.headers_mut().insert(LOCATION, address);
    }
}

fn sold_out_problem() -> Problem {
    Problem::new(
        ProblemType::SoldOut,
        "no unit of what was asked for is free",
    )
}

fn rejected(rejection: Rejection, asked: u32) -> Problem {
    let problem = match rejection {
        Rejection::SoldOut => return sold_out_problem(),
        Rejection::NotEnoughLeft { remaining } => {
            let detail = "fewer units are free than were asked for; an order is all or nothing, so \
                          nothing was bought";
            let of_item = |left: &ItemRemaining| api::ItemRemaining {
                item: left.item.to_string(),
                remaining: left.remaining,
            };
            api::Problem {
                remaining: remaining.iter().map(of_item).collect(),
                ..api::Problem::new(ProblemType::NotEnoughLeft, detail)
            }
        }
        Rejection::LimitReached { limit } => {
            let detail = format!(
                "with the {} of this order, the buyer would hold more than {}, which is the limit \
                 per buyer",
                Units(asked),
                Units(limit)
            );
            api::Problem {
                limit: Some(limit),
                ..api::Problem::new(ProblemType::LimitReached, detail)
            }
        }
        Rejection::NotOpen { opens_at_ms } => {
            let opens_at = time(opens_at_ms);
            let detail = format!("the sale opens at {opens_at}");
            api::Problem {
                opens_at: Some(opens_at),
                ..api::Problem::new(ProblemType::NotOpen, detail)
            }
        }
        Rejection::Closed { closed_at_ms } => {
            let closed_at = time(closed_at_ms);
            let detail = format!("the sale closed at {closed_at}");
            api::Problem {
                closed_at: Some(closed_at),
                ..api::Problem::new(ProblemType::Closed, detail)
            }
        }
    };
    problem.into()
}

fn not_decidable(invalid: Invalid, asked: u32) -> Problem {
    match invalid {
        Invalid::NoSuchSale => no_such_sale(),
        Invalid::NoSuchItem { item, items } => {
            let problem = api::Problem {
                item: Some(item.to_string()),
                items: ids(&items),
                ..api::Problem::new(
                    ProblemType::NoSuchItem,
                    format!("the sale does not have an item {item}; name one of its items"),
                )
            };
            problem.into()
        }
        Invalid::ItemRequired { items } => item_required(&items),
        Invalid::BuyerRequired => Problem::new(
            ProblemType::BuyerRequired,
            "the sale has a limit per buyer: name the buyer in a JSON body, {\"buyer\": \"…\"}, with Content-Type: application/json",
        ),
        Invalid::Quantity { max } => too_many_units(asked, max),
    }
}

fn item_required(items: &[ItemId]) -> Problem {
    let problem = api::Problem {
        items: ids(items),
        ..api::Problem::new(
            ProblemType::ItemRequired,
            "the sale has several items: name them in a JSON body, {\"lines\": [{\"item\": \"…\", \"quantity\": 1}]}, with Content-Type: application/json",
        )
    };
    problem.into()
}

fn ids(items: &[ItemId]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// A quantity that no order can have, in a line of `item` or for the sale's only item.
pub(crate) fn not_a_quantity(quantity: Quantity<'_>, item: Option<&ItemId>, max: u32) -> Problem {
    let of_item = item.map_or_else(String::new, |item| format!(" of item {item}"));
    let rule = match max {
        1 => "send 1, or leave it out".to_owned(),
        _ => format!("send a whole number from 1 to {max}, in digits only"),
    };
    let detail = format!("the quantity{of_item} is {quantity}: {rule}");
    let problem = api::Problem {
        item: item.map(ToString::to_string),
        max: Some(max),
        ..api::Problem::new(ProblemType::QuantityNotSold, detail)
    };
    problem.into()
}

pub(crate) fn too_many_units(asked: u32, max: u32) -> Problem {
    let detail = format!(
        "the order would have {}: an order has at most {}",
        Units(asked),
        Units(max)
    );
    let problem = api::Problem {
        max: Some(max),
        ..api::Problem::new(ProblemType::QuantityNotSold, detail)
    };
    problem.into()
}

/// A number of units in a text.
struct Units(u32);

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 unit"),
            units => write!(f, "{units} units"),
        }
    }
}

pub(crate) fn no_such_sale() -> Problem {
    Problem::new(ProblemType::NoSuchSale, "no sale has this id")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use seckill_sale::{OrderUnit, Unit};

    fn body(response: Response<Full<Bytes>>) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let body = runtime.block_on(response.into_body().collect()).unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    fn claim(items: &[&str]) -> Claim {
        let unit = Unit {
            number: 7,
            generation: 2,
        };
        let of_item = |id: &&str| OrderUnit {
            item: ItemId::new(id).unwrap(),
            unit,
        };
        Claim {
            order_id: OrderId::new("01a2").unwrap(),
            units: items.iter().map(of_item).collect(),
            remaining: 93,
        }
    }

    #[test]
    fn a_confirmation_has_its_unit_and_the_orders_address() {
        let confirmed = won(Style::V1, &claim(&["default"]), OrderState::Reserved);
        assert_eq!(confirmed.status(), StatusCode::CREATED);
        assert_eq!(confirmed.headers()[LOCATION], "/v1/orders/01a2");
        assert_eq!(
            body(confirmed),
            r#"{"result":"won","order_id":"01a2","unit":7,"generation":2,"units":[{"item":"default","unit":7,"generation":2}],"state":"reserved","remaining":93}"#
        );
    }

    #[test]
    fn a_confirmation_of_several_units_lists_them() {
        let confirmed = won(Style::Tutorial, &claim(&["S", "M"]), OrderState::Paid);
        assert_eq!(confirmed.status(), StatusCode::OK);
        assert_eq!(
            body(confirmed),
            r#"{"result":"won","order_id":"01a2","units":[{"item":"S","unit":7,"generation":2},{"item":"M","unit":7,"generation":2}],"state":"paid","remaining":93}"#
        );
    }

    #[test]
    fn problems_of_lines_name_items() {
        let item = |id: &str| ItemId::new(id).unwrap();
        let text = |problem: Problem| String::from_utf8(problem.to_json().to_vec()).unwrap();
        let remaining = Box::new([ItemRemaining {
            item: item("S"),
            remaining: 1,
        }]);
        let short = text(rejected(Rejection::NotEnoughLeft { remaining }, 2));
        assert!(short.starts_with(r#"{"type":"urn:seckill:problem:not-enough-left""#));
        assert!(short.contains(r#""remaining":[{"item":"S","remaining":1}]"#));
        let items: Box<[ItemId]> = Box::new([item("S"), item("M")]);
        let missing = text(not_decidable(
            Invalid::NoSuchItem {
                item: item("XL"),
                items: items.clone(),
            },
            1,
        ));
        assert!(missing.contains("no-such-item") && missing.contains(r#""item":"XL""#));
        assert!(missing.contains(r#""items":["S","M"]"#), "{missing}");
        let unnamed = text(not_decidable(Invalid::ItemRequired { items }, 1));
        assert!(unnamed.contains("item-required") && unnamed.contains(r#""items":["S","M"]"#));
    }

    #[test]
    fn problems_of_a_quantity_name_it() {
        let text = |problem: Problem| String::from_utf8(problem.to_json().to_vec()).unwrap();
        let limit = text(rejected(Rejection::LimitReached { limit: 1 }, 2));
        let expected = "with the 2 units of this order, the buyer would hold more than 1 unit, \
                        which is the limit per buyer";
        assert!(limit.contains(expected), "{limit}");
        let many = text(not_decidable(Invalid::Quantity { max: 1 }, 3));
        let expected = "the order would have 3 units: an order has at most 1 unit";
        assert!(many.contains(expected), "{many}");
        let none = text(not_a_quantity(Quantity::Other("-1"), None, 1));
        let expected = "the quantity is -1: send 1, or leave it out";
        assert!(none.contains(expected), "{none}");
    }

    #[test]
    fn sold_out_depends_on_the_route() {
        let tutorial = sold_out(Style::Tutorial);
        assert_eq!(tutorial.status(), StatusCode::OK);
        assert_eq!(body(tutorial), r#"{"result":"sold_out"}"#);
        let v1 = sold_out(Style::V1);
        assert_eq!(v1.status(), StatusCode::CONFLICT);
        assert_eq!(
            body(v1),
            r#"{"type":"urn:seckill:problem:sold-out","title":"Sold out","status":409,"detail":"no unit of what was asked for is free"}"#
        );
    }

    #[test]
    fn an_ended_order_is_a_problem_with_its_unit() {
        let ended = order_ended(&claim(&["default"]), OrderState::Cancelled).response();
        assert_eq!(ended.status(), StatusCode::CONFLICT);
        assert_eq!(
            body(ended),
            r#"{"type":"urn:seckill:problem:order-ended","title":"The order of this key has ended","status":409,"detail":"the order of this Idempotency-Key is cancelled; a new attempt needs a new key","order_id":"01a2","state":"cancelled","unit":7,"generation":2,"units":[{"item":"default","unit":7,"generation":2}]}"#
        );
    }
}
