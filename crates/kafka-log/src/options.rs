//! Where the order log is, and the limits on its use. No I/O.

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone)]
pub struct LogOptions {
    /// Brokers, as `host:port[,host:port]`.
    pub brokers: String,
    /// librdkafka settings, such as passwords and TLS.
    pub properties: BTreeMap<String, String>,
    pub topic: String,
    /// Number of partitions with which the topic is created.
    pub topic_partitions: i32,
    /// Number of replicas with which the topic is created.
    pub topic_replicas: i32,
    /// Maximum wait for Kafka to accept a record.
    pub delivery_wait: Duration,
    /// Maximum number of records read ahead of the recorder before reading pauses.
    pub batch_max: usize,
}
