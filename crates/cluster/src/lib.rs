//! The cluster engine: Redis proposes, Kafka carries, MySQL decides. A decision on a claim is an order row or a void row,
//! whichever came first under its sale's row lock. Users see only the port, and what starts its parts.

mod audit;
mod codec;
mod components;
mod engine;
mod gate;
mod hints;
mod init;
mod log;
mod options;
mod rebuild;
mod record;
mod recorder_process;
mod relay;
mod serve;
mod stop;
mod store;

use std::path::PathBuf;

pub use engine::ClusterEngine;
pub use gate::link::{InvalidRedisUrl, without_password};
pub use init::{Initialised, NotInitialised, Owner, init, mark_as_demo, owner, reset, set_lease};
pub use options::{ClusterOptions, Confirm, Strategy};
pub use recorder_process::RecorderProcess;
pub use store::InvalidMysqlUrl;

/// Options that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// Redis's address.
    #[error(transparent)]
    Redis(#[from] InvalidRedisUrl),
    /// MySQL's address.
    #[error(transparent)]
    Mysql(#[from] InvalidMysqlUrl),
    /// Kafka's settings.
    #[error("{0}")]
    Kafka(String),
    /// A rebuild waits for the lease, so that its own must be longer.
    #[error(
        "cluster.rebuild_lease_ms = {rebuild_lease_ms} must be at least twice cluster.lease_ms = {lease_ms}"
    )]
    Lease {
        /// What is given.
        rebuild_lease_ms: u64,
        /// What it must outlast.
        lease_ms: u64,
    },
    /// A file of certificates.
    #[error("{} cannot be read: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: String,
    },
}
