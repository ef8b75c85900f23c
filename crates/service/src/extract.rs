//! Extracts an attempt from a request: the body within its limits, the key, the buyer, the lines.
//! A request that is refused here never reaches the engine.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use seckill_api::{self as api, AttemptBody, ORDER_LINES_MAX, ProblemType, Quantity};
use seckill_sale::{Attempt, Buyer, IdempotencyKey, ItemId, Line, Lines, ORDER_UNITS_MAX, SaleId};

use crate::ServiceOptions;
use crate::problem::Problem;
use crate::responses::{not_a_quantity, too_many_units};

/// The header of the IETF draft "The Idempotency-Key HTTP Header Field".
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Reads the whole body, within the limits of size and time.
pub(crate) async fn read_body(body: Incoming, options: &ServiceOptions) -> Result<Bytes, Problem> {
    let limited = Limited::new(body, options.body_max_bytes);
    let wait = Duration::from_millis(options.body_wait_ms);
    match tokio::time::timeout(wait, limited.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(options)),
        Ok(Err(error)) => Err(Problem::bad_request(format!(
            "the body is incomplete: {error}"
        ))),
        Err(_) => Err(Problem::new(
            ProblemType::BodyTooSlow,
            format!(
                "the whole body must arrive within {} ms",
                options.body_wait_ms
            ),
        )),
    }
}

/// Refuses a body whose declared length is too large, before any of it is read.
pub(crate) fn check_length(headers: &HeaderMap, options: &ServiceOptions) -> Result<(), Problem> {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    match length.and_then(|text| text.parse::<u64>().ok()) {
        Some(length) if length > options.body_max_bytes as u64 => Err(too_large(options)),
        _ => Ok(()),
    }
}

fn too_large(options: &ServiceOptions) -> Problem {
    Problem::new(
        ProblemType::BodyTooLarge,
        format!("a body may have at most {} bytes", options.body_max_bytes),
    )
}

fn is_json(headers: &HeaderMap) -> Option<bool> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let media_type = value.split(';').next().unwrap_or_default().trim();
    Some(media_type.eq_ignore_ascii_case("application/json"))
}

/// The key of the attempt: bare, or quoted as in the draft, and given at most once.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Problem::bad_request(
            "the Idempotency-Key header is given more than once",
        ));
    }
    let not_text = |_| Problem::bad_request("the Idempotency-Key header is not visible ASCII");
    let text = value.to_str().map_err(not_text)?.trim();
    let quoted = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    let key = match quoted {
        // RFC 8941: inside a string only the quote and the backslash are escaped.
        Some(inner) => Cow::Owned(inner.replace("\\\"", "\"").replace("\\\\", "\\")),
        None => Cow::Borrowed(text),
    };
    let key = IdempotencyKey::new(&key).map_err(|bad| Problem::bad_request(bad.to_string()))?;
    Ok(Some(key))
}

/// Whether the request has neither a body nor a key, as in the tutorial.
pub(crate) fn is_bare(request: &Request<Incoming>) -> bool {
    request.body().is_end_stream() && !request.headers().contains_key(IDEMPOTENCY_KEY)
}

/// Extracts the attempt of a request. With `json_only`, a body that is declared as another type is
/// refused. Without it, a body that is not declared as JSON is ignored, unless it looks like JSON:
/// that one is refused, because ignoring it would lose its buyer.
pub(crate) async fn attempt(
    sale: SaleId,
    request: Request<Incoming>,
    options: &ServiceOptions,
    json_only: bool,
) -> Result<Attempt, Problem> {
    let (head, body) = request.into_parts();
    let mut attempt = Attempt {
        key: idempotency_key(&head.headers)?,
        units_max: options.order_units_max,
        ..Attempt::anonymous(sale)
    };
    if !body.is_end_stream() {
        check_length(&head.headers, options)?;
        let json = is_json(&head.headers);
        if json_only && json == Some(false) {
            return Err(not_json());
        }
        let body = read_body(body, options).await?;
        let looks_like_json = body.trim_ascii_start().starts_with(b"{");
        if !json_only && json != Some(true) && looks_like_json {
            return Err(not_json());
        }
        if !body.is_empty() && (json_only || json == Some(true)) {
            read_order(&body, looks_like_json, options, &mut attempt)?;
        }
    }
    check_key(&attempt)?;
    Ok(attempt)
}

