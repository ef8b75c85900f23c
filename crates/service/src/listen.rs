//! Accepts connections up to a limit, keeps them while they are in use, and closes them in bounded
//! time. It does not decide what is served on them.

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

/// The pause after a failed accept. The usual cause, a lack of file descriptors, is temporary.
const ACCEPT_PAUSE_MS: u64 = 20;

/// Serves until `stop` completes, then answers the requests in flight for at most
/// `shutdown_wait_ms`.
pub async fn serve(listener: TcpListener, service: Arc<Service>, stop: impl Future<Output = ()>) {
    let options = &service.options;
    let connections = Arc::new(Connections::default());
    let permits = Arc::new(Semaphore::new(options.max_connections));
    let routes = crate::routes::router(Arc::clone(&service));
    let mut http = http1::Builder::new();
    // Responses are small: copying into one buffer costs less than a vectored write of two.
    // A client that has shut down its sending side still reads: its confirmation must reach it.
    http.max_buf_size(options.head_max_bytes)
        .writev(false)
        .half_close(true);
    let head_wait = Duration::from_millis(options.head_wait_ms);
    let mut reaping = std::pin::pin!(connections.reap(head_wait));
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, permit) = tokio::select! {
            () = &mut stop => break,
            () = &mut reaping => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let state = connections.state();
        let dispatch = Dispatch::new(Arc::clone(&service), routes.clone(), Arc::clone(&state));
        let connection = http.serve_connection(TokioIo::new(stream), dispatch);
        let guard = connections.guard(state);
        let id = guard.id();
        let service = Arc::clone(&service);
        let task = tokio::spawn(async move {
            let _held_until_the_end = (guard, permit, Counted::new(service));
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection failed");
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
        tracing::warn!(?wait, "closing connections that are still open");
    }
}

/// Counts a connection for as long as it is open.
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

/// Waits for a permit, then for a connection.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = loop {
        // The semaphore is never closed.
        match Arc::clone(permits).acquire_owned().await {
            Ok(permit) => break permit,
            Err(_) => std::future::pending::<()>().await,
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Nagle's algorithm could delay a response until the last one is acknowledged.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection was closed before it was served");
                    continue;
                }
                return (stream, permit);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}
