//! Starts what commands need: the runtime, the engine, the service in front of it.
//! `serve` and `demo` must share it, so that the demo shows the real service.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use seckill_cluster::{ClusterEngine, ClusterOptions};
use seckill_embedded::{CONTROL_SOCKET_FILE, EmbeddedEngine, LockOwner};
use seckill_engine::{Component, Engine};
use seckill_sale::{NewSale, SaleRefused};
use seckill_service::{ControlSocket, Service, Workers};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::configuration::{Configuration, EngineKind};

/// Starts the async runtime. Zero `threads` means one per core.
pub(crate) fn runtime(threads: u64) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads as usize);
    }
    builder
        .enable_all()
        .build()
        .context("the async runtime could not be started")
}

/// Raises the limit of file descriptors to the hard limit: each connection needs one.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = limit.current, "the limit of open files was not raised");
    }
}

/// Opens the configured engine for a command. The lock file shows `purpose` to other processes.
pub(crate) fn engine(
    configuration: &Configuration,
    purpose: &str,
) -> anyhow::Result<Arc<dyn Engine>> {
    match configuration.engine {
        EngineKind::Embedded => embedded(configuration, purpose, false),
        // Only processes that serve forward and store claims.
        EngineKind::Cluster => Ok(Arc::new(cluster(configuration, Roles::NONE)?)),
    }
}

/// Which of the cluster's background components this process runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Roles {
    pub(crate) relays: bool,
    pub(crate) records: bool,
}

impl Roles {
    pub(crate) const ALL: Self = Self {
        relays: true,
        records: true,
    };
    const NONE: Self = Self {
        relays: false,
        records: false,
    };
}

fn cluster(configuration: &Configuration, roles: Roles) -> anyhow::Result<ClusterEngine> {
    Ok(ClusterEngine::start(ClusterOptions {
        relays: roles.relays,
        records: roles.records,
        ..configuration.cluster_options()
    })?)
}

fn embedded(
    configuration: &Configuration,
    purpose: &str,
    takes_commands: bool,
) -> anyhow::Result<Arc<dyn Engine>> {
    let owner = LockOwner {
        pid: std::process::id(),
        purpose: purpose.to_owned(),
        takes_commands,
    };
    let options = configuration.embedded_options(owner);
    Ok(Arc::new(EmbeddedEngine::open(options)?))
}

type Control = (oneshot::Sender<()>, JoinHandle<()>);

/// The interval between two checks of a cluster's components.
pub(crate) const COMPONENTS_POLL: Duration = Duration::from_millis(500);

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) engine: Arc<dyn Engine>,
    workers: Workers,
    control: Option<Control>,
    watch: Option<JoinHandle<()>>,
    shutdown_wait: Duration,
}

/// Opens the engine and serves. Creates the default sale of the embedded engine if it does not
/// exist; `seckill init` creates that of a cluster, whose servers may not be up yet.
pub(crate) async fn serve(
    configuration: &Configuration,
    listener: TcpListener,
    roles: Roles,
    default_sale: NewSale,
) -> anyhow::Result<Running> {
    let address = listener.local_addr()?;
    // Each thread registers it with its own event loop.
    let listener = listener.into_std()?;
    let (engine, control, watch) = match configuration.engine {
        EngineKind::Embedded => {
            let data = &configuration.embedded.data;
            let engine = embedded(configuration, &format!("serve on {address}"), true)?;
            make_default_sale(engine.as_ref(), default_sale).await?;
            let control = control(&engine, &data.join(CONTROL_SOCKET_FILE));
            (engine, control, None)
        }
        EngineKind::Cluster => {
            let engine = Arc::new(cluster(configuration, roles)?);
            let watch = tokio::spawn(watch_cluster(Arc::clone(&engine)));
            (engine as Arc<dyn Engine>, None, Some(watch))
        }
    };
    let options = configuration.service_options();
    let shutdown_wait = Duration::from_millis(options.shutdown_wait_ms);
    let service = Arc::new(Service::new(Arc::clone(&engine), options));
    let workers = Workers::start(&listener, &service, &Handle::current())
        .context("the threads that serve connections could not be started")?;
    Ok(Running {
        address,
        engine,
        workers,
        control,
        watch,
        shutdown_wait,
    })
}

