//! The connection to Redis (single, Sentinel or Cluster), made on first use and after a failure.
//! Errors state whether a command may have taken effect. Must not know the gate's operations.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, RedisError,
    ServerErrorKind, TlsCertificates, TlsMode, Value,
};
use seckill_cluster_codec::without_password;
use seckill_engine::{Cause, Effect, Fault};
use tokio::sync::Mutex;

use crate::url::{InvalidRedisUrl, Target, parse};

const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Connect timeout for one node of a Cluster. The client waits for all nodes, twice, before it is
/// usable.
const NODE_CONNECT_WAIT: Duration = Duration::from_millis(500);
/// How long a command waits for a connection.
const LINK_WAIT: Duration = Duration::from_secs(3);
/// How long a failed attempt to connect is reported to later callers before the next attempt.
/// Without it, waiting callers would each try in turn.
const FAILED_FOR: Duration = Duration::from_millis(200);

#[derive(Clone)]
enum Link {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

struct Linked {
    made: u64,
    link: Option<Link>,
    failed: Option<(Instant, Fault)>,
}

/// A client that follows Redis across failovers.
pub(crate) struct Redis {
    target: Target,
    shown: String,
    certificates: Option<TlsCertificates>,
    wait: Duration,
    linked: Mutex<Linked>,
}

impl Redis {
    /// Does not connect yet. `wait` is the timeout of each command; `ca` is the content of a PEM
    /// file.
    pub(crate) fn new(
        url: &str,
        ca: Option<Vec<u8>>,
        wait: Duration,
    ) -> Result<Self, InvalidRedisUrl> {
        let certificates = ca.map(|root| TlsCertificates {
            client_tls: None,
            root_cert: Some(root),
        });
        Ok(Self {
            target: parse(url)?,
            shown: without_password(url),
            certificates,
            wait,
            linked: Mutex::new(Linked {
                made: 0,
                link: None,
                failed: None,
            }),
        })
    }

    /// Sends one command. After a lost connection or a timeout the effect is unknown, and the next
    /// call reconnects.
    pub(crate) async fn call(&self, command: &Cmd) -> Result<Value, Fault> {
        let Ok(linked) = tokio::time::timeout(LINK_WAIT, self.link()).await else {
            return Err(self.unreachable("the connection attempt timed out"));
        };
        let (made, link) = linked?;
        let sent = async {
            match link {
                Link::Single(mut link) => command.query_async::<Value>(&mut link).await,
                Link::Cluster(mut link) => command.query_async::<Value>(&mut link).await,
            }
        };
        // The Cluster client retries internally for longer than the timeout of one reply.
        let error = match tokio::time::timeout(self.wait, sent).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => {
                self.unlink(made).await;
                let detail = format!(
                    "Redis at {} did not reply within {:?}",
                    self.shown, self.wait
                );
                return Err(Fault::unknown(Cause::Deadline, detail));
            }
        };
        if lost(&error) {
            self.unlink(made).await;
        }
        Err(self.fault(&error))
    }

    /// The timeout of each command.
    pub(crate) fn wait(&self) -> Duration {
        self.wait
    }

    /// Connects if there is no connection yet.
    pub(crate) async fn reach(&self) -> Result<(), Fault> {
        match tokio::time::timeout(LINK_WAIT, self.link()).await {
            Ok(linked) => linked.map(|_| ()),
            Err(_) => Err(self.unreachable("the connection attempt timed out")),
        }
    }

    /// Opens a private connection to the node that has this key. It never reconnects by itself.
    pub(crate) async fn private(&self, key: &str) -> Result<MultiplexedConnection, Fault> {
        let Target::Cluster(nodes) = &self.target else {
            return self.single().await;
        };
        let mut refused = None;
        for node in nodes {
            let mut link = match self.open(node.clone()).await {
                Ok(link) => link,
                Err(fault) => {
                    refused = Some(fault);
                    continue;
                }
            };
            let probe = redis::cmd("TYPE").arg(key).to_owned();
            let moved = match probe.query_async::<Value>(&mut link).await {
                Ok(_) => return Ok(link),
                Err(error) => error,
            };
            let Some((host, port)) = moved.redirect_node() else {
                refused = Some(self.fault(&moved));
                continue;
            };
            return self
                .open(node.clone().set_addr(moved_to(node.addr(), host, port)))
                .await;
        }
        Err(refused.unwrap_or_else(|| self.unreachable("the URL contains no node")))
    }

