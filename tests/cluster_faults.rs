//! The cluster under faults, on real servers: processes killed under load, and failures of each
//! server. For longer runs, use `cargo xtask faults`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::Path;

use seckill_testkit::servers::Urls;
use seckill_testkit::{
    Cluster, FAST_LEASE_MS, Scenario, Shape, cluster_kill_rounds, fast_settings, survive,
};
use tempfile::TempDir;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn assert_survives(scenario: Scenario, name: &str) {
    seckill_testkit::raise_file_limit();
    let dir = TempDir::new().unwrap();
    let name = format!("{name}_{}", std::process::id());
    let survived = survive(scenario, binary(), dir.path(), &name).unwrap();
    println!("{scenario:?}: {survived:?}");
    assert!(survived.totals.won > 0, "{survived:?}");
    // Opening a new sale takes a few milliseconds. A rebuild takes at least one lease.
    assert_eq!(
        survived.closed_ms >= FAST_LEASE_MS,
        scenario.is_rebuilt(),
        "{survived:?}"
    );
}

#[test]
fn every_confirmation_survives_kills_of_each_kind_of_process() {
    seckill_testkit::raise_file_limit();
    let dir = TempDir::new().unwrap();
    let name = format!("kill_{}", std::process::id());
    let urls = Urls::up().unwrap().with_database(&name);
    let shape = Shape {
        serves: 3,
        relays: 2,
        records: 2,
    };
    let mut cluster =
        Cluster::start(binary(), dir.path(), &urls, &fast_settings(&name), shape).unwrap();
    let summary = cluster_kill_rounds(&mut cluster, 3, 600, 300, 20_261_124).unwrap();
    println!("{summary:?}");
    assert_eq!(summary.rounds, 3);
    assert!(summary.confirmations >= 3 * 600, "{summary:?}");
    assert!(
        summary.limit_reached > 0 && summary.several_units > 0,
        "{summary:?}"
    );
}

#[test]
fn a_wiped_redis_is_rebuilt() {
    assert_survives(Scenario::RedisWiped, "wiped");
}

#[test]
fn a_redis_that_restarts_with_an_older_file_is_rebuilt() {
    assert_survives(Scenario::RedisRolledBack, "rolled");
}

#[test]
fn the_cluster_survives_a_failover_to_a_lagging_replica() {
    assert_survives(Scenario::RedisFailedOver, "failover");
}

#[test]
fn the_cluster_survives_a_moved_redis_cluster_slot() {
    assert_survives(Scenario::RedisSlotMoved, "slot");
}

#[test]
fn the_cluster_survives_a_killed_redis_cluster_master() {
    assert_survives(Scenario::RedisNodeLost, "node");
}

#[test]
fn the_cluster_survives_an_unresponsive_redis_cluster_master() {
    assert_survives(Scenario::RedisNodeSilent, "silent");
}

#[test]
fn the_cluster_survives_a_killed_mysql() {
    assert_survives(Scenario::MysqlKilled, "mysql");
}

#[test]
fn the_cluster_survives_a_killed_kafka() {
    assert_survives(Scenario::KafkaKilled, "kafka");
}

#[test]
fn the_cluster_survives_a_recreated_topic() {
    assert_survives(Scenario::TopicRecreated, "topic");
}

#[test]
fn the_cluster_survives_lost_and_late_replies() {
    assert_survives(Scenario::RepliesLost, "replies");
}
