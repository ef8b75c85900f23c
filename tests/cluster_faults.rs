//! The cluster under faults, on real servers: processes killed under load, and each server lost in its own way.
//! Longer runs are `cargo xtask faults`'s.

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

fn survives(scenario: Scenario, name: &str) {
    seckill_testkit::raise_file_limit();
    let dir = TempDir::new().unwrap();
    let name = format!("{name}_{}", std::process::id());
    let survived = survive(scenario, binary(), dir.path(), &name).unwrap();
    println!("{scenario:?}: {survived:?}");
    assert!(survived.crowd.won > 0, "{survived:?}");
    // The new sale's own opening takes a few milliseconds; a rebuild takes the lease.
    assert_eq!(
        survived.closed_ms >= FAST_LEASE_MS,
        scenario.is_rebuilt(),
        "{survived:?}"
    );
}

#[test]
fn every_yes_survives_killed_processes_of_each_kind() {
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
}

#[test]
fn a_wiped_redis_is_rebuilt() {
    survives(Scenario::RedisWiped, "wiped");
}

#[test]
fn a_redis_with_an_older_file_is_rebuilt() {
    survives(Scenario::RedisRolledBack, "rolled");
}

#[test]
fn a_failover_to_a_lagging_replica_is_survived() {
    survives(Scenario::RedisFailedOver, "failover");
}

#[test]
fn a_slot_of_a_redis_cluster_that_moves_is_survived() {
    survives(Scenario::RedisSlotMoved, "slot");
}

#[test]
fn a_lost_master_of_a_redis_cluster_is_survived() {
    survives(Scenario::RedisNodeLost, "node");
}

#[test]
fn a_master_of_a_redis_cluster_that_falls_silent_is_survived() {
    survives(Scenario::RedisNodeSilent, "silent");
}

#[test]
fn a_killed_mysql_is_survived() {
    survives(Scenario::MysqlKilled, "mysql");
}

#[test]
fn a_killed_kafka_is_survived() {
    survives(Scenario::KafkaKilled, "kafka");
}

#[test]
fn a_topic_that_was_made_again_is_survived() {
    survives(Scenario::TopicMadeAgain, "topic");
}

#[test]
fn lost_and_late_replies_are_survived() {
    survives(Scenario::RepliesLost, "replies");
}
