//! Generates load on any HTTP target and collects statistics, at a low cost per request. Must not
//! depend on the engines; of the service, it knows only the API's types.

mod connection;
mod lines;
mod outcome;
mod plan;
mod report;
mod response;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use lines::{Lines, Wanted};
pub use plan::{Buyers, InvalidTarget, Keys, Pacing, Plan, Target};
pub use report::{LoadRun, Refusal};
pub use seckill_api::{LoadFailure as Failure, LoadOutcome as Outcome};

use report::Tally;
use seckill_api::HistoryEntry;
use worker::Worker;

/// Observes a run while it lasts, and stops it early.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests started.
    pub(crate) begun: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) won: AtomicU64,
    pub(crate) sold_out: AtomicU64,
    pub(crate) failed: AtomicU64,
    confirmations: Mutex<Vec<HistoryEntry>>,
    stop: AtomicBool,
}

/// A snapshot of [`Progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressCounts {
    pub answered: u64,
    /// Confirmations, including repeats.
    pub won: u64,
    pub sold_out: u64,
    /// Requests without an answer.
    pub failed: u64,
}

impl Progress {
    pub fn counts(&self) -> ProgressCounts {
        ProgressCounts {
            answered: self.answered.load(Ordering::Relaxed),
            won: self.won.load(Ordering::Relaxed),
            sold_out: self.sold_out.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    /// Takes the confirmations that were kept since the last call.
    pub fn take_confirmations(&self) -> Vec<HistoryEntry> {
        std::mem::take(&mut self.kept())
    }

    pub(crate) fn keep(&self, confirmation: Option<HistoryEntry>) {
        self.kept().extend(confirmation);
    }

    fn kept(&self) -> MutexGuard<'_, Vec<HistoryEntry>> {
        self.confirmations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts no further requests. The run ends once those in flight are done.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Sends the plan's requests and returns the report. Blocks the calling thread until the end, which
/// the plan's requests, pacing and timeout bound.
///
/// Each thread runs one event loop and makes two system calls per request, because the load usually
/// shares the machine with what it measures.
pub fn run(plan: &Plan, progress: &Progress) -> std::io::Result<LoadRun> {
    let started = Instant::now();
    let threads = plan.threads.clamp(1, plan.connections.max(1));
    let mut workers = Vec::with_capacity(threads);
    for index in 0..threads {
        // The first workers take the remainder.
        let connections =
            plan.connections / threads + usize::from(index < plan.connections % threads);
        workers.push(Worker::new(plan, progress, started, connections)?);
    }
    let mut tally = Tally::new();
    let tallies: Vec<std::io::Result<Tally>> = std::thread::scope(|scope| {
        let running: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(|| worker.run()))
            .collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("a load thread panicked")))
        };
        running.into_iter().map(ended).collect()
    });
    for part in tallies {
        tally.add(part?);
    }
    Ok(tally.run(plan, started.elapsed(), progress.take_confirmations()))
}
