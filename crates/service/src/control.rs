//! The control socket: operators manage sales, read the feed and audit a running service over a Unix
//! socket in the data folder. It must not be reachable from the network, because it has no authentication.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use axum::{Json, Router};
use hyper::StatusCode;
use seckill_api::{
    self as api, CONTROL_AUDIT_PATH, CONTROL_EVENTS_PATH, CONTROL_SALES_PATH, EventsQuery,
    ProblemType, SalesQuery,
};
use seckill_engine::{Effect, Engine, Fault, SaleStock};
use seckill_sale::{ChangeRefused, Sale, SaleId, SaleRefused};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use crate::convert::{self, InvalidRequest, now_ms};
use crate::problem::Problem;
use crate::problem_extractors::{Body, InPath, InQuery};
use crate::responses::no_such_sale;
use crate::routes::wrong_method;

/// The largest history that an audit accepts: several million confirmations.
const AUDIT_BODY_MAX_BYTES: usize = 1 << 30;
const ROOT_UID: u32 = 0;

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The file may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Calls `with` with a path to the socket that the system accepts, which keeps about a hundred bytes
/// of it. A longer one is replaced by a path through the open folder.
fn by_short_path<T>(
    path: &Path,
    with: impl FnOnce(&Path) -> std::io::Result<T>,
) -> std::io::Result<T> {
    const PATH_MAX_BYTES: usize = 100;
    let is_short = path.as_os_str().len() <= PATH_MAX_BYTES;
    let (Some(dir), Some(name), false) = (path.parent(), path.file_name(), is_short) else {
        return with(path);
    };
    let dir = std::fs::File::open(dir)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    with(&short)
}

/// Connects to the control socket of a running service. Refuses one that another user owns.
pub async fn connect_control(path: &Path) -> std::io::Result<UnixStream> {
    let stream = by_short_path(path, |short| {
        let stream = std::os::unix::net::UnixStream::connect(short)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    })?;
    let stream = UnixStream::from_std(stream)?;
    let owner = std::fs::metadata(path.parent().unwrap_or(path))?.uid();
    let peer = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    // Root may operate a service that runs as the owner of its folder.
    let is_trusted = peer == own || peer == ROOT_UID || (own == ROOT_UID && peer == owner);
    if !is_trusted {
        return Err(std::io::Error::new(
            std::io::ErrorKind::PermissionDenied,
            format!("the socket belongs to user {peer}, not to user {own}"),
        ));
    }
    Ok(stream)
}

/// Accepts only connections of this user and of root, regardless of file modes.
struct OwnUser(UnixListener);

impl Listener for OwnUser {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.0).await;
            let own = rustix::process::geteuid().as_raw();
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == own || peer.uid() == ROOT_UID => {
                    return (stream, address);
                }
                Ok(peer) => tracing::warn!(
                    uid = peer.uid(),
                    "another user tried to use the control socket"
                ),
                Err(error) => tracing::warn!(%error, "unidentified user on the control socket"),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

impl ControlSocket {
    /// Creates the socket, and replaces one that a killed process left. The caller must have locked
    /// the data folder.
    pub fn bind(path: &Path) -> std::io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = by_short_path(path, |short| UnixListener::bind(short))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            listener,
            path: SocketFile(path.to_owned()),
        })
    }

    /// Serves until `stop` completes, then finishes the requests in flight.
    pub async fn serve(
        self,
        engine: Arc<dyn Engine>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let Self { listener, path } = self;
        let audit = post(audit).layer(DefaultBodyLimit::max(AUDIT_BODY_MAX_BYTES));
        let one_sale = format!("{CONTROL_SALES_PATH}/{{sale}}");
        let routes = Router::new()
            .route(CONTROL_SALES_PATH, get(list).post(create))
            .route(&one_sale, get(show).patch(change))
            .route(CONTROL_AUDIT_PATH, audit)
            .route(CONTROL_EVENTS_PATH, get(events))
            .fallback(no_such_page)
            .method_not_allowed_fallback(wrong_method)
            .with_state(engine);
        let serving = axum::serve(OwnUser(listener), routes).with_graceful_shutdown(stop);
        if let Err(error) = serving.await {
            tracing::error!(%error, path = %path.0.display(), "the control socket failed");
        }
    }
}

type Port = State<Arc<dyn Engine>>;

