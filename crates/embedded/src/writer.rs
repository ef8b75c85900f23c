//! The only writer: takes the queued operations as a batch, decides them, commits them, and only
//! then answers. It has its own thread, because it blocks on the disk. It must not touch a socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fail_parallel::FailPointRegistry;
use rusqlite::Connection;
use seckill_engine::{Cause, Fault};
use seckill_sale::Ledger;
use tokio::sync::mpsc;

use crate::batch::{Batch, CheckAt, StepError, Store};
use crate::failpoints;
use crate::file::FileError;
use crate::file::identity::OpenedFiles;
use crate::file::schema::{self, Tuning};
use crate::opened::{self, Opened};
use crate::operations::{Op, Response, View, fail_all, send_all};
use crate::shared::{Condition, Shared};

/// How a batch ended.
enum BatchOutcome {
    Committed(Vec<Response>),
    /// It failed before the commit: nothing was stored. Has what was decided and what was not.
    Abandoned(StepError, Vec<Response>, Vec<Op>),
    /// It failed in the commit: whether it was stored is unknown until the file was read again.
    CommitUnknown(StepError, Vec<Response>),
}

#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// The maximum number of operations in one batch.
    pub(crate) batch_max: usize,
    /// The longest pause between two attempts to read the file again, in milliseconds.
    pub(crate) rebuild_pause_max_ms: u64,
    pub(crate) tuning: Tuning,
}

/// The writer's state. Other threads see only `shared`.
pub(crate) struct Writer {
    pub(crate) path: PathBuf,
    pub(crate) bounds: Bounds,
    pub(crate) opened: Opened,
    /// Whether connection and ledgers agree with the file. False from a failure until the file has
    /// been read again.
    pub(crate) is_trusted: bool,
    pub(crate) shared: Arc<Shared>,
    pub(crate) failpoints: Arc<FailPointRegistry>,
    pub(crate) responses: mpsc::UnboundedSender<Vec<Response>>,
}

impl Writer {
    /// Runs until the queue is closed and everything in it has been answered.
    pub(crate) fn run(mut self, mut waiting: mpsc::Receiver<Op>) {
        let mut ops = Vec::with_capacity(self.bounds.batch_max);
        while waiting.blocking_recv_many(&mut ops, self.bounds.batch_max) > 0 {
            self.drain_queue(&mut waiting, &mut ops);
            if !self.is_trusted {
                let fault = Fault::without_effect(Cause::Stopping, "the engine is stopping");
                fail_all(Vec::new(), ops.drain(..), &fault);
                continue;
            }
            self.batch(ops.drain(..), &waiting);
        }
        if !self.is_trusted {
            return;
        }
        let closed = failpoints::check(&self.failpoints, failpoints::CHECKPOINT)
            .map_err(StepError::Sqlite)
            .and_then(|()| self.opened.close());
        // The next start reads the write-ahead log instead.
        if let Err(error) = closed {
            tracing::warn!(%error, "the file was not closed cleanly; the next start recovers it");
        }
    }

    /// Yields first, so that requests that are ready on this core reach the queue. Otherwise, the
    /// first one of a burst would be committed alone. The yield returns at once if no other thread
    /// is ready on this core.
    fn drain_queue(&self, waiting: &mut mpsc::Receiver<Op>, ops: &mut Vec<Op>) {
        std::thread::yield_now();
        while ops.len() < self.bounds.batch_max
            && let Ok(op) = waiting.try_recv()
        {
            ops.push(op);
        }
    }

