//! Reads the whole log at once, for the audit. Must not join the recorders' consumer group.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use seckill_cluster_codec::message::ClaimMessage;
use seckill_engine::{Cause, Fault};

use crate::client::{ClientEvents, client, fault};
use crate::options::LogOptions;
use crate::topic::partitions;

const LOG_WAIT: Duration = Duration::from_secs(10);

/// The log from its beginning to where it ended when it was read.
#[derive(Default)]
pub struct LogContents {
    pub records: u64,
    /// Partition, offset and content of the records that are claims.
    pub claims: Vec<(i32, i64, ClaimMessage)>,
}

/// Reads the whole log, as far as it reaches now.
pub async fn read_all(options: &LogOptions) -> Result<LogContents, Fault> {
    let options = options.clone();
    let read = tokio::task::spawn_blocking(move || read_log_blocking(&options));
    read.await.map_err(|error| {
        Fault::without_effect(Cause::Store, format!("the log reader task failed: {error}"))
    })?
}

fn read_log_blocking(options: &LogOptions) -> Result<LogContents, Fault> {
    let failed = |error| {
        fault(
            options,
            &error,
            "; if the topic is missing, run `seckill init`",
        )
    };
    let own = [
        ("group.id", "seckill-audit"),
        ("auto.offset.reset", "error"),
    ];
    let consumer: BaseConsumer<ClientEvents> =
        client(options, &own, &[("enable.auto.commit", "false")])
            .create_with_context(ClientEvents::default())
            .map_err(failed)?;
    let parts = partitions(&consumer, &options.topic).map_err(failed)?;
    if parts.is_empty() {
        let detail = format!(
            "Kafka at {} has no topic {}; run `seckill init`",
            options.brokers, options.topic
        );
        return Err(Fault::without_effect(Cause::Store, detail));
    }
    let mut contents = LogContents::default();
    for part in parts {
        let (low, high) = consumer
            .fetch_watermarks(&options.topic, part, LOG_WAIT)
            .map_err(failed)?;
        if low >= high {
            continue;
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&options.topic, part, Offset::Offset(low))
            .map_err(failed)?;
        consumer.assign(&list).map_err(failed)?;
        loop {
            let Some(record) = consumer.poll(LOG_WAIT) else {
                let detail =
                    format!("the log's partition {part} returned no record within {LOG_WAIT:?}");
                return Err(Fault::without_effect(Cause::Deadline, detail));
            };
            let record = record.map_err(failed)?;
            contents.records += 1;
            if let Ok(claim) = ClaimMessage::read(record.payload().unwrap_or_default()) {
                contents.claims.push((part, record.offset(), claim));
            }
            if record.offset() + 1 >= high {
                break;
            }
        }
    }
    Ok(contents)
}
