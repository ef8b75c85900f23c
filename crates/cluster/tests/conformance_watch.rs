//! Runs the conformance suite against the cluster engine with the watch strategy, on real servers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "tests share this module and each uses only part of it"
)]

mod factory;

use seckill_cluster::Strategy;

seckill_engine::conformance_suite!(factory::ClusterFactory::new(Strategy::Watch));
