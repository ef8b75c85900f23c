//! Tracks open connections, so that idle and slow ones can be closed. They share one coarse clock:
//! a timer per request would cost more than all other work for a rejection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Clock ticks per `head_wait_ms`: a connection is closed at most an eighth of it too late.
const TICKS_PER_WAIT: u32 = 8;
const STOPPING_TICK: Duration = Duration::from_millis(20);
/// The value of `waiting_since` while a request is being answered.
const ANSWERING: u32 = u32::MAX;

/// Whether a connection has waited for more than `ticks`. `since` may be later than `now`, because
/// the connection can start to wait after the clock was read.
fn is_late(now: u32, since: u32, ticks: u32) -> bool {
    let waited = now.wrapping_sub(since).cast_signed();
    since != ANSWERING && waited > 0 && waited.cast_unsigned() > ticks
}

#[derive(Debug)]
pub(crate) struct ConnState {
    /// The tick at which it started to wait for a request head, or [`ANSWERING`].
    waiting_since: AtomicU32,
    all: Arc<Connections>,
}

impl ConnState {
    pub(crate) fn answering(&self) {
        self.waiting_since.store(ANSWERING, Ordering::Relaxed);
    }

    pub(crate) fn waiting(&self) {
        // `ANSWERING` is not a tick.
        let now = self.all.tick.load(Ordering::Relaxed).min(ANSWERING - 1);
        self.waiting_since.store(now, Ordering::Relaxed);
    }

    /// Whether the connection closes after the current response.
    pub(crate) fn is_stopping(&self) -> bool {
        self.all.is_stopping.load(Ordering::Relaxed)
    }
}

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
    state: Arc<ConnState>,
    /// `None` until its task has been spawned.
    task: Option<AbortHandle>,
}

/// Removes its connection from the open ones when dropped.
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
    /// The state of a new connection, which waits for its first request.
    pub(crate) fn state(self: &Arc<Self>) -> Arc<ConnState> {
        Arc::new(ConnState {
            waiting_since: AtomicU32::new(self.tick.load(Ordering::Relaxed)),
            all: Arc::clone(self),
        })
    }

    /// Registers a connection before its task is spawned. The task owns the guard.
    pub(crate) fn guard(self: &Arc<Self>, state: Arc<ConnState>) -> ConnGuard {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open().insert(id, Open { state, task: None });
        ConnGuard {
            all: Arc::clone(self),
            id,
        }
    }

    /// Stores the handle that aborts a connection's task, unless the connection is closed already.
    pub(crate) fn keep(&self, id: u64, task: AbortHandle) {
        if let Some(open) = self.open().get_mut(&id) {
            open.task = Some(task);
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes connections that have waited for a request head for longer than `head_wait`. Never
    /// returns.
    pub(crate) async fn reap(&self, head_wait: Duration) {
        let mut ticks = tokio::time::interval(head_wait / TICKS_PER_WAIT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.close_late(TICKS_PER_WAIT);
        }
    }

    /// Lets each connection finish its current response, and returns when no connection is left.
    pub(crate) async fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        while !self.open().is_empty() {
            // A connection that has waited for a whole tick has written its response.
            self.close_late(1);
            tokio::select! {
                () = self.emptied.notified() => {}
                () = tokio::time::sleep(STOPPING_TICK) => {}
            }
        }
    }

    fn close_late(&self, ticks: u32) {
        // The new tick, so that no connection stores a later one during the loop.
        let now = self.tick.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for Open { state, task } in self.open().values() {
            let since = state.waiting_since.load(Ordering::Relaxed);
            let is_late = is_late(now, since, ticks);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_late_only_after_its_ticks() {
        assert!(!is_late(8, 8, 8));
        assert!(!is_late(16, 8, 8));
        assert!(is_late(17, 8, 8));
        // It started to wait after the clock was read.
        assert!(!is_late(7, 8, 8));
        assert!(!is_late(100, ANSWERING, 8));
        // The clock wraps around.
        assert!(!is_late(3, u32::MAX - 3, 8));
        assert!(is_late(6, u32::MAX - 3, 8));
    }

    /// Connections that answer while the clock ticks are in use, so none of them may be closed.
    fn stress(threads: usize) {
        const CONNECTIONS: usize = 64;
        const TICKS: usize = 300;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let all = Arc::new(Connections::default());
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS {
            let state = all.state();
            let guard = all.guard(Arc::clone(&state));
            let task = runtime.spawn(std::future::pending::<()>());
            all.keep(guard.id(), task.abort_handle());
            open.push((state, guard, task));
        }
        let ended = AtomicBool::new(false);
        let passes: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for (thread, passed) in passes.iter().enumerate() {
                let own: Vec<_> = open.iter().skip(thread).step_by(threads).collect();
                let ended = &ended;
                scope.spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        for (state, _, _) in &own {
                            state.answering();
                            state.waiting();
                        }
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..TICKS {
                let before: Vec<u64> = passes.iter().map(|p| p.load(Ordering::Relaxed)).collect();
                all.close_late(TICKS_PER_WAIT);
                // No connection waits for longer than a tick.
                for (passed, before) in passes.iter().zip(before) {
                    while passed.load(Ordering::Relaxed) < before + 2 {
                        std::thread::yield_now();
                    }
                }
            }
            ended.store(true, Ordering::Relaxed);
        });
        runtime.block_on(tokio::task::yield_now());
        let closed = open
            .iter()
            .filter(|(_, _, task)| task.is_finished())
            .count();
        assert_eq!(
            closed, 0,
            "closed of {CONNECTIONS} connections in use, {threads} threads"
        );
    }

    #[test]
    fn no_connection_in_use_is_closed() {
        stress(2);
        stress(4);
    }
}
