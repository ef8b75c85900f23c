//! What the gate has to know about Redis, and how it decides. No I/O.

use std::time::Duration;

/// How the gate decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// One Lua script per batch.
    Script,
    /// The tutorial's method: WATCH, read, MULTI, write, EXEC, retried on a conflict.
    Watch,
}

pub struct GateOptions {
    /// `redis://` or `rediss://`, with `,` between the nodes of a Cluster;
    /// `redis+sentinel://host:port,…/name` for Sentinel.
    pub url: String,
    /// Content of a PEM file of the authorities trusted for Redis; `None` trusts the usual ones.
    pub ca: Option<Vec<u8>>,
    /// Maximum wait for a reply.
    pub reply_wait: Duration,
    pub strategy: Strategy,
    /// How long [`Strategy::Watch`] retries after conflicts.
    pub conflicts_wait: Duration,
    /// Prefix of the key of the list of hints.
    pub key_prefix: String,
}
