//! The two ways to buy, `POST /seckill` and `POST /v1/sales/{sale}/orders`, and how each verdict is said there.
//! Both take the same path through the engine.

use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};
use seckill_engine::Fault;
use seckill_sale::{Claim, Invalid, OrderId, Rejection, Verdict};
use serde_json::json;

use crate::Service;
use crate::metrics::ResponseKind;
use crate::problem::{PROBLEM_JSON, Problem};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const SOLD_OUT: &[u8] = br#"{"result":"sold_out"}"#;
/// Says that an answer is one that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Which of the two is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// The tutorial's: 200 for won and for sold out.
    Tutorial,
    /// Status codes that tell the verdict.
    V1,
}

/// The answer to an attempt.
pub(crate) fn answer(
    service: &Service,
    style: Style,
    verdict: Result<Verdict, Fault>,
) -> Response<Full<Bytes>> {
    let retry_after_s = service.options.retry_after_s;
    let verdict = match verdict {
        Ok(verdict) => verdict,
        Err(fault) => {
            service.metrics.said(ResponseKind::Fault);
            return Problem::of_fault(&fault, retry_after_s).answer();
        }
    };
    service.metrics.said(ResponseKind::of(&verdict));
    match verdict {
        Verdict::Rejected(Rejection::SoldOut) => sold_out(style),
        Verdict::Claimed(claim) => won(style, &claim),
        Verdict::Repeat(claim) => {
            let mut answer = won(style, &claim);
            let yes = HeaderValue::from_static("true");
            answer.headers_mut().insert(REPLAYED, yes);
            answer
        }
        Verdict::Pending(order_id) => later("pending", &order_id, retry_after_s),
        Verdict::Accepted(order_id) => later("accepted", &order_id, retry_after_s),
        Verdict::Mismatch => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "The key has a claim with other content",
            "this Idempotency-Key has bought already, with another body; nothing was done",
        )
        .answer(),
        Verdict::Rejected(no) => refused(no).answer(),
        Verdict::Invalid(invalid) => not_decidable(invalid).answer(),
    }
}

/// The answer that there are most of: its bytes are made once, for all.
fn sold_out(style: Style) -> Response<Full<Bytes>> {
    static PROBLEM: LazyLock<Bytes> =
        LazyLock::new(|| refused(Rejection::SoldOut).to_json().into());
    let (status, content_type, body) = match style {
        Style::Tutorial => (StatusCode::OK, JSON, Bytes::from_static(SOLD_OUT)),
        Style::V1 => (StatusCode::CONFLICT, PROBLEM_JSON, PROBLEM.clone()),
    };
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

fn won(style: Style, claim: &Claim) -> Response<Full<Bytes>> {
    let Claim {
        order_id,
        unit,
        remaining,
    } = claim;
    let number = unit.number;
    // An order id has no character that JSON escapes.
    let body = match style {
        Style::Tutorial => format!(
            r#"{{"result":"won","order_id":"{order_id}","unit":{number},"remaining":{remaining}}}"#
        ),
        Style::V1 => format!(
            r#"{{"result":"won","order_id":"{order_id}","unit":{number},"generation":{},"remaining":{remaining}}}"#,
            unit.generation
        ),
    };
    let mut answer = Response::new(Full::from(body));
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    if style == Style::V1 {
        *answer.status_mut() = StatusCode::CREATED;
        locate(&mut answer, order_id);
    }
    answer
}

/// 202: not final, with the address that will tell.
fn later(result: &str, order_id: &OrderId, retry_after_s: u32) -> Response<Full<Bytes>> {
    let body = json!({"result": result, "order_id": order_id}).to_string();
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = StatusCode::ACCEPTED;
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
    locate(&mut answer, order_id);
    answer
}

fn locate(answer: &mut Response<Full<Bytes>>, order_id: &OrderId) {
    if let Ok(address) = HeaderValue::from_maybe_shared(format!("/v1/orders/{order_id}")) {
        answer.headers_mut().insert(LOCATION, address);
    }
}

fn refused(no: Rejection) -> Problem {
    match no {
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
            format!("this buyer holds {limit} units, as many as the sale allows"),
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
            "The sale has closed",
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
            "The sale needs to know the buyer",
            "the sale has a limit per buyer: name the buyer in the body, {\"buyer\": \"…\"}",
        ),
        Invalid::Quantity { max } => Problem::new(
            StatusCode::BAD_REQUEST,
            "quantity-not-sold",
            "Not a quantity that can be bought",
            format!("one order is for 1 to {max} unit"),
        )
        .with("max", max),
    }
}

pub(crate) fn no_such_sale() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no-such-sale",
        "There is no such sale",
        "no sale has this id; `seckill sale list` shows those there are",
    )
}

/// RFC 3339 in UTC.
pub(crate) fn time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms)
        .map_or_else(|_| at_ms.to_string(), |at| format!("{at:.3}"))
}
