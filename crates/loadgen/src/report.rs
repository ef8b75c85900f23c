//! The results of a run: counts by outcome, latency from HDR histograms, and, if the plan asks for
//! them, all confirmations.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::outcome::{Failure, Outcome};
use crate::plan::{Pacing, Plan};

/// Longer latencies are recorded as this value.
const LATENCY_MAX_US: u64 = 600_000_000;

/// A confirmation that a client read: one line of a history file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    pub order_id: String,
    /// `None` if the request named no sale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<String>,
    pub unit: u32,
    /// `None` if the request named no buyer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buyer: Option<String>,
    /// `None` if the request had no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Latency percentiles, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    pub mean_us: f64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Some(Self {
            mean_us: histogram.mean(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max(),
        })
    }
}

/// The results of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests started.
    pub asked: u64,
    pub answered: u64,
    /// Confirmations without repeats.
    pub won: u64,
    pub sold_out: u64,
    /// Requests without an answer.
    pub failed: u64,
    /// Answers by outcome; outcomes that did not occur are omitted.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Answers by status code.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer, by cause.
    pub failures: BTreeMap<&'static str, u64>,
    /// From the first request to the last answer.
    pub elapsed_s: f64,
    pub answers_per_s: f64,
    /// `intended` or `sent`: the time that latency counts from.
    pub latency_from: &'static str,
    /// Of all answers; `None` if there were none.
    pub latency: Option<Latency>,
    /// Of confirmations without repeats; `None` if there were none.
    pub latency_won: Option<Latency>,
    /// Every confirmation, including repeats, if the plan keeps them and they were not taken yet.
    #[serde(skip)]
    pub confirmations: Vec<Confirmation>,
}

impl Report {
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome.as_str()).copied().unwrap_or(0)
    }
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

    pub(crate) fn report(
        self,
        plan: &Plan,
        elapsed: Duration,
        confirmations: Vec<Confirmation>,
    ) -> Report {
        let answered = self.outcomes.iter().sum();
        let elapsed_s = elapsed.as_secs_f64();
        let outcomes = Outcome::ALL
            .into_iter()
            .map(Outcome::as_str)
            .zip(self.outcomes);
        let failures = Failure::ALL
            .into_iter()
            .map(Failure::as_str)
            .zip(self.failures);
        Report {
            asked: self.begun,
            answered,
            won: self.outcomes[Outcome::Won as usize],
            sold_out: self.outcomes[Outcome::SoldOut as usize],
            failed: self.failures.iter().sum(),
            outcomes: outcomes.filter(|(_, count)| *count > 0).collect(),
            statuses: self.statuses,
            failures: failures.filter(|(_, count)| *count > 0).collect(),
            elapsed_s,
            answers_per_s: answered as f64 / elapsed_s.max(f64::MIN_POSITIVE),
            latency_from: match plan.pacing {
                Pacing::Closed => "sent",
                Pacing::Over(_) => "intended",
            },
            latency: Latency::of(&self.all),
            latency_won: Latency::of(&self.won),
            confirmations,
        }
    }
}
