//! The port, as the embedded engine answers it: rejections from memory, everything else through the
//! writer's queue. No decision is made here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fail_parallel::FailPointRegistry;
use seckill_engine::{
    BoxFuture, Cause, Component, DECIDE_MAX, Engine, Fault, OrderRefused, Outcome, SALES_PAGE_MAX,
    SaleRefused, SaleStock, Sample,
};
use seckill_sale::{
    Attempt, AuditReport, Buyer, HistoryEntry, IdempotencyKey, NewSale, Order, OrderChange,
    OrderId, Sale, SaleChange, SaleId, Verdict,
};
use tokio::sync::{mpsc, oneshot};

use crate::audit::audit_view;
use crate::file::lock::FolderLock;
use crate::file::schema::Tuning;
use crate::file::{DATABASE_FILE, FileError, LockOwner, rows};
use crate::memory::Digester;
use crate::opened::Opened;
use crate::order_id::{self, OrderIds};
use crate::readers::Readers;
use crate::shared::{Condition, Shared};
use crate::writer::{self, Bounds, Op, Writer};

/// How often the writer checks the file, and the clock the system's, when nothing else asks.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// The settings of an engine. Each bound has the name that it has in the configuration file.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The data folder. Made if it does not exist.
    pub dir: PathBuf,
    /// How this process describes itself to one that finds the folder in use.
    pub owner: LockOwner,
    /// The most calls that wait for the writer; more are answered 503.
    pub queue_max: usize,
    /// The most calls that the writer takes into one transaction.
    pub batch_max: usize,
    /// The longest wait of a call for its answer, in milliseconds.
    pub answer_wait_ms: u64,
    /// The longest wait for another program's lock on the file, in milliseconds.
    pub busy_wait_ms: u32,
    /// The longest pause between two tries to read a file that cannot be used, in milliseconds.
    pub rebuild_pause_max_ms: u64,
    /// SQLite's page cache, in KiB.
    pub cache_kib: u32,
    /// Pages in SQLite's write-ahead log at which they are moved to the main file.
    pub checkpoint_pages: u32,
    /// SQLite's file system by name, for tests that simulate one; `None` means the system's.
    pub vfs: Option<String>,
    /// Where a test can make writes fail. Without effect unless compiled in.
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
    /// The same queue without the lock, for the path of an attempt.
    weak_queue: mpsc::WeakSender<Op>,
    writer: Mutex<Option<JoinHandle<()>>>,
    _lock: FolderLock,
}

impl EmbeddedEngine {
    /// Locks the folder, opens or makes the file, and rebuilds memory from it. To be called inside a
    /// tokio runtime.
    pub fn open(options: EmbeddedOptions) -> Result<Self, FileError> {
        let lock = FolderLock::take(&options.dir, &options.owner)?;
        // Absolute, so that the file is found also where the process changes its folder.
        let system = |error: std::io::Error| FileError::Folder {
            path: options.dir.clone(),
            error,
        };
        let path = std::path::absolute(options.dir.join(DATABASE_FILE)).map_err(system)?;
        let tuning = Tuning {
            busy_wait_ms: options.busy_wait_ms,
            cache_kib: options.cache_kib,
            checkpoint_pages: options.checkpoint_pages,
            vfs: options.vfs.as_deref().map(Into::into),
        };
        let digester = Digester::new().map_err(|error| system(std::io::Error::other(error)))?;
        let (opened, memory) = Opened::open(&path, &tuning, digester)?;
        let answer_wait = Duration::from_millis(options.answer_wait_ms);
        let shared = Arc::new(Shared::new(memory));
        shared.counts.orders.store(opened.orders, Ordering::Relaxed);
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
                    let _reports_the_end = guard;
                    writer.run(waiting);
                }
            })
            .map_err(system)?;
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

    /// Why the writer cannot be asked now.
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

    /// Asks the writer and waits. `waited` makes the answer if the deadline or the writer's end comes
    /// first.
    async fn ask<T>(
        &self,
        op: impl FnOnce(oneshot::Sender<T>) -> Op,
        waited: impl FnOnce(Fault) -> T,
    ) -> Result<T, Fault> {
        let (to, answer) = oneshot::channel();
        self.enqueue(op(to))?;
        let lost = |cause, detail: &str| Fault::unknown(cause, detail);
        Ok(match tokio::time::timeout(self.answer_wait, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => waited(lost(
                Cause::Stopping,
                "the engine stopped before it answered",
            )),
            Err(_) => waited(lost(Cause::Deadline, "no answer within the time allowed")),
        })
    }

    /// Reads an order from the file, beside the writer.
    async fn read_order(&self, text: &str) -> Result<Option<Order>, Fault> {
        let text = text.to_owned();
        let found = self
            .readers
            .query(move |conn| rows::order_by_id(conn, &text))
            .await?;
        let damaged = |detail| Fault::without_effect(Cause::Store, detail);
        Ok(found
            .transpose()
            .map_err(damaged)?
            .map(|stored| stored.order))
    }

    async fn outcome(&self, order_id: &OrderId) -> Result<Outcome, Fault> {
        let Some(id) = order_id::from_text(order_id.as_str()) else {
            return Ok(Outcome::None);
        };
        if let Some(order) = self.read_order(order_id.as_str()).await? {
            return Ok(Outcome::Order(order));
        }
        let made_at_ms = order_id::made_at_ms(id);
        // No engine made an id of the future. Asking the writer for it would only cost.
        if made_at_ms > self.shared.clock.now_ms() {
            return Ok(Outcome::None);
        }
        if !self.shared.is_ready() {
            return Ok(Outcome::Pending);
        }
        // An attempt of an earlier run is in the file or nowhere. One of this run may still be on its
        // way to the writer: absence counts only once everything before it has been answered.
        if made_at_ms < self.started_ms {
            return Ok(Outcome::None);
        }
        // Only a barrier that was passed proves anything: after a deadline or a failed batch the
        // order may still appear.
        if self.ask(Op::Barrier, Err).await?.is_err() {
            return Ok(Outcome::Pending);
        }
        match self.read_order(order_id.as_str()).await? {
            Some(order) => Ok(Outcome::Order(order)),
            None => Ok(Outcome::None),
        }
    }

    /// Reads first: what is no order, or cannot be changed, costs the writer nothing.
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
            tracing::error!("the writer panicked; the file has what it had committed");
        }
    }
}

