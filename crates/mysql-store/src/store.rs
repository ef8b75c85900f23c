//! The pool of connections to MySQL or MariaDB. Checks the schema before the first use; what is
//! read and written is up to the queries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mysql_async::{Conn, Opts, OptsBuilder, Pool, PoolConstraints, PoolOpts, SslOpts};
use seckill_cluster_codec::order_id::SECRET_BYTES;
use seckill_cluster_codec::without_password;
use seckill_engine::{Cause, Effect, Fault};

use crate::options::StoreOptions;
use crate::schema;
use crate::session::{Session, fault};
use crate::sql::quoted;

/// Idle time after which a pooled connection is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid MySQL URL {shown}: {error}; use mysql://user:password@host:port/database")]
pub struct InvalidMysqlUrl {
    shown: String,
    error: String,
}

/// The first statements of every session. Reads see committed data, times are UTC, and values that do
/// not fit are errors. MariaDB must not make a join out of a long list of ids: while a table grows
/// fast, its statistics are old, and the join would read the whole table.
pub const SESSION_SETUP: [&str; 2] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', autocommit = 1 \
     /*M!100300 , in_predicate_conversion_threshold = 0 */",
];

/// A bounded pool of MySQL connections.
pub struct Store {
    pool: Pool,
    opts: Opts,
    shown: String,
    wait: Duration,
    lease_ms: u64,
    secret: std::sync::OnceLock<[u8; SECRET_BYTES]>,
    version_known: AtomicBool,
}

impl Store {
    /// Does not connect yet.
    pub fn new(options: StoreOptions) -> Result<Self, InvalidMysqlUrl> {
        let shown = without_password(&options.url);
        let bad = |error: String| InvalidMysqlUrl {
            shown: shown.clone(),
            error,
        };
        let opts = Opts::from_url(&options.url).map_err(|error| bad(error.to_string()))?;
        if opts.db_name().is_none_or(str::is_empty) {
            return Err(bad("the database name is missing".into()));
        }
        let constraints = PoolConstraints::new(1, options.connections)
            .ok_or_else(|| bad("at least one connection is needed".into()))?;
        let mut builder = OptsBuilder::from_opts(opts)
            .init(SESSION_SETUP.map(String::from).to_vec())
            .tcp_nodelay(true)
            // UPDATE counts all matching rows, including those that already have the value.
            .client_found_rows(true)
            .prefer_socket(false)
            .pool_opts(
                PoolOpts::default()
                    .with_constraints(constraints)
                    .with_reset_connection(false)
                    // Without this, the pool closes every connection beyond the first after each
                    // use.
                    .with_inactive_connection_ttl(IDLE_MAX),
            );
        if let Some(ca) = options.ca {
            builder = builder.ssl_opts(SslOpts::default().with_root_certs(vec![ca.into()]));
        }
        let opts = Opts::from(builder);
        Ok(Self {
            pool: Pool::new(opts.clone()),
            opts,
            shown,
            wait: options.wait,
            lease_ms: options.lease_ms,
            secret: std::sync::OnceLock::new(),
            version_known: AtomicBool::new(false),
        })
    }

    /// Returns a connection after checking that this binary supports the schema.
    pub async fn ready(&self) -> Result<Session, Fault> {
        let mut session = self.session().await?;
        if !self.version_known.load(Ordering::Acquire) {
            let secret = schema::check(&mut session, self.lease_ms).await?;
            let known = self.secret.get_or_init(|| secret);
            if *known != secret {
                let detail = "the secret for order ids in MySQL has changed; restart this process";
                return Err(Fault::without_effect(Cause::Store, detail));
            }
            self.version_known.store(true, Ordering::Release);
        }
        Ok(session)
    }

    /// The store's secret, once [`Store::ready`] has read it.
    pub fn secret(&self) -> Option<&[u8; SECRET_BYTES]> {
        self.secret.get()
    }

    /// Checks the schema again before the next use.
    pub(crate) fn forget_version(&self) {
        self.version_known.store(false, Ordering::Release);
    }

    /// Returns a connection without checking the schema.
    pub async fn session(&self) -> Result<Session, Fault> {
        match tokio::time::timeout(self.wait, self.pool.get_conn()).await {
            Ok(Ok(conn)) => Ok(self.wrap(conn)),
            Ok(Err(error)) => Err(Fault {
                effect: Effect::None,
                ..self.fault(&error)
            }),
            Err(_) => {
                let detail = format!(
                    "MySQL at {}: no connection within {:?}",
                    self.shown, self.wait
                );
                Err(Fault::without_effect(Cause::Store, detail))
            }
        }
    }

    fn wrap(&self, conn: Conn) -> Session {
        Session::new(conn, self.shown.clone(), self.wait)
    }

    /// Creates the database if it is missing.
    pub(crate) async fn create_database(&self) -> Result<(), Fault> {
        let name = self.opts.db_name().unwrap_or_default().to_owned();
        let opts = OptsBuilder::from_opts(self.opts.clone()).db_name(None::<String>);
        let conn = match tokio::time::timeout(self.wait, Conn::new(opts)).await {
            Ok(conn) => conn.map_err(|error| self.fault(&error))?,
            Err(_) => {
                let detail = format!(
                    "MySQL at {} did not respond within {:?}",
                    self.shown, self.wait
                );
                return Err(Fault::without_effect(Cause::Store, detail));
            }
        };
        let mut session = self.wrap(conn);
        let known: Vec<u32> = session
            .query(&format!(
                "SELECT 1 FROM information_schema.schemata WHERE schema_name = {}",
                quoted(name.as_bytes())
            ))
            .await?;
        if known.is_empty() {
            session
                .execute(&format!(
                    "CREATE DATABASE IF NOT EXISTS `{}`",
                    name.replace('`', "``")
                ))
                .await?;
        }
        // The connection has no database selected, so it must not be reused.
        session.never_reuse();
        Ok(())
    }

    /// The lease of this process, in milliseconds.
    pub(crate) fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    fn fault(&self, error: &mysql_async::Error) -> Fault {
        fault(&self.shown, error)
    }

    /// Closes all connections.
    pub async fn close(&self) {
        // The timeout covers an unreachable server: its connections are dropped without a clean
        // close.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.pool.clone().disconnect()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_for_an_invalid_url_does_not_contain_the_password() {
        for bad in ["mysql://u:secret@h:1", "redis://u:secret@h/x", "h:3306"] {
            let options = StoreOptions {
                url: bad.into(),
                ca: None,
                connections: 1,
                wait: Duration::from_secs(1),
                lease_ms: 1,
            };
            let refused = Store::new(options).map(|_| ()).unwrap_err();
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
    }
}
