//! The cluster's part of the case `model`: MySQL's CPU time for a confirmation and Redis's memory
//! of a claim, on the same servers for both sides.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use seckill_testkit::ServerProcess;
use seckill_testkit::servers::{Urls, wait_until};

use super::comparison::{Builds, NAMED, PLAIN, compared, no_target};
use super::report::Line;
use super::servers::{READY_WAIT, Servers};
use super::turns::{Side, in_turns};

/// More than a turn sells.
const UNITS: &str = "10000000";
/// Purchases before the first turn.
const SERVERS_WARM_REQUESTS: u32 = 200_000;
/// Purchases at the start of each turn, and the measured ones. Together they stay below 2^18, where
/// Redis doubles a hash table.
const WARM_REQUESTS: u32 = 10_000;
const REQUESTS: u32 = 150_000;
const NAMED_REQUESTS: u32 = 100_000;
/// MySQL still writes back pages after the last commit. It has settled once it uses no more than
/// this CPU time in one step.
const SETTLE_STEP: Duration = Duration::from_millis(500);
const SETTLED_CPU_S: f64 = 0.02;
const SETTLE_WAIT: Duration = Duration::from_secs(10);

struct Cost {
    mysql_us: f64,
    redis_bytes: f64,
    per_s: f64,
}

pub(crate) fn claims(builds: &Builds<'_>) -> anyhow::Result<Vec<Line>> {
    let mut servers = Servers::up(builds.rig)?;
    // The JVM compiles Kafka's code while it runs, and a slow broker makes for larger batches.
    servers.start_over(builds.of(Side::Now), "model_warm", UNITS)?;
    let served = servers.serve(&[])?;
    sell(&servers, &served, SERVERS_WARM_REQUESTS, &PLAIN)?;
    served.end(Signal::TERM)?;
    let pairs = in_turns(builds.rig.rounds, |side, round| {
        let name = format!("model_{}_{round}", side.name());
        servers.start_over(builds.of(side), &name, UNITS)?;
        let served = servers.serve(&[])?;
        sell(&servers, &served, WARM_REQUESTS, &PLAIN)?;
        analyze(&servers.urls)?;
        let plain = sell(&servers, &served, REQUESTS, &PLAIN)?;
        let named = sell(&servers, &served, NAMED_REQUESTS, &NAMED)?;
        served.end(Signal::TERM)?;
        servers.urls.mysql(&format!("DROP DATABASE {name}"))?;
        Ok((plain, named))
    })?;
    let mysql = "MySQL's CPU of a confirmation";
    let redis = "Redis's memory of a claim";
    let named = |what: &str| format!("{what}, with buyer and key");
    let target = |line: Line| line.at_most(0.75);
    let rate = "confirmations of the store per second";
    let lines = [
        compared(mysql, "µs", target, &pairs, |(plain, _)| plain.mysql_us),
        compared(&named(mysql), "µs", no_target, &pairs, |(_, named)| {
            named.mysql_us
        }),
        compared(redis, "B", target, &pairs, |(plain, _)| plain.redis_bytes),
        compared(&named(redis), "B", no_target, &pairs, |(_, named)| {
            named.redis_bytes
        }),
        compared(rate, "/s", no_target, &pairs, |(plain, _)| plain.per_s),
    ];
    Ok(lines.into_iter().flatten().collect())
}

/// Updates MySQL's statistics of all tables. While it still takes a table for nearly empty, it may
/// answer the lookup of many order ids with a scan, and does so in some turns but not in others.
fn analyze(urls: &Urls) -> anyhow::Result<()> {
    let list = "SELECT GROUP_CONCAT(table_name) FROM information_schema.tables WHERE table_schema = DATABASE()";
    let tables = urls.mysql(list)?.pop().context("no tables")?;
    urls.mysql(&format!("ANALYZE TABLE {tables}"))?;
    Ok(())
}

/// Sells units, and measures once all claims are stored and the outbox is empty again.
fn sell(
    servers: &Servers<'_>,
    served: &ServerProcess,
    requests: u32,
    load: &[&str],
) -> anyhow::Result<Cost> {
    let cpu_before_s = settled_cpu_s(servers)?;
    let memory_before = memory_bytes(&servers.urls)?;
    let count = requests.to_string();
    let report = servers.load(served, &[&["--requests", &count], load].concat())?;
    // A confirmation is a committed row.
    ensure!(
        report.won == u64::from(requests),
        "not all attempts were won: {report:?}"
    );
    wait_until("an empty outbox", READY_WAIT, || {
        Ok(outbox_entries(&servers.urls)? == 0)
    })?;
    let each = |before: f64, after: f64| (after - before) / f64::from(requests);
    Ok(Cost {
        mysql_us: each(cpu_before_s, settled_cpu_s(servers)?) * 1e6,
        redis_bytes: each(memory_before, memory_bytes(&servers.urls)?),
        per_s: report.answers_per_s,
    })
}

/// MySQL's CPU time so far, once it has no work left or `SETTLE_WAIT` is over.
fn settled_cpu_s(servers: &Servers<'_>) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut before = servers.mysql_cpu_s()?;
    loop {
        std::thread::sleep(SETTLE_STEP);
        let now = servers.mysql_cpu_s()?;
        if now - before <= SETTLED_CPU_S || began.elapsed() > SETTLE_WAIT {
            return Ok(now);
        }
        before = now;
    }
}

fn memory_bytes(urls: &Urls) -> anyhow::Result<f64> {
    let said = urls.redis("INFO memory")?;
    let used = said
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used = used.with_context(|| format!("INFO memory: {said}"))?;
    Ok(used.trim().parse()?)
}

/// Entries in all streams: the product uses streams only as outboxes, and never deletes one.
fn outbox_entries(urls: &Urls) -> anyhow::Result<u64> {
    let said = urls.redis("SCAN 0 COUNT 1000000 TYPE stream")?;
    // The cursor and the keys, between lines with lengths.
    let mut words = said
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(['*', '$']));
    ensure!(words.next() == Some("0"), "not all keys: {said}");
    let mut sum = 0;
    let mut outboxes = 0;
    for key in words {
        let said = urls.redis(&format!("XLEN {key}"))?;
        let entries: Option<u64> = said.trim().strip_prefix(':').and_then(|n| n.parse().ok());
        sum += entries.with_context(|| format!("XLEN {key}: {said}"))?;
        outboxes += 1;
    }
    ensure!(outboxes > 0, "there is no outbox");
    Ok(sum)
}