impl Drop for EmbeddedEngine {
    /// The folder is unlocked only after the writer has ended.
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

fn no_random_bytes(error: &getrandom::Error) -> Fault {
    let detail = format!("the system returned no random bytes: {error}");
    Fault::without_effect(Cause::Store, detail)
}

/// Reports that the writer has ended, also by a panic: nothing can be sold without it.
struct WriterGuard(Arc<Shared>);

impl Drop for WriterGuard {
    fn drop(&mut self) {
        if *self.0.condition() == Condition::Stopping && !std::thread::panicking() {
            return;
        }
        let reason = "the writer thread ended; restart the service";
        tracing::error!("{reason}");
        self.0.set_condition(Condition::Dead(reason.to_owned()));
    }
}

/// Has the writer check the file when no attempt does: a sold-out sale is answered from memory, and
/// must notice that another program released a unit, or that the file is gone.
async fn check_regularly(shared: Arc<Shared>, queue: mpsc::WeakSender<Op>) {
    let mut checks = tokio::time::interval(CHECK_EVERY);
    checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        shared.clock.follow_system();
        let Some(queue) = queue.upgrade() else { return };
        let (to, _no_one_waits) = oneshot::channel();
        // A full queue means that the writer checks anyway.
        let _ = queue.try_send(Op::Barrier(to));
    }
}

/// Sends responses from inside the runtime, where waking a request costs no system call.
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
            let all = |fault: &Fault| vec![Err(fault.clone()); count];
            if count > DECIDE_MAX {
                let detail = format!("{count} attempts in one call; the maximum is {DECIDE_MAX}");
                return all(&Fault::without_effect(Cause::Overloaded, detail));
            }
            let now_ms = self.shared.clock.now_ms();
            let named: Result<Vec<_>, _> = attempts
                .into_iter()
                .map(|attempt| Ok::<_, getrandom::Error>((self.ids.next(now_ms)?, attempt)))
                .collect();
            let named = match named {
                Ok(named) => named,
                Err(error) => return all(&no_random_bytes(&error)),
            };
            let orders: Vec<u128> = named.iter().map(|(order, _)| *order).collect();
            let pending = |&order: &u128| Ok(Verdict::Pending(order_id::to_text(order)));
            let asked = self
                .ask(
                    |to| Op::Decide(named, to),
                    |_| orders.iter().map(pending).collect(),
                )
                .await;
            asked.unwrap_or_else(|fault| all(&fault))
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
                Some(claim) => self.outcome(&order_id::to_text(claim.order)).await,
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
            Ok(found.map(|memory| SaleStock {
                sale: Sale::clone(&memory.terms.load()),
                free: memory.free(),
            }))
        })
    }

    fn sales(&self, after: Option<SaleId>) -> BoxFuture<'_, Result<Vec<SaleStock>, Fault>> {
        Box::pin(async move {
            if !self.shared.is_ready() {
                return Err(self.unavailable());
            }
            let memory = self.shared.memory.load();
            let sales = memory.sales.pin();
            let behind = |id: &SaleId| after.as_ref().is_none_or(|after| id > after);
            let mut page: Vec<SaleStock> = sales
                .iter()
                .filter(|(id, _)| behind(id))
                .map(|(_, memory)| SaleStock {
                    sale: Sale::clone(&memory.terms.load()),
                    free: memory.free(),
                })
                .collect();
            page.sort_unstable_by(|a, b| a.sale.id.cmp(&b.sale.id));
            page.truncate(SALES_PAGE_MAX);
            Ok(page)
        })
    }

    fn audit(&self, history: Vec<HistoryEntry>) -> BoxFuture<'_, Result<AuditReport, Fault>> {
        Box::pin(async move {
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
                "Batches that the writer has finished",
                load(&counts.batches),
            ),
            counter(
                "writer_batch_seconds",
                "Time that the writer has spent in these batches",
                load(&counts.batch_nanos) / 1e9,
            ),
            counter(
                "writer_failed_batches",
                "Batches that could not be stored",
                load(&counts.failed_batches),
            ),
            counter(
                "rebuilds",
                "How often memory was rebuilt from the file",
                load(&counts.rebuilds),
            ),
            gauge(
                "writer_queue_length",
                "Calls that wait for the writer",
                queued as f64,
            ),
            gauge(
                "orders_stored",
                "Orders in the file, in any state",
                load(&counts.orders),
            ),
            gauge(
                "clock_lag_seconds",
                "How far the engine's clock is ahead of the system's",
                self.shared.clock.lag_ms() as f64 / 1e3,
            ),
        ]
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.stop();
            // What was queued before is still answered, and waiting for it would block this thread.
            tokio::task::block_in_place(|| self.join());
        })
    }
}
