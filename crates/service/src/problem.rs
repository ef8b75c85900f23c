//! Errors as RFC 9457 problem details. A released type must never change.
//! docs/HTTP.md lists the types and their meanings.

use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use seckill_engine::{Cause, Effect, Fault};
use serde_json::{Map, Value, json};

pub const PROBLEM_TYPE_PREFIX: &str = "urn:seckill:problem:";

pub(crate) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

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

    /// 400, for a request that is not valid in itself.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request is not valid",
            detail,
        )
    }

    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.more.insert(member.to_owned(), value.into());
        self
    }

    /// Replaces the detail, for a reader who may see internals.
    #[must_use]
    pub(crate) fn detail(mut self, detail: String) -> Self {
        self.detail = detail;
        self
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// A fault as a 503, never as a rejection. The fault's own text is only for operators, because
    /// it may name files and servers.
    pub(crate) fn of_fault(fault: &Fault, retry_after_s: u32) -> Self {
        let (name, title, what) = match fault.cause {
            Cause::Overloaded => (
                "overloaded",
                "Too many requests are waiting",
                "more requests are waiting than the service accepts",
            ),
            Cause::Rebuilding => (
                "rebuilding",
                "The sale is being rebuilt",
                "the service is rebuilding its state from the order store",
            ),
            Cause::Store => (
                "store-unavailable",
                "The order store is unavailable",
                "the service cannot store orders now",
            ),
            Cause::Stopping => (
                "stopping",
                "The service is stopping",
                "the service is stopping",
            ),
            Cause::Deadline => (
                "no-answer-in-time",
                "No answer in time",
                "the service did not finish in time",
            ),
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
            format!("{what}; {}, retry later", fault.effect),
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

    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.to_json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        self.response().map(axum::body::Body::new)
    }
}
