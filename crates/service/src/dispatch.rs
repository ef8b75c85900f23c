//! The first look at a request: an attempt takes the short way, everything else goes to the pages.
//! A no of a bare attempt is answered without a future, an allocation of our own, or a wait.

use std::future::{Future, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body as PageBody;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Request, Response};
use seckill_sale::{Attempt, SaleId};
use tower::ServiceExt;

use crate::connections::ConnState;
use crate::problem::Problem;
use crate::responses::{Style, answer};
use crate::{Service, extract};

pub(crate) type AnswerBody = Either<Full<Bytes>, PageBody>;
type DispatchResult = Result<Response<AnswerBody>, std::convert::Infallible>;

/// An answer that is there, or one that is being made while its connection is marked so.
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
            Self::Now(answer) => Pin::new(answer).poll(context),
            Self::Later(answer, watch) => {
                let mut answer = ready!(answer.as_mut().poll(context));
                watch.waiting();
                if let Ok(answer) = &mut answer {
                    end_if_stopping(watch, answer);
                }
                Poll::Ready(answer)
            }
        }
    }
}

/// Says that the connection ends with this answer, where the service is stopping.
fn end_if_stopping(watch: &ConnState, answer: &mut Response<AnswerBody>) {
    if watch.is_stopping() {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(CONNECTION, close);
    }
}

/// The service as hyper calls it, on one connection.
pub(crate) struct Dispatch {
    service: Arc<Service>,
    pages: Router,
    watch: Arc<ConnState>,
}

impl Dispatch {
    pub(crate) fn new(service: Arc<Service>, pages: Router, watch: Arc<ConnState>) -> Self {
        Self {
            service,
            pages,
            watch,
        }
    }

    fn attempt(&self, sale: SaleId, style: Style, request: Request<Incoming>) -> ResponseFuture {
        if extract::is_bare(&request) {
            let attempt = Attempt::anonymous(sale);
            if let Some(verdict) = self.service.engine.answer_from_memory(&attempt) {
                let mut said = answer(&self.service, style, Ok(verdict)).map(Either::Left);
                self.watch.waiting();
                end_if_stopping(&self.watch, &mut said);
                return ResponseFuture::Now(std::future::ready(Ok(said)));
            }
            let service = Arc::clone(&self.service);
            return self.later(async move {
                let verdict = service.engine.decide_one(attempt).await;
                answer(&service, style, verdict)
            });
        }
        let service = Arc::clone(&self.service);
        self.later(async move {
            let json_only = style == Style::V1;
            let admitted = extract::attempt(sale, request, &service.options, json_only).await;
            let attempt = match admitted {
                Ok(attempt) => attempt,
                Err(problem) => return problem.answer(),
            };
            let verdict = match service.engine.answer_from_memory(&attempt) {
                Some(verdict) => Ok(verdict),
                None => service.engine.decide_one(attempt).await,
            };
            answer(&service, style, verdict)
        })
    }

    fn page(&self, request: Request<Incoming>) -> ResponseFuture {
        if let Err(problem) = extract::check_length(request.headers(), &self.service.options) {
            return self.later(async move { problem.answer() });
        }
        let page = self.pages.clone().oneshot(request);
        self.watch.answering();
        let page = async move {
            let Ok(page) = page.await;
            Ok(page.map(Either::Right))
        };
        ResponseFuture::Later(Box::pin(page), Arc::clone(&self.watch))
    }

    fn later(
        &self,
        answer: impl Future<Output = Response<Full<Bytes>>> + Send + 'static,
    ) -> ResponseFuture {
        self.watch.answering();
        let answer = async move { Ok(answer.await.map(Either::Left)) };
        ResponseFuture::Later(Box::pin(answer), Arc::clone(&self.watch))
    }
}

/// The sale of a `/v1/sales/{sale}/orders` path.
fn sale_of_path(path: &str) -> Option<&str> {
    let sale = path.strip_prefix("/v1/sales/")?.strip_suffix("/orders")?;
    (!sale.contains('/')).then_some(sale)
}

impl hyper::service::Service<Request<Incoming>> for Dispatch {
    type Response = Response<AnswerBody>;
    type Error = std::convert::Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<Incoming>) -> ResponseFuture {
        if request.method() != Method::POST {
            return self.page(request);
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
                self.later(async move { problem.answer() })
            }
            None => self.page(request),
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
