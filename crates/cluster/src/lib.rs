//! The cluster engine: Redis proposes, Kafka transports, MySQL decides. The first row for a claim,
//! order or void, is the decision on it. Exports only the port and what starts it.

mod audit;
mod clock;
mod components;
mod engine;
mod hints;
mod init;
mod options;
mod rebuild;
mod record;
mod recorder_process;
mod relay;
mod serve;
mod servers;
mod shared;
mod stop;

pub use engine::ClusterEngine;
pub use init::{Initialised, NotInitialised, Owner, init, mark_as_demo, owner, reset, set_lease};
pub use options::{ClusterOptions, Confirm, InvalidOptions};
pub use recorder_process::RecorderProcess;
pub use seckill_cluster_codec::without_password;
pub use seckill_mysql_store::InvalidMysqlUrl;
pub use seckill_redis_gate::{InvalidRedisUrl, Strategy};
