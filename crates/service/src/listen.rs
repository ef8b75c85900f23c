//! Connections: accepted up to a bound, kept while they behave, ended in a bounded time.
//! What is said on them is decided elsewhere.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Service;
use crate::front::Front;

/// A pause after a failed accept: the usual cause is that no file descriptor is left, and that passes.
const ACCEPT_PAUSE_MS: u64 = 20;

/// Serves until `stop` ends; then answers what is in flight, and returns after at most `shutdown_wait_ms`.
pub async fn serve(listener: TcpListener, service: Arc<Service>, stop: impl Future<Output = ()>) {
    let front = Front::new(Arc::clone(&service));
    let options = &service.options;
    let places = Arc::new(Semaphore::new(options.max_connections));
    let open = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(options.head_wait_ms))
        .max_buf_size(options.head_max_bytes);
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, place) = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let connection = http.serve_connection(TokioIo::new(stream), front.clone());
        let connection = open.watch(connection);
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            service.metrics.connections().inc();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke off");
            }
            service.metrics.connections().dec();
            drop(place);
        });
    }
    drop(listener);
    let wait = Duration::from_millis(options.shutdown_wait_ms);
    if tokio::time::timeout(wait, open.shutdown()).await.is_err() {
        tracing::warn!(?wait, "connections were still open at the end");
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = loop {
        // The semaphore is never closed; were it, there would be no place.
        match Arc::clone(places).acquire_owned().await {
            Ok(place) => break place,
            Err(_) => std::future::pending::<()>().await,
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // An answer is one small write: without this it would wait for the client's acknowledgement.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection was gone at once");
                    continue;
                }
                return (stream, place);
            }
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}
