//! Creates the clients of the three servers from the options. Must not connect.

use std::path::Path;
use std::time::Duration;

use seckill_kafka_log::LogOptions;
use seckill_mysql_store::{Store, StoreOptions};
use seckill_redis_gate::{Gate, GateOptions};

use crate::options::{ClusterOptions, InvalidOptions};

pub(crate) fn store(options: &ClusterOptions) -> Result<Store, InvalidOptions> {
    Ok(Store::new(StoreOptions {
        url: options.mysql.clone(),
        ca: options.mysql_ca.clone(),
        connections: options.store_connections,
        wait: Duration::from_millis(options.store_wait_ms),
        lease_ms: options.lease_ms,
    })?)
}

pub(crate) fn gate(options: &ClusterOptions) -> Result<Gate, InvalidOptions> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| InvalidOptions::File {
            path: path.to_owned(),
            error: error.to_string(),
        })
    };
    Ok(Gate::new(GateOptions {
        url: options.redis.clone(),
        ca: options.redis_ca.as_deref().map(read).transpose()?,
        reply_wait: Duration::from_millis(options.gate_wait_ms),
        strategy: options.gate,
        conflicts_wait: Duration::from_millis(options.gate_retry_ms),
        key_prefix: options.key_prefix.clone(),
    })?)
}

/// What the clients of the log take; each of them connects on its own.
pub(crate) fn log(options: &ClusterOptions) -> LogOptions {
    LogOptions {
        brokers: options.kafka.clone(),
        properties: options.kafka_properties.clone(),
        topic: options.topic.clone(),
        topic_partitions: options.topic_partitions,
        topic_replicas: options.topic_replicas,
        delivery_wait: Duration::from_millis(options.log_wait_ms),
        batch_max: options.record_batch_max,
    }
}
