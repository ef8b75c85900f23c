//! Starts, queries and kills the product's processes, for tests, the bench and fault runs. Uses
//! only the binary, its output and its HTTP answers, never the product's internals.

mod cluster;
mod cluster_kill_rounds;
mod http;
mod kill_rounds;
mod mixed_orders;
mod process;
mod sales;
mod scenarios;
pub mod servers;

pub use cluster::{Cluster, LoadPlan, LoadTotals, Shape};
pub use cluster_kill_rounds::{ClusterKillSummary, cluster_kill_rounds};
pub use http::{Response, exchange, get, post, raw};
pub use kill_rounds::{KillPlan, KillSummary, kill_rounds};
pub use process::{ServerProcess, raise_file_limit, run, wait_until};
pub use sales::create_sales;
pub use scenarios::{FAST_LEASE_MS, Scenario, Survived, fast_settings, survive};
