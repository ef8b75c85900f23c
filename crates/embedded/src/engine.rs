//! The embedded engine's implementation of the port: it answers rejections from memory, and sends
//! everything else to the writer's queue. No decision is made here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fail_parallel::FailPointRegistry;
use seckill_engine::{
    BoxFuture, Cause, Component, DECIDE_MAX, EVENTS_PAGE_MAX, Engine, Fault, OrderRefused, Outcome,
    SALES_PAGE_MAX, SaleStock, Sample,
};
use seckill_sale::{
    Attempt, AuditReport, Buyer, Event, HistoryEntry, IdempotencyKey, NewSale, Order, OrderChange,
    OrderId, Sale, SaleChange, SaleId, SaleRefused, Verdict,
};
use tokio::sync::{mpsc, oneshot};

use crate::audit::audit_view;
use crate::file::lock::FolderLock;
use crate::file::schema::Tuning;
use crate::file::{DATABASE_FILE, FileError, LockOwner, feed, rows};
use crate::memory::{Digester, SaleMemory};
use crate::opened::Opened;
use crate::order_id::{self, OrderIds};
use crate::readers::Readers;
use crate::shared::{Condition, Shared};
use crate::writer::{self, Bounds, Op, Writer};

/// How often the engine checks the file and follows the system clock, even without requests.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// The settings of an engine. Limits have the same names as in the configuration file.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The data folder. Created if it does not exist.
    pub dir: PathBuf,
    /// How this process describes itself to another that finds the folder in use.
    pub owner: LockOwner,
    /// The maximum number of calls that wait for the writer; further ones fail as overloaded.
    pub queue_max: usize,
    /// The maximum number of calls in one transaction of the writer.
    pub batch_max: usize,
    /// The longest time that a call waits for its answer, in milliseconds.
    pub answer_wait_ms: u64,
    /// The longest time to wait for another program's lock on the file, in milliseconds.
    pub busy_wait_ms: u32,
    /// The longest pause between two attempts to read an unusable file, in milliseconds.
    pub rebuild_pause_max_ms: u64,
    /// SQLite's page cache, in KiB.
    pub cache_kib: u32,
    /// Pages in the write-ahead log at which SQLite moves them to the main file.
    pub checkpoint_pages: u32,
    /// SQLite's VFS by name, for tests that simulate a disk; `None` means the default.
    pub vfs: Option<String>,
    /// Lets tests make writes fail. Has no effect unless failpoints are compiled in.
    pub failpoints: Arc<FailPointRegistry>,
}

impl EmbeddedOptions {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            owner: LockOwner::default(),
            queue_max: 65_536,
            batch_max: 4_096,
            answer_wait_ms: 5_000,
            busy_wait_ms: 1_000,
            rebuild_pause_max_ms: 2_000,
            cache_kib: 65_536,
            checkpoint_pages: 4_096,
            vfs: None,
            failpoints: Arc::new(FailPointRegistry::new()),
        }
    }
}

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
    /// Locks the folder, opens or creates the file, and rebuilds memory from it. Must be called
    /// within a Tokio runtime.
    pub fn open(options: EmbeddedOptions) -> Result<Self, FileError> {
        let lock = FolderLock::take(&options.dir, &options.owner)?;
        // Absolute, so that the file is found even if the process changes its working directory.
        let folder_error = |error: std::io::Error| FileError::Folder {
            path: options.dir.clone(),
            error,
        };
        let path = std::path::absolute(options.dir.join(DATABASE_FILE)).map_err(folder_error)?;
        let tuning = Tuning {
            busy_wait_ms: options.busy_wait_ms,
            cache_kib: options.cache_kib,
            checkpoint_pages: options.checkpoint_pages,
            vfs: options.vfs.as_deref().map(Into::into),
        };
        let digester =
            Digester::new().map_err(|error| folder_error(std::io::Error::other(error)))?;
        let (opened, memory) = Opened::open(&path, &tuning, digester)?;
        let answer_wait = Duration::from_millis(options.answer_wait_ms);
        let shared = Arc::new(Shared::new(memory));
        let orders = opened.counts.orders;
        shared.counts.orders.store(orders, Ordering::Relaxed);
        let readers = Readers::new(
            path.clone(),
            opened.files.clone(),
            tuning.clone(),
            answer_wait,
        );
        let (queue, waiting) = mpsc::channel(options.queue_max);
        let (responses, to_send) = mpsc::unbounded_channel();
        let writer = Writer {
            path,
            bounds: Bounds {
                batch_max: options.batch_max,
                rebuild_pause_max_ms: options.rebuild_pause_max_ms,
                tuning,
            },
            opened,
            is_trusted: true,
            shared: Arc::clone(&shared),
            failpoints: options.failpoints,
            responses,
        };
        let writer = std::thread::Builder::new()
            .name("seckill-writer".into())
            .spawn({
                let guard = WriterGuard(Arc::clone(&shared));
                move || {
                    let _guard = guard;
                    writer.run(waiting);
                }
            })
            .map_err(folder_error)?;
        tokio::spawn(send_responses(to_send));
        tokio::spawn(check_regularly(Arc::clone(&shared), queue.downgrade()));
        Ok(Self {
            started_ms: shared.clock.now_ms(),
            shared,
            ids: OrderIds::new(),
            readers,
            answer_wait,
            weak_queue: queue.downgrade(),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(Some(writer)),
            _lock: lock,
        })
    }

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

