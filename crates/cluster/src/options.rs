//! The options of a cluster: where its three servers are, and the limits on their use. No I/O.

use std::collections::BTreeMap;
use std::path::PathBuf;

use seckill_mysql_store::InvalidMysqlUrl;
use seckill_redis_gate::{InvalidRedisUrl, Strategy};

/// What the answer to a claim waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// The order's committed row in MySQL; the answer is final.
    Store,
    /// The gate's claim only: 202 as soon as the gate grants it. The claim may still become void.
    Gate,
}

/// All options of the cluster engine, named as in the configuration file.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// `redis://` or `rediss://`, with `,` between the nodes of a Cluster;
    /// `redis+sentinel://host:port,…/name` for Sentinel.
    pub redis: String,
    /// PEM file of the authorities trusted for Redis; `None` trusts the usual ones.
    pub redis_ca: Option<PathBuf>,
    /// Brokers, as `host:port[,host:port]`.
    pub kafka: String,
    /// librdkafka settings, such as passwords and TLS.
    pub kafka_properties: BTreeMap<String, String>,
    /// `mysql://user:password@host:port/database`.
    pub mysql: String,
    /// PEM file of the authorities trusted for MySQL. If set, the connection uses TLS.
    pub mysql_ca: Option<PathBuf>,
    /// The order log's topic.
    pub topic: String,
    /// Number of partitions with which the topic is created.
    pub topic_partitions: i32,
    /// Number of replicas with which the topic is created.
    pub topic_replicas: i32,
    /// Prefix of each sale's stock key in Redis.
    pub key_prefix: String,
    pub gate: Strategy,
    /// What the answer to a claim waits for.
    pub confirm: Confirm,
    /// How long an answer waits for the store, in milliseconds; then 202 with the order's address.
    pub confirm_wait_ms: u64,
    /// Maximum number of attempts waiting for the gate; further attempts get 503.
    pub queue_max: usize,
    /// Maximum wait for a reply from Redis, in milliseconds.
    pub gate_wait_ms: u64,
    /// How long an attempt is retried if the gate does not reply, in milliseconds; then 202.
    pub gate_retry_ms: u64,
    /// How long a server trusts what it last read of a sale, in milliseconds.
    pub lease_ms: u64,
    /// Maximum number of connections to MySQL.
    pub store_connections: usize,
    /// Maximum wait for an answer from MySQL, in milliseconds.
    pub store_wait_ms: u64,
    /// Maximum wait for Kafka to accept a record, in milliseconds.
    pub log_wait_ms: u64,
    /// Maximum number of log records in one recorder transaction.
    pub record_batch_max: usize,
    /// Maximum number of undecided claims that a relay tracks.
    pub relay_claims_max: usize,
    /// Interval at which a relay looks for entries that no relay is forwarding, in milliseconds.
    pub relay_sweep_ms: u64,
    /// How long a rebuild may take before another process may start one, in milliseconds.
    pub rebuild_lease_ms: u64,
    /// How long a rebuild waits for the outbox to drain, in milliseconds.
    pub drain_wait_ms: u64,
    /// Age at which a claim that neither gate nor store knows is voided, in milliseconds.
    pub pending_age_ms: u64,
    /// Whether this process forwards the outbox to the log.
    pub relays: bool,
    /// Whether this process stores the log's records.
    pub records: bool,
}

impl ClusterOptions {
    /// The default options for these servers.
    pub fn new(
        redis: impl Into<String>,
        kafka: impl Into<String>,
        mysql: impl Into<String>,
    ) -> Self {
        Self {
            redis: redis.into(),
            redis_ca: None,
            kafka: kafka.into(),
            kafka_properties: BTreeMap::new(),
            mysql: mysql.into(),
            mysql_ca: None,
            topic: "CAR_NUMBER".into(),
            topic_partitions: 4,
            topic_replicas: 1,
            key_prefix: String::new(),
            gate: Strategy::Script,
            confirm: Confirm::Store,
            confirm_wait_ms: 5_000,
            queue_max: 65_536,
            gate_wait_ms: 1_000,
            gate_retry_ms: 5_000,
            lease_ms: 3_000,
            store_connections: 16,
            store_wait_ms: 5_000,
            log_wait_ms: 30_000,
            record_batch_max: 1_000,
            relay_claims_max: 262_144,
            relay_sweep_ms: 1_000,
            rebuild_lease_ms: 30_000,
            drain_wait_ms: 3_000,
            pending_age_ms: 30_000,
            relays: true,
            records: true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    #[error(transparent)]
    Redis(#[from] InvalidRedisUrl),
    #[error(transparent)]
    Mysql(#[from] InvalidMysqlUrl),
    #[error("{0}")]
    Kafka(String),
    /// A rebuild waits for one lease, so its own lease must be longer.
    #[error(
        "cluster.rebuild_lease_ms = {rebuild_lease_ms} must be at least twice cluster.lease_ms = {lease_ms}"
    )]
    Lease {
        rebuild_lease_ms: u64,
        lease_ms: u64,
    },
    /// A certificate file that cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    File { path: PathBuf, error: String },
}
