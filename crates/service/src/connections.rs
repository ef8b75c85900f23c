//! The open connections: which wait for a request and since when, so that idle and slow ones can be ended.
//! One coarse clock for all: a timer for each request would cost more than the rest of a no.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The clock's ticks in one `head_wait_ms`: a connection is ended at most an eighth too late.
const TICKS_A_WAIT: u32 = 8;
/// The clock's tick while stopping.
const STOPPING_TICK: Duration = Duration::from_millis(20);
/// The mark of a connection whose request is being answered.
const ANSWERING: u32 = u32::MAX;

/// One connection's mark.
#[derive(Debug)]
pub(crate) struct ConnState {
    /// The tick at which it began to wait for a request's head, or [`ANSWERING`].
    waiting_since: AtomicU32,
    all: Arc<Connections>,
}

impl ConnState {
    /// Its request is being answered.
    pub(crate) fn answering(&self) {
        self.waiting_since.store(ANSWERING, Ordering::Relaxed);
    }

    /// It waits for the next request.
    pub(crate) fn waiting(&self) {
        let now = self.all.tick.load(Ordering::Relaxed);
        self.waiting_since.store(now, Ordering::Relaxed);
    }

    /// Whether its answer is to be its last.
    pub(crate) fn is_stopping(&self) -> bool {
        self.all.is_stopping.load(Ordering::Relaxed)
    }
}

/// All connections of a service.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    tick: AtomicU32,
    is_stopping: AtomicBool,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
    emptied: Notify,
}

#[derive(Debug)]
struct Open {
    watch: Arc<ConnState>,
    /// None until its task has been started.
    task: Option<AbortHandle>,
}

/// A connection's place among the open ones; it goes with the connection.
#[derive(Debug)]
pub(crate) struct ConnGuard {
    all: Arc<Connections>,
    id: u64,
}

impl Drop for ConnGuard {
    fn drop(&mut self) {
        let mut open = self.all.open();
        open.remove(&self.id);
        if open.is_empty() {
            self.all.emptied.notify_waiters();
        }
    }
}

impl Connections {
    /// A new connection's mark: it waits for its first request.
    pub(crate) fn watch(self: &Arc<Self>) -> Arc<ConnState> {
        Arc::new(ConnState {
            waiting_since: AtomicU32::new(self.tick.load(Ordering::Relaxed)),
            all: Arc::clone(self),
        })
    }

    /// Takes the connection's place, before its task starts: the task gives it up whenever it ends.
    pub(crate) fn place(self: &Arc<Self>, watch: Arc<ConnState>) -> ConnGuard {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open().insert(id, Open { watch, task: None });
        ConnGuard {
            all: Arc::clone(self),
            id,
        }
    }

    /// Keeps the means to end it, unless it has ended already.
    pub(crate) fn keep(&self, id: u64, task: AbortHandle) {
        if let Some(open) = self.open().get_mut(&id) {
            open.task = Some(task);
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends whatever has waited for a request's head longer than `head_wait`; never returns.
    pub(crate) async fn reap(&self, head_wait: Duration) {
        let mut ticks = tokio::time::interval(head_wait / TICKS_A_WAIT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.end_waiting(TICKS_A_WAIT);
        }
    }

    /// Lets each connection finish the answer it is at, and returns when none is left.
    pub(crate) async fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        while !self.open().is_empty() {
            // One whole tick after an answer was made, it has been written.
            self.end_waiting(1);
            tokio::select! {
                () = self.emptied.notified() => {}
                () = tokio::time::sleep(STOPPING_TICK) => {}
            }
        }
    }

    fn end_waiting(&self, ticks: u32) {
        let now = self.tick.fetch_add(1, Ordering::Relaxed);
        for Open { watch, task } in self.open().values() {
            let since = watch.waiting_since.load(Ordering::Relaxed);
            let is_late = since != ANSWERING && now.wrapping_sub(since) > ticks;
            if let Some(task) = task.as_ref().filter(|_| is_late) {
                task.abort();
            }
        }
    }
}

impl ConnGuard {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}
