//! Problems as responses. Their types and members are in `seckill-api`; docs/HTTP.md lists them.

use std::borrow::Cow;

use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use seckill_api::{self as api, ProblemType};
use seckill_engine::{Cause, Effect, Fault};

use crate::json::to_json;

pub(crate) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

#[derive(Debug, Clone)]
pub(crate) struct Problem {
    /// Boxed, because results carry problems.
    body: Box<api::Problem>,
    retry_after_s: Option<u32>,
}

impl From<api::Problem> for Problem {
    fn from(body: api::Problem) -> Self {
        Self {
            body: Box::new(body),
            retry_after_s: None,
        }
    }
}

impl Problem {
    /// A problem without optional members.
    pub(crate) fn new(problem_type: ProblemType, detail: impl Into<Cow<'static, str>>) -> Self {
        api::Problem::new(problem_type, detail).into()
    }

    /// 400, for a request that is not valid in itself.
    pub(crate) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ProblemType::BadRequest, detail)
    }

    /// Replaces the detail, for a reader who may see internals.
    #[must_use]
    pub(crate) fn detail(mut self, detail: String) -> Self {
        self.body.detail = detail.into();
        self
    }

    /// Replaces the status of a type that has several.
    #[must_use]
    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.body.status = status.as_u16();
        self
    }

    /// A fault as a 503, never as a rejection. The fault's own text is only for operators, because
    /// it may name files and servers.
    pub(crate) fn of_fault(fault: &Fault, retry_after_s: u32) -> Self {
        let (problem_type, what) = match fault.cause {
            Cause::Overloaded => (
                ProblemType::Overloaded,
                "more requests are waiting than the service accepts",
            ),
            Cause::Rebuilding => (
                ProblemType::Rebuilding,
                "the service is rebuilding its state from the order store",
            ),
            Cause::Store => (
                ProblemType::StoreUnavailable,
                "the service cannot store orders now",
            ),
            Cause::Stopping => (ProblemType::Stopping, "the service is stopping"),
            Cause::Deadline => (
                ProblemType::NoAnswerInTime,
                "the service did not finish in time",
            ),
        };
        let effect = match fault.effect {
            Effect::Happened => api::Effect::Happened,
            Effect::None => api::Effect::None,
            Effect::Unknown => api::Effect::Unknown,
        };
        let detail = format!("{what}; {}, retry later", fault.effect);
        let body = api::Problem {
            effect: Some(effect),
            ..api::Problem::new(problem_type, detail)
        };
        Self {
            retry_after_s: Some(retry_after_s),
            ..body.into()
        }
    }

    pub(crate) fn to_json(&self) -> Bytes {
        to_json(&self.body)
    }

    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.to_json()));
        let status = StatusCode::from_u16(self.body.status);
        *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_503_with_its_effect_and_without_its_own_text() {
        let fault = Fault::unknown(Cause::Store, "/var/lib/seckill is full");
        let problem = Problem::of_fault(&fault, 3);
        let response = problem.response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "3");
        assert_eq!(
            problem.to_json(),
            r#"{"type":"urn:seckill:problem:store-unavailable","title":"The order store is unavailable","status":503,"detail":"the service cannot store orders now; it is unknown whether the request took effect, retry later","effect":"unknown"}"#
        );
    }
}