async fn no_such_page(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    let detail = format!(
        "the control socket has no {path}, only {CONTROL_SALES_PATH}, {CONTROL_EVENTS_PATH} and \
         {CONTROL_AUDIT_PATH}"
    );
    Problem::new(ProblemType::NoSuchPage, detail)
}

async fn list(State(engine): Port, InQuery(query): InQuery<SalesQuery>) -> Response {
    let after = match query.after.as_deref().map(SaleId::new).transpose() {
        Ok(after) => after,
        Err(bad) => return Problem::bad_request(bad.to_string()).into_response(),
    };
    match engine.sales(after).await {
        Ok(sales) => {
            let now_ms = now_ms();
            let views = sales.iter().map(|stock| convert::sale(stock, now_ms));
            Json(views.collect::<Vec<_>>()).into_response()
        }
        Err(fault) => failed(&fault),
    }
}

async fn show(State(engine): Port, InPath(id): InPath<SaleId>) -> Response {
    match engine.sale(&id).await {
        Ok(Some(stock)) => Json(convert::sale(&stock, now_ms())).into_response(),
        Ok(None) => refused(&SaleRefused::NoSuchSale(id)),
        Err(fault) => failed(&fault),
    }
}

async fn create(State(engine): Port, Body(new): Body<api::NewSale>) -> Response {
    match convert::new_sale(new) {
        Ok(new) => changed(&engine, engine.create_sale(new).await).await,
        Err(invalid) => not_possible(&invalid),
    }
}

async fn change(
    State(engine): Port,
    InPath(id): InPath<SaleId>,
    Body(change): Body<api::SaleChange>,
) -> Response {
    match convert::sale_change(change) {
        Ok(change) => changed(&engine, engine.change_sale(&id, change).await).await,
        Err(invalid) => not_possible(&invalid),
    }
}

fn not_possible(invalid: &InvalidRequest) -> Response {
    Problem::new(ProblemType::SaleRefused, invalid.to_string()).into_response()
}

async fn events(State(engine): Port, InQuery(query): InQuery<EventsQuery>) -> Response {
    let sale = match SaleId::new(&query.sale) {
        Ok(sale) => sale,
        Err(bad) => return Problem::bad_request(bad.to_string()).into_response(),
    };
    match engine.events(&sale, query.after).await {
        Ok(Some(events)) => {
            let events = events.into_iter().map(convert::event);
            Json(events.collect::<Vec<_>>()).into_response()
        }
        Ok(None) => refused(&SaleRefused::NoSuchSale(sale)),
        Err(fault) => failed(&fault),
    }
}

async fn audit(State(engine): Port, Body(history): Body<Vec<api::HistoryEntry>>) -> Response {
    let history = match convert::history(history) {
        Ok(history) => history,
        Err(invalid) => return Problem::bad_request(invalid.to_string()).into_response(),
    };
    match engine.audit(history).await {
        Ok(report) => Json(convert::audit_report(report)).into_response(),
        Err(fault) => failed(&fault),
    }
}

async fn changed(
    engine: &Arc<dyn Engine>,
    done: Result<Result<Sale, SaleRefused>, Fault>,
) -> Response {
    let sale = match done {
        Ok(Ok(sale)) => sale,
        Ok(Err(reason)) => return refused(&reason),
        Err(fault) => return failed(&fault),
    };
    match engine.sale(&sale.id).await {
        Ok(Some(SaleStock { free, .. })) => {
            Json(convert::sale(&SaleStock { sale, free }, now_ms())).into_response()
        }
        Ok(None) => no_such_sale().into_response(),
        // The change is stored; only the stock could not be read.
        Err(fault) => failed(&Fault {
            effect: Effect::Happened,
            ..fault
        }),
    }
}

fn refused(reason: &SaleRefused) -> Response {
    let status = match reason {
        SaleRefused::Exists(_) => StatusCode::CONFLICT,
        SaleRefused::NoSuchSale(_) => StatusCode::NOT_FOUND,
        SaleRefused::Change(ChangeRefused::VersionDiffers { .. }) => {
            StatusCode::PRECONDITION_FAILED
        }
        SaleRefused::InvalidSale(_) | SaleRefused::Change(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    Problem::new(ProblemType::SaleRefused, reason.to_string())
        .status(status)
        .into_response()
}

/// Operators see the fault's own text, unlike HTTP clients.
fn failed(fault: &Fault) -> Response {
    Problem::of_fault(fault, 1)
        .detail(fault.to_string())
        .into_response()
}
