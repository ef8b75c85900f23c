//! Requests that wait for the store, and counts of those that wait for it and for the gate.

use std::sync::atomic::{AtomicU64, AtomicUsize};

use seckill_engine::Reply;
use seckill_sale::Claim;
use tokio::time::Instant;

/// A request that waits for a claim.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) claim: Claim,
    pub(crate) is_repeat: bool,
    pub(crate) since: Instant,
}

/// Counts of calls to the gate since the start of the process.
#[derive(Debug, Default)]
pub(crate) struct DecidingCounts {
    pub(crate) waiting: AtomicUsize,
    pub(crate) calls: AtomicU64,
    pub(crate) attempts: AtomicU64,
    pub(crate) call_us: AtomicU64,
    pub(crate) failed_calls: AtomicU64,
}

/// Counts of claims that wait for the store since the start of the process.
#[derive(Debug, Default)]
pub(crate) struct ConfirmingCounts {
    pub(crate) waiting: AtomicUsize,
    pub(crate) queries: AtomicU64,
    pub(crate) settled: AtomicU64,
}

pub(crate) type Waiters = Vec<(Waiter, Reply)>;
