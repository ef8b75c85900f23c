//! The one writer: takes what waits as a batch, decides it, commits it, and only then answers.
//! It is a thread of its own, since it blocks on the disk; it never touches a socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fail_parallel::{FailPointRegistry, fail_point};
use rusqlite::Connection;
use seckill_engine::{Cause, Effect, Fault, OrderRefused, SaleRefused};
use seckill_sale::{
    Attempt, NewSale, Order, OrderChange, OrderId, Sale, SaleChange, SaleId, Verdict,
};
use tokio::sync::{mpsc, oneshot};

use crate::batch::{Batch, StepError};
use crate::file::schema::{self, Tuning};
use crate::load::{self, SaleLedgers};
use crate::shared::{Condition, Shared};

/// Where an answer goes.
pub(crate) type ReplySender<T> = oneshot::Sender<Result<T, Fault>>;

/// The answers to one call of `decide`.
pub(crate) type Verdicts = Vec<Result<Verdict, Fault>>;

/// What the writer is asked for.
pub(crate) enum Op {
    /// One attempt, without the lists that several need.
    DecideOne(u128, Attempt, ReplySender<Verdict>),
    Decide(Vec<(u128, Attempt)>, oneshot::Sender<Verdicts>),
    ChangeOrder(
        OrderId,
        OrderChange,
        ReplySender<Result<Order, OrderRefused>>,
    ),
    CreateSale(NewSale, ReplySender<Result<Sale, SaleRefused>>),
    ChangeSale(SaleId, SaleChange, ReplySender<Result<Sale, SaleRefused>>),
    /// Answers once everything asked before has been.
    Barrier(ReplySender<()>),
    /// A view of the file and the gate at one moment between two batches.
    View(ReplySender<View>),
}

/// A reading transaction and the free units of each sale at the same moment.
pub(crate) struct View {
    pub(crate) conn: Connection,
    pub(crate) free: Vec<(SaleId, u32)>,
}

impl Op {
    /// Answers an operation that was not carried out.
    fn fail(self, fault: &Fault) {
        let fault = || Fault::without_effect(fault.cause, fault.detail.clone());
        match self {
            Self::Decide(attempts, to) => {
                drop(to.send(attempts.iter().map(|_| Err(fault())).collect()));
            }
            Self::DecideOne(_, _, to) => drop(to.send(Err(fault()))),
            Self::ChangeOrder(_, _, to) => drop(to.send(Err(fault()))),
            Self::CreateSale(_, to) | Self::ChangeSale(_, _, to) => drop(to.send(Err(fault()))),
            Self::Barrier(to) => drop(to.send(Err(fault()))),
            Self::View(to) => drop(to.send(Err(fault()))),
        }
    }
}

/// An answer that waits for its batch to become durable.
pub(crate) enum Response {
    DecideOne(Verdict, ReplySender<Verdict>),
    Decide(Verdicts, oneshot::Sender<Verdicts>),
    ChangeOrder(
        Result<Order, OrderRefused>,
        ReplySender<Result<Order, OrderRefused>>,
    ),
    Sale(
        Result<Sale, SaleRefused>,
        ReplySender<Result<Sale, SaleRefused>>,
    ),
    Barrier(ReplySender<()>),
    ViewWanted(ReplySender<View>),
    View(Box<Result<View, Fault>>, ReplySender<View>),
}

impl Response {
    /// Sends it. That nobody waits any more is nobody's fault.
    pub(crate) fn send(self) {
        match self {
            Self::DecideOne(verdict, to) => drop(to.send(Ok(verdict))),
            Self::Decide(verdicts, to) => drop(to.send(verdicts)),
            Self::ChangeOrder(answer, to) => drop(to.send(Ok(answer))),
            Self::Sale(answer, to) => drop(to.send(Ok(answer))),
            Self::Barrier(to) => drop(to.send(Ok(()))),
            Self::View(answer, to) => drop(to.send(*answer)),
            // Dropping the sender says that the engine went away; a view is made before it is sent.
            Self::ViewWanted(to) => drop(to),
        }
    }

