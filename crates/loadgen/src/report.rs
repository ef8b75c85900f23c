//! What came of a run: counts by outcome, latency by HDR histogram, and every yes where it is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::outcome::{Failure, Outcome};
use crate::plan::{Pacing, Plan};

/// Longer latencies are counted as this, in microseconds.
const LATENCY_MAX_US: u64 = 600_000_000;

/// A yes that was read, as a line of a history file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The order.
    pub order_id: String,
    /// The sale, where the request named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<String>,
    /// The unit.
    pub unit: u32,
    /// The buyer, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buyer: Option<String>,
    /// The key, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Latency percentiles, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// The arithmetic mean.
    pub mean_us: f64,
    /// Half were at most this.
    pub p50_us: u64,
    /// 90 of 100.
    pub p90_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1,000.
    pub p999_us: u64,
    /// The longest.
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

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests begun.
    pub asked: u64,
    /// Requests that have an answer.
    pub answered: u64,
    /// Yeses.
    pub won: u64,
    /// Sold out.
    pub sold_out: u64,
    /// Requests without an answer.
    pub failed: u64,
    /// Answers by outcome; those that did not occur are left out.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Answers by status code.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer, by cause.
    pub failures: BTreeMap<&'static str, u64>,
    /// From the first request to the last answer, in seconds.
    pub elapsed_s: f64,
    /// Answers a second.
    pub answers_per_s: f64,
    /// `intended` or `sent`: the moment that latency counts from.
    pub latency_from: &'static str,
    /// The latency of all answers.
    pub latency: Option<Latency>,
    /// The latency of confirmations.
    pub latency_won: Option<Latency>,
    /// Every yes, repeats among them, where the plan keeps them.
    #[serde(skip)]
    pub confirmations: Vec<Confirmation>,
}

impl Report {
    /// How often an outcome occurred.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome.as_str()).copied().unwrap_or(0)
    }
}

/// What one thread counts.
pub(crate) struct Tally {
    pub(crate) begun: u64,
    outcomes: [u64; Outcome::ALL.len()],
    failures: [u64; Failure::ALL.len()],
    statuses: BTreeMap<u16, u64>,
    /// The status that is counted without a look into the map: most answers have the same.
    latest: (u16, u64),
    all: Histogram<u64>,
    won: Histogram<u64>,
    pub(crate) confirmations: Vec<Confirmation>,
}

fn histogram() -> Histogram<u64> {
    // Three digits between 1 µs and the maximum: fixed arguments that are valid.
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
            confirmations: Vec::new(),
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
        // Equal bounds on both sides: adding cannot fail.
        let added = self.all.add(&other.all).and(self.won.add(&other.won));
        debug_assert!(added.is_ok());
        self.confirmations.append(&mut other.confirmations);
    }

    pub(crate) fn report(self, plan: &Plan, elapsed: Duration) -> Report {
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
            confirmations: self.confirmations,
        }
    }
}
