//! Faults of a cluster's servers under load, such as Redis wiped or failed over, MySQL killed, or
//! replies lost. Each scenario must end with every unit sold once and a clean audit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use seckill_loadgen::{Buyers, Keys, Lines};

use crate::cluster::{Cluster, LoadPlan, LoadTotals, Shape};
use crate::servers::{
    Kafka, KafkaLayout, Listener, Lost, Mysql, Programs, Proxy, Redis, RedisCluster, Sentinels,
    Urls, free_port,
};

/// Units of a scenario's sale. The load during the fault requests fewer, so that every "sold out"
/// among its answers is false.
const UNITS: u64 = 6_000;
const REQUESTS_A_SERVER: u64 = 1_500;
const LOAD_TIME: Duration = Duration::from_secs(6);
const SALE: &str = "s";
/// `RepliesLost` loses about one in this many replies of Redis and of MySQL.
const LOST_ONE_IN: (u32, u32) = (25, 60);
/// `RepliesLost` delays each reply by this.
const LATE_MS: u32 = 2;

/// The result of a scenario without a violation.
#[derive(Debug, Clone, Copy)]
pub struct Survived {
    /// The answers to the load during the fault.
    pub totals: LoadTotals,
    /// The longest rebuild, in milliseconds; 0 if there was none.
    pub closed_ms: u64,
    /// The longest time between two orders, in milliseconds: the outage as buyers saw it, from the
    /// fault to the next confirmation.
    pub gap_ms: u64,
}

/// A fault of one or more of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// `FLUSHALL`.
    RedisWiped,
    /// Killed, and restarted with an older copy of its append-only file.
    RedisRolledBack,
    /// Killed, and a replica that lags behind is promoted to master.
    RedisFailedOver,
    /// In a Redis Cluster, the sale's slot moves to another master, key by key.
    RedisSlotMoved,
    /// In a Redis Cluster, the sale's master is killed, and its lagging replica takes over.
    RedisNodeLost,
    /// Like `RedisNodeLost`, but the master still accepts connections and never replies.
    RedisNodeSilent,
    /// Killed and restarted.
    MysqlKilled,
    /// Killed and restarted.
    KafkaKilled,
    /// The topic is deleted and created again.
    TopicRecreated,
    /// Redis and MySQL execute every request, but many of their replies do not arrive.
    RepliesLost,
}

impl Scenario {
    /// Whether the gate loses its state or can no longer trust it, so that the sale is rebuilt.
    pub fn is_rebuilt(self) -> bool {
        match self {
            Self::RedisWiped
            | Self::RedisRolledBack
            | Self::RedisFailedOver
            | Self::RedisSlotMoved
            | Self::RedisNodeLost
            | Self::RedisNodeSilent => true,
            Self::MysqlKilled | Self::KafkaKilled | Self::TopicRecreated | Self::RepliesLost => {
                false
            }
        }
    }

    /// Every scenario, by the name that `cargo xtask faults servers` uses.
    pub const ALL: [(&'static str, Self); 10] = [
        ("redis-wiped", Self::RedisWiped),
        ("redis-rolled-back", Self::RedisRolledBack),
        ("redis-failed-over", Self::RedisFailedOver),
        ("redis-slot-moved", Self::RedisSlotMoved),
        ("redis-node-lost", Self::RedisNodeLost),
        ("redis-node-silent", Self::RedisNodeSilent),
        ("mysql-killed", Self::MysqlKilled),
        ("kafka-killed", Self::KafkaKilled),
        ("topic-recreated", Self::TopicRecreated),
        ("replies-lost", Self::RepliesLost),
    ];
}

/// The lease of [`fast_settings`], in milliseconds.
pub const FAST_LEASE_MS: u64 = 300;

/// Settings with which a cluster recovers fast enough for a test. The guarantees do not depend on
/// them.
pub fn fast_settings(name: &str) -> Vec<String> {
    [
        ("TOPIC", name),
        ("TOPIC_PARTITIONS", "2"),
        ("KEY_PREFIX", &format!("{name}:")),
        ("LEASE_MS", &FAST_LEASE_MS.to_string()),
        ("RELAY_SWEEP_MS", "200"),
        ("DRAIN_WAIT_MS", "1000"),
        ("CONFIRM_WAIT_MS", "4000"),
        ("STORE_WAIT_MS", "3000"),
        ("KAFKA_PROPERTIES", "session.timeout.ms=1500"),
    ]
    .map(|(key, value)| format!("SECKILL_CLUSTER__{key}={value}"))
    .to_vec()
}

/// Servers that only one scenario uses, so that its fault affects no other test.
enum Own {
    Redis(Redis),
    Sentinels(Sentinels),
    RedisCluster(RedisCluster),
    Mysql(Mysql),
    Kafka(Kafka),
    Lines { redis: Proxy, mysql: Proxy },
}

/// A scenario's working folder and the addresses of its servers.
struct Place {
    programs: Programs,
    dir: PathBuf,
    name: String,
    urls: Urls,
}

const SYNCED: [&str; 2] = ["--appendfsync", "always"];

impl Place {
    fn redis(&self, port: u16) -> anyhow::Result<Redis> {
        Redis::start(&self.programs, &self.dir.join("redis"), port, &SYNCED)
    }