fn stock(memory: &SaleMemory) -> SaleStock {
    let state = memory.state.load();
    SaleStock {
        sale: Sale::clone(&state.terms),
        free: state.free.to_vec(),
    }
}

fn no_random_bytes(error: &getrandom::Error) -> Fault {
    let detail = format!("the system returned no random bytes: {error}");
    Fault::without_effect(Cause::Store, detail)
}

/// Reports that the writer has stopped, even by a panic: the engine cannot sell without it.
struct WriterGuard(Arc<Shared>);

impl Drop for WriterGuard {
    fn drop(&mut self) {
        if *self.0.condition() == Condition::Stopping && !std::thread::panicking() {
            return;
        }
        let reason = "the writer thread stopped; restart the service";
        tracing::error!("{reason}");
        self.0.set_condition(Condition::Dead(reason.to_owned()));
    }
}

/// Makes the writer check the file even when there are no attempts for it: a sold-out sale is
/// answered from memory, but must notice that another program released a unit or removed the file.
async fn check_regularly(shared: Arc<Shared>, queue: mpsc::WeakSender<Op>) {
    let mut checks = tokio::time::interval(CHECK_EVERY);
    checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        shared.clock.follow_system();
        let Some(queue) = queue.upgrade() else { return };
        let (to, _answer) = oneshot::channel();
        // A full queue means that the writer checks anyway.
        let _ = queue.try_send(Op::Barrier(to));
    }
}

/// Sends responses from within the runtime, where waking a request costs no system call.
async fn send_responses(mut to_send: mpsc::UnboundedReceiver<Vec<writer::Response>>) {
    while let Some(responses) = to_send.recv().await {
        responses.into_iter().for_each(writer::Response::send);
    }
}

impl Engine for EmbeddedEngine {
    fn answer_from_memory(&self, attempt: &Attempt) -> Option<Verdict> {
        if !self.shared.is_ready() {
            return None;
        }
        self.shared
            .memory
            .load()
            .answer(attempt, self.shared.clock.now_ms())
    }

