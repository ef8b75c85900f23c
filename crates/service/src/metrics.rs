//! The metrics and their page. Counting a response must stay a single atomic addition.
//! Names and meanings are part of the public interface, and docs/HTTP.md lists them.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
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

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResponseLabels {
    result: &'static str,
}

pub(crate) struct Metrics {
    registry: Registry,
    /// Indexed by [`ResponseKind`]. Taken out of the family once, because a lookup takes a lock.
    responses: [Counter; ResponseKind::ALL.len()],
    connections: Gauge,
}

impl Metrics {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        let mut registry = Registry::with_prefix("seckill");
        let responses = Family::<ResponseLabels, Counter>::default();
        let help = "Responses to attempts, by result";
        registry.register("responses", help, responses.clone());
        let connections = Gauge::default();
        let help = "Open connections";
        registry.register("connections", help, connections.clone());
        registry.register_collector(Box::new(EngineSamples(engine)));
        Self {
            registry,
            responses: ResponseKind::ALL
                .map(|(_, result)| responses.get_or_create_owned(&ResponseLabels { result })),
            connections,
        }
    }

    pub(crate) fn responded(&self, kind: ResponseKind) {
        self.responses[kind as usize].inc();
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
