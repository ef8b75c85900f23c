//! The baseline of responses: hyper alone, on the same threads and listeners as the product. It sends
//! the bytes of the product's most frequent response.

use std::net::{SocketAddr, TcpListener as StdListener};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;

const BACKLOG: u32 = 65_535;

/// Run a bare hyper server that sends the bytes of a sold-out response
#[derive(Debug, Args)]
pub(crate) struct BareHttp {
    /// How the event loops share connections
    #[arg(long, default_value = "shared")]
    accept: Accept,
    /// Tasks that a loop runs between two looks at its sockets; Tokio's default without it
    #[arg(long)]
    event_interval: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accept {
    /// All loops accept from one socket
    Shared,
    /// Each loop has a socket of its own, and the kernel chooses (SO_REUSEPORT)
    ReusePort,
}

pub(crate) fn run(args: &BareHttp) -> anyhow::Result<()> {
    let loops = std::thread::available_parallelism()?.get();
    let listeners = listen(args.accept, loops)?;
    // The same line as the product's, so that both are started in the same way.
    let address = listeners[0].local_addr()?;
    println!("seckill is listening on http://{address}");
    std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .into_iter()
            .map(|listener| scope.spawn(|| run_loop(listener, args.event_interval)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(served) => served,
                Err(_) => anyhow::bail!("a thread panicked"),
            })
    })
}

/// One listener for each loop.
fn listen(accept: Accept, loops: usize) -> anyhow::Result<Vec<StdListener>> {
    let first = bind(SocketAddr::from(([127, 0, 0, 1], 0)), accept)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    while listeners.len() < loops {
        listeners.push(match accept {
            Accept::Shared => listeners[0].try_clone()?,
            Accept::ReusePort => bind(address, accept)?,
        });
    }
    Ok(listeners)
}

fn bind(address: SocketAddr, accept: Accept) -> anyhow::Result<StdListener> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(accept == Accept::ReusePort)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?.into_std()?)
}

fn run_loop(listener: StdListener, event_interval: Option<u32>) -> anyhow::Result<()> {
    let mut runtime = Builder::new_current_thread();
    if let Some(tasks) = event_interval {
        runtime.event_interval(tasks);
    }
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(async { serve(TcpListener::from_std(listener)?).await })
}

async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.writev(false);
            let served = http.serve_connection(TokioIo::new(stream), service_fn(sold_out));
            // An error means that the client closed the connection, which is expected.
            let _ = served.await;
        });
        // Another loop may take the next connection.
        tokio::task::yield_now().await;
    }
}

async fn sold_out(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let body = Full::new(Bytes::from_static(br#"{"result":"sold_out"}"#));
    let mut answer = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    Ok(answer)
}