    fn mysql(&self, port: u16) -> anyhow::Result<Mysql> {
        Mysql::start(&self.programs, &self.dir.join("mysql"), port, &[])
    }

    fn kafka(&self, port: u16) -> anyhow::Result<Kafka> {
        let (dir, plain) = (self.dir.join("kafka"), Listener::plain());
        Kafka::start(&self.programs, &dir, port, KafkaLayout::Kraft, &plain)
    }

    /// Starts the servers that only this scenario uses, and points the URLs at them.
    fn prepare(&mut self, scenario: Scenario) -> anyhow::Result<Own> {
        Ok(match scenario {
            Scenario::RedisWiped | Scenario::RedisRolledBack => {
                let redis = self.redis(free_port()?)?;
                self.urls.redis = redis.url();
                Own::Redis(redis)
            }
            Scenario::RedisFailedOver => {
                let sentinels = Sentinels::start(&self.programs, &self.dir.join("sentinel"))?;
                self.urls.redis = sentinels.url();
                Own::Sentinels(sentinels)
            }
            Scenario::RedisSlotMoved | Scenario::RedisNodeLost | Scenario::RedisNodeSilent => {
                let nodes = RedisCluster::start(&self.programs, &self.dir.join("nodes"))?;
                self.urls.redis = nodes.url();
                Own::RedisCluster(nodes)
            }
            Scenario::MysqlKilled => {
                let mysql = self.mysql(free_port()?)?;
                self.urls.mysql = mysql.url(&self.name);
                Own::Mysql(mysql)
            }
            Scenario::KafkaKilled | Scenario::TopicRecreated => {
                let kafka = self.kafka(free_port()?)?;
                self.urls.kafka = kafka.address();
                Own::Kafka(kafka)
            }
            Scenario::RepliesLost => Own::Lines {
                redis: line(&mut self.urls.redis)?,
                mysql: line(&mut self.urls.mysql)?,
            },
        })
    }

    /// Injects the fault.
    fn strike(&self, scenario: Scenario, own: Own, cluster: &Cluster) -> anyhow::Result<Own> {
        Ok(match (scenario, own) {
            (Scenario::RedisWiped, Own::Redis(redis)) => {
                redis.ask("FLUSHALL")?;
                Own::Redis(redis)
            }
            (Scenario::RedisRolledBack, Own::Redis(redis)) => Own::Redis(self.roll_back(redis)?),
            (Scenario::RedisFailedOver, Own::Sentinels(mut sentinels)) => {
                fail_over(&mut sentinels)?;
                Own::Sentinels(sentinels)
            }
            (Scenario::RedisSlotMoved, Own::RedisCluster(nodes)) => {
                nodes.move_slot(&self.stock_key()?)?;
                Own::RedisCluster(nodes)
            }
            (Scenario::RedisNodeLost, Own::RedisCluster(mut nodes)) => {
                nodes.lose_master(&self.stock_key()?, Lost::Killed)?;
                Own::RedisCluster(nodes)
            }
            (Scenario::RedisNodeSilent, Own::RedisCluster(mut nodes)) => {
                nodes.lose_master(&self.stock_key()?, Lost::Silent)?;
                Own::RedisCluster(nodes)
            }
            (Scenario::MysqlKilled, Own::Mysql(mysql)) => {
                let port = mysql.port;
                mysql.daemon.kill()?;
                Own::Mysql(self.mysql(port)?)
            }
            (Scenario::KafkaKilled, Own::Kafka(kafka)) => {
                let port = kafka.port;
                kafka.daemon.kill()?;
                Own::Kafka(self.kafka(port)?)
            }
            (Scenario::TopicRecreated, Own::Kafka(kafka)) => {
                kafka.delete_topic(&self.name)?;
                cluster.seckill(&["init"])?;
                Own::Kafka(kafka)
            }
            (Scenario::RepliesLost, Own::Lines { redis, mysql }) => {
                redis.disturb(LOST_ONE_IN.0, LATE_MS);
                mysql.disturb(LOST_ONE_IN.1, LATE_MS);
                // Until the load has sent most of its requests.
                std::thread::sleep(LOAD_TIME / 2);
                redis.disturb(0, 0);
                mysql.disturb(0, 0);
                let lost = (redis.lost(), mysql.lost());
                ensure!(lost.0 > 0 && lost.1 > 0, "no replies were lost: {lost:?}");
                Own::Lines { redis, mysql }
            }
            (scenario, _) => {
                bail!("{scenario:?} does not match the servers that were started for it")
            }
        })
    }

