//! The order store: MySQL or MariaDB, the source of truth. Manages connections and classifies
//! errors by effect; the submodules contain the queries. Must not access the gate or the log.

pub(crate) mod orders;
pub(crate) mod sales;
pub(crate) mod schema;

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mysql_async::prelude::{FromRow, FromValue, Queryable};
use mysql_async::{Conn, Opts, OptsBuilder, Pool, PoolConstraints, PoolOpts, Row, SslOpts};
use seckill_engine::{Cause, Effect, Fault};

use crate::codec::order_id::SECRET_BYTES;

// MySQL error codes.
const DUPLICATE_KEY: u16 = 1062;
const ACCESS_DENIED: u16 = 1045;
const NO_SUCH_DATABASE: u16 = 1049;
const NO_SUCH_TABLE: u16 = 1146;

/// Idle time after which a pooled connection is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid MySQL URL {shown}: {error}; use mysql://user:password@host:port/database")]
pub struct InvalidMysqlUrl {
    shown: String,
    error: String,
}

/// A bounded pool of MySQL connections.
pub(crate) struct Store {
    pool: Pool,
    opts: Opts,
    shown: String,
    wait: Duration,
    lease_ms: u64,
    secret: std::sync::OnceLock<[u8; SECRET_BYTES]>,
    version_known: AtomicBool,
}

/// Formats bytes as an SQL literal that is safe for any content.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    quote_into(&mut text, bytes);
    text
}

/// Appends such a literal: quoted if every byte is harmless, otherwise in hexadecimal.
pub(crate) fn quote_into(text: &mut String, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let is_harmless = |byte: &u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':' | b'/' | b'@')
    };
    if let Some(plain) = std::str::from_utf8(bytes)
        .ok()
        .filter(|_| bytes.iter().all(is_harmless))
    {
        text.push('\'');
        text.push_str(plain);
        text.push('\'');
        return;
    }
    text.push_str("x'");
    for byte in bytes {
        text.push(HEX[usize::from(byte >> 4)].into());
        text.push(HEX[usize::from(byte & 15)].into());
    }
    text.push('\'');
}

/// Formats a comma-separated list of literals.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for name in names {
        if !text.is_empty() {
            text.push(',');
        }
        quote_into(&mut text, name.as_bytes());
    }
    text
}

pub(crate) fn or_null<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "NULL".into(), |value| value.to_string())
}

impl Store {
    /// Does not connect yet.
    pub(crate) fn new(
        url: &str,
        ca: Option<PathBuf>,
        connections: usize,
        wait: Duration,
        lease_ms: u64,
    ) -> Result<Self, InvalidMysqlUrl> {
        let shown = crate::gate::link::without_password(url);
        let bad = |error: String| InvalidMysqlUrl {
            shown: shown.clone(),
            error,
        };
        let opts = Opts::from_url(url).map_err(|error| bad(error.to_string()))?;
        if opts.db_name().is_none_or(str::is_empty) {
            return Err(bad("the database name is missing".into()));
        }
        let constraints = PoolConstraints::new(1, connections)
            .ok_or_else(|| bad("at least one connection is needed".into()))?;
        // Reads see committed data, times are UTC, and values that do not fit are errors.
        let setup = [
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', autocommit = 1",
        ];
        let mut builder = OptsBuilder::from_opts(opts)
            .init(setup.map(String::from).to_vec())
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
        if let Some(ca) = ca {
            builder = builder.ssl_opts(SslOpts::default().with_root_certs(vec![ca.into()]));
        }
        let opts = Opts::from(builder);
        Ok(Self {
            pool: Pool::new(opts.clone()),
            opts,
            shown,
            wait,
            lease_ms,
            secret: std::sync::OnceLock::new(),
            version_known: AtomicBool::new(false),
        })
    }

