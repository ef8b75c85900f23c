//! Connections: accepted up to a bound, kept while they behave, ended in a bounded time.
//! What is said on them is decided elsewhere.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Service;
use crate::connections::Connections;
use crate::dispatch::Dispatch;

/// A pause after a failed accept: the usual cause is that no file descriptor is left, and that passes.
const ACCEPT_PAUSE_MS: u64 = 20;

/// Serves until `stop` ends; then answers what is in flight, and returns after at most `shutdown_wait_ms`.
pub async fn serve(listener: TcpListener, service: Arc<Service>, stop: impl Future<Output = ()>) {
    let options = &service.options;
    let connections = Arc::new(Connections::default());
    let places = Arc::new(Semaphore::new(options.max_connections));
    let pages = crate::routes::router(Arc::clone(&service));
    let mut http = http1::Builder::new();
    // Answers are small: one copy into one buffer costs less than a gathering write of two.
    http.max_buf_size(options.head_max_bytes).writev(false);
    let head_wait = Duration::from_millis(options.head_wait_ms);
    let mut reaping = std::pin::pin!(connections.reap(head_wait));
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, permit) = tokio::select! {
            () = &mut stop => break,
            () = &mut reaping => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let watch = connections.watch();
        let front = Dispatch::new(Arc::clone(&service), pages.clone(), Arc::clone(&watch));
        let connection = http.serve_connection(TokioIo::new(stream), front);
        let place = connections.place(watch);
        let id = place.id();
        let service = Arc::clone(&service);
        let task = tokio::spawn(async move {
            let _given_up_at_the_end = (place, permit, Counted::new(service));
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke off");
            }
        });
        connections.keep(id, task.abort_handle());
    }
    drop(listener);
    let wait = Duration::from_millis(options.shutdown_wait_ms);
    if tokio::time::timeout(wait, connections.stop())
        .await
        .is_err()
    {
        tracing::warn!(?wait, "connections were still open at the end");
    }
}

/// Counts a connection while it is open, however it ends.
struct Counted(Arc<Service>);

impl Counted {
    fn new(service: Arc<Service>) -> Self {
        service.metrics.connections().inc();
        Self(service)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics.connections().dec();
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = loop {
        // The semaphore is never closed; were it, there would be no place.
        match Arc::clone(places).acquire_owned().await {
            Ok(permit) => break permit,
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
                return (stream, permit);
            }
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}
