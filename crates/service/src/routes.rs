//! All requests except attempts: orders, sales, probes, metrics. They are rare: axum routes them.
//! Unknown paths and wrong methods must get a problem, too.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use seckill_api::{self as api, PendingOrder, PendingState, ProblemType, order_path};
use seckill_engine::{Fault, OrderRefused, Outcome};
use seckill_sale::{Order, OrderChange, OrderId, SaleId};

use crate::Service;
use crate::convert::{self, now_ms};
use crate::problem::Problem;
use crate::responses::no_such_sale;

/// The two paths that take attempts are here only for requests with a wrong method.
pub(crate) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/seckill", post(unreachable_by_post))
        .route("/v1/sales/{sale}/orders", post(unreachable_by_post))
        .route("/v1/sales/{sale}", get(sale))
        .route("/v1/orders/{order_id}", get(order))
        .route("/v1/orders/{order_id}/cancel", post(cancel))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(no_such_page)
        .method_not_allowed_fallback(wrong_method)
        .with_state(service)
}

/// Attempts are answered before they reach this router.
async fn unreachable_by_post() -> Problem {
    no_such_sale()
}

async fn no_such_page(uri: Uri) -> Problem {
    let detail = format!(
        "there is no {}; buy with POST /seckill or POST /v1/sales/{{sale}}/orders",
        uri.path().chars().take(100).collect::<String>()
    );
    Problem::new(ProblemType::NoSuchPage, detail)
}

pub(crate) async fn wrong_method(method: Method) -> Problem {
    let detail = format!("this path does not support {method}; see the Allow header");
    Problem::new(ProblemType::WrongMethod, detail)
}

impl Service {
    fn fault(&self, fault: &Fault) -> Problem {
        Problem::of_fault(fault, self.options.retry_after_s)
    }
}

async fn sale(State(service): State<Arc<Service>>, Path(id): Path<String>) -> Response {
    let Ok(id) = SaleId::new(&id) else {
        return no_such_sale().into_response();
    };
    match service.engine.sale(&id).await {
        Ok(Some(stock)) => no_store(Json(convert::sale(&stock, now_ms()))),
        Ok(None) => no_such_sale().into_response(),
        Err(fault) => service.fault(&fault).into_response(),
    }
}

async fn order(State(service): State<Arc<Service>>, Path(id): Path<String>) -> Response {
    let Ok(id) = OrderId::new(&id) else {
        return no_such_order().into_response();
    };
    match service.engine.order(&id).await {
        Ok(Outcome::Order(order)) => shown(order),
        Ok(Outcome::Pending) => pending(&service, &id),
        Ok(Outcome::None) => no_such_order().into_response(),
        Err(fault) => service.fault(&fault).into_response(),
    }
}

async fn cancel(State(service): State<Arc<Service>>, Path(id): Path<String>) -> Response {
    let Ok(id) = OrderId::new(&id) else {
        return no_such_order().into_response();
    };
    match service.engine.change_order(&id, OrderChange::Cancel).await {
        Ok(Ok(order)) => shown(order),
        Ok(Err(OrderRefused::NoSuchOrder)) => no_such_order().into_response(),
        Ok(Err(OrderRefused::Pending)) => pending(&service, &id),
        Ok(Err(OrderRefused::NotAllowed(refused))) => {
            let state = convert::order_state(refused.state);
            let detail = format!("an order that is {state} cannot be cancelled");
            let problem = api::Problem {
                state: Some(state),
                ..api::Problem::new(ProblemType::NotCancellable, detail)
            };
            Problem::from(problem).into_response()
        }
        Err(fault) => service.fault(&fault).into_response(),
    }
}

fn no_such_order() -> Problem {
    Problem::new(
        ProblemType::NoSuchOrder,
        "no order has this id, and no attempt with this id bought anything",
    )
}

fn pending(service: &Service, id: &OrderId) -> Response {
    let retry_after = service.options.retry_after_s.to_string();
    let headers = [
        (LOCATION, order_path(id.as_str())),
        (RETRY_AFTER, retry_after),
    ];
    let body = PendingOrder {
        order_id: id.to_string(),
        state: PendingState::Pending,
    };
    (StatusCode::ACCEPTED, headers, Json(body)).into_response()
}

fn shown(order: Order) -> Response {
    no_store(Json(convert::order(order)))
}

fn no_store(body: impl IntoResponse) -> Response {
    ([(CACHE_CONTROL, "no-store")], body).into_response()
}

async fn livez(State(service): State<Arc<Service>>) -> Response {
    match service.engine.liveness() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => Problem::new(ProblemType::NotAlive, reason).into_response(),
    }
}

async fn readyz(State(service): State<Arc<Service>>) -> Response {
    let readiness = convert::readiness(service.engine.components());
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, no_store(Json(readiness))).into_response()
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match service.metrics.page() {
        Ok(page) => ([(CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => {
            let detail = format!("the metrics could not be written: {error}");
            Problem::new(ProblemType::NoMetrics, detail).into_response()
        }
    }
}
