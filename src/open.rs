//! Opens what a command works on: the runtime, the engine, the service in front of it.
//! Serving and the demo go through here alike, so that the demo shows the real thing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use seckill_embedded::{EmbeddedEngine, Holder};
use seckill_engine::{Engine, SaleRefused};
use seckill_sale::NewSale;
use seckill_service::{ControlSocket, Service};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::configuration::{Configuration, EngineKind};

/// A Unix socket's path is kept by the system in about a hundred bytes.
const SOCKET_PATH_MAX_BYTES: usize = 100;

/// The runtime, with as many threads as configured.
pub(crate) fn runtime(threads: u64) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads as usize);
    }
    builder
        .enable_all()
        .build()
        .context("the runtime could not be started")
}

/// Lets this process have as many file descriptors as the system allows: each connection is one.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

/// The configured engine. `purpose` is what a second process is told of this one.
pub(crate) fn engine(
    configuration: &Configuration,
    purpose: String,
    control_socket: Option<PathBuf>,
) -> anyhow::Result<Arc<dyn Engine>> {
    match configuration.engine {
        EngineKind::Embedded => {
            let holder = Holder {
                pid: std::process::id(),
                purpose,
                control_socket,
            };
            let options = configuration.embedded_options(holder);
            Ok(Arc::new(EmbeddedEngine::open(options)?))
        }
    }
}

/// A service that answers, in this process.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) engine: Arc<dyn Engine>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
    control: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    shutdown_wait: Duration,
}

/// Takes the port, opens the engine, makes the default sale where it is missing, and serves.
pub(crate) async fn serve(
    configuration: &Configuration,
    listener: TcpListener,
) -> anyhow::Result<Running> {
    let address = listener.local_addr()?;
    let socket = socket_path(&configuration.embedded.data);
    let engine = engine(
        configuration,
        format!("serve on {address}"),
        Some(socket.clone()),
    )?;
    make_default_sale(engine.as_ref(), configuration).await?;
    let control = ControlSocket::bind(&socket);
    let control = match control {
        Ok(control) => {
            let (stop, stopped) = oneshot::channel::<()>();
            let serving = control.serve(Arc::clone(&engine), async {
                // A sender that is gone asks for the same.
                let _ = stopped.await;
            });
            Some((stop, tokio::spawn(serving)))
        }
        Err(error) => {
            let path = socket.display();
            tracing::warn!(%error, %path, "no socket for `seckill sale`: sales change only after a stop");
            None
        }
    };
    let options = configuration.service_options();
    let service = Service::new(Arc::clone(&engine), options.clone());
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(seckill_service::serve(listener, Arc::new(service), async {
        // A sender that is gone asks for the same.
        let _ = stopped.await;
    }));
    Ok(Running {
        address,
        engine,
        stop,
        served,
        control,
        shutdown_wait: Duration::from_millis(options.shutdown_wait_ms),
    })
}

impl Running {
    /// Answers what is in flight and lets go of everything, in a bounded time.
    pub(crate) async fn end(self) {
        // The receiver lives as long as the service.
        let _ = self.stop.send(());
        if let Err(error) = self.served.await {
            tracing::error!(%error, "the service ended badly");
        }
        if let Some((stop, control)) = self.control {
            // What an operator has asked for is answered before the engine goes.
            let _ = stop.send(());
            if tokio::time::timeout(self.shutdown_wait, control)
                .await
                .is_err()
            {
                tracing::warn!("an operator's request was still open at the end");
            }
        }
        self.engine.close().await;
    }
}

/// Takes an address, or says who might have it. `backlog` connections may wait to be accepted: a crowd comes all at once,
/// and one that finds no place there tries again only after a second. The system caps it (net.core.somaxconn).
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> anyhow::Result<TcpListener> {
    try_listen(address, backlog).with_context(|| {
        format!(
            "cannot listen on {address}; is another service there? Give another address with --listen, \
             such as 127.0.0.1:0 for any free port"
        )
    })
}

/// Takes an address.
pub(crate) fn try_listen(address: SocketAddr, backlog: u32) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restart must not wait for the last connections of the run before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

async fn make_default_sale(
    engine: &dyn Engine,
    configuration: &Configuration,
) -> anyhow::Result<()> {
    let id = configuration.sale.id.clone();
    let new = NewSale::units(id.clone(), configuration.units());
    match engine.create_sale(new).await? {
        Ok(sale) => tracing::info!(sale = %sale.id, units = sale.total, "made the default sale"),
        Err(SaleRefused::Exists(sale)) => {
            tracing::info!(sale = %sale.id, units = sale.total, "the default sale exists");
        }
        Err(refused) => return Err(refused).context(format!("the default sale {id}")),
    }
    Ok(())
}

/// The operator's socket: in the data folder, or where that path is too long, in the system's folder for such.
fn socket_path(data: &Path) -> PathBuf {
    let whole = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    let path = whole.join("seckill.sock");
    if path.as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
        return path;
    }
    std::env::temp_dir().join(format!("seckill-{}.sock", std::process::id()))
}