fn control(engine: &Arc<dyn Engine>, socket: &Path) -> Option<Control> {
    match ControlSocket::bind(socket) {
        Ok(control) => {
            let (stop, stopped) = oneshot::channel::<()>();
            let serving = control.serve(Arc::clone(engine), async {
                // A dropped sender is a request to stop, too.
                let _ = stopped.await;
            });
            Some((stop, tokio::spawn(serving)))
        }
        Err(error) => {
            let path = socket.display();
            tracing::warn!(%error, %path, "the control socket could not be created: sales can be changed only while the service is stopped");
            None
        }
    }
}

/// Logs when a component becomes ready or stops being ready. Once all are ready, it logs which
/// settings of the servers are too weak.
async fn watch_cluster(engine: Arc<ClusterEngine>) {
    let mut known: Vec<Component> = Vec::new();
    let mut checked = false;
    loop {
        tokio::time::sleep(COMPONENTS_POLL).await;
        let components = engine.components();
        log_changes(&known, &components);
        if !checked && components.iter().all(|component| component.ready) {
            checked = true;
            match engine.weaker_settings().await {
                Ok(weaker) => weaker.iter().for_each(|weaker| tracing::warn!("{weaker}")),
                Err(fault) => tracing::warn!(
                    "the servers' settings could not be checked: {}",
                    fault.detail
                ),
            }
        }
        known = components;
    }
}

/// Logs which components have become ready, and which are not ready and why.
pub(crate) fn log_changes(known: &[Component], components: &[Component]) {
    for component in components {
        let before = known.iter().find(|known| known.name == component.name);
        let changed = before.is_none_or(|before| {
            before.ready != component.ready || before.detail != component.detail
        });
        match (changed, component.ready) {
            (true, true) => tracing::info!("{} is ready", component.name),
            (true, false) => {
                tracing::warn!("{} is not ready: {}", component.name, component.detail);
            }
            (false, _) => {}
        }
    }
}

impl Running {
    /// Completes when a thread that serves connections has died.
    pub(crate) async fn worker_died(&mut self) {
        self.workers.died().await;
    }

    /// Answers the requests in flight and releases all resources, in bounded time.
    pub(crate) async fn end(self) {
        self.workers.stop().await;
        if let Some((stop, control)) = self.control {
            // Operators' requests are answered before the engine closes.
            let _ = stop.send(());
            if tokio::time::timeout(self.shutdown_wait, control)
                .await
                .is_err()
            {
                tracing::warn!("closing while a request on the control socket is still open");
            }
        }
        if let Some(watch) = self.watch {
            watch.abort();
        }
        self.engine.close().await;
    }
}

/// Listens on an address. `backlog` connections may wait to be accepted: buyers arrive all at once,
/// and a client retries a connection beyond the backlog only after a second. The system caps the
/// backlog (net.core.somaxconn).
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> anyhow::Result<TcpListener> {
    try_listen(address, backlog).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another process listens there; give another address",
            std::io::ErrorKind::AddrNotAvailable => "no interface has this address; give another",
            _ => "give another address",
        };
        anyhow::anyhow!(
            "cannot listen on {address}: {error}; {hint} with --listen, such as 127.0.0.1:0 for any free port"
        )
    })
}

pub(crate) fn try_listen(address: SocketAddr, backlog: u32) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restart must not wait for the last connections of the previous run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// The sale that `POST /seckill` sells from, as configured.
pub(crate) fn default_sale(configuration: &Configuration) -> NewSale {
    NewSale::units(configuration.sale.id.clone(), configuration.units())
}

/// Creates the default sale unless it exists.
pub(crate) async fn make_default_sale(engine: &dyn Engine, new: NewSale) -> anyhow::Result<()> {
    let id = new.id.clone();
    match engine.create_sale(new).await? {
        Ok(sale) => {
            tracing::info!(sale = %sale.id, units = sale.total(), "the default sale was created");
        }
        Err(SaleRefused::Exists(sale)) => {
            tracing::info!(sale = %sale.id, units = sale.total(), "the default sale already exists");
        }
        Err(refused) => return Err(refused).context(format!("the default sale {id}")),
    }
    Ok(())
}
