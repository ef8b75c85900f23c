//! The event loop of one thread: accepts connections up to a limit, keeps them while they are in use,
//! and closes them in bounded time. It does not decide what is served on them.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use seckill_engine::{Deliveries, Mailbox};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::Service;
use crate::connections::Connections;
use crate::context::LoopContext;
use crate::dispatch::Dispatch;
use crate::metrics::ResponseCounts;
use crate::refusal::Refusals;

/// The pause after a failed accept. The usual cause, a lack of file descriptors, is temporary.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct EventLoop {
    listener: TcpListener,
    context: Arc<LoopContext>,
    deliveries: Deliveries,
    connections: Arc<Connections>,
    refusals: Refusals,
    http: http1::Builder,
}

impl EventLoop {
    pub(crate) fn new(
        listener: TcpListener,
        service: &Arc<Service>,
        counts: Arc<ResponseCounts>,
        background: &Handle,
    ) -> Self {
        let (mailbox, deliveries) = Mailbox::new();
        let options = &service.options;
        let mut http = http1::Builder::new();
        // Responses are small: copying into one buffer costs less than a vectored write of two.
        // A client that has shut down its sending side still reads: its confirmation must reach it.
        http.max_buf_size(options.head_max_bytes)
            .writev(false)
            .half_close(true);
        Self {
            listener,
            deliveries,
            connections: Arc::default(),
            refusals: Refusals::new(options.retry_after_s),
            http,
            context: Arc::new(LoopContext {
                service: Arc::clone(service),
                default_sale: options.default_sale.unshared(),
                counts,
                mailbox,
                routes: crate::routes::router(Arc::clone(service)),
                background: background.clone(),
            }),
        }
    }

    /// Serves until it is stopped, then answers the requests in flight for at most
    /// `shutdown_wait_ms`.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self {
            listener,
            context,
            deliveries,
            connections,
            refusals,
            http,
        } = self;
        tokio::spawn(deliveries.run());
        let head_wait = Duration::from_millis(context.options().head_wait_ms);
        let mut reaping = std::pin::pin!(connections.reap(head_wait));
        loop {
            let stream = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                () = &mut reaping => break,
                stream = accept(&listener) => stream,
            };
            match Counted::new(&context) {
                Some(counted) => serve(stream, &http, &context, &connections, counted),
                None => refusals.refuse(stream),
            }
            // Another loop may take the next connection.
            tokio::task::yield_now().await;
        }
        drop(listener);
        let wait = Duration::from_millis(context.options().shutdown_wait_ms);
        if tokio::time::timeout(wait, connections.stop())
            .await
            .is_err()
        {
            tracing::warn!(?wait, "closing connections that are still open");
        }
    }
}

fn serve(
    stream: TcpStream,
    http: &http1::Builder,
    context: &Arc<LoopContext>,
    connections: &Arc<Connections>,
    counted: Counted,
) {
    let state = connections.state();
    let dispatch = Dispatch::new(Arc::clone(context), Arc::clone(&state));
    let connection = http.serve_connection(TokioIo::new(stream), dispatch);
    let guard = connections.guard(state);
    let id = guard.id();
    let task = tokio::spawn(async move {
        let _held_until_the_end = (guard, counted);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection failed");
        }
    });
    connections.keep(id, task.abort_handle());
}

/// Counts a connection for as long as it is open.
struct Counted(Arc<LoopContext>);

impl Counted {
    /// `None` if as many connections are open as the service accepts, over all loops.
    fn new(context: &Arc<LoopContext>) -> Option<Self> {
        let counted = Self(Arc::clone(context));
        let before = counted.0.service.metrics.connections().inc();
        // Dropping it ends the count.
        (before < context.options().max_connections as i64).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.service.metrics.connections().dec();
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Nagle's algorithm could delay a response until the last one is acknowledged.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection was closed before it was served");
                    continue;
                }
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
