//! The operator's way into a running service: sales over a Unix socket that only its user can open.
//! Not on the network: there is no token that could guard it there yet.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Path as UrlPath, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::StatusCode;
use seckill_engine::{Engine, Fault, SaleRefused, SaleStock};
use seckill_sale::{NewSale, Sale, SaleChange, SaleId};
use serde::Deserialize;
use tokio::net::UnixListener;

use crate::problem::Problem;
use crate::responses::no_such_sale;
use crate::sales::{SaleView, now_ms};

/// Where sales are found on the socket.
pub const CONTROL_SALES_PATH: &str = "/sales";

/// The socket; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl ControlSocket {
    /// Makes the socket, over one that a killed process left. Whoever calls this holds the data folder.
    pub fn bind(path: &Path) -> std::io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            listener,
            path: SocketFile(path.to_owned()),
        })
    }

    /// Answers until `stop` ends, and then what is under way.
    pub async fn serve(
        self,
        engine: Arc<dyn Engine>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let Self { listener, path } = self;
        let sales = Router::new()
            .route(CONTROL_SALES_PATH, get(list).post(create))
            .route("/sales/{sale}", get(show).patch(change))
            .with_state(engine);
        let serving = axum::serve(listener, sales).with_graceful_shutdown(stop);
        if let Err(error) = serving.await {
            tracing::error!(%error, path = %path.0.display(), "the control socket failed");
        }
    }
}

type Port = State<Arc<dyn Engine>>;

#[derive(Deserialize)]
struct Page {
    after: Option<SaleId>,
}

async fn list(State(engine): Port, Query(page): Query<Page>) -> Response {
    match engine.sales(page.after).await {
        Ok(sales) => {
            let now_ms = now_ms();
            let views: Vec<SaleView> = sales
                .iter()
                .map(|sale| SaleView::new(sale, now_ms))
                .collect();
            Json(views).into_response()
        }
        Err(fault) => failed(&fault),
    }
}

async fn show(State(engine): Port, UrlPath(id): UrlPath<SaleId>) -> Response {
    match engine.sale(&id).await {
        Ok(Some(stock)) => Json(SaleView::new(&stock, now_ms())).into_response(),
        Ok(None) => no_such_sale().into_response(),
        Err(fault) => failed(&fault),
    }
}

async fn create(State(engine): Port, Json(new): Json<NewSale>) -> Response {
    answer(&engine, engine.create_sale(new).await).await
}

async fn change(
    State(engine): Port,
    UrlPath(id): UrlPath<SaleId>,
    Json(change): Json<SaleChange>,
) -> Response {
    answer(&engine, engine.change_sale(&id, change).await).await
}

async fn answer(
    engine: &Arc<dyn Engine>,
    done: Result<Result<Sale, SaleRefused>, Fault>,
) -> Response {
    let sale = match done {
        Ok(Ok(sale)) => sale,
        Ok(Err(refused)) => {
            let status = match refused {
                SaleRefused::Exists(_) => StatusCode::CONFLICT,
                SaleRefused::NoSuchSale(_) => StatusCode::NOT_FOUND,
                SaleRefused::InvalidSale(_) | SaleRefused::Change(_) => {
                    StatusCode::UNPROCESSABLE_ENTITY
                }
            };
            let detail = refused.to_string();
            return Problem::new(status, "sale-refused", "Not done", detail).into_response();
        }
        Err(fault) => return failed(&fault),
    };
    let free = match engine.sale(&sale.id).await {
        Ok(Some(stock)) => stock.free,
        Ok(None) | Err(_) => sale.total,
    };
    Json(SaleView::new(&SaleStock { sale, free }, now_ms())).into_response()
}

fn failed(fault: &Fault) -> Response {
    Problem::of_fault(fault, 1).into_response()
}
