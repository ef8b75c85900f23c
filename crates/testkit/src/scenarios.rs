//! What happens to the servers of a cluster while crowds buy: Redis wiped, rolled back, failed over, its slot moved; MySQL and
//! Kafka killed; the topic made anew; replies lost. Each ends with everything sold once and a clean audit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use seckill_loadgen::{Buyers, Keys};

use crate::cluster::{Cluster, LoadPlan, LoadTotals, Shape};
use crate::servers::{
    Kafka, KafkaLayout, Listener, Lost, Mysql, Programs, Proxy, Redis, RedisCluster, Sentinels,
    Urls, free_port,
};

/// Units of a scenario's sale: more than the first crowds ask for, so that each "sold out" among their answers is false.
const UNITS: u64 = 6_000;
const REQUESTS_A_SERVER: u64 = 1_500;
const CROWD_TIME: Duration = Duration::from_secs(6);
const SALE: &str = "s";
/// Lines that lose replies: one of so many of Redis's and of MySQL's. Each late by so much.
const LOST_ONE_IN: (u32, u32) = (25, 60);
const LATE_MS: u32 = 2;

/// What a scenario came to.
#[derive(Debug, Clone, Copy)]
pub struct Survived {
    /// What the crowds that met the fault were told.
    pub crowd: LoadTotals,
    /// The longest time that a rebuild took, in milliseconds; 0 where there was none.
    pub closed_ms: u64,
    /// The longest time between two orders, in milliseconds: what buyers saw, from the fault to the next yes.
    pub gap_ms: u64,
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
    /// In a Cluster, the sale's slot is moved to another master, key by key.
    RedisSlotMoved,
    /// In a Cluster, the sale's master is killed, and its replica, which lags behind, takes over.
    RedisNodeLost,
    /// The same with a master that still takes connections and says nothing.
    RedisNodeSilent,
    /// Killed and started again.
    MysqlKilled,
    /// Killed and started again.
    KafkaKilled,
    /// The topic deleted and made again.
    TopicMadeAgain,
    /// Redis and MySQL do what they are asked, and many of their replies do not arrive.
    RepliesLost,
}

impl Scenario {
    /// Whether the gate loses or doubts its state, so that the sale is rebuilt.
    pub fn is_rebuilt(self) -> bool {
        match self {
            Self::RedisWiped
            | Self::RedisRolledBack
            | Self::RedisFailedOver
            | Self::RedisSlotMoved
            | Self::RedisNodeLost
            | Self::RedisNodeSilent => true,
            Self::MysqlKilled | Self::KafkaKilled | Self::TopicMadeAgain | Self::RepliesLost => {
                false
            }
        }
    }

    /// Every scenario, with its name.
    pub const ALL: [(&'static str, Self); 10] = [
        ("redis-wiped", Self::RedisWiped),
        ("redis-rolled-back", Self::RedisRolledBack),
        ("redis-failed-over", Self::RedisFailedOver),
        ("redis-slot-moved", Self::RedisSlotMoved),
        ("redis-node-lost", Self::RedisNodeLost),
        ("redis-node-silent", Self::RedisNodeSilent),
        ("mysql-killed", Self::MysqlKilled),
        ("kafka-killed", Self::KafkaKilled),
        ("topic-made-again", Self::TopicMadeAgain),
        ("replies-lost", Self::RepliesLost),
    ];
}

/// The lease of [`fast_settings`], in milliseconds.
pub const FAST_LEASE_MS: u64 = 300;

/// Settings under which a cluster heals fast enough for a test. What is promised does not hang on them.
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

/// Servers that are a scenario's own, so that what happens to them happens to nobody else.
enum Own {
    Redis(Redis),
    Sentinels(Sentinels),
    RedisCluster(RedisCluster),
    Mysql(Mysql),
    Kafka(Kafka),
    Lines { redis: Proxy, mysql: Proxy },
}

/// Where a scenario's servers are.
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