    /// Returns a connection after checking that this binary supports the schema.
    pub(crate) async fn ready(&self) -> Result<Session, Fault> {
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
    pub(crate) fn secret(&self) -> Option<&[u8; SECRET_BYTES]> {
        self.secret.get()
    }

    fn forget_version(&self) {
        self.version_known.store(false, Ordering::Release);
    }

    /// Returns a connection without checking the schema.
    pub(crate) async fn session(&self) -> Result<Session, Fault> {
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
        Session {
            conn: Some(conn),
            use_of: Use {
                shown: self.shown.clone(),
                wait: self.wait,
                in_transaction: false,
                is_clean: true,
            },
        }
    }

    /// Creates the database if it is missing.
    async fn create_database(&self) -> Result<(), Fault> {
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
        session.use_of.is_clean = false;
        Ok(())
    }

    fn fault(&self, error: &mysql_async::Error) -> Fault {
        fault(&self.shown, error)
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        // The timeout covers an unreachable server: its connections are dropped without a clean
        // close.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.pool.clone().disconnect()).await;
    }
}

fn fault(shown: &str, error: &mysql_async::Error) -> Fault {
    let mysql_async::Error::Server(said) = error else {
        return Fault::unknown(Cause::Store, format!("MySQL at {shown}: {error}"));
    };
    let next = match said.code {
        ACCESS_DENIED => {
            ": check the user and the password in the URL, and whether the server requires TLS (cluster.mysql_ca)"
        }
        NO_SUCH_DATABASE | NO_SUCH_TABLE => ": run `seckill init`",
        _ => "",
    };
    let detail = format!("MySQL at {shown}: {} ({}){next}", said.message, said.code);
    Fault::without_effect(Cause::Store, detail)
}

/// A connection in use. If it is dropped inside a transaction or before a response is complete, it
/// is closed and never reused.
pub(crate) struct Session {
    conn: Option<Conn>,
    use_of: Use,
}

struct Use {
    shown: String,
    wait: Duration,
    in_transaction: bool,
    is_clean: bool,
}

/// The result of an INSERT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inserted {
    Done,
    /// A unique key already has the value. Contains MySQL's error message.
    Duplicate(String),
}

impl Session {
    /// Runs one statement and returns its rows.
    pub(crate) async fn query<T: FromRow + Send + 'static>(
        &mut self,
        sql: &str,
    ) -> Result<Vec<T>, Fault> {
        let (conn, use_of) = self.begin_use()?;
        use_of.timed(conn.query::<T, _>(sql)).await
    }

    /// Runs one statement and returns the number of affected rows. An UPDATE counts all matching
    /// rows.
    pub(crate) async fn execute(&mut self, sql: &str) -> Result<u64, Fault> {
        let (conn, use_of) = self.begin_use()?;
        use_of
            .timed(async {
                conn.query_drop(sql).await?;
                Ok(conn.affected_rows())
            })
            .await
    }

    /// Runs one or more statements, stopping at the first error. A duplicate key is not a fault.
    pub(crate) async fn insert(&mut self, sql: &str) -> Result<Inserted, Fault> {
        let (conn, use_of) = self.begin_use()?;
        use_of
            .timed(async {
                match conn.query_drop(sql).await {
                    Ok(()) => Ok(Inserted::Done),
                    Err(mysql_async::Error::Server(error)) if error.code == DUPLICATE_KEY => {
                        Ok(Inserted::Duplicate(error.message))
                    }
                    Err(error) => Err(error),
                }
            })
            .await
    }

    /// Runs several statements in one round trip and returns the rows of each SELECT.
    pub(crate) async fn query_all(&mut self, sql: &str) -> Result<Vec<Vec<Row>>, Fault> {
        let (conn, use_of) = self.begin_use()?;
        use_of
            .timed(async {
                let mut answers = conn.query_iter(sql).await?;
                let mut all = Vec::new();
                while !answers.is_empty() {
                    let is_select = !answers.columns_ref().is_empty();
                    let rows: Vec<Row> = answers.collect().await?;
                    if is_select {
                        all.push(rows);
                    }
                }
                Ok(all)
            })
            .await
    }

    /// Sets the timeout of each statement.
    pub(crate) fn wait_longer(&mut self, wait: Duration) {
        self.use_of.wait = wait;
    }

    /// Starts a transaction.
    pub(crate) async fn begin(&mut self) -> Result<(), Fault> {
        self.execute("START TRANSACTION").await?;
        self.began();
        Ok(())
    }

    /// Records that a statement started a transaction.
    pub(crate) fn began(&mut self) {
        self.use_of.in_transaction = true;
    }

    /// Records that the last statement ended the transaction.
    pub(crate) fn ended(&mut self) {
        self.use_of.in_transaction = false;
    }

    /// Commits. If the response is lost, the effect is unknown.
    pub(crate) async fn commit(&mut self) -> Result<(), Fault> {
        let committed = self.execute("COMMIT").await;
        // Even if the server reports an error, the commit may have taken effect.
        committed.map_err(|fault| Fault {
            effect: Effect::Unknown,
            ..fault
        })?;
        self.ended();
        Ok(())
    }

    /// Rolls back the transaction.
    pub(crate) async fn rollback(&mut self) -> Result<(), Fault> {
        self.execute("ROLLBACK").await?;
        self.ended();
        Ok(())
    }

    /// Marks the connection as dirty until the response is complete.
    fn begin_use(&mut self) -> Result<(&mut Conn, &mut Use), Fault> {
        if !self.use_of.is_clean {
            // A pending response would be mistaken for the response to the next statement.
            self.discard();
        }
        self.use_of.is_clean = false;
        match &mut self.conn {
            Some(conn) => Ok((conn, &mut self.use_of)),
            None => Err(Fault::without_effect(
                Cause::Store,
                "the connection is closed",
            )),
        }
    }
}

