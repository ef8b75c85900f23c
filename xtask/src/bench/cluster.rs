//! The cluster's cases: confirmations, rejections, the gate, its two ways to decide, the recorder
//! and a million requests. All servers and the load share the same cores.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, ensure};
use seckill_api::AuditVerdict;
use seckill_testkit::servers::{Programs, Urls, wait_until};

use super::report::Line;
use super::rig::{Harness, latency_ms};
use super::servers::{READY_WAIT, Servers};

/// More than any case sells.
const UNITS: &str = "100000000";
const YES_REQUESTS: &str = "100000";
/// Purchases before the measured ones.
const WARM_REQUESTS: &str = "500000";
/// Rows in the recorder's case.
const ROWS: u64 = 100_000;

/// Purchases confirmed by the store, over HTTP.
pub(crate) fn confirmation(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let servers = Servers::up(rig)?;
    let mut lines = Vec::new();
    servers.reset(UNITS)?;
    let served = servers.serve(&[])?;
    // The JVM compiles Kafka's code while it runs: a new broker takes several times the CPU time
    // per record.
    let warm = ["--requests", WARM_REQUESTS, "--connections", "512"];
    servers.load(&served, &warm)?;
    for (connections, per_s_min, p99_max) in [
        ("64", None, None),
        ("512", Some(22_000.0), Some(40.0)),
        ("2048", Some(28_000.0), Some(100.0)),
    ] {
        let (mut per_s, mut p50, mut p99) = (vec![], vec![], vec![]);
        let mut cpu: [Vec<f64>; 4] = Default::default();
        for _ in 0..rig.rounds {
            let before = servers.cpu(&served)?;
            let report = servers.load(
                &served,
                &["--requests", YES_REQUESTS, "--connections", connections],
            )?;
            let after = servers.cpu(&served)?;
            let won = report.won;
            ensure!(
                won.to_string() == YES_REQUESTS,
                "not all attempts were won: {report:?}"
            );
            per_s.push(report.answers_per_s);
            let latency = latency_ms(&report)?;
            p50.push(latency.p50);
            p99.push(latency.p99);
            for (each, ((_, before), (_, after))) in cpu.iter_mut().zip(before.iter().zip(&after)) {
                each.push((after - before) * 1e6 / won as f64);
            }
        }
        let at = |what: &str| format!("{what}, {connections} connections");
        let with = |line: Line, target: Option<f64>, bound: fn(Line, f64) -> Line| match target {
            Some(target) => bound(line, target),
            None => line,
        };
        lines.push(with(
            Line::of(at("confirmations of the store per second"), "/s", &per_s),
            per_s_min,
            Line::at_least,
        ));
        lines.push(Line::of(at("p50"), "ms", &p50));
        lines.push(with(
            Line::of(at("p99"), "ms", &p99),
            p99_max,
            Line::at_most,
        ));
        for ((name, _), each) in servers.cpu(&served)?.iter().zip(&cpu) {
            lines.push(Line::of(
                at(&format!("CPU of a confirmation in {name}")),
                "µs",
                each,
            ));
        }
    }
    Ok(lines)
}

