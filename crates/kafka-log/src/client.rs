//! What all clients of Kafka have in common: their settings, and where their errors go.

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext};
use seckill_engine::{Cause, Fault};

use crate::condition::LogCondition;
use crate::options::LogOptions;

/// Routes librdkafka's logs and errors to tracing and to a [`LogCondition`].
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientEvents(pub(crate) LogCondition);

impl ClientContext for ClientEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // librdkafka logs once per broker and attempt. Operators see the condition instead.
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        // AllBrokersDown follows any broker failure. An earlier error is more specific.
        let is_general = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if !is_general || self.0.trouble().is_none() {
            self.0.fails(reason.to_owned());
        }
    }
}

impl ConsumerContext for ClientEvents {}

/// Builds a client configuration. Later layers override earlier ones: common settings, `own`, the
/// user's `kafka_properties`, and `fixed` settings that must not change.
pub(crate) fn client(
    options: &LogOptions,
    own: &[(&str, &str)],
    fixed: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    let common = [
        ("bootstrap.servers", options.brokers.as_str()),
        ("client.id", "seckill"),
        ("socket.nagle.disable", "true"),
        ("reconnect.backoff.ms", "50"),
        ("reconnect.backoff.max.ms", "1000"),
        // A new topic is not known to all brokers immediately.
        ("topic.metadata.refresh.interval.ms", "500"),
    ];
    let user = options
        .properties
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let fixed = [("allow.auto.create.topics", "false")]
        .into_iter()
        .chain(fixed.iter().copied());
    for (name, value) in common
        .into_iter()
        .chain(own.iter().copied())
        .chain(user)
        .chain(fixed)
    {
        config.set(name, value);
    }
    config
}

pub(crate) fn fault(options: &LogOptions, error: &KafkaError, next: &str) -> Fault {
    let Some(code) = error.rdkafka_error_code() else {
        return Fault::without_effect(
            Cause::Store,
            format!("Kafka at {}: {error}{next}", options.brokers),
        );
    };
    Fault::without_effect(
        Cause::Store,
        format!("Kafka at {}: {code}{next}", options.brokers),
    )
}
