//! The section `[cluster]`, and its options. Addresses are checked where they are used, not here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use seckill_cluster::{ClusterOptions, Confirm, Strategy};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::HOUR_MS;
use super::values::Between;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterSection {
    redis: String,
    redis_ca: PathBuf,
    kafka: String,
    #[serde(deserialize_with = "properties")]
    kafka_properties: BTreeMap<String, String>,
    mysql: String,
    mysql_ca: PathBuf,
    #[serde(deserialize_with = "topic")]
    topic: String,
    topic_partitions: Between<1, 1_000>,
    topic_replicas: Between<1, 100>,
    #[serde(deserialize_with = "key_prefix")]
    key_prefix: String,
    #[serde(deserialize_with = "gate")]
    gate: Strategy,
    #[serde(deserialize_with = "confirm")]
    confirm: Confirm,
    confirm_wait_ms: Between<1, HOUR_MS>,
    queue_max: Between<1, 10_000_000>,
    gate_wait_ms: Between<10, HOUR_MS>,
    gate_retry_ms: Between<10, HOUR_MS>,
    lease_ms: Between<30, HOUR_MS>,
    store_connections: Between<4, 10_000>,
    store_wait_ms: Between<100, HOUR_MS>,
    log_wait_ms: Between<1_000, HOUR_MS>,
    record_batch_max: Between<1, 10_000>,
    relay_claims_max: Between<1_000, 100_000_000>,
    relay_sweep_ms: Between<10, HOUR_MS>,
    rebuild_lease_ms: Between<1_000, HOUR_MS>,
    drain_wait_ms: Between<0, HOUR_MS>,
    pending_age_ms: Between<1_000, HOUR_MS>,
}

impl ClusterSection {
    pub(super) fn options(&self) -> ClusterOptions {
        let file = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
        ClusterOptions {
            redis_ca: file(&self.redis_ca),
            kafka_properties: self.kafka_properties.clone(),
            mysql_ca: file(&self.mysql_ca),
            topic: self.topic.clone(),
            topic_partitions: self.topic_partitions.get() as i32,
            topic_replicas: self.topic_replicas.get() as i32,
            key_prefix: self.key_prefix.clone(),
            gate: self.gate,
            confirm: self.confirm,
            confirm_wait_ms: self.confirm_wait_ms.get(),
            queue_max: self.queue_max.get() as usize,
            gate_wait_ms: self.gate_wait_ms.get(),
            gate_retry_ms: self.gate_retry_ms.get(),
            lease_ms: self.lease_ms.get(),
            store_connections: self.store_connections.get() as usize,
            store_wait_ms: self.store_wait_ms.get(),
            log_wait_ms: self.log_wait_ms.get(),
            record_batch_max: self.record_batch_max.get() as usize,
            relay_claims_max: self.relay_claims_max.get() as usize,
            relay_sweep_ms: self.relay_sweep_ms.get(),
            rebuild_lease_ms: self.rebuild_lease_ms.get(),
            drain_wait_ms: self.drain_wait_ms.get(),
            pending_age_ms: self.pending_age_ms.get(),
            ..ClusterOptions::new(&self.redis, &self.kafka, &self.mysql)
        }
    }
}

/// `name=value` pairs between commas, or one per line: then a value may contain commas.
fn properties<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let text = String::deserialize(from)?;
    let parts = if text.trim().contains('\n') {
        text.split('\n')
    } else {
        text.split(',')
    };
    let mut properties = BTreeMap::new();
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            return Err(D::Error::custom(
                "it must be name=value pairs, separated by commas or line ends",
            ));
        };
        properties.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    Ok(properties)
}

fn topic<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    const MAX_BYTES: usize = 249;
    let text = String::deserialize(from)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if text.is_empty()
        || text.len() > MAX_BYTES
        || !text.bytes().all(allowed)
        || matches!(text.as_str(), "." | "..")
    {
        return Err(D::Error::custom("it must be 1 to 249 of A-Z a-z 0-9 . _ -"));
    }
    Ok(text)
}

fn key_prefix<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    const MAX_BYTES: usize = 64;
    let text = String::deserialize(from)?;
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'.' | b'_' | b'-' | b'/');
    if text.len() > MAX_BYTES || !text.bytes().all(allowed) {
        return Err(D::Error::custom(
            "it must be at most 64 of A-Z a-z 0-9 : . _ - /",
        ));
    }
    Ok(text)
}

fn gate<'de, D: Deserializer<'de>>(from: D) -> Result<Strategy, D::Error> {
    match String::deserialize(from)?.as_str() {
        "script" => Ok(Strategy::Script),
        "watch" => Ok(Strategy::Watch),
        _ => Err(D::Error::custom("it must be script or watch")),
    }
}

fn confirm<'de, D: Deserializer<'de>>(from: D) -> Result<Confirm, D::Error> {
    match String::deserialize(from)?.as_str() {
        "store" => Ok(Confirm::Store),
        "gate" => Ok(Confirm::Gate),
        _ => Err(D::Error::custom("it must be store or gate")),
    }
}
