//! The order log: creates, writes and reads the Kafka topic that transports claims to the store. It
//! does not decide what a record means.

pub(crate) mod consumer;
mod inbox;
pub(crate) mod producer;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use seckill_engine::{Cause, Fault};

use crate::options::ClusterOptions;

const ADMIN_WAIT: Duration = Duration::from_secs(10);
/// Number of polls for pending errors before one is reported.
const TROUBLES_MAX: usize = 32;

/// The latest error reported by librdkafka, kept so that status pages can show why the log is
/// stalled.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogCondition(Arc<Mutex<Option<String>>>);

impl LogCondition {
    /// The latest error since the last success.
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

/// A client for administrative requests.
struct Admin {
    client: AdminClient<ClientEvents>,
    wait: AdminOptions,
}

impl Admin {
    /// Checks with a consumer that the brokers are reachable. An admin client does not learn why a
    /// connection fails and reports only a timeout.
    async fn reach(options: &ClusterOptions) -> Result<Self, Fault> {
        let events = ClientEvents::default();
        let condition = events.0.clone();
        let probe: BaseConsumer<ClientEvents> =
            client(options, &[("group.id", "seckill-init")], &[])
                .create_with_context(events)
                .map_err(|error| fault(options, &error, "; see cluster.kafka_properties"))?;
        let asked = tokio::task::spawn_blocking(move || {
            let asked = probe.fetch_metadata(None, ADMIN_WAIT);
            // librdkafka reports errors only when polled, one per poll.
            for _ in 0..TROUBLES_MAX {
                drop(probe.poll(Duration::ZERO));
            }
            asked.map(|_| ())
        });
        let asked = asked
            .await
            .map_err(|error| Fault::without_effect(Cause::Store, error.to_string()))?;
        asked.map_err(|error| {
            let trouble = condition.trouble().map(|trouble| format!("; {trouble}"));
            fault(options, &error, &trouble.unwrap_or_default())
        })?;
        let client = client(options, &[], &[])
            .create_with_context(ClientEvents::default())
            .map_err(|error| fault(options, &error, ""))?;
        let wait = AdminOptions::new()
            .request_timeout(Some(ADMIN_WAIT))
            .operation_timeout(Some(ADMIN_WAIT));
        Ok(Self { client, wait })
    }
}

/// Builds a client configuration. Later layers override earlier ones: common settings, `own`, the
/// user's `kafka_properties`, and `fixed` settings that must not change.
pub(crate) fn client(
    options: &ClusterOptions,
    own: &[(&str, &str)],
    fixed: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    let common = [
        ("bootstrap.servers", options.kafka.as_str()),
        ("client.id", "seckill"),
        ("socket.nagle.disable", "true"),
        ("reconnect.backoff.ms", "50"),
        ("reconnect.backoff.max.ms", "1000"),
        // A new topic is not known to all brokers immediately.
        ("topic.metadata.refresh.interval.ms", "500"),
    ];
    let user = options
        .kafka_properties
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

/// Creates the topic if it is missing, and returns whether it did. The topic keeps records forever:
/// an order's record must exist as long as the order.
pub(crate) async fn create_topic(options: &ClusterOptions) -> Result<bool, Fault> {
    let admin = Admin::reach(options).await?;
    let topic = NewTopic::new(
        &options.topic,
        options.topic_partitions,
        TopicReplication::Fixed(options.topic_replicas),
    )
    .set("retention.ms", "-1")
    .set("retention.bytes", "-1");
    let made = admin
        .client
        .create_topics([&topic], &admin.wait)
        .await
        .map_err(|error| fault(options, &error, ""))?;
    match made.into_iter().next() {
        Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((topic, code))) => Err(Fault::without_effect(
            Cause::Store,
            format!(
                "Kafka at {} did not create topic {topic}: {code}",
                options.kafka
            ),
        )),
        None => Err(Fault::unknown(
            Cause::Store,
            "Kafka did not report on the topic",
        )),
    }
}

/// Deletes all records of the topic. Returns the next offset of each partition.
pub(crate) async fn empty_topic(options: &ClusterOptions) -> Result<Vec<(i32, i64)>, Fault> {
    let failed = |error: KafkaError| fault(options, &error, "");
    let consumer: BaseConsumer<ClientEvents> =
        client(options, &[("group.id", "seckill-init")], &[])
            .create_with_context(ClientEvents::default())
            .map_err(failed)?;
    let (topic, asked) = (options.topic.clone(), options.clone());
    let ends = tokio::task::spawn_blocking(move || {
        let failed = |error: KafkaError| fault(&asked, &error, "");
        let mut ends = Vec::new();
        for part in partitions(&consumer, &topic).map_err(failed)? {
            let (_, high) = consumer
                .fetch_watermarks(&topic, part, ADMIN_WAIT)
                .map_err(failed)?;
            ends.push((part, high));
        }
        Ok::<_, Fault>(ends)
    });
    let ends = ends
        .await
        .map_err(|error| Fault::without_effect(Cause::Store, error.to_string()))??;
    let mut list = TopicPartitionList::new();
    for (part, _) in ends.iter().filter(|(_, high)| *high > 0) {
        list.add_partition_offset(&options.topic, *part, Offset::End)
            .map_err(failed)?;
    }
    if list.count() > 0 {
        let admin = Admin::reach(options).await?;
        let deleted = admin.client.delete_records(&list, &admin.wait).await;
        deleted.map_err(|error| fault(options, &error, ""))?;
    }
    Ok(ends)
}

/// Lists the topic's partitions. The list is empty if the topic does not exist.
pub(crate) fn partitions(
    consumer: &BaseConsumer<ClientEvents>,
    topic: &str,
) -> Result<Vec<i32>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), ADMIN_WAIT)?;
    Ok(metadata
        .topics()
        .iter()
        .flat_map(|topic| {
            topic
                .partitions()
                .iter()
                .map(rdkafka::metadata::MetadataPartition::id)
        })
        .collect())
}

/// Describes the topic's settings that are weaker than the log requires.
pub(crate) async fn weaker_settings(options: &ClusterOptions) -> Result<Vec<String>, Fault> {
    let admin = Admin::reach(options).await?;
    let topic = ResourceSpecifier::Topic(&options.topic);
    let described = admin
        .client
        .describe_configs([&topic], &admin.wait)
        .await
        .map_err(|error| fault(options, &error, ""))?;
    let mut weaker = Vec::new();
    for described in described.into_iter().flatten() {
        for name in ["retention.ms", "retention.bytes"] {
            let value = described.get(name).and_then(|entry| entry.value.clone());
            if let Some(value) = value.filter(|value| value != "-1") {
                weaker.push(format!(
                    "Kafka topic {} has {name}={value}: Kafka deletes old records, which the audit needs; set it to -1",
                    options.topic
                ));
            }
        }
        let policy = described
            .get("cleanup.policy")
            .and_then(|entry| entry.value.clone());
        if policy.is_some_and(|policy| policy.contains("compact")) {
            weaker.push(format!(
                "Kafka topic {} has cleanup.policy=compact: all records of a sale share one key, so compaction would keep only the last; set it to delete",
                options.topic
            ));
        }
    }
    Ok(weaker)
}