    /// Sends what is true after the batch failed: that nothing was done where that is known, else that it is unknown.
    fn send_failed(self, fault: &Fault) {
        let after = |verdict: Result<Verdict, Fault>| match (verdict, fault.effect) {
            // The client can ask by id what became of it.
            (Ok(Verdict::Claimed(claim) | Verdict::Repeat(claim)), Effect::Unknown) => {
                Ok(Verdict::Pending(claim.order_id))
            }
            (Ok(Verdict::Mismatch), Effect::Unknown) => Err(fault.clone()),
            // A no may rest on a claim of this very batch: it is not said.
            _ => Err(Fault::without_effect(fault.cause, fault.detail.clone())),
        };
        match self {
            Self::DecideOne(verdict, to) => drop(to.send(after(Ok(verdict)))),
            Self::Decide(verdicts, to) => {
                drop(to.send(verdicts.into_iter().map(after).collect()));
            }
            Self::ChangeOrder(_, to) => drop(to.send(Err(fault.clone()))),
            Self::Sale(_, to) => drop(to.send(Err(fault.clone()))),
            Self::Barrier(to) => drop(to.send(Err(fault.clone()))),
            Self::View(_, to) | Self::ViewWanted(to) => drop(to.send(Err(fault.clone()))),
        }
    }
}

/// How a batch ended.
enum BatchOutcome {
    Committed(Vec<Response>),
    /// Before the commit: nothing of it was stored. With what was decided and what was not.
    Abandoned(StepError, Vec<Response>, Vec<Op>),
    /// In the commit: whether it was stored is unknown until the file is read again.
    CommitUnknown(rusqlite::Error, Vec<Response>),
}

/// Bounds of the writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The most operations taken into one batch.
    pub(crate) batch_max: usize,
    /// The longest pause between two tries to read the file again, in milliseconds.
    pub(crate) rebuild_pause_max_ms: u64,
    pub(crate) tuning: Tuning,
}

/// The writer's state, all its own.
pub(crate) struct Writer {
    pub(crate) path: PathBuf,
    pub(crate) bounds: Bounds,
    pub(crate) conn: Connection,
    pub(crate) ledgers: SaleLedgers,
    pub(crate) data_version: i64,
    /// Whether connection and ledgers are what the file says; not so from a failure until it was read again.
    pub(crate) is_trusted: bool,
    pub(crate) shared: Arc<Shared>,
    pub(crate) failpoints: Arc<FailPointRegistry>,
    pub(crate) answers: mpsc::UnboundedSender<Vec<Response>>,
}

impl Writer {
    /// Works until nobody can ask any more, and has answered everything by then.
    pub(crate) fn run(mut self, mut waiting: mpsc::Receiver<Op>) {
        let mut ops = Vec::with_capacity(self.bounds.batch_max);
        while waiting.blocking_recv_many(&mut ops, self.bounds.batch_max) > 0 {
            self.drain_queue(&mut waiting, &mut ops);
            if !self.is_trusted {
                self.refuse(
                    ops.drain(..),
                    "the engine stopped before its file could be read again",
                );
                continue;
            }
            if let Err(reason) = self.detect_external_write() {
                self.refuse(ops.drain(..), &reason);
                self.rebuild(&waiting, &reason);
                continue;
            }
            self.batch(ops.drain(..), &waiting);
        }
        // Best effort: the next start would do it.
        if let Err(error) = self.conn.pragma_update(None, "wal_checkpoint", "TRUNCATE") {
            tracing::debug!(%error, "no checkpoint at the end");
        }
    }

    /// Lets requests that are ready on this core reach the queue first: without it the first of a burst is committed alone.
    /// Where nobody else wants the core this returns at once.
    fn drain_queue(&self, waiting: &mut mpsc::Receiver<Op>, ops: &mut Vec<Op>) {
        std::thread::yield_now();
        while ops.len() < self.bounds.batch_max
            && let Ok(op) = waiting.try_recv()
        {
            ops.push(op);
        }
    }

