//! The metrics and their page. Counting a response must stay a single atomic addition.
//! Names and meanings are part of the public interface, and docs/HTTP.md lists them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use seckill_engine::Engine;
use seckill_sale::{Rejection, Verdict};

/// The values of the label `result` of `seckill_responses_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseKind {
    Won,
    Repeat,
    Ended,
    Pending,
    Accepted,
    SoldOut,
    NotEnoughLeft,
    LimitReached,
    NotOpen,
    Closed,
    Mismatch,
    Invalid,
    Fault,
}

impl ResponseKind {
    const ALL: [(Self, &'static str); 13] = [
        (Self::Won, "won"),
        (Self::Repeat, "repeat"),
        (Self::Ended, "ended"),
        (Self::Pending, "pending"),
        (Self::Accepted, "accepted"),
        (Self::SoldOut, "sold_out"),
        (Self::NotEnoughLeft, "not_enough_left"),
        (Self::LimitReached, "limit_reached"),
        (Self::NotOpen, "not_open"),
        (Self::Closed, "closed"),
        (Self::Mismatch, "mismatch"),
        (Self::Invalid, "invalid"),
        (Self::Fault, "fault"),
    ];

    pub(crate) fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Claimed(_) => Self::Won,
            Verdict::Repeat { state, .. } if state.is_active() => Self::Repeat,
            Verdict::Repeat { .. } => Self::Ended,
            Verdict::Pending(_) => Self::Pending,
            Verdict::Accepted(_) => Self::Accepted,
            Verdict::Mismatch => Self::Mismatch,
            Verdict::Invalid(_) => Self::Invalid,
            Verdict::Rejected(Rejection::SoldOut) => Self::SoldOut,
            Verdict::Rejected(Rejection::NotEnoughLeft { .. }) => Self::NotEnoughLeft,
            Verdict::Rejected(Rejection::LimitReached { .. }) => Self::LimitReached,
            Verdict::Rejected(Rejection::NotOpen { .. }) => Self::NotOpen,
            Verdict::Rejected(Rejection::Closed { .. }) => Self::Closed,
        }
    }
}

/// The responses of one event loop. Aligned so that loops on different cores do not write to the same
/// cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ResponseCounts([AtomicU64; ResponseKind::ALL.len()]);

impl ResponseCounts {
    pub(crate) fn responded(&self, kind: ResponseKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) struct Metrics {
    registry: Registry,
    loops: Vec<Arc<ResponseCounts>>,
    connections: Gauge,
}

impl Metrics {
    pub(crate) fn new(engine: Arc<dyn Engine>, loops: usize) -> Self {
        let mut registry = Registry::with_prefix("seckill");
        let loops: Vec<Arc<ResponseCounts>> = (0..loops).map(|_| Arc::default()).collect();
        registry.register_collector(Box::new(Responses(loops.clone())));
        let connections = Gauge::default();
        let help = "Open connections";
        registry.register("connections", help, connections.clone());
        registry.register_collector(Box::new(EngineSamples(engine)));
        Self {
            registry,
            loops,
            connections,
        }
    }

    /// The counts for each event loop.
    pub(crate) fn loops(&self) -> &[Arc<ResponseCounts>] {
        &self.loops
    }

    pub(crate) fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// The metrics in the OpenMetrics text format.
    pub(crate) fn page(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

/// The sum of all loops.
#[derive(Debug)]
struct Responses(Vec<Arc<ResponseCounts>>);

impl Collector for Responses {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Responses to attempts, by result";
        let mut family = encoder.encode_descriptor("responses", help, None, MetricType::Counter)?;
        for (kind, result) in ResponseKind::ALL {
            let count =
                |counts: &Arc<ResponseCounts>| counts.0[kind as usize].load(Ordering::Relaxed);
            let counter = ConstCounter::new(self.0.iter().map(count).sum::<u64>());
            counter.encode(family.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}

struct EngineSamples(Arc<dyn Engine>);

impl std::fmt::Debug for EngineSamples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EngineSamples")
    }
}

impl Collector for EngineSamples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for sample in self.0.samples() {
            let (counter, gauge);
            let metric: (&dyn Encode, _) = if sample.is_counter {
                counter = ConstCounter::new(sample.value);
                (&counter, counter.metric_type())
            } else {
                gauge = ConstGauge::new(sample.value);
                (&gauge, gauge.metric_type())
            };
            let row = encoder.encode_descriptor(sample.name, sample.help, None, metric.1)?;
            metric.0.encode_to(row)?;
        }
        Ok(())
    }
}

/// [`EncodeMetric`] in a form that works behind a pointer.
trait Encode {
    fn encode_to(&self, row: prometheus_client::encoding::MetricEncoder<'_>) -> std::fmt::Result;
}

impl<M: EncodeMetric> Encode for M {
    fn encode_to(&self, row: prometheus_client::encoding::MetricEncoder<'_>) -> std::fmt::Result {
        self.encode(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_indexes_its_own_counter() {
        for (index, (kind, _)) in ResponseKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
    }
}
