//! Where the order store is, and the limits on its use. No I/O.

use std::path::PathBuf;
use std::time::Duration;

pub struct StoreOptions {
    /// `mysql://user:password@host:port/database`.
    pub url: String,
    /// PEM file of the authorities trusted for MySQL. If set, the connection uses TLS.
    pub ca: Option<PathBuf>,
    /// Maximum number of connections.
    pub connections: usize,
    /// Maximum wait for an answer.
    pub wait: Duration,
    /// How long this process trusts what it last read of a sale, in milliseconds.
    pub lease_ms: u64,
}