impl Use {
    async fn timed<T>(
        &mut self,
        run: impl Future<Output = Result<T, mysql_async::Error>>,
    ) -> Result<T, Fault> {
        match tokio::time::timeout(self.wait, run).await {
            Ok(Ok(value)) => {
                self.is_clean = true;
                Ok(value)
            }
            Ok(Err(error)) => {
                self.is_clean = matches!(error, mysql_async::Error::Server(_));
                Err(fault(&self.shown, &error))
            }
            Err(_) => {
                let detail = format!(
                    "MySQL at {} did not respond within {:?}",
                    self.shown, self.wait
                );
                Err(Fault::unknown(Cause::Deadline, detail))
            }
        }
    }
}

impl Session {
    /// Closes the connection. The server rolls back an open transaction.
    fn discard(&mut self) {
        if let (Some(conn), Ok(runtime)) = (self.conn.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async {
                let _ = tokio::time::timeout(Duration::from_secs(1), conn.disconnect()).await;
            });
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.use_of.is_clean || self.use_of.in_transaction {
            self.discard();
        }
    }
}

/// Describes the server settings that can lose a committed row.
pub(crate) async fn weaker_settings(session: &mut Session) -> Result<Vec<String>, Fault> {
    let sql = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', 'innodb_doublewrite')";
    let variables: Vec<(String, String)> = session.query(sql).await?;
    let value = |name: &str| {
        variables
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    };
    let mut weaker = Vec::new();
    if let Some(value) = value("innodb_flush_log_at_trx_commit").filter(|value| *value != "1") {
        weaker.push(format!(
            "MySQL has innodb_flush_log_at_trx_commit={value}: a power failure can lose confirmed orders; set it to 1"
        ));
    }
    if value("log_bin") == Some("ON")
        && let Some(value) = value("sync_binlog").filter(|value| *value != "1")
    {
        weaker.push(format!(
            "MySQL has sync_binlog={value}: after a power failure, replicas can lack orders; set it to 1"
        ));
    }
    if value("innodb_doublewrite").is_some_and(|value| value.eq_ignore_ascii_case("off")) {
        weaker.push(
            "MySQL has innodb_doublewrite=OFF: a power failure can leave torn pages; set it to ON"
                .into(),
        );
    }
    Ok(weaker)
}

/// Takes a column of a row. Returns `None` if it is missing or has another type, for example after
/// a manual edit.
pub(crate) fn column<T: FromValue>(row: &mut Row, at: usize) -> Option<T> {
    row.take_opt(at)?.ok()
}

/// Takes a binary column as text. Invalid UTF-8 is replaced.
pub(crate) fn text(row: &mut Row, at: usize) -> Option<String> {
    column::<Vec<u8>>(row, at).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes a nullable binary column as text. The outer `Option` is as in [`column`].
pub(crate) fn text_or_null(row: &mut Row, at: usize) -> Option<Option<String>> {
    let bytes: Option<Vec<u8>> = column(row, at)?;
    Some(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Appends one `(a, b, …)` row, separated by a comma from the row before.
pub(crate) fn push_row(sql: &mut String, is_first: bool, row: std::fmt::Arguments<'_>) {
    if !is_first {
        sql.push(',');
    }
    // Writing to a String cannot fail.
    let _ = sql.write_fmt(row);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_content_escapes_from_a_literal() {
        assert_eq!(quoted(b""), "''");
        assert_eq!(quoted(b"ann_1@x.y"), "'ann_1@x.y'");
        assert_eq!(quoted(b"\\"), "x'5c'");
        assert_eq!(quoted("王".as_bytes()), "x'e78e8b'");
        assert_eq!(quoted(b"'; DROP"), "x'273b2044524f50'");
        assert_eq!(list(["a", "b"]), "'a','b'");
    }

    #[tokio::test]
    async fn the_error_for_an_invalid_url_does_not_contain_the_password() {
        for bad in ["mysql://u:secret@h:1", "redis://u:secret@h/x", "h:3306"] {
            let refused = Store::new(bad, None, 1, Duration::from_secs(1), 1)
                .map(|_| ())
                .unwrap_err();
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
    }
}