    fn decide(&self, attempts: Vec<Attempt>) -> BoxFuture<'_, Vec<Result<Verdict, Fault>>> {
        Box::pin(async move {
            let count = attempts.len();
            let fail_all = |fault: &Fault| vec![Err(fault.clone()); count];
            if count > DECIDE_MAX {
                let detail = format!("{count} attempts in one call; the maximum is {DECIDE_MAX}");
                return fail_all(&Fault::without_effect(Cause::Overloaded, detail));
            }
            let now_ms = self.shared.clock.now_ms();
            let named: Result<Vec<_>, _> = attempts
                .into_iter()
                .map(|attempt| Ok::<_, getrandom::Error>((self.ids.next(now_ms)?, attempt)))
                .collect();
            let named = match named {
                Ok(named) => named,
                Err(error) => return fail_all(&no_random_bytes(&error)),
            };
            let orders: Vec<u128> = named.iter().map(|(order, _)| *order).collect();
            let pending = |&order: &u128| Ok(Verdict::Pending(order_id::to_text(order)));
            let asked = self
                .ask(
                    |to| Op::Decide(named, to),
                    |_| orders.iter().map(pending).collect(),
                )
                .await;
            asked.unwrap_or_else(|fault| fail_all(&fault))
        })
    }

    fn decide_one(&self, attempt: Attempt) -> BoxFuture<'_, Result<Verdict, Fault>> {
        Box::pin(async move {
            let now_ms = self.shared.clock.now_ms();
            let order = self
                .ids
                .next(now_ms)
                .map_err(|error| no_random_bytes(&error))?;
            let pending = |_| Ok(Verdict::Pending(order_id::to_text(order)));
            let asked = self.ask(|to| Op::DecideOne(order, attempt, to), pending);
            asked.await?
        })
    }

    fn order<'a>(&'a self, order_id: &'a OrderId) -> BoxFuture<'a, Result<Outcome, Fault>> {
        Box::pin(self.outcome(order_id))
    }

    fn order_of_key<'a>(
        &'a self,
        sale: &'a SaleId,
        buyer: &'a Buyer,
        key: &'a IdempotencyKey,
    ) -> BoxFuture<'a, Result<Outcome, Fault>> {
        Box::pin(async move {
            self.ask(Op::Barrier, Err).await??;
            let claim = self.shared.memory.load().claim_of_key(sale, buyer, key);
            match claim {
                Some(claim) => self.outcome(&order_id::to_text(claim.order_id)).await,
                None => Ok(Outcome::None),
            }
        })
    }

    fn change_order<'a>(
        &'a self,
        order_id: &'a OrderId,
        change: OrderChange,
    ) -> BoxFuture<'a, Result<Result<Order, OrderRefused>, Fault>> {
        Box::pin(self.change(order_id, change))
    }

    fn create_sale(&self, new: NewSale) -> BoxFuture<'_, Result<Result<Sale, SaleRefused>, Fault>> {
        Box::pin(async move { self.ask(|to| Op::CreateSale(new, to), Err).await? })
    }

    fn change_sale<'a>(
        &'a self,
        id: &'a SaleId,
        change: SaleChange,
    ) -> BoxFuture<'a, Result<Result<Sale, SaleRefused>, Fault>> {
        Box::pin(async move {
            self.ask(|to| Op::ChangeSale(id.clone(), change, to), Err)
                .await?
        })
    }

    fn sale<'a>(&'a self, id: &'a SaleId) -> BoxFuture<'a, Result<Option<SaleStock>, Fault>> {
        Box::pin(async move {
            if !self.shared.is_ready() {
                return Err(self.unavailable());
            }
            let found = self.shared.memory.load().sale(id);
            Ok(found.map(|memory| stock(&memory)))
        })
    }

    fn sales(&self, after: Option<SaleId>) -> BoxFuture<'_, Result<Vec<SaleStock>, Fault>> {
        Box::pin(async move {
            if !self.shared.is_ready() {
                return Err(self.unavailable());
            }
            let memory = self.shared.memory.load();
            let sales = memory.sales.pin();
            let is_after = |id: &SaleId| after.as_ref().is_none_or(|after| id > after);
            let mut page: Vec<SaleStock> = sales
                .iter()
                .filter(|(id, _)| is_after(id))
                .map(|(_, memory)| stock(memory))
                .collect();
            page.sort_unstable_by(|a, b| a.sale.id.cmp(&b.sale.id));
            page.truncate(SALES_PAGE_MAX);
            Ok(page)
        })
    }

    fn events<'a>(
        &'a self,
        sale: &'a SaleId,
        after: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<Event>>, Fault>> {
        Box::pin(self.read_events(sale, after))
    }

    fn audit(&self, history: Vec<HistoryEntry>) -> BoxFuture<'_, Result<AuditReport, Fault>> {
        Box::pin(async move {
            if let Condition::Unavailable(_, reason) = &*self.shared.condition() {
                return self.audit_file_alone(reason.clone(), history).await;
            }
            let view = self.ask(Op::View, Err).await??;
            let audit = move || audit_view(&view.conn, &view.free, &history);
            let audited = tokio::task::spawn_blocking(audit).await;
            let store = |detail: String| Fault::without_effect(Cause::Store, detail);
            audited
                .map_err(|error| store(error.to_string()))?
                .map_err(|error| store(error.to_string()))
        })
    }

    fn components(&self) -> Vec<Component> {
        let detail = match &*self.shared.condition() {
            Condition::Ready => String::new(),
            Condition::Unavailable(_, reason) | Condition::Dead(reason) => reason.clone(),
            Condition::Stopping => "stopping".into(),
        };
        vec![Component {
            name: "store",
            ready: detail.is_empty(),
            detail,
        }]
    }

    fn liveness(&self) -> Result<(), String> {
        match &*self.shared.condition() {
            Condition::Dead(reason) => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    fn samples(&self) -> Vec<Sample> {
        let counts = &self.shared.counts;
        let queued = self.weak_queue.upgrade().map_or(0, |queue| {
            queue.max_capacity().saturating_sub(queue.capacity())
        });
        let counter = |name, help, value| Sample {
            name,
            help,
            is_counter: true,
            value,
        };
        let gauge = |name, help, value| Sample {
            name,
            help,
            is_counter: false,
            value,
        };
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        vec![
            counter(
                "writer_batches",
                "Batches that the writer completed",
                load(&counts.batches),
            ),
            counter(
                "writer_batch_seconds",
                "Time that the writer spent on these batches",
                load(&counts.batch_nanos) / 1e9,
            ),
            counter(
                "writer_failed_batches",
                "Batches that could not be stored",
                load(&counts.failed_batches),
            ),
            counter(
                "rebuilds",
                "Rebuilds of memory from the file",
                load(&counts.rebuilds),
            ),
            gauge(
                "writer_queue_length",
                "Calls waiting for the writer",
                queued as f64,
            ),
            gauge(
                "orders_stored",
                "Orders in the file, in any state",
                load(&counts.orders),
            ),
            gauge(
                "clock_lag_seconds",
                "How far the engine's clock is ahead of the system clock",
                self.shared.clock.lag_ms() as f64 / 1e3,
            ),
        ]
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.stop();
            // What is already queued is still answered. Waiting for that blocks this thread.
            tokio::task::block_in_place(|| self.join());
        })
    }
}
