//! Where the three servers are and the bounds of everything that is done with them.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// How the gate decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// One Lua script a batch.
    Script,
    /// The tutorial's way: WATCH, read, MULTI, write, EXEC, and again on a conflict.
    Watch,
}

/// What an answer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// The order's row in MySQL: final.
    Store,
    /// Nothing: 202 as soon as the gate has given a claim, which may still come to nothing.
    Gate,
}

/// Everything that can be set. Each is named as in the configuration file.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// `redis://` or `rediss://`, with `,` between the nodes of a Cluster; `redis+sentinel://host:port,…/name` for Sentinel.
    pub redis: String,
    /// A file of PEM certificates that Redis's must come from; none takes the usual authorities.
    pub redis_ca: Option<PathBuf>,
    /// Brokers, as `host:port[,host:port]`.
    pub kafka: String,
    /// Settings of librdkafka, for passwords and TLS.
    pub kafka_properties: BTreeMap<String, String>,
    /// `mysql://user:password@host:port/database`.
    pub mysql: String,
    /// A file of PEM certificates that MySQL's must come from; given, the connection uses TLS.
    pub mysql_ca: Option<PathBuf>,
    /// The order log's topic.
    pub topic: String,
    /// Its partitions and copies when it is made.
    pub topic_partitions: i32,
    /// Its copies when it is made.
    pub topic_replicas: i32,
    /// What stands before each sale's id in its stock key.
    pub key_prefix: String,
    /// How the gate decides.
    pub gate: Strategy,
    /// What a yes waits for.
    pub confirm: Confirm,
    /// How long an answer waits for the store, in milliseconds; then 202 with the order's address.
    pub confirm_wait_ms: u64,
    /// Attempts that wait for the gate; more get 503.
    pub queue_max: usize,
    /// Redis: the longest wait for a reply, in milliseconds.
    pub gate_wait_ms: u64,
    /// How long an attempt is tried again when the gate does not reply, in milliseconds; then 202.
    pub gate_retry_ms: u64,
    /// How long this server trusts what it read of a sale, in milliseconds.
    pub lease_ms: u64,
    /// MySQL: connections.
    pub store_connections: usize,
    /// MySQL: the longest wait for an answer, in milliseconds.
    pub store_wait_ms: u64,
    /// Kafka: the longest wait for a record to be taken, in milliseconds.
    pub log_wait_ms: u64,
    /// Claims in one transaction of the recorder.
    pub record_batch_max: usize,
    /// CommitUnknown claims that a relay keeps in view.
    pub relay_claims_max: usize,
    /// How often a relay looks for entries that nobody carries, in milliseconds.
    pub relay_sweep_ms: u64,
    /// How long one rebuild may take before another may begin, in milliseconds.
    pub rebuild_lease_ms: u64,
    /// How long a rebuild waits for the outbox to empty, in milliseconds.
    pub drain_wait_ms: u64,
    /// The age at which a claim that nobody knows of is given up, in milliseconds.
    pub pending_age_ms: u64,
    /// Whether this process carries the outbox to the log.
    pub relays: bool,
    /// Whether this process carries the log to the store.
    pub records: bool,
}

impl ClusterOptions {
    /// The defaults over these servers.
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
