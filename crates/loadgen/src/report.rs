//! The results of a run: counts by outcome, latency from HDR histograms, and, if the plan asks for
//! them, all confirmations.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use seckill_api::{
    HistoryEntry, Latency, LatencyFrom, LoadFailure as Failure, LoadOutcome as Outcome, LoadReport,
    Problem,
};

use crate::plan::{Pacing, Plan};

/// Longer latencies are recorded as this value.
const LATENCY_MAX_US: u64 = 600_000_000;

/// The results of a run.
#[derive(Debug, Clone)]
pub struct LoadRun {
    pub report: LoadReport,
    /// Every confirmation, including repeats, if the plan keeps them and they were not taken yet.
    pub confirmations: Vec<HistoryEntry>,
    /// One of the first answers that were refused.
    pub refusal: Option<Refusal>,
}

/// An answer that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// `None` if the body is not a problem of the service.
    pub problem: Option<Problem>,
}

fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    if histogram.is_empty() {
        return None;
    }
    let at = |quantile| histogram.value_at_quantile(quantile);
    Some(Latency {
        mean_us: histogram.mean(),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: histogram.max(),
    })
}

/// The counts of one thread.
pub(crate) struct Tally {
    pub(crate) begun: u64,
    outcomes: [u64; Outcome::ALL.len()],
    failures: [u64; Failure::ALL.len()],
    statuses: BTreeMap<u16, u64>,
    /// The latest status and its count. Most answers have the same status, which saves map lookups.
    latest: (u16, u64),
    all: Histogram<u64>,
    won: Histogram<u64>,
    units_won: u64,
    wrong_units: u64,
    /// The first answer that was refused.
    refusal: Option<Refusal>,
}

fn histogram() -> Histogram<u64> {
    // Three significant digits from 1 µs to the maximum: these constants are valid arguments.
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
        .unwrap_or_else(|error| unreachable!("constant bounds: {error}"))
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            begun: 0,
            outcomes: [0; Outcome::ALL.len()],
            failures: [0; Failure::ALL.len()],
            statuses: BTreeMap::new(),
            latest: (0, 0),
            all: histogram(),
            won: histogram(),
            units_won: 0,
            wrong_units: 0,
            refusal: None,
        }
    }

    pub(crate) fn answered(&mut self, status: u16, outcome: Outcome, latency: Duration) {
        self.outcomes[outcome as usize] += 1;
        if self.latest.0 != status {
            self.count_latest();
            self.latest.0 = status;
        }
        self.latest.1 += 1;
        let latency_us = latency.as_micros() as u64;
        self.all.saturating_record(latency_us.max(1));
        if outcome == Outcome::Won {
            self.won.saturating_record(latency_us.max(1));
        }
    }

    /// Counts the units of a confirmation. One that cannot be read has none, and is not whole.
    pub(crate) fn confirmed(&mut self, outcome: Outcome, units: u64, is_whole: bool) {
        if outcome == Outcome::Won {
            self.units_won += units;
        }
        self.wrong_units += u64::from(!is_whole);
    }

    /// Remembers the answer if it is the first that was refused.
    pub(crate) fn refused(&mut self, status: u16, body: &[u8]) {
        self.refusal.get_or_insert_with(|| Refusal {
            status,
            problem: serde_json::from_slice(body).ok(),
        });
    }

    fn count_latest(&mut self) {
        let (status, count) = std::mem::take(&mut self.latest);
        if count > 0 {
            *self.statuses.entry(status).or_default() += count;
        }
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        self.failures[failure as usize] += 1;
    }

    pub(crate) fn add(&mut self, mut other: Self) {
        other.count_latest();
        self.begun += other.begun;
        self.units_won += other.units_won;
        self.wrong_units += other.wrong_units;
        self.refusal = self.refusal.take().or(other.refusal);
        for (mine, theirs) in self.outcomes.iter_mut().zip(other.outcomes) {
            *mine += theirs;
        }
        for (mine, theirs) in self.failures.iter_mut().zip(other.failures) {
            *mine += theirs;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        // Both sides have the same bounds, so adding cannot fail.
        let added = self.all.add(&other.all).and(self.won.add(&other.won));
        debug_assert!(added.is_ok());
    }

    pub(crate) fn run(
        self,
        plan: &Plan,
        elapsed: Duration,
        confirmations: Vec<HistoryEntry>,
    ) -> LoadRun {
        let answered = self.outcomes.iter().sum();
        let elapsed_s = elapsed.as_secs_f64();
        let outcomes = Outcome::ALL.into_iter().zip(self.outcomes);
        let failures = Failure::ALL.into_iter().zip(self.failures);
        let report = LoadReport {
            asked: self.begun,
            answered,
            won: self.outcomes[Outcome::Won as usize],
            sold_out: self.outcomes[Outcome::SoldOut as usize],
            failed: self.failures.iter().sum(),
            units_won: plan.keep_confirmations.then_some(self.units_won),
            wrong_units: plan.keep_confirmations.then_some(self.wrong_units),
            outcomes: outcomes.filter(|(_, count)| *count > 0).collect(),
            statuses: self.statuses,
            failures: failures.filter(|(_, count)| *count > 0).collect(),
            elapsed_s,
            answers_per_s: answered as f64 / elapsed_s.max(f64::MIN_POSITIVE),
            latency_from: match plan.pacing {
                Pacing::Closed => LatencyFrom::Sent,
                Pacing::Over(_) => LatencyFrom::Intended,
            },
            latency: latency(&self.all),
            latency_won: latency(&self.won),
        };
        LoadRun {
            report,
            confirmations,
            refusal: self.refusal,
        }
    }
}
