//! Dispatches requests: attempts take a fast path, everything else goes to the routes.
//! Rejecting a bare attempt must not box a future, allocate more than the response, or wait.

use std::future::{Future, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body as RouteBody;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Request, Response};
use seckill_sale::{Attempt, SaleId};
use tower::ServiceExt;

use crate::connections::ConnState;
use crate::problem::Problem;
use crate::responses::{Style, respond};
use crate::{Service, extract};

pub(crate) type ResponseBody = Either<Full<Bytes>, RouteBody>;
type DispatchResult = Result<Response<ResponseBody>, std::convert::Infallible>;

/// A response that is ready, or one in progress while its connection is marked as answering.
pub(crate) enum ResponseFuture {
    Now(Ready<DispatchResult>),
    Later(
        Pin<Box<dyn Future<Output = DispatchResult> + Send>>,
        Arc<ConnState>,
    ),
}

impl Future for ResponseFuture {
    type Output = DispatchResult;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<DispatchResult> {
        match self.get_mut() {
            Self::Now(response) => Pin::new(response).poll(context),
            Self::Later(response, state) => {
                let mut response = ready!(response.as_mut().poll(context));
                state.waiting();
                if let Ok(response) = &mut response {
                    close_if_stopping(state, response);
                }
                Poll::Ready(response)
            }
        }
    }
}

/// Closes the connection after this response if the service is stopping.
fn close_if_stopping(state: &ConnState, response: &mut Response<ResponseBody>) {
    if state.is_stopping() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
}

/// Serves one connection.
pub(crate) struct Dispatch {
    service: Arc<Service>,
    routes: Router,
    state: Arc<ConnState>,
}

impl Dispatch {
    pub(crate) fn new(service: Arc<Service>, routes: Router, state: Arc<ConnState>) -> Self {
        Self {
            service,
            routes,
            state,
        }
    }

    fn attempt(&self, sale: SaleId, style: Style, request: Request<Incoming>) -> ResponseFuture {
        if extract::is_bare(&request) {
            let attempt = Attempt::anonymous(sale);
            if let Some(verdict) = self.service.engine.answer_from_memory(&attempt) {
                let response = respond(&self.service, style, 1, Ok(verdict));
                let mut response = response.map(Either::Left);
                self.state.waiting();
                close_if_stopping(&self.state, &mut response);
                return ResponseFuture::Now(std::future::ready(Ok(response)));
            }
            let service = Arc::clone(&self.service);
            return self.later(async move {
                let verdict = service.engine.decide_one(attempt).await;
                respond(&service, style, 1, verdict)
            });
        }
        let service = Arc::clone(&self.service);
        self.later(async move {
            let json_only = style == Style::V1;
            let extracted = extract::attempt(sale, request, &service.options, json_only).await;
            let attempt = match extracted {
                Ok(attempt) => attempt,
                Err(problem) => return problem.response(),
            };
            let asked = attempt.lines.quantity();
            let verdict = match service.engine.answer_from_memory(&attempt) {
                Some(verdict) => Ok(verdict),
                None => service.engine.decide_one(attempt).await,
            };
            respond(&service, style, asked, verdict)
        })
    }

    fn route(&self, request: Request<Incoming>) -> ResponseFuture {
        if let Err(problem) = extract::check_length(request.headers(), &self.service.options) {
            return self.later(async move { problem.response() });
        }
        let response = self.routes.clone().oneshot(request);
        self.state.answering();
        let response = async move {
            let Ok(response) = response.await;
            Ok(response.map(Either::Right))
        };
        ResponseFuture::Later(Box::pin(response), Arc::clone(&self.state))
    }

    fn later(
        &self,
        response: impl Future<Output = Response<Full<Bytes>>> + Send + 'static,
    ) -> ResponseFuture {
        self.state.answering();
        let response = async move { Ok(response.await.map(Either::Left)) };
        ResponseFuture::Later(Box::pin(response), Arc::clone(&self.state))
    }
}

/// The sale in a `/v1/sales/{sale}/orders` path.
fn sale_of_path(path: &str) -> Option<&str> {
    let sale = path.strip_prefix("/v1/sales/")?.strip_suffix("/orders")?;
    (!sale.contains('/')).then_some(sale)
}

impl hyper::service::Service<Request<Incoming>> for Dispatch {
    type Response = Response<ResponseBody>;
    type Error = std::convert::Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<Incoming>) -> ResponseFuture {
        if request.method() != Method::POST {
            return self.route(request);
        }
        let path = request.uri().path();
        if path == "/seckill" {
            let sale = self.service.options.default_sale.clone();
            return self.attempt(sale, Style::Tutorial, request);
        }
        match sale_of_path(path).map(SaleId::new) {
            Some(Ok(sale)) => self.attempt(sale, Style::V1, request),
            Some(Err(bad)) => {
                let problem = Problem::bad_request(bad.to_string());
                self.later(async move { problem.response() })
            }
            None => self.route(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_orders_of_a_sale_are_attempts() {
        assert_eq!(sale_of_path("/v1/sales/phone/orders"), Some("phone"));
        for path in [
            "/v1/sales/orders",
            "/v1/sales/a/b/orders",
            "/v1/sales/a",
            "/seckill",
        ] {
            assert_eq!(sale_of_path(path), None, "{path}");
        }
    }
}