    /// `data_version` moves when another connection has written to the file: memory then is no longer what it says.
    fn detect_external_write(&mut self) -> Result<(), String> {
        match data_version(&self.conn) {
            Ok(version) if version == self.data_version => Ok(()),
            Ok(_) => Err("another program wrote to the file".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn batch(&mut self, ops: std::vec::Drain<'_, Op>, waiting: &mpsc::Receiver<Op>) {
        let began = Instant::now();
        match self.decide_and_commit(ops) {
            BatchOutcome::Committed(answers) => {
                self.shared.counts.batch(began.elapsed());
                self.answer(answers);
            }
            BatchOutcome::Abandoned(error, answers, rest) => {
                tracing::warn!(%error, "a batch could not be stored; nothing of it was done");
                self.shared
                    .counts
                    .failed_batches
                    .fetch_add(1, Ordering::Relaxed);
                let detail = format!("the order store refused the write: {error}");
                let fault = Fault::without_effect(Cause::Store, detail);
                answers
                    .into_iter()
                    .for_each(|answer| answer.send_failed(&fault));
                rest.into_iter().for_each(|op| op.fail(&fault));
                // Anything but a lock or a full disk means that memory and file do not fit together.
                if !is_transient(&error) {
                    self.rebuild(waiting, &error.to_string());
                }
            }
            BatchOutcome::CommitUnknown(error, answers) => {
                tracing::error!(%error, "a commit failed; the file will be read again");
                self.shared
                    .counts
                    .failed_batches
                    .fetch_add(1, Ordering::Relaxed);
                self.shared
                    .set_condition(Condition::Rebuilding(error.to_string()));
                let detail = format!("the commit failed: {error}");
                let fault = Fault::unknown(Cause::Store, detail);
                answers
                    .into_iter()
                    .for_each(|answer| answer.send_failed(&fault));
                self.rebuild(waiting, &error.to_string());
            }
        }
    }

    fn decide_and_commit(&mut self, ops: std::vec::Drain<'_, Op>) -> BatchOutcome {
        let memory = self.shared.memory.load();
        let mut answers = Vec::with_capacity(ops.len());
        let now_ms = self.shared.clock.now_ms();
        let mut batch = match Batch::new(&self.conn, &memory, &mut self.ledgers, now_ms) {
            Ok(batch) => batch,
            Err(error) => return BatchOutcome::Abandoned(error.into(), answers, ops.collect()),
        };
        let mut ops = ops;
        while let Some(op) = ops.next() {
            if let Err(failed) = step(&mut batch, op, &mut answers) {
                let (error, op) = *failed;
                batch.undo();
                roll_back(&self.conn);
                let rest = std::iter::once(op).chain(ops).collect();
                return BatchOutcome::Abandoned(error, answers, rest);
            }
        }
        if batch.has_writes()
            && let Err(error) = commit(&self.conn, &self.failpoints)
        {
            batch.undo();
            roll_back(&self.conn);
            return BatchOutcome::CommitUnknown(error, answers);
        }
        batch.publish();
        let (path, tuning, ledgers) = (&self.path, self.bounds.tuning, &self.ledgers);
        let made = |answer| match answer {
            Response::ViewWanted(to) => Response::View(Box::new(view(path, tuning, ledgers)), to),
            other => other,
        };
        BatchOutcome::Committed(answers.into_iter().map(made).collect())
    }

    fn answer(&self, answers: Vec<Response>) {
        if let Err(unsent) = self.answers.send(answers) {
            unsent.0.into_iter().for_each(Response::send);
        }
    }

    fn refuse(&self, ops: std::vec::Drain<'_, Op>, reason: &str) {
        let fault = Fault::without_effect(Cause::Rebuilding, reason);
        ops.for_each(|op| op.fail(&fault));
    }

    /// Reads the file until that works, and can be written to. Meanwhile every attempt gets a 503, never a no.
    fn rebuild(&mut self, waiting: &mpsc::Receiver<Op>, reason: &str) {
        const FIRST_PAUSE_MS: u64 = 50;
        self.is_trusted = false;
        self.shared
            .set_condition(Condition::Rebuilding(reason.to_owned()));
        self.shared.counts.rebuilds.fetch_add(1, Ordering::Relaxed);
        let mut pause_ms = FIRST_PAUSE_MS;
        // A closed queue means that the engine is going; the next start reads the file anyway.
        while !waiting.is_closed() {
            match self.read_again() {
                Ok(()) => {
                    self.is_trusted = true;
                    tracing::info!("the file was read again; selling goes on");
                    self.shared.set_condition(Condition::Ready);
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, pause_ms, "the file cannot be used; trying again");
                    self.shared.set_condition(Condition::Rebuilding(error));
                }
            }
            let until = Instant::now() + Duration::from_millis(pause_ms);
            while Instant::now() < until && !waiting.is_closed() {
                std::thread::sleep(Duration::from_millis(FIRST_PAUSE_MS));
            }
            pause_ms = (pause_ms * 2).min(self.bounds.rebuild_pause_max_ms);
        }
    }

    fn read_again(&mut self) -> Result<(), String> {
        // A fresh connection: after a failed sync the old one may hold pages that the disk does not.
        let conn =
            schema::reopen_writer(&self.path, self.bounds.tuning).map_err(|e| e.to_string())?;
        probe_write(&conn)
            .map_err(|e| format!("{} cannot be written: {e}", self.path.display()))?;
        let version = data_version(&conn).map_err(|e| e.to_string())?;
        let digester = self.shared.memory.load().digester;
        let loaded = load::load(&conn, &self.path, digester).map_err(|e| e.to_string())?;
        self.conn = conn;
        self.data_version = version;
        self.ledgers = loaded.ledgers;
        self.shared.memory.store(Arc::new(loaded.memory));
        Ok(())
    }
}

/// Decides one operation; gives it back with the error where it could not be stored.
fn step(
    batch: &mut Batch<'_>,
    op: Op,
    answers: &mut Vec<Response>,
) -> Result<(), Box<(StepError, Op)>> {
    answers.push(match op {
        // The client has gone: it would never learn of a claim.
        Op::DecideOne(_, _, to) if to.is_closed() => return Ok(()),
        Op::Decide(_, to) if to.is_closed() => return Ok(()),
        Op::DecideOne(order, attempt, to) => match batch.attempt(order, &attempt) {
            Ok(verdict) => Response::DecideOne(verdict, to),
            Err(error) => return Err(Box::new((error, Op::DecideOne(order, attempt, to)))),
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

fn commit(conn: &Connection, failpoints: &Arc<FailPointRegistry>) -> rusqlite::Result<()> {
    // Without the feature the fail points expand to nothing.
    let _ = failpoints;
    fail_point!(Arc::clone(failpoints), "before-commit", |_| Err(
        rusqlite::Error::InvalidQuery
    ));
    conn.prepare_cached("COMMIT")?.execute(())?;
    fail_point!(Arc::clone(failpoints), "after-commit", |_| Err(
        rusqlite::Error::InvalidQuery
    ));
    Ok(())
}

/// Ends whatever transaction is left. That there is none is the usual case after a failed commit.
fn roll_back(conn: &Connection) {
    if !conn.is_autocommit()
        && let Err(error) = conn.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "a transaction could not be rolled back");
    }
}

/// A write that changes nothing but has to reach the disk.
fn probe_write(conn: &Connection) -> rusqlite::Result<()> {
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    conn.pragma_update(None, "user_version", version)
}

pub(crate) fn data_version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("PRAGMA data_version")?
        .query_row((), |row| row.get(0))
}

fn is_transient(error: &StepError) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    match error {
        StepError::Sqlite(error) => matches!(
            error.sqlite_error_code(),
            Some(DatabaseBusy | DatabaseLocked | DiskFull)
        ),
        StepError::Damaged(_) => false,
    }
}

fn view(path: &std::path::Path, tuning: Tuning, ledgers: &SaleLedgers) -> Result<View, Fault> {
    let store = |detail: String| Fault::without_effect(Cause::Store, detail);
    let conn = schema::open_reader(path, tuning).map_err(|e| store(e.to_string()))?;
    // The first read fixes what the transaction sees.
    conn.execute_batch("BEGIN; SELECT count(*) FROM seckill_sale;")
        .map_err(|e| store(e.to_string()))?;
    let free = ledgers
        .values()
        .map(|ledger| (ledger.sale.id.clone(), ledger.stock.free()));
    Ok(View {
        conn,
        free: free.collect(),
    })
}
