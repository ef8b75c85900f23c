//! Dispatches requests: attempts take a fast path, everything else goes to the routes.
//! Rejecting a bare attempt must not box a future, allocate more than the response, or wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body as RouteBody;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Request, Response};
use pin_project_lite::pin_project;
use seckill_api::ProblemType;
use seckill_engine::{Fault, Submitted, Ticket};
use seckill_sale::{Attempt, SaleId, Verdict};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::connections::ConnState;
use crate::context::LoopContext;
use crate::extract;
use crate::problem::Problem;
use crate::responses::{Style, respond};

pub(crate) type ResponseBody = Either<Full<Bytes>, RouteBody>;
type DispatchResult = Result<Response<ResponseBody>, std::convert::Infallible>;
type BoxedResponse = Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send>>;

pin_project! {
    /// A response that is ready, or one in progress while its connection is marked as answering.
    #[project = Progress]
    pub(crate) enum ResponseFuture {
        Now {
            response: Option<Response<ResponseBody>>,
        },
        /// A bare attempt that the engine decides.
        Decided {
            #[pin]
            ticket: Ticket,
            style: Style,
            context: Arc<LoopContext>,
            state: Arc<ConnState>,
        },
        Later {
            response: BoxedResponse,
            state: Arc<ConnState>,
        },
    }
}

impl Future for ResponseFuture {
    type Output = DispatchResult;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<DispatchResult> {
        let (mut response, state) = match self.project() {
            Progress::Now { response } => {
                // A future is not polled again once it has returned.
                return response
                    .take()
                    .map_or(Poll::Pending, |response| Poll::Ready(Ok(response)));
            }
            Progress::Decided {
                ticket,
                style,
                context,
                state,
            } => {
                let verdict = ready!(ticket.poll(task));
                (decided(context, *style, verdict), state)
            }
            Progress::Later { response, state } => (ready!(response.as_mut().poll(task)), state),
        };
        answered(state, &mut response);
        Poll::Ready(Ok(response))
    }
}

/// The connection waits for its next request, or closes after this response if the service is
/// stopping.
fn answered(state: &ConnState, response: &mut Response<ResponseBody>) {
    state.waiting();
    if state.is_stopping() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
}

/// The response to a bare attempt, which asks for one unit.
fn decided(
    context: &LoopContext,
    style: Style,
    verdict: Result<Verdict, Fault>,
) -> Response<ResponseBody> {
    respond(context, style, 1, verdict).map(Either::Left)
}

/// Serves one connection.
pub(crate) struct Dispatch {
    context: Arc<LoopContext>,
    state: Arc<ConnState>,
}

impl Dispatch {
    pub(crate) fn new(context: Arc<LoopContext>, state: Arc<ConnState>) -> Self {
        Self { context, state }
    }

    fn attempt(&self, sale: SaleId, style: Style, request: Request<Incoming>) -> ResponseFuture {
        let context = &self.context;
        if !extract::is_bare(&request) {
            let context = Arc::clone(context);
            return self.later(attempt_with_content(context, sale, style, request));
        }
        let attempt = Attempt::anonymous(sale);
        let engine = context.engine();
        let submitted = match engine.answer_from_memory(&attempt) {
            Some(verdict) => Submitted::Now(Ok(verdict)),
            None => engine.submit(attempt, &context.mailbox),
        };
        match submitted {
            Submitted::Now(verdict) => self.now(decided(context, style, verdict)),
            Submitted::Later(ticket) => {
                self.state.answering();
                ResponseFuture::Decided {
                    ticket,
                    style,
                    context: Arc::clone(context),
                    state: Arc::clone(&self.state),
                }
            }
        }
    }

    /// Runs a route on the background runtime. It is cancelled if the client disconnects.
    fn route(&self, request: Request<Incoming>) -> ResponseFuture {
        if let Err(problem) = extract::check_length(request.headers(), self.context.options()) {
            return self.now(problem.response().map(Either::Left));
        }
        let response = self.context.routes.clone().oneshot(request);
        let mut task = JoinSet::new();
        task.spawn_on(response, &self.context.background);
        self.later(async move {
            match task.join_next().await {
                Some(Ok(Ok(response))) => response.map(Either::Right),
                Some(Err(error)) => {
                    tracing::error!(%error, "a route failed");
                    let detail = "the request failed; it is unknown whether it took effect";
                    let problem = Problem::new(ProblemType::Internal, detail);
                    problem.response().map(Either::Left)
                }
                None => std::future::pending().await,
            }
        })
    }

    fn now(&self, mut response: Response<ResponseBody>) -> ResponseFuture {
        answered(&self.state, &mut response);
        ResponseFuture::Now {
            response: Some(response),
        }
    }

    fn later(
        &self,
        response: impl Future<Output = Response<ResponseBody>> + Send + 'static,
    ) -> ResponseFuture {
        self.state.answering();
        ResponseFuture::Later {
            response: Box::pin(response),
            state: Arc::clone(&self.state),
        }
    }
}

/// Decides an attempt that has a body or a key.
async fn attempt_with_content(
    context: Arc<LoopContext>,
    sale: SaleId,
    style: Style,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let json_only = style == Style::V1;
    let extracted = extract::attempt(sale, request, context.options(), json_only).await;
    let attempt = match extracted {
        Ok(attempt) => attempt,
        Err(problem) => return problem.response().map(Either::Left),
    };
    let asked = attempt.lines.quantity();
    let engine = context.engine();
    let verdict = match engine.answer_from_memory(&attempt) {
        Some(verdict) => Ok(verdict),
        None => engine.submit(attempt, &context.mailbox).verdict().await,
    };
    respond(&context, style, asked, verdict).map(Either::Left)
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
            let sale = self.context.default_sale.clone();
            return self.attempt(sale, Style::Tutorial, request);
        }
        match sale_of_path(path).map(SaleId::new) {
            Some(Ok(sale)) => self.attempt(sale, Style::V1, request),
            Some(Err(bad)) => {
                let problem = Problem::bad_request(bad.to_string());
                self.now(problem.response().map(Either::Left))
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
