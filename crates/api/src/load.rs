//! The output of `seckill load --json` and `seckill demo --json`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{AuditVerdict, Audited};

/// The result of a request that got an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadOutcome {
    /// A confirmation of a new order.
    Won,
    /// A confirmation of the order that the key already has.
    Repeat,
    /// The order of the key was cancelled or has expired.
    Ended,
    /// Not decided yet; the answer has the order's address.
    Pending,
    /// No unit is left.
    SoldOut,
    /// Fewer units are left than the attempt asked for.
    NotEnoughLeft,
    /// The buyer has as many units as the sale allows.
    LimitReached,
    /// The sale has not opened yet.
    NotOpen,
    /// The sale has closed.
    Closed,
    /// The key belongs to an attempt with other content.
    Mismatch,
    /// 503: retry later.
    Unavailable,
    /// Any other success, as other targets answer.
    Ok,
    /// Any other answer.
    Refused,
}

impl LoadOutcome {
    pub const ALL: [Self; 13] = [
        Self::Won,
        Self::Repeat,
        Self::Ended,
        Self::Pending,
        Self::SoldOut,
        Self::NotEnoughLeft,
        Self::LimitReached,
        Self::NotOpen,
        Self::Closed,
        Self::Mismatch,
        Self::Unavailable,
        Self::Ok,
        Self::Refused,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Repeat => "repeat",
            Self::Ended => "ended",
            Self::Pending => "pending",
            Self::SoldOut => "sold_out",
            Self::NotEnoughLeft => "not_enough_left",
            Self::LimitReached => "limit_reached",
            Self::NotOpen => "not_open",
            Self::Closed => "closed",
            Self::Mismatch => "mismatch",
            Self::Unavailable => "unavailable",
            Self::Ok => "ok",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for LoadOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a request has no answer. Except for `connect`, it may still have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadFailure {
    /// No connection could be made; the request was not sent.
    Connect,
    /// The connection closed before the answer was complete.
    BrokenOff,
    /// No complete answer before the deadline.
    TimedOut,
    /// The answer was not HTTP/1.1, or exceeded the size limit.
    NotHttp,
}

impl LoadFailure {
    pub const ALL: [Self; 4] = [
        Self::Connect,
        Self::BrokenOff,
        Self::TimedOut,
        Self::NotHttp,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::BrokenOff => "broken_off",
            Self::TimedOut => "timed_out",
            Self::NotHttp => "not_http",
        }
    }
}

impl fmt::Display for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The time that latency counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyFrom {
    /// When a request was due.
    Intended,
    /// When a request was sent.
    Sent,
}

/// Latency percentiles, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub mean_us: f64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

/// The results of a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests started.
    pub asked: u64,
    pub answered: u64,
    /// Confirmations without repeats.
    pub won: u64,
    pub sold_out: u64,
    /// Requests without an answer.
    pub failed: u64,
    /// Units of the confirmations without repeats; null unless confirmations were kept.
    pub units_won: Option<u64>,
    /// Confirmations, including repeats, that cannot be read or whose units are not exactly those
    /// that the attempt asked for; null unless confirmations were kept.
    pub wrong_units: Option<u64>,
    /// Answers by outcome; outcomes that did not occur are omitted.
    pub outcomes: BTreeMap<LoadOutcome, u64>,
    /// Answers by status code.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without an answer, by cause.
    pub failures: BTreeMap<LoadFailure, u64>,
    /// From the first request to the last answer, in seconds.
    pub elapsed_s: f64,
    pub answers_per_s: f64,
    pub latency_from: LatencyFrom,
    /// Of all answers; null if there were none.
    pub latency: Option<Latency>,
    /// Of confirmations without repeats; null if there were none.
    pub latency_won: Option<Latency>,
}

impl LoadReport {
    pub fn count(&self, outcome: LoadOutcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }
}

