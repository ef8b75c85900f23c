//! Errors as RFC 9457 problem details, with types that never change once released.
//! The list of types with their meaning stands in docs/HTTP.md.

use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use seckill_engine::{Cause, Effect, Fault};
use serde_json::{Map, Value, json};

/// What every problem's `type` begins with.
pub const PROBLEM_TYPE_PREFIX: &str = "urn:seckill:problem:";

pub(crate) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// One problem.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    name: &'static str,
    title: &'static str,
    detail: String,
    more: Map<String, Value>,
    retry_after_s: Option<u32>,
}

impl Problem {
    /// A problem of the type `urn:seckill:problem:{name}`.
    pub fn new(
        status: StatusCode,
        name: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            name,
            title,
            detail: detail.into(),
            more: Map::new(),
            retry_after_s: None,
        }
    }

    /// A request that is wrong in itself: 400.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request is not valid",
            detail,
        )
    }

    /// With one more member.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.more.insert(member.to_owned(), value.into());
        self
    }

    /// With a `Retry-After` header.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// A fault that had no effect, or of which nobody knows; neither is ever a no.
    pub(crate) fn of_fault(fault: &Fault, retry_after_s: u32) -> Self {
        let (name, title) = match fault.cause {
            Cause::Overloaded => ("overloaded", "Too many attempts are waiting"),
            Cause::Rebuilding => ("rebuilding", "The sale is being rebuilt"),
            Cause::Store => ("store-unavailable", "The order store cannot be used"),
            Cause::Stopping => ("stopping", "The service is stopping"),
            Cause::Deadline => ("no-answer-in-time", "No answer within the time allowed"),
        };
        let effect = match fault.effect {
            Effect::Happened => "happened",
            Effect::None => "none",
            Effect::Unknown => "unknown",
        };
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            name,
            title,
            fault.to_string(),
        )
        .with("effect", effect)
        .retry_after(retry_after_s)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut members = json!({
            "type": format!("{PROBLEM_TYPE_PREFIX}{}", self.name),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Value::Object(members) = &mut members {
            members.extend(self.more.clone());
        }
        members.to_string().into_bytes()
    }

    /// The whole answer.
    pub(crate) fn answer(&self) -> Response<Full<Bytes>> {
        let mut answer = Response::new(Full::from(self.to_json()));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        self.answer().map(axum::body::Body::new)
    }
}
