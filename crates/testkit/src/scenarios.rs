//! What happens to the servers of a cluster while crowds buy: Redis wiped, rolled back, failed over; MySQL and Kafka killed;
//! the topic made anew. Each ends with everything sold once and a clean audit.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use seckill_crowd::{Buyers, Keys};

use crate::cluster::{Cluster, CrowdPlan, CrowdSum, Shape};
use crate::servers::{Kafka, KafkaLayout, Mysql, Programs, Redis, Sentinels, Urls, free_port};

/// Units of a scenario's sale: more than the first crowds ask for, so that each "sold out" among their answers is false.
const UNITS: u64 = 6_000;
const REQUESTS_A_SERVER: u64 = 1_500;
const CROWD_TIME: Duration = Duration::from_secs(6);
const SALE: &str = "s";

/// What a scenario came to.
#[derive(Debug, Clone, Copy)]
pub struct Survived {
    /// What the crowds that met the fault were told.
    pub crowd: CrowdSum,
    /// The longest time that the sale was closed, in milliseconds; 0 where it was not.
    pub closed_ms: u64,
}

/// A scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// `FLUSHALL`.
    RedisWiped,
    /// Killed, and started again with an append-only file from before.
    RedisRolledBack,
    /// Killed, and a replica that lags behind is made master.
    RedisFailedOver,
    /// Killed and started again.
    MysqlKilled,
    /// Killed and started again.
    KafkaKilled,
    /// The topic deleted and made again.
    TopicMadeAgain,
}

impl Scenario {
    /// Every scenario, with its name.
    pub const ALL: [(&'static str, Self); 6] = [
        ("redis-wiped", Self::RedisWiped),
        ("redis-rolled-back", Self::RedisRolledBack),
        ("redis-failed-over", Self::RedisFailedOver),
        ("mysql-killed", Self::MysqlKilled),
        ("kafka-killed", Self::KafkaKilled),
        ("topic-made-again", Self::TopicMadeAgain),
    ];
}

/// Settings under which a cluster heals fast enough for a test. What is promised does not hang on them.
pub fn fast_settings(name: &str) -> Vec<String> {
    [
        ("TOPIC", name),
        ("TOPIC_PARTITIONS", "2"),
        ("KEY_PREFIX", &format!("{name}:")),
        ("LEASE_MS", "300"),
        ("RELAY_SWEEP_MS", "200"),
        ("DRAIN_WAIT_MS", "1000"),
        ("CONFIRM_WAIT_MS", "4000"),
        ("STORE_WAIT_MS", "3000"),
        ("KAFKA_PROPERTIES", "session.timeout.ms=1500"),
    ]
    .map(|(key, value)| format!("SECKILL_CLUSTER__{key}={value}"))
    .to_vec()
}

/// Runs a scenario with three servers, on servers of its own where the fault is theirs, else on those that are up.
pub fn survive(
    scenario: Scenario,
    binary: &Path,
    dir: &Path,
    name: &str,
) -> anyhow::Result<Survived> {
    let programs = Programs::found()?;
    let mut urls = Urls::up()?.with_database(name);
    let (mut redis, mut sentinels, mut mysql, mut kafka) = (None, None, None, None);
    match scenario {
        Scenario::RedisWiped | Scenario::RedisRolledBack => {
            let server = Redis::start(
                &programs,
                &dir.join("redis"),
                free_port()?,
                &["--appendfsync", "always"],
            )?;
            urls.redis = server.url();
            redis = Some(server);
        }
        Scenario::RedisFailedOver => {
            let server = Sentinels::start(&programs, &dir.join("sentinel"))?;
            urls.redis = server.url();
            sentinels = Some(server);
        }
        Scenario::MysqlKilled => {
            let server = Mysql::start(&programs, &dir.join("mysql"), free_port()?)?;
            urls.mysql = server.url(name);
            mysql = Some(server);
        }
        Scenario::KafkaKilled | Scenario::TopicMadeAgain => {
            let server = Kafka::start(
                &programs,
                &dir.join("kafka"),
                free_port()?,
                KafkaLayout::Kraft,
            )?;
            urls.kafka = server.address();
            kafka = Some(server);
        }
    }
    let shape = Shape {
        serves: 3,
        relays: 0,
        records: 0,
    };
    let mut cluster = Cluster::start(
        binary,
        &dir.join("cluster"),
        &urls,
        &fast_settings(name),
        shape,
    )?;
    cluster.seckill(&["sale", "create", SALE, "--units", &UNITS.to_string()])?;
    let plan = CrowdPlan {
        requests: REQUESTS_A_SERVER,
        connections: 64,
        over: Some(CROWD_TIME),
        buyers: Buyers::Unique,
        keys: Keys::Unique,
    };
    let crowd = cluster.crowd(SALE, &plan, |cluster| {
        std::thread::sleep(CROWD_TIME / 3);
        match scenario {
            Scenario::RedisWiped => redis.as_ref().context("Redis")?.ask("FLUSHALL").map(|_| ()),
            Scenario::RedisRolledBack => {
                let server = redis.take().context("Redis")?;
                redis = Some(roll_back(server, &programs, &dir.join("redis"))?);
                Ok(())
            }
            Scenario::RedisFailedOver => fail_over(sentinels.as_mut().context("Sentinels")?),
            Scenario::MysqlKilled => {
                let server = mysql.take().context("MySQL")?;
                let port = server.port;
                server.daemon.kill()?;
                mysql = Some(Mysql::start(&programs, &dir.join("mysql"), port)?);
                Ok(())
            }
            Scenario::KafkaKilled => {
                let server = kafka.take().context("Kafka")?;
                let port = server.port;
                server.daemon.kill()?;
                kafka = Some(Kafka::start(
                    &programs,
                    &dir.join("kafka"),
                    port,
                    KafkaLayout::Kraft,
                )?);
                Ok(())
            }
            Scenario::TopicMadeAgain => {
                let server = kafka.as_ref().context("Kafka")?;
                server.delete_topic(name)?;
                cluster.seckill(&["init"]).map(|_| ())
            }
        }
    })?;
    ensure!(
        crowd.sold_out == 0,
        "{} of {UNITS} units were asked for, and some were told that none is left: {crowd:?}",
        3 * REQUESTS_A_SERVER
    );
    cluster.sell_out_and_audit(SALE, UNITS)?;
    Ok(Survived {
        crowd,
        closed_ms: cluster.closed_ms_max(),
    })
}

/// Kills a Redis and starts it again with its append-only file as it was a moment before.
fn roll_back(server: Redis, programs: &Programs, dir: &Path) -> anyhow::Result<Redis> {
    let (file, kept) = (dir.join("appendonlydir"), dir.join("kept"));
    copy(&file, &kept)?;
    // More is sold meanwhile, which the copy does not have.
    std::thread::sleep(Duration::from_millis(700));
    let port = server.port;
    server.daemon.kill()?;
    std::fs::remove_dir_all(&file)?;
    std::fs::rename(&kept, &file)?;
    Redis::start(programs, dir, port, &["--appendfsync", "always"])
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Lets the replica fall behind, kills the master, and lets the Sentinels make the replica master.
fn fail_over(sentinels: &mut Sentinels) -> anyhow::Result<()> {
    sentinels.replica.daemon.pause()?;
    std::thread::sleep(Duration::from_millis(300));
    sentinels.kill_master()?;
    sentinels.replica.daemon.go_on()?;
    sentinels.wait_for_master()
}