    fn stock_key(&self) -> anyhow::Result<String> {
        let sql = format!("SELECT stock_key FROM seckill_sale WHERE id = '{SALE}'");
        self.urls
            .mysql(&sql)?
            .pop()
            .context("the sale has no stock key")
    }

    fn longest_gap_ms(&self) -> anyhow::Result<u64> {
        let sql = format!(
            "SELECT CAST(COALESCE(MAX(TIMESTAMPDIFF(MICROSECOND, previous, date)), 0) DIV 1000 AS CHAR) FROM \
             (SELECT date, LAG(date) OVER (ORDER BY id) AS previous FROM seckill \
             WHERE sale_num = (SELECT num FROM seckill_sale WHERE id = '{SALE}')) AS orders"
        );
        let gap = self
            .urls
            .mysql(&sql)?
            .pop()
            .context("MySQL returned no gap")?;
        Ok(gap.parse()?)
    }

    /// Kills Redis and restarts it with a copy of its append-only file from shortly before.
    fn roll_back(&self, redis: Redis) -> anyhow::Result<Redis> {
        let dir = self.dir.join("redis");
        let (file, kept) = (dir.join("appendonlydir"), dir.join("kept"));
        copy(&file, &kept)?;
        // Meanwhile more units are sold, which the copy does not contain.
        std::thread::sleep(Duration::from_millis(700));
        let port = redis.port;
        redis.daemon.kill()?;
        std::fs::remove_dir_all(&file)?;
        std::fs::rename(&kept, &file)?;
        self.redis(port)
    }
}

/// Starts a proxy in front of the URL's server and points the URL at the proxy.
fn line(url: &mut String) -> anyhow::Result<Proxy> {
    let (before, after) = url
        .rsplit_once("127.0.0.1:")
        .context("not a loopback URL")?;
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let (port, rest) = after.split_at(digits);
    let proxy = Proxy::start(port.parse()?)?;
    *url = format!("{before}127.0.0.1:{}{rest}", proxy.port);
    Ok(proxy)
}

/// Runs a scenario with three `serve` processes. Servers that the fault affects are started for
/// this scenario alone; the others are the shared ones that are already running.
pub fn survive(
    scenario: Scenario,
    binary: &Path,
    dir: &Path,
    name: &str,
) -> anyhow::Result<Survived> {
    let mut place = Place {
        programs: Programs::found()?,
        dir: dir.to_owned(),
        name: name.to_owned(),
        urls: Urls::up()?.with_database(name),
    };
    let mut own = Some(place.prepare(scenario)?);
    let shape = Shape {
        serves: 3,
        relays: 0,
        records: 0,
    };
    let (dir, settings) = (dir.join("cluster"), fast_settings(name));
    let mut cluster = Cluster::start(binary, &dir, &place.urls, &settings, shape)?;
    cluster.seckill(&["sale", "create", SALE, "--units", &UNITS.to_string()])?;
    let plan = LoadPlan {
        requests: REQUESTS_A_SERVER,
        connections: 64,
        over: Some(LOAD_TIME),
        buyers: Buyers::Unique,
        keys: Keys::Unique,
        lines: Lines::default(),
        seed: 1,
    };
    let totals = cluster.load(SALE, &plan, |cluster| {
        std::thread::sleep(LOAD_TIME / 3);
        let servers = own.take().context("the scenario's servers are missing")?;
        own = Some(place.strike(scenario, servers, cluster)?);
        Ok(())
    })?;
    ensure!(
        totals.sold_out == 0,
        "only {} of {UNITS} units were requested, but some answers were sold out: {totals:?}",
        3 * REQUESTS_A_SERVER
    );
    // Queried before the rest is sold, so that the gap covers the load during the fault alone.
    let gap_ms = place.longest_gap_ms()?;
    cluster.sell_out_and_audit(SALE, UNITS)?;
    // The store's voids uphold the guarantees, but a correct gate does not give a unit out twice in
    // the first place.
    let sql = format!(
        "SELECT CAST(COUNT(*) AS CHAR) FROM seckill_void \
         WHERE sale_num = (SELECT num FROM seckill_sale WHERE id = '{SALE}') AND reason LIKE 'another order%'"
    );
    let twice = place.urls.mysql(&sql)?;
    ensure!(twice == ["0"], "the gate gave units twice: {twice:?}");
    Ok(Survived {
        totals,
        closed_ms: cluster.closed_ms_max(),
        gap_ms,
    })
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Lets the replica fall behind, kills the master, and waits until Sentinel promotes the replica.
fn fail_over(sentinels: &mut Sentinels) -> anyhow::Result<()> {
    sentinels.replica.daemon.pause()?;
    std::thread::sleep(Duration::from_millis(300));
    sentinels.kill_master()?;
    sentinels.replica.daemon.resume()?;
    sentinels.wait_for_master()
}