    /// Sends one command on a private connection.
    pub(crate) async fn call_on(
        &self,
        link: &mut MultiplexedConnection,
        command: &Cmd,
    ) -> Result<Value, Fault> {
        let called = command.query_async::<Value>(link).await;
        called.map_err(|error| self.fault(&error))
    }

    async fn link(&self) -> Result<(u64, Link), Fault> {
        // Callers that arrive while a connection is being made wait on this lock. Their own timeout
        // limits the wait.
        let mut linked = self.linked.lock().await;
        if let Some(link) = &linked.link {
            return Ok((linked.made, link.clone()));
        }
        if let Some((at, fault)) = &linked.failed
            && at.elapsed() < FAILED_FOR
        {
            return Err(fault.clone());
        }
        let link = match self.connected().await {
            Ok(link) => link,
            Err(fault) => {
                linked.failed = Some((Instant::now(), fault.clone()));
                return Err(fault);
            }
        };
        linked.made += 1;
        linked.link = Some(link.clone());
        Ok((linked.made, link))
    }

    async fn connected(&self) -> Result<Link, Fault> {
        let link = match &self.target {
            Target::Cluster(nodes) => self.cluster(nodes.clone()).await?,
            _ => Link::Single(self.single().await?),
        };
        self.check(&link).await?;
        Ok(link)
    }

    async fn unlink(&self, made: u64) {
        let mut linked = self.linked.lock().await;
        if linked.made == made {
            linked.link = None;
        }
    }

    async fn single(&self) -> Result<MultiplexedConnection, Fault> {
        match &self.target {
            Target::Single(info) => self.open((**info).clone()).await,
            Target::Sentinel {
                nodes,
                name,
                user,
                tls,
            } => {
                let master =
                    tokio::time::timeout(CONNECT_WAIT, self.master(nodes, name, user, *tls));
                let client = match master.await {
                    Ok(client) => client.map_err(|error| self.fault(&error))?,
                    Err(_) => return Err(self.unreachable("the Sentinels did not respond in time")),
                };
                self.connect(client).await
            }
            Target::Cluster(_) => Err(self.unreachable("it is a Cluster, not a single node")),
        }
    }

