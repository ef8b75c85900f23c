//! The cases for answers and claims. Each returns its lines of the report.

use anyhow::ensure;

use super::report::Line;
use super::rig::{Harness, Run};
use super::{cluster, million, scale};

pub(crate) type Case = fn(&Harness) -> anyhow::Result<Vec<Line>>;

pub(crate) const ALL: [(&str, Case); 15] = [
    ("no", no),
    ("yes", yes),
    ("claims", claims),
    ("million", million::million),
    ("memory", million::memory),
    ("restart", million::restart),
    ("sales", scale::sales),
    ("buyers", scale::buyers),
    ("load", load),
    ("cluster-yes", cluster::yes),
    ("cluster-gate", cluster::gate),
    ("cluster-no", cluster::no),
    ("cluster-watch", cluster::watch),
    ("cluster-record", cluster::record),
    ("cluster-million", cluster::million),
];

const NO_REQUESTS: &str = "300000";
const YES_REQUESTS: u32 = 100_000;

/// A rejection on a sold-out sale against hyper alone.
fn no(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let product = rig.product(&rig.folder("no"), 0)?;
    let bare = rig.bare_http()?;
    let mut lines = Vec::new();
    for connections in ["64", "512", "4096"] {
        let (mut ratios, mut per_s, mut cpu_us, mut p99) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rig.rounds {
            let load = ["--requests", NO_REQUESTS, "--connections", connections];
            let theirs = rig.load(&bare, "/", &load)?;
            let ours = rig.load(&product, "/seckill", &load)?;
            ensure!(
                ours.count("sold_out") == ours.count("asked"),
                "not all answers were sold out"
            );
            ratios.push(theirs.cpu_us() / ours.cpu_us());
            per_s.push(ours.per_s());
            cpu_us.push(ours.cpu_us());
            p99.push(ours.latency_ms("p99_us"));
        }
        let at = |what: &str| format!("{what}, {connections} connections");
        lines.push(Line::of(at("CPU of bare hyper ÷ CPU of a no"), "", &ratios).at_least(0.95));
        lines.push(Line::of(at("noes a second"), "/s", &per_s));
        lines.push(Line::of(at("server CPU of a no"), "µs", &cpu_us));
        lines.push(Line::of(at("p99"), "ms", &p99));
    }
    Ok(lines)
}

fn yes_run(rig: &Harness, round: u32, connections: &str) -> anyhow::Result<Run> {
    let folder = rig.folder(&format!("yes-{connections}-{round}"));
    let product = rig.product(&folder, YES_REQUESTS)?;
    let load = [
        "--requests",
        &YES_REQUESTS.to_string(),
        "--connections",
        connections,
    ];
    let run = rig.load(&product, "/seckill", &load)?;
    ensure!(
        run.count("won") == u64::from(YES_REQUESTS),
        "not all attempts were won"
    );
    Ok(run)
}

/// A durable confirmation over HTTP against a rejection.
fn yes(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let sold_out = rig.product(&rig.folder("yes-no"), 0)?;
    let mut lines = Vec::new();
    for connections in ["64", "512"] {
        let (mut ratios, mut per_s, mut cpu_us, mut p99) = (vec![], vec![], vec![], vec![]);
        for round in 0..rig.rounds {
            let load = ["--requests", NO_REQUESTS, "--connections", connections];
            let no = rig.load(&sold_out, "/seckill", &load)?;
            let yes = yes_run(rig, round, connections)?;
            ratios.push(no.cpu_us() / yes.cpu_us());
            per_s.push(yes.per_s());
            cpu_us.push(yes.cpu_us());
            p99.push(yes.latency_ms("p99_us"));
        }
        let at = |what: &str| format!("{what}, {connections} connections");
        lines.push(Line::of(at("CPU of a no ÷ CPU of a durable yes"), "", &ratios).at_least(0.6));
        lines.push(Line::of(at("durable confirmations a second"), "/s", &per_s));
        lines.push(Line::of(at("server CPU of a durable yes"), "µs", &cpu_us));
        lines.push(Line::of(at("p99"), "ms", &p99));
    }
    Ok(lines)
}

/// Claims through the engine's port against a bare loop of group commits of the same rows.
fn claims(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let dir = rig.folder("claims").display().to_string();
    std::fs::create_dir_all(&dir)?;
    let rounds = rig.rounds.to_string();
    let measured = rig.part(&["claims", "200000", "256", &rounds, &dir])?;
    let numbers = |key: &str| -> Vec<f64> {
        let values = measured[key].as_array().cloned().unwrap_or_default();
        values
            .iter()
            .filter_map(serde_json::Value::as_f64)
            .collect()
    };
    let (engine, bare) = (numbers("engine_per_s"), numbers("bare_per_s"));
    let ratios: Vec<f64> = engine
        .iter()
        .zip(&bare)
        .map(|(engine, bare)| engine / bare)
        .collect();
    Ok(vec![
        Line::of("claims ÷ bare SQLite inserts, 256 a commit", "", &ratios).at_least(0.8),
        Line::of("durable claims a second, no HTTP", "/s", &engine),
        Line::of("bare SQLite inserts a second", "/s", &bare),
    ])
}

/// The CPU time of loadgen itself against wrk's.
fn load(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let product = rig.product(&rig.folder("load"), 0)?;
    let (mut ratios, mut ours_us) = (vec![], vec![]);
    for _ in 0..rig.rounds {
        let load = ["--requests", NO_REQUESTS, "--connections", "64"];
        let ours = rig.load(&product, "/seckill", &load)?;
        let ours = ours.load_cpu_s * 1e6 / ours.count("asked").max(1) as f64;
        ours_us.push(ours);
        if let Some((requests, cpu_s)) = rig.wrk(&product, 64)? {
            ratios.push(cpu_s * 1e6 / requests.max(1) as f64 / ours);
        }
    }
    let mut lines = vec![Line::of("CPU of the load tool, a request", "µs", &ours_us)];
    if ratios.is_empty() {
        eprintln!("wrk is not installed, so there is no comparison with it");
    } else {
        lines.push(
            Line::of(
                "CPU of wrk ÷ CPU of the load tool, 64 connections",
                "",
                &ratios,
            )
            .at_least(1.0),
        );
    }
    Ok(lines)
}
