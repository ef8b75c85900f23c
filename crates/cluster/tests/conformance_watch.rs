//! The cluster engine, deciding by WATCH/MULTI/EXEC, passes the suite that every engine passes, on real servers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module that several tests share, each a part of it"
)]

mod factory;

use seckill_cluster::Strategy;

seckill_engine::conformance_suite!(factory::ClusterFactory::new(Strategy::Watch));
