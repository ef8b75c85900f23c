//! One connection to the store: runs statements within their timeout, and classifies errors by
//! effect. The statements are up to the other modules.

use std::time::Duration;

use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Conn, Row};
use seckill_engine::{Cause, Effect, Fault};

// MySQL error codes.
const DUPLICATE_KEY: u16 = 1062;
const NULL_IN_COLUMN: u16 = 1048;
const CHECK_VIOLATED: u16 = 3819;
const CHECK_VIOLATED_MARIADB: u16 = 4025;
const ACCESS_DENIED: u16 = 1045;
const NO_SUCH_DATABASE: u16 = 1049;
const NO_SUCH_TABLE: u16 = 1146;

pub(crate) fn fault(shown: &str, error: &mysql_async::Error) -> Fault {
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

/// Whether the error means that a guard failed: it sets a column to NULL that cannot be NULL.
fn is_refusal(code: u16) -> bool {
    let codes = [
        DUPLICATE_KEY,
        NULL_IN_COLUMN,
        CHECK_VIOLATED,
        CHECK_VIOLATED_MARIADB,
    ];
    codes.contains(&code)
}

/// A connection in use. If it is dropped inside a transaction or before a response is complete, it
/// is closed and never reused.
pub struct Session {
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
pub enum Inserted {
    Done,
    /// A unique key already has the value. Contains MySQL's error message.
    Duplicate(String),
}

impl Session {
    /// `shown` names the server in errors; `wait` is the timeout of each statement.
    pub(crate) fn new(conn: Conn, shown: String, wait: Duration) -> Self {
        Self {
            conn: Some(conn),
            use_of: Use {
                shown,
                wait,
                in_transaction: false,
                is_clean: true,
            },
        }
    }

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

    /// Runs several statements with guards in one round trip, stopping at the first error. Returns
    /// MySQL's message if a guard failed or a unique key already has a value.
    pub(crate) async fn guarded(&mut self, sql: &str) -> Result<Option<String>, Fault> {
        let (conn, use_of) = self.begin_use()?;
        use_of
            .timed(async {
                match conn.query_drop(sql).await {
                    Ok(()) => Ok(None),
                    Err(mysql_async::Error::Server(error)) if is_refusal(error.code) => {
                        Ok(Some(error.message))
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
    pub fn wait_longer(&mut self, wait: Duration) {
        self.use_of.wait = wait;
    }

    /// Starts a transaction.
    pub async fn begin(&mut self) -> Result<(), Fault> {
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
    pub async fn commit(&mut self) -> Result<(), Fault> {
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
    pub async fn rollback(&mut self) -> Result<(), Fault> {
        self.execute("ROLLBACK").await?;
        self.ended();
        Ok(())
    }

    /// Closes the connection after its use.
    pub(crate) fn never_reuse(&mut self) {
        self.use_of.is_clean = false;
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
