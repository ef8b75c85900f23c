//! The buyers: load on any HTTP target, and what came of it.
//! One event loop a thread and two system calls a request, since it shares the machine with what it measures.
//! It knows nothing of engines; of the service it knows only its answers.

mod connection;
mod outcome;
mod plan;
mod report;
mod response;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub use outcome::{Failure, Outcome};
pub use plan::{Buyers, InvalidTarget, Keys, Pacing, Plan, Target};
pub use report::{Confirmation, Latency, Report};

use report::Tally;
use worker::Worker;

/// What is seen of a run while it lasts, and how it is ended early.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests begun.
    pub(crate) begun: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) won: AtomicU64,
    pub(crate) sold_out: AtomicU64,
    pub(crate) failed: AtomicU64,
    stop: AtomicBool,
}

/// The progress at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressCounts {
    /// Requests answered.
    pub answered: u64,
    /// Yeses, repeats among them.
    pub won: u64,
    /// Sold out.
    pub sold_out: u64,
    /// Requests without an answer.
    pub failed: u64,
}

impl Progress {
    /// The counts now.
    pub fn counts(&self) -> ProgressCounts {
        ProgressCounts {
            answered: self.answered.load(Ordering::Relaxed),
            won: self.won.load(Ordering::Relaxed),
            sold_out: self.sold_out.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    /// Begins no further request; the run ends when those under way have ended.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Sends the plan's requests and returns what came of them. Blocks its thread until the end; bounded by the plan's
/// requests, its pacing and its time-out.
pub fn run(plan: &Plan, progress: &Progress) -> std::io::Result<Report> {
    let started = Instant::now();
    let threads = plan.threads.clamp(1, plan.connections.max(1));
    let mut workers = Vec::with_capacity(threads);
    for index in 0..threads {
        // The first workers take what does not divide evenly.
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
    Ok(tally.report(plan, started.elapsed()))
}
