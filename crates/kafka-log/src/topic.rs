//! Creates, checks and empties the topic of the order log. Must not read or write single records.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use seckill_engine::{Cause, Fault};

use crate::client::{ClientEvents, client, fault};
use crate::options::LogOptions;

const ADMIN_WAIT: Duration = Duration::from_secs(10);
/// Number of polls for pending errors before one is reported.
const TROUBLES_MAX: usize = 32;

/// A client for administrative requests.
struct Admin {
    client: AdminClient<ClientEvents>,
    wait: AdminOptions,
}

impl Admin {
    /// Checks with a consumer that the brokers are reachable. An admin client does not learn why a
    /// connection fails and reports only a timeout.
    async fn reach(options: &LogOptions) -> Result<Self, Fault> {
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

/// Creates the topic if it is missing, and returns whether it did. The topic keeps records forever:
/// an order's record must exist as long as the order.
pub async fn create_topic(options: &LogOptions) -> Result<bool, Fault> {
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
                options.brokers
            ),
        )),
        None => Err(Fault::unknown(
            Cause::Store,
            "Kafka did not report on the topic",
        )),
    }
}

/// Deletes all records of the topic. Returns the next offset of each partition.
pub async fn empty_topic(options: &LogOptions) -> Result<Vec<(i32, i64)>, Fault> {
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
pub async fn weaker_settings(options: &LogOptions) -> Result<Vec<String>, Fault> {
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