    fn batch(&mut self, ops: std::vec::Drain<'_, Op>, waiting: &mpsc::Receiver<Op>) {
        let started = Instant::now();
        match self.decide_and_commit(ops) {
            BatchOutcome::Committed(responses) => {
                self.shared.counts.batch(started.elapsed());
                self.send(responses);
                self.record_rows(waiting);
            }
            BatchOutcome::Abandoned(error, responses, rest) => {
                self.count_failed();
                // Memory may be wrong, so nothing more is answered from it.
                let is_transient = is_transient(&error);
                if !is_transient {
                    self.doubt(&error);
                }
                tracing::warn!(%error, "a batch could not be stored; it has no effect");
                let fault = Fault::without_effect(cause_of(&error), error.to_string());
                fail_all(responses, rest, &fault);
                if !is_transient {
                    self.rebuild(waiting, &error);
                }
            }
            BatchOutcome::CommitUnknown(error, responses) => {
                self.count_failed();
                self.doubt(&error);
                // A file that is gone is reported once, by `rebuild`.
                if !matches!(error, StepError::File(_)) {
                    tracing::error!(%error, "a commit failed; reading the file again");
                }
                let fault = Fault::unknown(cause_of(&error), format!("the commit failed: {error}"));
                fail_all(responses, [], &fault);
                self.rebuild(waiting, &error);
            }
        }
    }

    fn decide_and_commit(&mut self, ops: std::vec::Drain<'_, Op>) -> BatchOutcome {
        let memory = self.shared.memory.load();
        let mut responses = Vec::with_capacity(ops.len());
        let now_ms = self.shared.clock.now_ms();
        let Opened {
            conn,
            ledger,
            counts,
            pointers,
            recorded,
            data_version,
            files,
            ..
        } = &mut self.opened;
        if let Err(error) = failpoints::check(&self.failpoints, failpoints::BATCH) {
            return BatchOutcome::Abandoned(error.into(), responses, ops.collect());
        }
        let mut check = |conn: &Connection, at| check(conn, at, *data_version, files);
        let store = Store {
            conn,
            failpoints: &self.failpoints,
            check: &mut check,
            counts: *counts,
            pointers,
        };
        let mut batch = match Batch::new(store, &memory, ledger, now_ms) {
            Ok(batch) => batch,
            Err(error) => return BatchOutcome::Abandoned(error.into(), responses, ops.collect()),
        };
        let mut ops = ops;
        while let Some(op) = ops.next() {
            if let Err(failed) = step(&mut batch, op, &mut responses) {
                let (error, op) = *failed;
                batch.undo();
                roll_back(conn);
                let rest = std::iter::once(op).chain(ops).collect();
                return BatchOutcome::Abandoned(error, responses, rest);
            }
        }
        let stored = batch.counts();
        let has_rows = stored.rows > counts.rows;
        let record = (has_rows && recorded.is_due(stored.rows)).then_some(stored.rows);
        if let Err(error) = batch.finish(record) {
            batch.undo();
            roll_back(conn);
            return BatchOutcome::Abandoned(error, responses, Vec::new());
        }
        if batch.has_writes() {
            let committed = commit(conn, &self.failpoints).map_err(StepError::from);
            // A commit to a file that was replaced is lost at the next restart.
            if let Err(error) = committed.and_then(|()| batch.check(CheckAt::Committed)) {
                batch.undo();
                roll_back(conn);
                return BatchOutcome::CommitUnknown(error, responses);
            }
        }
        batch.publish();
        *counts = stored;
        if record.is_some() {
            recorded.set(stored.rows);
        }
        let orders = &self.shared.counts.orders;
        orders.store(stored.orders, Ordering::Relaxed);
        let (path, tuning) = (&self.path, &self.bounds.tuning);
        let make_view = |response| match response {
            Response::ViewWanted(to) => Response::View(Box::new(view(path, tuning, ledger)), to),
            other => other,
        };
        BatchOutcome::Committed(responses.into_iter().map(make_view).collect())
    }