    /// Starts what a scenario needs for itself, and leads the cluster there.
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
            Scenario::KafkaKilled | Scenario::TopicMadeAgain => {
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

    /// Lets it happen.
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
            (Scenario::TopicMadeAgain, Own::Kafka(kafka)) => {
                kafka.delete_topic(&self.name)?;
                cluster.seckill(&["init"])?;
                Own::Kafka(kafka)
            }
            (Scenario::RepliesLost, Own::Lines { redis, mysql }) => {
                redis.disturb(LOST_ONE_IN.0, LATE_MS);
                mysql.disturb(LOST_ONE_IN.1, LATE_MS);
                // Until most of the crowds' time is over.
                std::thread::sleep(CROWD_TIME / 2);
                redis.disturb(0, 0);
                mysql.disturb(0, 0);
                let lost = (redis.lost(), mysql.lost());
                ensure!(lost.0 > 0 && lost.1 > 0, "no replies were lost: {lost:?}");
                Own::Lines { redis, mysql }
            }
            (scenario, _) => bail!("{scenario:?} has other servers"),
        })
    }

    fn stock_key(&self) -> anyhow::Result<String> {
        let sql = format!("SELECT stock_key FROM seckill_sale WHERE id = '{SALE}'");
        self.urls.mysql(&sql)?.pop().context("the sale's stock key")
    }

    fn longest_gap_ms(&self) -> anyhow::Result<u64> {
        let sql = format!(
            "SELECT CAST(COALESCE(MAX(TIMESTAMPDIFF(MICROSECOND, previous, date)), 0) DIV 1000 AS CHAR) FROM \
             (SELECT date, LAG(date) OVER (ORDER BY id) AS previous FROM seckill WHERE sale_id = '{SALE}') AS orders"
        );
        let gap = self.urls.mysql(&sql)?.pop().context("a gap")?;
        Ok(gap.parse()?)
    }

    /// Kills a Redis and starts it again with its append-only file as it was a moment before.
    fn roll_back(&self, redis: Redis) -> anyhow::Result<Redis> {
        let dir = self.dir.join("redis");
        let (file, kept) = (dir.join("appendonlydir"), dir.join("kept"));
        copy(&file, &kept)?;
        // More is sold meanwhile, which the copy does not have.
        std::thread::sleep(Duration::from_millis(700));
        let port = redis.port;
        redis.daemon.kill()?;
        std::fs::remove_dir_all(&file)?;
        std::fs::rename(&kept, &file)?;
        self.redis(port)
    }
}

/// Puts a proxy before the server of a URL, which leads to the proxy from then on.
fn line(url: &mut String) -> anyhow::Result<Proxy> {
    let (before, after) = url.rsplit_once("127.0.0.1:").context("a URL of loopback")?;
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let (port, rest) = after.split_at(digits);
    let proxy = Proxy::start(port.parse()?)?;
    *url = format!("{before}127.0.0.1:{}{rest}", proxy.port);
    Ok(proxy)
}

/// Runs a scenario with three servers, on servers of its own where the fault is theirs, else on those that are up.
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
        over: Some(CROWD_TIME),
        buyers: Buyers::Unique,
        keys: Keys::Unique,
    };
    let crowd = cluster.crowd(SALE, &plan, |cluster| {
        std::thread::sleep(CROWD_TIME / 3);
        let servers = own.take().context("the scenario's servers")?;
        own = Some(place.strike(scenario, servers, cluster)?);
        Ok(())
    })?;
    ensure!(
        crowd.sold_out == 0,
        "{} of {UNITS} units were asked for, and some were told that none is left: {crowd:?}",
        3 * REQUESTS_A_SERVER
    );
    // Before the rest is sold: what the crowds bought all the time.
    let gap_ms = place.longest_gap_ms()?;
    cluster.sell_out_and_audit(SALE, UNITS)?;
    // What the store refuses keeps the promises, but a sound gate gives no unit twice in the first place.
    let sql = format!(
        "SELECT CAST(COUNT(*) AS CHAR) FROM seckill_void WHERE sale_id = '{SALE}' AND reason LIKE 'another order%'"
    );
    let twice = place.urls.mysql(&sql)?;
    ensure!(twice == ["0"], "the gate gave units twice: {twice:?}");
    Ok(Survived {
        crowd,
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

/// Lets the replica fall behind, kills the master, and lets the Sentinels make the replica master.
fn fail_over(sentinels: &mut Sentinels) -> anyhow::Result<()> {
    sentinels.replica.daemon.pause()?;
    std::thread::sleep(Duration::from_millis(300));
    sentinels.kill_master()?;
    sentinels.replica.daemon.go_on()?;
    sentinels.wait_for_master()
}