/// The results of the demo: the load's, and the audit's with its report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemoReport {
    pub asked: u64,
    pub won: u64,
    pub sold_out: u64,
    pub failed: u64,
    /// Units of the confirmations.
    pub units_won: u64,
    /// Confirmations whose units are not exactly those that the attempt asked for.
    pub wrong_units: u64,
    /// Units that the gate still offers.
    pub gate_left: u64,
    /// Messages in the order log; null if the engine has no log.
    pub log_records: Option<u64>,
    /// Rows in the order store, one for each unit of an order.
    pub store_rows: u64,
    pub oversold: u64,
    pub undersold: u64,
    pub duplicates: u64,
    /// Covers more than the audit's: every request was answered, and the numbers add up.
    pub verdict: AuditVerdict,
    /// Units for sale.
    pub units: u64,
    pub elapsed_s: f64,
    pub latency: Option<Latency>,
    pub outcomes: BTreeMap<LoadOutcome, u64>,
    pub audit: Audited,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AuditReport;
    use crate::testing::is_json;

    fn latency() -> Latency {
        Latency {
            mean_us: 1.5,
            p50_us: 1,
            p90_us: 2,
            p99_us: 3,
            p999_us: 4,
            max_us: 5,
        }
    }

    #[test]
    fn a_load_report_counts_by_name() {
        let report = LoadReport {
            asked: 10,
            answered: 9,
            won: 2,
            sold_out: 7,
            failed: 1,
            units_won: Some(3),
            wrong_units: None,
            outcomes: BTreeMap::from([(LoadOutcome::Won, 2), (LoadOutcome::SoldOut, 7)]),
            statuses: BTreeMap::from([(200, 9)]),
            failures: BTreeMap::from([(LoadFailure::TimedOut, 1)]),
            elapsed_s: 0.5,
            answers_per_s: 18.0,
            latency_from: LatencyFrom::Sent,
            latency: Some(latency()),
            latency_won: None,
        };
        is_json(
            &report,
            r#"{"asked":10,"answered":9,"won":2,"sold_out":7,"failed":1,"units_won":3,"wrong_units":null,"outcomes":{"won":2,"sold_out":7},"statuses":{"200":9},"failures":{"timed_out":1},"elapsed_s":0.5,"answers_per_s":18.0,"latency_from":"sent","latency":{"mean_us":1.5,"p50_us":1,"p90_us":2,"p99_us":3,"p999_us":4,"max_us":5},"latency_won":null}"#,
        );
        assert_eq!(report.count(LoadOutcome::SoldOut), 7);
        assert_eq!(report.count(LoadOutcome::Closed), 0);
    }

    #[test]
    fn names_are_the_same_in_json_and_in_texts() {
        for (index, outcome) in LoadOutcome::ALL.into_iter().enumerate() {
            is_json(&outcome, &format!("\"{outcome}\""));
            assert_eq!(outcome as usize, index);
        }
        for (index, failure) in LoadFailure::ALL.into_iter().enumerate() {
            is_json(&failure, &format!("\"{failure}\""));
            assert_eq!(failure as usize, index);
        }
        is_json(&LatencyFrom::Intended, r#""intended""#);
    }

    #[test]
    fn a_demo_report_has_the_audit() {
        let report = DemoReport {
            asked: 3,
            won: 1,
            sold_out: 2,
            failed: 0,
            units_won: 1,
            wrong_units: 0,
            gate_left: 0,
            log_records: None,
            store_rows: 1,
            oversold: 0,
            undersold: 0,
            duplicates: 0,
            verdict: AuditVerdict::Clean,
            units: 1,
            elapsed_s: 0.5,
            latency: None,
            outcomes: BTreeMap::from([(LoadOutcome::Won, 1), (LoadOutcome::SoldOut, 2)]),
            audit: AuditReport {
                store_rows: 1,
                ..AuditReport::default()
            }
            .into(),
        };
        is_json(
            &report,
            r#"{"asked":3,"won":1,"sold_out":2,"failed":0,"units_won":1,"wrong_units":0,"gate_left":0,"log_records":null,"store_rows":1,"oversold":0,"undersold":0,"duplicates":0,"verdict":"clean","units":1,"elapsed_s":0.5,"latency":null,"outcomes":{"won":1,"sold_out":2},"audit":{"sales":[],"store_rows":1,"events":0,"log_records":null,"in_flight":0,"gate_left":0,"oversold":0,"undersold":0,"duplicates":0,"confirmations_checked":0,"violations":[],"violation_count":0,"notes":[],"verdict":"clean"}}"#,
        );
    }
}
