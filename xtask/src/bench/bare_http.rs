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
use tokio::runtime::{Builder, Runtime};

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
    let mut runtimes = Vec::new();
    for _ in 0..loops {
        let mut runtime = Builder::new_current_thread();
        if let Some(tasks) = args.event_interval {
            runtime.event_interval(tasks);
        }
        runtimes.push(runtime.enable_all().build()?);
    }
    let listeners = listen(args.accept, &runtimes)?;
    // The same line as the product's, so that both are started in the same way.
    println!(
        "seckill is listening on http://{}",
        listeners[0].local_addr()?
    );
    std::thread::scope(|scope| {
        let served = runtimes.iter().zip(listeners);
        let threads: Vec<_> = served
            .map(|(runtime, listener)| scope.spawn(|| runtime.block_on(serve(listener))))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(served) => served,
                Err(_) => anyhow::bail!("a thread panicked"),
            })
    })
}

/// One listener for each loop, registered with it.
fn listen(accept: Accept, runtimes: &[Runtime]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut shared: Option<StdListener> = None;
    for runtime in runtimes {
        let _entered = runtime.enter();
        let listener = match &shared {
            Some(shared) => TcpListener::from_std(shared.try_clone()?)?,
            None => {
                let socket = TcpSocket::new_v4()?;
                socket.set_reuseport(accept == Accept::ReusePort)?;
                socket.bind(address)?;
                socket.listen(BACKLOG)?
            }
        };
        address = listener.local_addr()?;
        if accept == Accept::Shared && shared.is_none() {
            let listener = listener.into_std()?;
            listeners.push(TcpListener::from_std(listener.try_clone()?)?);
            shared = Some(listener);
        } else {
            listeners.push(listener);
        }
    }
    Ok(listeners)
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
