//! The order log: the Kafka topic that carries claims to the store. Made, written, read; what a record means is not its.

pub(crate) mod consumer;
pub(crate) mod producer;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext};
use seckill_engine::{Cause, Fault};

use crate::options::ClusterOptions;

const ADMIN_WAIT: Duration = Duration::from_secs(10);

/// What Kafka's library complains of; kept, so that a page can tell why nothing moves.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogCondition(Arc<Mutex<Option<String>>>);

impl LogCondition {
    /// The latest complaint since all was well.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn is_well(&self) {
        *self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    pub(crate) fn fails(&self, why: String) {
        *self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(why);
    }
}

/// Turns the library's own words into ours.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words(pub(crate) LogCondition);

impl ClientContext for Words {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // The library repeats itself for each broker and each try; the condition below is what people read.
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        self.0.fails(reason.to_owned());
    }
}

impl ConsumerContext for Words {}

/// What all clients of the log have in common.
pub(crate) fn client(options: &ClusterOptions) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.kafka)
        .set("client.id", "seckill")
        .set("allow.auto.create.topics", "false")
        .set("socket.nagle.disable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "10000");
    for (name, value) in &options.kafka_properties {
        config.set(name, value);
    }
    config
}

pub(crate) fn fault(options: &ClusterOptions, error: &KafkaError, next: &str) -> Fault {
    let Some(code) = error.rdkafka_error_code() else {
        return Fault::without_effect(
            Cause::Store,
            format!("Kafka at {}: {error}{next}", options.kafka),
        );
    };
    Fault::without_effect(
        Cause::Store,
        format!("Kafka at {}: {code}{next}", options.kafka),
    )
}

/// Makes the topic where it is missing. Says whether it was made. It keeps its records for ever: an order's record must
/// be there as long as the order.
pub(crate) async fn create_topic(options: &ClusterOptions) -> Result<bool, Fault> {
    let admin: AdminClient<Words> = client(options)
        .create_with_context(Words::default())
        .map_err(|error| fault(options, &error, ""))?;
    let topic = NewTopic::new(
        &options.topic,
        options.topic_partitions,
        TopicReplication::Fixed(options.topic_replicas),
    )
    .set("retention.ms", "-1")
    .set("retention.bytes", "-1");
    let wait = AdminOptions::new()
        .request_timeout(Some(ADMIN_WAIT))
        .operation_timeout(Some(ADMIN_WAIT));
    let made = admin
        .create_topics([&topic], &wait)
        .await
        .map_err(|error| fault(options, &error, ""))?;
    match made.into_iter().next() {
        Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((topic, code))) => Err(Fault::without_effect(
            Cause::Store,
            format!(
                "Kafka at {} did not make the topic {topic}: {code}",
                options.kafka
            ),
        )),
        None => Err(Fault::unknown(
            Cause::Store,
            "Kafka said nothing of the topic",
        )),
    }
}