    async fn master(
        &self,
        nodes: &[ConnectionInfo],
        name: &str,
        user: &ConnectionInfo,
        tls: bool,
    ) -> Result<Client, RedisError> {
        let addresses = nodes.iter().map(|node| node.addr().clone());
        let settings = user.redis_settings();
        let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)?
            .set_client_to_redis_db(settings.db())
            .set_client_to_redis_tcp_settings(TcpSettings::default().set_nodelay(true));
        if let Some(name) = settings.username() {
            builder = builder.set_client_to_redis_username(name);
        }
        if let Some(password) = settings.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = &self.certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        builder.build()?.async_get_client().await
    }

    async fn open(&self, info: ConnectionInfo) -> Result<MultiplexedConnection, Fault> {
        let client = match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        };
        self.connect(client.map_err(|error| self.fault(&error))?)
            .await
    }

    async fn connect(&self, client: Client) -> Result<MultiplexedConnection, Fault> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WAIT))
            .set_response_timeout(Some(self.wait));
        let connected = client
            .get_multiplexed_async_connection_with_config(&config)
            .await;
        connected.map_err(|error| self.not_connected(&error))
    }

    async fn cluster(&self, nodes: Vec<ConnectionInfo>) -> Result<Link, Fault> {
        let mut builder = ClusterClient::builder(nodes)
            .connection_timeout(NODE_CONNECT_WAIT)
            .response_timeout(self.wait)
            .tcp_settings(TcpSettings::default().set_nodelay(true));
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        let client = builder.build().map_err(|error| self.fault(&error))?;
        match tokio::time::timeout(CONNECT_WAIT, client.get_async_connection()).await {
            Ok(Ok(link)) => Ok(Link::Cluster(link)),
            Ok(Err(error)) => Err(self.not_connected(&error)),
            Err(_) => Err(self.unreachable("the Cluster did not respond in time")),
        }
    }

    /// Refuses a Redis that evicts keys, which cannot be a gate, and warns about one without
    /// persistence, which loses its state when it restarts.
    async fn check(&self, link: &Link) -> Result<(), Fault> {
        let info = redis::cmd("INFO");
        let said = match link.clone() {
            Link::Single(mut link) => info.query_async::<Value>(&mut link).await,
            Link::Cluster(mut link) => info.query_async::<Value>(&mut link).await,
        };
        let text = format!("{:?}", Printed(&said.map_err(|error| self.fault(&error))?));
        let policies = text.split("maxmemory_policy:").skip(1);
        let named = policies.map(|rest| rest.split(['\r', '\n']).next().unwrap_or_default());
        if let Some(policy) = named.into_iter().find(|policy| *policy != "noeviction") {
            return Err(Fault::without_effect(
                Cause::Store,
                format!(
                    "Redis at {} has maxmemory-policy {policy}, which can evict claims; set it to noeviction",
                    self.shown
                ),
            ));
        }
        if text.contains("aof_enabled:0") {
            tracing::warn!(
                "Redis at {} has appendonly=no: a restart loses its state, and each sale closes until it is rebuilt from MySQL",
                self.shown
            );
        }
        Ok(())
    }

    fn not_connected(&self, error: &RedisError) -> Fault {
        let next = match error.kind() {
            redis::ErrorKind::AuthenticationFailed => {
                "; check the user and the password in its URL"
            }
            _ if error
                .detail()
                .is_some_and(|detail| detail.contains("NOAUTH")) =>
            {
                "; it requires a password: redis://:password@host:port"
            }
            _ => "",
        };
        self.unreachable(&format!("{error}{next}"))
    }

    fn unreachable(&self, why: &str) -> Fault {
        Fault::without_effect(
            Cause::Store,
            format!("Redis at {} cannot be reached: {why}", self.shown),
        )
    }

    pub(crate) fn fault(&self, error: &RedisError) -> Fault {
        let is_lost = error.is_io_error()
            || error.is_timeout()
            || error.is_connection_dropped()
            || matches!(error.kind(), redis::ErrorKind::Parse);
        // The Cluster client retries internally, and its last error does not describe earlier
        // attempts.
        let is_retried = matches!(self.target, Target::Cluster(_))
            && !matches!(
                error.kind(),
                redis::ErrorKind::Server(ServerErrorKind::NoScript)
            );
        let effect = if is_lost || is_retried {
            Effect::Unknown
        } else {
            Effect::None
        };
        Fault {
            effect,
            cause: Cause::Store,
            detail: format!("Redis at {}: {error}", self.shown),
        }
    }
}

/// Whether the connection is unusable. This includes a connection to a node that is no longer the
/// master.
fn lost(error: &RedisError) -> bool {
    use redis::ErrorKind;
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
        )
}

fn moved_to(node: &ConnectionAddr, host: &str, port: u16) -> ConnectionAddr {
    match node {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host: host.to_owned(),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    }
}

/// Formats all text in a reply of any shape. INFO is one string, or one per node of a Cluster.
struct Printed<'a>(&'a Value);

impl std::fmt::Debug for Printed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Value::BulkString(bytes) => f.write_str(&String::from_utf8_lossy(bytes)),
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => f.write_str(text),
            Value::Map(pairs) => pairs
                .iter()
                .try_for_each(|(_, value)| Printed(value).fmt(f)),
            Value::Array(values) => values.iter().try_for_each(|value| Printed(value).fmt(f)),
            _ => Ok(()),
        }
    }
}
