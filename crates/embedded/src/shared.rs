//! The state that requests and the writer share: memory, the condition, the clock and the counts.
//! Reading it must never wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use seckill_engine::Cause;

use crate::clock::Clock;
use crate::memory::Memory;

/// Whether the engine can sell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    Ready,
    /// It cannot, and retries reading the file until it can. The reason is for operators.
    Unavailable(Cause, String),
    Stopping,
    /// The writer has stopped unexpectedly. Only a restart helps.
    Dead(String),
}

/// Counts of the writer's work since startup, and the number of orders in the file.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) batches: AtomicU64,
    pub(crate) batch_nanos: AtomicU64,
    pub(crate) failed_batches: AtomicU64,
    pub(crate) rebuilds: AtomicU64,
    pub(crate) orders: AtomicU64,
}

impl Counts {
    pub(crate) fn batch(&self, took: Duration) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        let took_nanos = took.as_nanos() as u64;
        self.batch_nanos.fetch_add(took_nanos, Ordering::Relaxed);
    }
}

pub(crate) struct Shared {
    pub(crate) memory: ArcSwap<Memory>,
    pub(crate) clock: Clock,
    pub(crate) counts: Counts,
    /// Whether the condition is `Ready`, in a form that is cheap to read for each rejection.
    is_ready: AtomicBool,
    condition: ArcSwap<Condition>,
}

impl Shared {
    pub(crate) fn new(memory: Memory) -> Self {
        Self {
            memory: ArcSwap::from_pointee(memory),
            clock: Clock::default(),
            counts: Counts::default(),
            is_ready: AtomicBool::new(true),
            condition: ArcSwap::from_pointee(Condition::Ready),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    pub(crate) fn condition(&self) -> Arc<Condition> {
        self.condition.load_full()
    }

    /// Sets the condition. `Dead` is final, and only `Dead` can follow `Stopping`.
    pub(crate) fn set_condition(&self, condition: Condition) {
        let next = Arc::new(condition);
        self.condition.rcu(|now| match (&**now, &*next) {
            (Condition::Dead(_), _) => Arc::clone(now),
            (Condition::Stopping, next) if !matches!(next, Condition::Dead(_)) => Arc::clone(now),
            _ => Arc::clone(&next),
        });
        let is_ready = *self.condition() == Condition::Ready;
        self.is_ready.store(is_ready, Ordering::Release);
    }
}
