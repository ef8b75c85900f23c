//! The cluster engine: Redis proposes, Kafka transports, MySQL decides. The first row for a claim,
//! order or void, is the decision on it. Exports only the port and what starts it.

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
