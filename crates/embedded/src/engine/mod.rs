//! The embedded engine: sends operations to the writer's queue, and reads orders and events from the
//! file. No decision is made here.

mod open;
mod options;
mod port;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use seckill_engine::{Cause, EVENTS_PAGE_MAX, Fault, OrderRefused, Outcome};
use seckill_sale::{AuditReport, Event, HistoryEntry, Order, OrderChange, OrderId, SaleId};
use tokio::sync::{mpsc, oneshot};

pub use options::EmbeddedOptions;

use crate::audit::audit_view;
use crate::file::lock::FolderLock;
use crate::file::{feed, rows};
use crate::operations::Op;
use crate::order_id::{self, OrderIds};
use crate::readers::Readers;
use crate::shared::{Condition, Shared};

pub struct EmbeddedEngine {
    shared: Arc<Shared>,
    ids: OrderIds,
    started_ms: i64,
    readers: Readers,
    answer_wait: Duration,
    queue: Mutex<Option<mpsc::Sender<Op>>>,
    /// The same queue without the lock, for the path of every call.
    weak_queue: mpsc::WeakSender<Op>,
    writer: Mutex<Option<JoinHandle<()>>>,
    _lock: FolderLock,
}

impl EmbeddedEngine {
    /// Why the writer cannot be used now.
    fn unavailable(&self) -> Fault {
        match &*self.shared.condition() {
            Condition::Unavailable(cause, reason) => Fault::without_effect(*cause, reason.clone()),
            Condition::Dead(reason) => Fault::without_effect(Cause::Store, reason.clone()),
            Condition::Stopping | Condition::Ready => {
                Fault::without_effect(Cause::Stopping, "the service is stopping")
            }
        }
    }

    fn enqueue(&self, op: Op) -> Result<(), Fault> {
        if !self.shared.is_ready() {
            return Err(self.unavailable());
        }
        let queue = self
            .weak_queue
            .upgrade()
            .ok_or_else(|| self.unavailable())?;
        queue.try_send(op).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => {
                Fault::without_effect(Cause::Overloaded, "too many attempts are waiting")
            }
            mpsc::error::TrySendError::Closed(_) => self.unavailable(),
        })
    }

    /// Sends an operation to the writer, and waits for the answer. If the deadline passes or the
    /// writer stops first, `on_fault` makes the answer.
    async fn ask<T>(
        &self,
        op: impl FnOnce(oneshot::Sender<T>) -> Op,
        on_fault: impl FnOnce(Fault) -> T,
    ) -> Result<T, Fault> {
        let (to, answer) = oneshot::channel();
        self.enqueue(op(to))?;
        let unknown = |cause, detail: &str| Fault::unknown(cause, detail);
        Ok(match tokio::time::timeout(self.answer_wait, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => on_fault(unknown(
                Cause::Stopping,
                "the engine stopped before it answered",
            )),
            Err(_) => on_fault(unknown(Cause::Deadline, "no answer before the deadline")),
        })
    }

    /// While nothing is sold there is no gate to compare with, and what is wrong with the file matters
    /// most.
    async fn audit_file_alone(
        &self,
        reason: String,
        history: Vec<HistoryEntry>,
    ) -> Result<AuditReport, Fault> {
        let query = move |conn: &rusqlite::Connection| audit_view(conn, &[], &history);
        let mut report = self.readers.query(query).await?;
        report.notes.push(format!(
            "the service sells nothing ({reason}), so its file alone was audited"
        ));
        Ok(report)
    }

    /// Reads an order from the file, without the writer.
    async fn read_order(&self, order_id: u128) -> Result<Option<Order>, Fault> {
        let found = self
            .readers
            .query(move |conn| rows::order_by_id(conn, order_id))
            .await?;
        let damaged = |detail| Fault::without_effect(Cause::Store, detail);
        Ok(found
            .transpose()
            .map_err(damaged)?
            .map(|stored| stored.order))
    }

    async fn read_events(&self, sale: &SaleId, after: u64) -> Result<Option<Vec<Event>>, Fault> {
        if !self.shared.is_ready() {
            return Err(self.unavailable());
        }
        let Some(memory) = self.shared.memory.load().sale(sale) else {
            return Ok(None);
        };
        let state = memory.state.load_full();
        // Readers that follow the feed mostly ask for what does not exist yet.
        if after >= state.sequence {
            return Ok(Some(Vec::new()));
        }
        let number = memory.number;
        let known = *lock(&memory.feed_end);
        let query = move |conn: &rusqlite::Connection| {
            let sale = (number, &*state.terms);
            feed::page(conn, sale, after, known, EVENTS_PAGE_MAX)
        };
        let damaged = |detail| Fault::without_effect(Cause::Store, detail);
        let page = self.readers.query(query).await?.map_err(damaged)?;
        if page.events.is_empty() {
            let detail = format!("sale {sale}: event {} is missing", after + 1);
            return Err(Fault::without_effect(Cause::Store, detail));
        }
        *lock(&memory.feed_end) = Some(page.end);
        Ok(Some(page.events))
    }

    async fn outcome(&self, order_id: &OrderId) -> Result<Outcome, Fault> {
        let Some(id) = order_id::from_text(order_id.as_str()) else {
            return Ok(Outcome::None);
        };
        if let Some(order) = self.read_order(id).await? {
            return Ok(Outcome::Order(order));
        }
        let made_at_ms = order_id::made_at_ms(id);
        // No engine has issued an id with a future time, so the writer need not be asked.
        if made_at_ms > self.shared.clock.now_ms() {
            return Ok(Outcome::None);
        }
        if !self.shared.is_ready() {
            return Ok(Outcome::Pending);
        }
        // An order of an earlier run is in the file or does not exist. An attempt of this run may
        // still be in the queue: its absence is definite only once everything before has been
        // answered.
        if made_at_ms < self.started_ms {
            return Ok(Outcome::None);
        }
        // Only a successful barrier proves anything: after a deadline or a failed batch, the order
        // may still appear.
        if self.ask(Op::Barrier, Err).await?.is_err() {
            return Ok(Outcome::Pending);
        }
        match self.read_order(id).await? {
            Some(order) => Ok(Outcome::Order(order)),
            None => Ok(Outcome::None),
        }
    }

    /// Reads first, so that orders that do not exist or cannot be changed do not use the writer.
    async fn change(
        &self,
        order_id: &OrderId,
        change: OrderChange,
    ) -> Result<Result<Order, OrderRefused>, Fault> {
        let order = match self.outcome(order_id).await? {
            Outcome::Order(order) => order,
            Outcome::Pending => return Ok(Err(OrderRefused::Pending)),
            Outcome::None => return Ok(Err(OrderRefused::NoSuchOrder)),
        };
        match change.apply(order.state) {
            Ok(Some(_)) => {
                let ask = |to| Op::ChangeOrder(order_id.clone(), change, to);
                self.ask(ask, Err).await?
            }
            Ok(None) => Ok(Ok(order)),
            Err(refused) => Ok(Err(OrderRefused::NotAllowed(refused))),
        }
    }

    fn stop(&self) {
        self.shared.set_condition(Condition::Stopping);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.take();
    }

    fn join(&self) {
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the writer panicked; the file has everything that was committed");
        }
    }
}

impl Drop for EmbeddedEngine {
    /// Unlocks the folder only after the writer has stopped.
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