fn not_json() -> Problem {
    Problem::new(
        ProblemType::NotJson,
        "send the body with Content-Type: application/json",
    )
}

fn read_order(
    body: &[u8],
    is_object: bool,
    options: &ServiceOptions,
    attempt: &mut Attempt,
) -> Result<(), Problem> {
    let wrong = |what: &dyn std::fmt::Display| {
        Problem::bad_request(format!(
            "the body must be {{\"buyer\": \"…\", \"quantity\": 1}} or {{\"buyer\": \"…\", \"lines\": \
             [{{\"item\": \"…\", \"quantity\": 1}}]}}, all members except item optional: {what}"
        ))
    };
    if !is_object {
        return Err(wrong(&"it is not a JSON object"));
    }
    let order: AttemptBody<'_, Quantity<'_>> =
        serde_json::from_slice(body).map_err(|error| wrong(&error))?;
    let max = options.order_units_max;
    if let Some(buyer) = order.buyer {
        attempt.buyer = Buyer::new(&buyer).map_err(|bad| Problem::bad_request(bad.to_string()))?;
    }
    attempt.lines = match (order.quantity, order.lines) {
        (Some(_), Some(_)) => {
            return Err(Problem::bad_request(
                "the body has both quantity and lines: leave one of them out",
            ));
        }
        (None, None) => Lines::Quantity(1),
        (Some(quantity), None) => Lines::Quantity(units(quantity, None, max)?),
        (None, Some(lines)) => named_lines(lines, max)?,
    };
    // An order never had more units. The engine checks the configured maximum, since it can be lower
    // than it was when the key got its claim.
    match attempt.lines.quantity() {
        asked if asked > ORDER_UNITS_MAX => Err(too_many_units(asked, max)),
        _ => Ok(()),
    }
}

/// The units that a quantity stands for, in a line of `item` or for the sale's only item.
fn units(quantity: Quantity<'_>, item: Option<&ItemId>, max: u32) -> Result<u32, Problem> {
    match quantity {
        Quantity::Whole(units) if units > 0 => Ok(units),
        Quantity::Whole(_) | Quantity::Other(_) => Err(not_a_quantity(quantity, item, max)),
    }
}

/// Adds up lines of the same item. Each quantity is checked before that, so that another line cannot
/// hide a 0.
fn named_lines(lines: Vec<api::Line<'_, Quantity<'_>>>, max: u32) -> Result<Lines, Problem> {
    if lines.is_empty() || lines.len() > ORDER_LINES_MAX {
        return Err(Problem::bad_request(format!(
            "the body has {} lines: an attempt must have 1 to {ORDER_LINES_MAX}",
            lines.len()
        )));
    }
    let line = |line: api::Line<'_, Quantity<'_>>| {
        let item = ItemId::new(&line.item).map_err(|bad| Problem::bad_request(bad.to_string()))?;
        let quantity = units(line.quantity, Some(&item), max)?;
        Ok(Line { item, quantity })
    };
    let lines = lines.into_iter().map(line);
    Ok(Lines::named(lines.collect::<Result<Vec<_>, Problem>>()?))
}

