//! The order log: the Kafka topic that carries claims to the store. Made, written, read; what a record means is not its.

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
/// Troubles that are listened to before one is told.
const TROUBLES_MAX: usize = 32;

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
        // That all brokers are down is what comes of any trouble with them; what was said before tells more.
        let is_general = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if !is_general || self.0.trouble().is_none() {
            self.0.fails(reason.to_owned());
        }
    }
}

impl ConsumerContext for Words {}

/// Asks the brokers to do something.
struct Admin {
    client: AdminClient<Words>,
    wait: AdminOptions,
}

impl Admin {
    /// Tries whether the brokers can be reached at all: a client for this alone never learns why not, and says "timed out".
    async fn reach(options: &ClusterOptions) -> Result<Self, Fault> {
        let words = Words::default();
        let condition = words.0.clone();
        let probe: BaseConsumer<Words> = client(options, &[("group.id", "seckill-init")], &[])
            .create_with_context(words)
            .map_err(|error| fault(options, &error, "; see cluster.kafka_properties"))?;
        let asked = tokio::task::spawn_blocking(move || {
            let asked = probe.fetch_metadata(None, ADMIN_WAIT);
            // The library tells of a trouble only where it is polled, one at a time.
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
            .create_with_context(Words::default())
            .map_err(|error| fault(options, &error, ""))?;
        let wait = AdminOptions::new()
            .request_timeout(Some(ADMIN_WAIT))
            .operation_timeout(Some(ADMIN_WAIT));
        Ok(Self { client, wait })
    }
}

/// The settings of a client: what all have in common, its own, over both the user's, and over all what must not change.
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
        // A topic that has only just been made is not known everywhere at once.
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

/// Makes the topic where it is missing. Says whether it was made. It keeps its records for ever: an order's record must
/// be there as long as the order.
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

/// Takes all records out of the topic. Gives where each partition goes on.
pub(crate) async fn empty_topic(options: &ClusterOptions) -> Result<Vec<(i32, i64)>, Fault> {
    let failed = |error: KafkaError| fault(options, &error, "");
    let consumer: BaseConsumer<Words> = client(options, &[("group.id", "seckill-init")], &[])
        .create_with_context(Words::default())
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

/// The topic's partitions; none where there is no topic.
pub(crate) fn partitions(
    consumer: &BaseConsumer<Words>,
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

/// The topic's settings that are weaker than what the log needs, in words.
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
                    "Kafka's topic {} has {name}={value}: older records go, and the audit misses them; set it to -1",
                    options.topic
                ));
            }
        }
        let policy = described
            .get("cleanup.policy")
            .and_then(|entry| entry.value.clone());
        if policy.is_some_and(|policy| policy.contains("compact")) {
            weaker.push(format!(
                "Kafka's topic {} has cleanup.policy=compact: all records of a sale have one key, so that only the last would stay; set it to delete",
                options.topic
            ));
        }
    }
    Ok(weaker)
}