    /// Records the number of rows once no batch has done so for a while. It can wait: a disk that is
    /// full or a file that is locked does not stop rejections.
    fn record_rows(&mut self, waiting: &mpsc::Receiver<Op>) {
        if !self.opened.recorded.is_due(self.opened.counts.rows) {
            return;
        }
        if let Err(error) = self.opened.record(&self.failpoints) {
            roll_back(&self.opened.conn);
            tracing::debug!(%error, "the number of rows could not be recorded");
            if !is_transient(&error) {
                self.doubt(&error);
                self.rebuild(waiting, &error);
            }
        }
    }

    /// Posts the verdicts of submitted attempts to the event loops that wait for them, and leaves all
    /// other responses to a task.
    fn send(&self, responses: Vec<Response>) {
        let is_submitted = |response: &Response| matches!(response, Response::Submitted(..));
        let (submitted, others): (Vec<_>, Vec<_>) = responses.into_iter().partition(is_submitted);
        send_all(submitted);
        if !others.is_empty()
            && let Err(unsent) = self.responses.send(others)
        {
            send_all(unsent.0);
        }
    }

    fn count_failed(&self) {
        let failed = &self.shared.counts.failed_batches;
        failed.fetch_add(1, Ordering::Relaxed);
    }

    /// After this, nothing is confirmed until the file has been read again.
    fn doubt(&mut self, error: &StepError) {
        self.is_trusted = false;
        let condition = Condition::Unavailable(cause_of(error), error.to_string());
        self.shared.set_condition(condition);
    }

    /// Retries until the file can be read and written. Meanwhile, every attempt gets a fault, never
    /// a rejection.
    fn rebuild(&mut self, waiting: &mpsc::Receiver<Op>, reason: &StepError) {
        const FIRST_PAUSE_MS: u64 = 50;
        self.shared.counts.rebuilds.fetch_add(1, Ordering::Relaxed);
        let mut pause_ms = FIRST_PAUSE_MS;
        let mut logged = None;
        tracing::warn!(%reason, "reading the file again");
        // A closed queue means that the engine is stopping; the next start reads the file anyway.
        while !waiting.is_closed() {
            match self.opened.read_again(
                &self.path,
                &self.bounds.tuning,
                &self.failpoints,
                self.shared.memory.load().digester,
            ) {
                Ok(memory) => {
                    self.shared.memory.store(Arc::new(memory));
                    self.is_trusted = true;
                    tracing::info!("the file was read again; sales continue");
                    self.shared.set_condition(Condition::Ready);
                    return;
                }
                Err(error) => {
                    let error = StepError::File(error);
                    let text = error.to_string();
                    // Logged once, not at every retry.
                    if logged.as_ref() != Some(&text) {
                        tracing::error!("sales are suspended: {text}");
                        logged = Some(text.clone());
                    }
                    let condition = Condition::Unavailable(cause_of(&error), text);
                    self.shared.set_condition(condition);
                }
            }
            let until = Instant::now() + Duration::from_millis(pause_ms);
            while Instant::now() < until && !waiting.is_closed() {
                std::thread::sleep(Duration::from_millis(FIRST_PAUSE_MS));
            }
            pause_ms = (pause_ms * 2).min(self.bounds.rebuild_pause_max_ms);
        }
    }
}

/// Checks that memory still agrees with the file: it is the file that was opened, and no other
/// connection has written to it.
fn check(
    conn: &Connection,
    at: CheckAt,
    data_version: i64,
    files: &mut OpenedFiles,
) -> Result<(), StepError> {
    match at {
        CheckAt::Begun => files.check_before_writing()?,
        CheckAt::Committed => return Ok(files.check()?),
        CheckAt::Unwritten => files.check()?,
    }
    opened::check_external_write(conn, data_version)
}

