//! Turns verdicts into the responses of `POST /seckill` and `POST /v1/sales/{sale}/orders`.
//! Nothing here calls the engine.

use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};
use seckill_engine::Fault;
use seckill_sale::{Claim, Invalid, OrderId, OrderState, Rejection, Verdict};
use serde_json::json;

use crate::Service;
use crate::metrics::ResponseKind;
use crate::problem::{PROBLEM_JSON, Problem};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const SOLD_OUT: &[u8] = br#"{"result":"sold_out"}"#;
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
        Verdict::Pending(order_id) => later("pending", &order_id, retry_after_s),
        Verdict::Accepted(order_id) => later("accepted", &order_id, retry_after_s),
        Verdict::Mismatch => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "The key was used with different content",
            "this Idempotency-Key has an order with different content; nothing was done",
        )
        .response(),
        Verdict::Rejected(rejection) => rejected(rejection).response(),
        Verdict::Invalid(invalid) => not_decidable(invalid).response(),
    }
}

/// The most frequent response, so its bytes are built once.
fn sold_out(style: Style) -> Response<Full<Bytes>> {
    static PROBLEM: LazyLock<Bytes> =
        LazyLock::new(|| rejected(Rejection::SoldOut).to_json().into());
    let (status, content_type, body) = match style {
        Style::Tutorial => (StatusCode::OK, JSON, Bytes::from_static(SOLD_OUT)),
        Style::V1 => (StatusCode::CONFLICT, PROBLEM_JSON, PROBLEM.clone()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn won(style: Style, claim: &Claim, state: OrderState) -> Response<Full<Bytes>> {
    let Claim {
        order_id,
        unit,
        remaining,
    } = claim;
    let (number, generation, state) = (unit.number, unit.generation, state.as_str());
    // Order ids and states contain no characters that JSON escapes.
    let body = format!(
        r#"{{"result":"won","order_id":"{order_id}","unit":{number},"generation":{generation},"units":[{{"unit":{number},"generation":{generation}}}],"state":"{state}","remaining":{remaining}}}"#
    );
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    if style == Style::V1 {
        *response.status_mut() = StatusCode::CREATED;
        locate(&mut response, order_id);
    }
    response
}

/// The key's order no longer holds its unit, which may belong to another buyer by now. This is an
/// error, so that no client can take it for a confirmation.
fn order_ended(claim: &Claim, state: OrderState) -> Problem {
    let detail = format!(
        "the order of this Idempotency-Key is {}; a new attempt needs a new key",
        state.as_str()
    );
    Problem::new(
        StatusCode::CONFLICT,
        "order-ended",
        "The order of this key has ended",
        detail,
    )
    .with("order_id", claim.order_id.as_str())
    .with("state", state.as_str())
    .with("unit", claim.unit.number)
    .with("generation", claim.unit.generation)
    .with("units", json!([claim.unit]))
}

/// 202: the outcome is not final, and `Location` is the address that will have it.
fn later(result: &str, order_id: &OrderId, retry_after_s: u32) -> Response<Full<Bytes>> {
    let body = json!({"result": result, "order_id": order_id}).to_string();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
    locate(&mut response, order_id);
    response
}

fn locate(response: &mut Response<Full<Bytes>>, order_id: &OrderId) {
    if let Ok(address) = HeaderValue::from_maybe_shared(format!("/v1/orders/{order_id}")) {
        response.headers_mut().insert(LOCATION, address);
    }
}

fn rejected(rejection: Rejection) -> Problem {
    match rejection {
        Rejection::SoldOut => Problem::new(
            StatusCode::CONFLICT,
            "sold-out",
            "Sold out",
            "no unit of this sale is free",
        ),
        Rejection::LimitReached { limit } => Problem::new(
            StatusCode::CONFLICT,
            "limit-reached",
            "The limit per buyer is reached",
            format!("the buyer has reached the sale's limit of {limit} per buyer"),
        )
        .with("limit", limit),
        Rejection::NotOpen { opens_at_ms } => Problem::new(
            StatusCode::FORBIDDEN,
            "not-open",
            "The sale is not open yet",
            format!("the sale opens at {}", time(opens_at_ms)),
        )
        .with("opens_at", time(opens_at_ms)),
        Rejection::Closed { closed_at_ms } => Problem::new(
            StatusCode::GONE,
            "closed",
            "The sale is closed",
            format!("the sale closed at {}", time(closed_at_ms)),
        )
        .with("closed_at", time(closed_at_ms)),
    }
}

fn not_decidable(invalid: Invalid) -> Problem {
    match invalid {
        Invalid::NoSuchSale => no_such_sale(),
        Invalid::BuyerRequired => Problem::new(
            StatusCode::BAD_REQUEST,
            "buyer-required",
            "A buyer is required",
            "the sale has a limit per buyer: name the buyer in a JSON body, {\"buyer\": \"…\"}, with Content-Type: application/json",
        ),
        Invalid::Quantity { max } => quantity_not_sold(max),
    }
}

pub(crate) fn quantity_not_sold(max: u32) -> Problem {
    let rule = if max == 1 {
        "the quantity must be 1"
    } else {
        &format!("the quantity must be a whole number from 1 to {max}")
    };
    Problem::new(
        StatusCode::BAD_REQUEST,
        "quantity-not-sold",
        "This quantity cannot be bought",
        rule,
    )
    .with("max", max)
}

pub(crate) fn no_such_sale() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no-such-sale",
        "There is no such sale",
        "no sale has this id",
    )
}

/// Unix milliseconds as RFC 3339 in UTC.
pub(crate) fn time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms)
        .map_or_else(|_| at_ms.to_string(), |at| format!("{at:.3}"))
}