/// The gate alone against redis-benchmark.
pub(crate) fn gate(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    const CLAIMS: u32 = 100_000;
    let servers = Servers::up(rig)?;
    let redis_server = Programs::found()?.redis_server;
    let mut lines = Vec::new();
    for batch in [16, 64, 256] {
        let (mut ours, mut bare, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..rig.rounds {
            servers.reset(UNITS)?;
            let engine = super::gate::engine_per_s(&servers.urls, CLAIMS, batch)?;
            servers.reset(UNITS)?;
            let benchmark = super::gate::bare_per_s(&servers.urls, &redis_server, CLAIMS, batch)?;
            ratios.push(engine / benchmark);
            ours.push(engine);
            bare.push(benchmark);
        }
        let at = |what: &str| format!("{what}, {batch} per call");
        lines.push(
            Line::of(
                at("claims of the gate ÷ claims of redis-benchmark"),
                "",
                &ratios,
            )
            .at_least(0.8),
        );
        lines.push(Line::of(at("claims of the gate per second"), "/s", &ours));
        lines.push(Line::of(
            at("claims of redis-benchmark per second"),
            "/s",
            &bare,
        ));
    }
    Ok(lines)
}

/// A rejection on a sold-out sale against the embedded engine's.
pub(crate) fn rejection(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let servers = Servers::up(rig)?;
    servers.reset("0")?;
    let cluster = servers.serve(&["--no-relay", "--no-record"])?;
    let embedded = rig.product(&rig.folder("cluster-rejection"), 0)?;
    let mut ratios = Vec::new();
    for _ in 0..rig.rounds {
        let load = ["--requests", "300000", "--connections", "512"];
        let theirs = rig.load(&embedded, "/seckill", &load)?;
        let ours = rig.load(&cluster, "/seckill", &load)?;
        ensure!(
            ours.report.sold_out == ours.report.asked,
            "not all answers were sold out"
        );
        ratios.push(theirs.cpu_us() / ours.cpu_us());
    }
    Ok(vec![
        Line::of(
            "CPU of an embedded rejection ÷ CPU of a cluster's, 512 connections",
            "",
            &ratios,
        )
        .at_least(0.95),
    ])
}

/// The tutorial's way to decide (`WATCH`) against the script, with a growing number of clients.
pub(crate) fn watch(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let servers = Servers::up(rig)?;
    servers.reset(UNITS)?;
    let mut lines = Vec::new();
    for connections in ["1", "8", "64", "1024"] {
        let requests = if connections == "1" { "500" } else { "20000" };
        let (mut script, mut watch) = (vec![], vec![]);
        for _ in 0..rig.rounds {
            for (gate, per_s) in [("script", &mut script), ("watch", &mut watch)] {
                let served = servers.serve(&["--gate", gate])?;
                let report = servers.load(
                    &served,
                    &["--requests", requests, "--connections", connections],
                )?;
                ensure!(
                    report.won.to_string() == requests,
                    "not all attempts were won: {report:?}"
                );
                per_s.push(report.answers_per_s);
                served.end(rustix::process::Signal::TERM)?;
            }
        }
        lines.push(Line::of(
            format!("confirmations per second by script, {connections} connections"),
            "/s",
            &script,
        ));
        lines.push(Line::of(
            format!("confirmations per second by watch, {connections} connections"),
            "/s",
            &watch,
        ));
    }
    Ok(lines)
}

/// A million requests for 100,000 units, from the first request to the last row.
pub(crate) fn million(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let servers = Servers::up(rig)?;
    servers.reset("100000")?;
    let served = servers.serve(&[])?;
    let report = servers.load(&served, &["--requests", "1000000", "--connections", "512"])?;
    ensure!(
        report.won == 100_000 && report.sold_out == 900_000,
        "{report:?}"
    );
    let audit = servers.audit()?;
    ensure!(
        audit.report.store_rows == 100_000 && audit.verdict == AuditVerdict::Clean,
        "{audit:#?}"
    );
    Ok(vec![
        Line::one(
            "1,000,000 requests for 100,000 units, first request to last row",
            "s",
            report.elapsed_s,
        )
        .at_most(30.0),
    ])
}

/// The recorder alone against a bare loop of multi-row INSERTs of the same rows into a table with
/// the same keys.
pub(crate) fn record(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let servers = Servers::up(rig)?;
    let (mut ours, mut bare, mut ratios) = (vec![], vec![], vec![]);
    for _ in 0..rig.rounds {
        servers.reset(UNITS)?;
        fill_log(&servers)?;
        let began = Instant::now();
        let recorder = recorder(rig, &servers.urls)?;
        // The time that the recorder takes to join its consumer group does not count.
        let mut first = None;
        wait_until("all rows", READY_WAIT, || {
            let rows: u64 = servers
                .urls
                .mysql("SELECT COUNT(*) FROM seckill")?
                .first()
                .context("MySQL returned no count")?
                .parse()?;
            if rows > 0 && first.is_none() {
                first = Some((Instant::now(), rows));
            }
            Ok(rows == ROWS)
        })?;
        let (at, rows) = first.unwrap_or((began, 0));
        let recorded = (ROWS - rows) as f64 / at.elapsed().as_secs_f64();
        drop(recorder);
        let inserted = bare_inserts(&servers.urls)?;
        ratios.push(recorded / inserted);
        ours.push(recorded);
        bare.push(inserted);
    }
    Ok(vec![
        Line::of("rows of the recorder ÷ rows of bare INSERTs", "", &ratios).at_least(0.8),
        Line::of("rows of the recorder per second", "/s", &ours),
        Line::of("rows of bare INSERTs per second", "/s", &bare),
    ])
}

/// Sells without a recorder until the order log has all claims.
fn fill_log(servers: &Servers<'_>) -> anyhow::Result<()> {
    let served = servers.serve(&["--no-record", "--confirm", "gate"])?;
    servers.load(
        &served,
        &["--requests", &ROWS.to_string(), "--connections", "512"],
    )?;
    let metrics = || -> anyhow::Result<u64> {
        let page = seckill_testkit::get(served.address, "/metrics")?.body;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix("seckill_relay_produced_total "));
        Ok(line
            .and_then(|value| value.parse::<f64>().ok())
            .unwrap_or(0.0) as u64)
    };
    wait_until("all claims in the order log", READY_WAIT, || {
        Ok(metrics()? >= ROWS)
    })?;
    served.end(rustix::process::Signal::TERM)?;
    Ok(())
}

struct Recorder(std::process::Child);

impl Drop for Recorder {
    fn drop(&mut self) {
        // It has no work left.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn recorder(rig: &Harness, urls: &Urls) -> anyhow::Result<Recorder> {
    let mut command = std::process::Command::new(&rig.binary);
    command
        .arg("record")
        .args(urls.flags())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Recorder(command.spawn()?))
}

/// Inserts the same rows, a thousand per statement, into a table with the same schema.
fn bare_inserts(urls: &Urls) -> anyhow::Result<f64> {
    const BATCH: usize = 1_000;
    let read = "SELECT CONCAT('(0x', HEX(order_id), ',', sale_num, ',', unit, ',', gen, ',', QUOTE(buyer), ',', epoch, ',', \
                sequence, ')') FROM seckill ORDER BY id";
    let rows = urls.mysql(read)?;
    urls.mysql("DROP TABLE IF EXISTS bare_seckill")?;
    urls.mysql("CREATE TABLE bare_seckill LIKE seckill")?;
    let mut statements = Vec::new();
    for rows in rows.chunks(BATCH) {
        statements.push(format!(
            "INSERT INTO bare_seckill (order_id, sale_num, unit, gen, buyer, epoch, sequence) VALUES {}",
            rows.join(",")
        ));
    }
    let took = urls.mysql_timed(&statements)?;
    Ok(rows.len() as f64 / took.as_secs_f64())
}