/// Decides one operation, or returns it with the error if it could not be stored.
fn step(
    batch: &mut Batch<'_>,
    op: Op,
    responses: &mut Vec<Response>,
) -> Result<(), Box<(StepError, Op)>> {
    responses.push(match op {
        // The client is gone and would never learn of a claim.
        Op::Submit(_, _, reply) if reply.is_closed() => return Ok(()),
        Op::Decide(_, to) if to.is_closed() => return Ok(()),
        // The caller was told that the effect is unknown; it must not happen much later.
        Op::ChangeOrder(_, _, to) if to.is_closed() => return Ok(()),
        Op::CreateSale(_, to) | Op::ChangeSale(_, _, to) if to.is_closed() => return Ok(()),
        Op::Submit(order, attempt, reply) => match batch.attempt(order, &attempt) {
            Ok(verdict) => Response::Submitted(verdict, reply),
            Err(error) => return Err(Box::new((error, Op::Submit(order, attempt, reply)))),
        },
        Op::Decide(attempts, to) => {
            let decided = attempts
                .iter()
                .map(|(order, attempt)| batch.attempt(*order, attempt).map(Ok))
                .collect();
            match decided {
                Ok(verdicts) => Response::Decide(verdicts, to),
                Err(error) => return Err(Box::new((error, Op::Decide(attempts, to)))),
            }
        }
        Op::ChangeOrder(order_id, change, to) => match batch.change_order(&order_id, change) {
            Ok(answer) => Response::ChangeOrder(answer, to),
            Err(error) => return Err(Box::new((error, Op::ChangeOrder(order_id, change, to)))),
        },
        Op::CreateSale(new, to) => match batch.create_sale(new.clone()) {
            Ok(answer) => Response::Sale(answer, to),
            Err(error) => return Err(Box::new((error, Op::CreateSale(new, to)))),
        },
        Op::ChangeSale(id, change, to) => match batch.change_sale(&id, &change) {
            Ok(answer) => Response::Sale(answer, to),
            Err(error) => return Err(Box::new((error, Op::ChangeSale(id, change, to)))),
        },
        Op::Barrier(to) => Response::Barrier(to),
        Op::View(to) => Response::ViewWanted(to),
    });
    Ok(())
}

fn commit(conn: &Connection, registry: &Arc<FailPointRegistry>) -> rusqlite::Result<()> {
    failpoints::check(registry, failpoints::BEFORE_COMMIT)?;
    conn.prepare_cached("COMMIT")?.execute(())?;
    failpoints::check(registry, failpoints::AFTER_COMMIT)
}

/// Rolls back the transaction, if it is still open. After a failed commit, it usually is not.
fn roll_back(conn: &Connection) {
    if !conn.is_autocommit()
        && let Err(error) = conn.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "a transaction could not be rolled back");
    }
}

/// Whether memory and file still agree after this error.
fn is_transient(error: &StepError) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    match error {
        StepError::Sqlite(error) => matches!(
            error.sqlite_error_code(),
            Some(DatabaseBusy | DatabaseLocked | DiskFull)
        ),
        StepError::Damaged(_) | StepError::ExternalWrite | StepError::File(_) => false,
    }
}

/// A rebuild resolves another program's write. Everything else is a fault of the store.
fn cause_of(error: &StepError) -> Cause {
    match error {
        // Another program truncated the file; the rebuild reads it as it is now.
        StepError::ExternalWrite | StepError::File(FileError::Truncated { .. }) => {
            Cause::Rebuilding
        }
        StepError::Sqlite(_) | StepError::Damaged(_) | StepError::File(_) => Cause::Store,
    }
}

fn view(path: &std::path::Path, tuning: &Tuning, ledger: &Ledger<u128>) -> Result<View, Fault> {
    let store = |detail: String| Fault::without_effect(Cause::Store, detail);
    let conn = schema::open_copy(path, tuning).map_err(|e| store(e.to_string()))?;
    // The first read determines what the transaction sees.
    conn.execute_batch("BEGIN; SELECT count(*) FROM seckill_sale;")
        .map_err(|e| store(e.to_string()))?;
    let sales = ledger.sales().iter();
    let free = sales.map(|sale| (sale.sale.id.clone(), sale.free().to_vec()));
    Ok(View {
        conn,
        free: free.collect(),
    })
}