/// All anonymous callers of a sale share one set of keys: a key that is easy to guess could return
/// another buyer's order.
fn check_key(attempt: &Attempt) -> Result<(), Problem> {
    match &attempt.key {
        Some(key) if attempt.buyer.is_anonymous() && !key.is_unguessable() => Err(Problem::new(
            ProblemType::KeyNeedsBuyer,
            "an Idempotency-Key without a buyer must have at least 128 bits, such as a UUID; \
             name the buyer in the body, or send a longer key",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn key_of(values: &[&str]) -> Result<Option<IdempotencyKey>, Problem> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_str(value).unwrap());
        }
        idempotency_key(&headers)
    }

    #[test]
    fn a_key_is_the_same_bare_and_quoted() {
        let key = |name| Some(IdempotencyKey::new(name).unwrap());
        assert_eq!(key_of(&[]).unwrap(), None);
        assert_eq!(key_of(&["8e03978e"]).unwrap(), key("8e03978e"));
        assert_eq!(key_of(&["\"8e03978e\""]).unwrap(), key("8e03978e"));
        assert_eq!(key_of(&["\"a\\\"b\""]).unwrap(), key("a\"b"));
    }

    #[test]
    fn invalid_keys_are_refused() {
        assert!(key_of(&["a", "a"]).is_err());
        assert!(key_of(&[""]).is_err());
        assert!(key_of(&["two words"]).is_err());
        assert!(key_of(&["k".repeat(10_000).as_str()]).is_err());
    }

    fn lines_of(body: &str) -> Result<Lines, String> {
        let options = ServiceOptions {
            order_units_max: 5,
            ..ServiceOptions::new(SaleId::new("counter").unwrap())
        };
        let mut attempt = Attempt::anonymous(SaleId::new("phone").unwrap());
        read_order(body.as_bytes(), true, &options, &mut attempt)
            .map(|()| attempt.lines)
            .map_err(|problem| String::from_utf8(problem.to_json().to_vec()).unwrap())
    }

    #[test]
    fn an_attempt_has_a_quantity_or_lines() {
        assert_eq!(lines_of("{}"), Ok(Lines::Quantity(1)));
        assert_eq!(lines_of(r#"{"quantity":5}"#), Ok(Lines::Quantity(5)));
        let line = |item: &str, quantity| Line {
            item: ItemId::new(item).unwrap(),
            quantity,
        };
        let body = r#"{"lines":[{"item":"S"},{"item":"M","quantity":2},{"item":"S"}]}"#;
        let named = Lines::named([line("M", 2), line("S", 2)]);
        assert_eq!(lines_of(body), Ok(named));
        let both = r#"{"quantity":1,"lines":[{"item":"S"}]}"#;
        for (body, expected) in [
            (both, "both quantity and lines"),
            (r#"{"lines":[]}"#, "0 lines"),
            (r#"{"lines":[{"item":"a b"}]}"#, "item id"),
        ] {
            let problem = lines_of(body).unwrap_err();
            assert!(problem.contains("bad-request"), "{body}: {problem}");
            assert!(problem.contains(expected), "{body}: {problem}");
        }
        let many = vec![r#"{"item":"S"}"#; ORDER_LINES_MAX + 1].join(",");
        let problem = lines_of(&format!(r#"{{"lines":[{many}]}}"#)).unwrap_err();
        assert!(problem.contains("17 lines"), "{problem}");
    }

    #[test]
    fn a_quantity_that_cannot_be_bought_is_named() {
        let digits = "send a whole number from 1 to 5, in digits only";
        for (body, detail) in [
            (r#"{"quantity":0}"#, format!("the quantity is 0: {digits}")),
            (
                r#"{"quantity":-1}"#,
                format!("the quantity is -1: {digits}"),
            ),
            (
                r#"{"quantity":1.0}"#,
                format!("the quantity is 1.0: {digits}"),
            ),
            (
                r#"{"quantity":1e400}"#,
                format!("the quantity is 1e400: {digits}"),
            ),
            (
                r#"{"lines":[{"item":"S","quantity":0},{"item":"S"}]}"#,
                format!("the quantity of item S is 0: {digits}"),
            ),
            (
                r#"{"quantity":17}"#,
                "the order would have 17 units: an order has at most 5 units".into(),
            ),
            (
                r#"{"lines":[{"item":"S","quantity":9},{"item":"M","quantity":8}]}"#,
                "the order would have 17 units: an order has at most 5 units".into(),
            ),
        ] {
            let problem = lines_of(body).unwrap_err();
            assert!(problem.contains("quantity-not-sold"), "{body}: {problem}");
            assert!(
                problem.contains(&format!("\"{detail}\"")),
                "{body}: {problem}"
            );
            assert!(problem.contains(r#""max":5"#), "{body}: {problem}");
            let has_item = problem.contains(r#""item":"S""#);
            assert_eq!(has_item, detail.contains("of item S"), "{body}: {problem}");
        }
        let large = r#"{"lines":[{"item":"S","quantity":4294967295},{"item":"M"}]}"#;
        assert!(lines_of(large).unwrap_err().contains("quantity-not-sold"));
    }

    /// The engine refuses it, unless its key has a claim from an earlier time.
    #[test]
    fn a_quantity_above_the_configured_maximum_is_passed_on() {
        assert_eq!(lines_of(r#"{"quantity":16}"#), Ok(Lines::Quantity(16)));
    }
}
