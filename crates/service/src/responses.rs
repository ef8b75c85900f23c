//! Turns verdicts into the responses of `POST /seckill` and `POST /v1/sales/{sale}/orders`.
//! Nothing here calls the engine.

use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};
use seckill_api::{
    self as api, AttemptAnswer, AttemptResult, Confirmation, ProblemType, Unconfirmed, order_path,
};
use seckill_engine::Fault;
use seckill_sale::{Claim, Invalid, OrderId, OrderState, Rejection, Verdict};
use serde::Serialize;

use crate::Service;
use crate::convert::{self, time};
use crate::metrics::ResponseKind;
use crate::problem::{PROBLEM_JSON, Problem};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Room for a confirmation of one unit, so that it is written without growing the buffer.
const BODY_BYTES: usize = 256;
/// Marks the confirmation of an order that an earlier request bought.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// `POST /seckill`, as in the tutorial: 200 both for won and for sold out.
    Tutorial,
    /// `/v1`: the status code tells the verdict.
    V1,
}

pub(crate) fn respond(
    service: &Service,
    style: Style,
    verdict: Result<Verdict, Fault>,
) -> Response<Full<Bytes>> {
    let retry_after_s = service.options.retry_after_s;
    let verdict = match verdict {
        Ok(verdict) => verdict,
        Err(fault) => {
            service.metrics.responded(ResponseKind::Fault);
            return Problem::of_fault(&fault, retry_after_s).response();
        }
    };
    service.metrics.responded(ResponseKind::of(&verdict));
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
        Verdict::Rejected(rejection) => rejected(rejection).response(),
        Verdict::Invalid(invalid) => not_decidable(invalid).response(),
    }
}

/// Writes a type of the API as JSON.
pub(crate) fn to_json(value: &impl Serialize) -> Bytes {
    let mut body = Vec::with_capacity(BODY_BYTES);
    match serde_json::to_writer(&mut body, value) {
        Ok(()) => body.into(),
        // The types of the API have no map with other keys than text, and memory takes all bytes.
        Err(error) => unreachable!("JSON in memory: {error}"),
    }
}

/// The most frequent response, so its bytes are built once.
fn sold_out(style: Style) -> Response<Full<Bytes>> {
    static ANSWER: LazyLock<Bytes> = LazyLock::new(|| {
        let result = AttemptResult::SoldOut;
        to_json(&AttemptAnswer { result })
    });
    static PROBLEM: LazyLock<Bytes> = LazyLock::new(|| rejected(Rejection::SoldOut).to_json());
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
    let units = [convert::unit(claim.unit)];
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

/// The key's order no longer holds its unit, which may belong to another buyer by now. This is an
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
    problem.with_units(vec![convert::unit(claim.unit)]).into()
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

fn rejected(rejection: Rejection) -> Problem {
    let problem = match rejection {
        Rejection::SoldOut => {
            api::Problem::new(ProblemType::SoldOut, "no unit of this sale is free")
        }
        Rejection::LimitReached { limit } => {
            let detail = format!("the buyer has reached the sale's limit of {limit} per buyer");
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

fn not_decidable(invalid: Invalid) -> Problem {
    match invalid {
        Invalid::NoSuchSale => no_such_sale(),
        Invalid::BuyerRequired => Problem::new(
            ProblemType::BuyerRequired,
            "the sale has a limit per buyer: name the buyer in a JSON body, {\"buyer\": \"…\"}, with Content-Type: application/json",
        ),
        Invalid::Quantity { max } => quantity_not_sold(max),
    }
}

pub(crate) fn quantity_not_sold(max: u32) -> Problem {
    let rule = if max == 1 {
        "the quantity must be 1".to_owned()
    } else {
        format!("the quantity must be a whole number from 1 to {max}")
    };
    let problem = api::Problem {
        max: Some(max),
        ..api::Problem::new(ProblemType::QuantityNotSold, rule)
    };
    problem.into()
}

pub(crate) fn no_such_sale() -> Problem {
    Problem::new(ProblemType::NoSuchSale, "no sale has this id")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use seckill_sale::Unit;

    fn body(response: Response<Full<Bytes>>) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let body = runtime.block_on(response.into_body().collect()).unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    fn claim() -> Claim {
        Claim {
            order_id: OrderId::new("01a2").unwrap(),
            unit: Unit {
                number: 7,
                generation: 2,
            },
            remaining: 93,
        }
    }

    #[test]
    fn a_confirmation_has_its_unit_and_the_orders_address() {
        let confirmed = won(Style::V1, &claim(), OrderState::Reserved);
        assert_eq!(confirmed.status(), StatusCode::CREATED);
        assert_eq!(confirmed.headers()[LOCATION], "/v1/orders/01a2");
        assert_eq!(
            body(confirmed),
            r#"{"result":"won","order_id":"01a2","unit":7,"generation":2,"units":[{"item":"default","unit":7,"generation":2}],"state":"reserved","remaining":93}"#
        );
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
            r#"{"type":"urn:seckill:problem:sold-out","title":"Sold out","status":409,"detail":"no unit of this sale is free"}"#
        );
    }

    #[test]
    fn an_ended_order_is_a_problem_with_its_unit() {
        let ended = order_ended(&claim(), OrderState::Cancelled).response();
        assert_eq!(ended.status(), StatusCode::CONFLICT);
        assert_eq!(
            body(ended),
            r#"{"type":"urn:seckill:problem:order-ended","title":"The order of this key has ended","status":409,"detail":"the order of this Idempotency-Key is cancelled; a new attempt needs a new key","order_id":"01a2","state":"cancelled","unit":7,"generation":2,"units":[{"item":"default","unit":7,"generation":2}]}"#
        );
    }
}
