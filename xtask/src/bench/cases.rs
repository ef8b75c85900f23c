//! The cases for answers and claims. Each returns its lines of the report.

use anyhow::ensure;

use super::report::Line;
use super::rig::{Harness, Run, numbers, part};
use super::{before, cluster, million, model, scale};

pub(crate) type Case = fn(&Harness) -> anyhow::Result<Vec<Line>>;

pub(crate) const ALL: [(&str, Case); 17] = [
    ("before", before::before),
    ("model", model::model),
    ("rejection", rejection),
    ("confirmation", confirmation),
    ("claims", claims),
    ("million", million::million),
    ("memory", million::memory),
    ("restart", million::restart),
    ("sales", scale::sales),
    ("buyers", scale::buyers),
    ("load", load),
    ("cluster-confirmation", cluster::confirmation),
    ("cluster-gate", cluster::gate),
    ("cluster-rejection", cluster::rejection),
    ("cluster-watch", cluster::watch),
    ("cluster-record", cluster::record),
    ("cluster-million", cluster::million),
];

const REJECTIONS: &str = "300000";
const CONFIRMATIONS: u32 = 100_000;

/// A rejection on a sold-out sale against hyper alone.
fn rejection(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let product = rig.product(&rig.folder("rejection"), 0)?;
    let bare = rig.bare_http()?;
    let mut lines = Vec::new();
    for connections in ["64", "512", "4096"] {
        let (mut ratios, mut per_s, mut cpu_us, mut p99) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rig.rounds {
            let load = ["--requests", REJECTIONS, "--connections", connections];
            let theirs = rig.load(&bare, "/", &load)?;
            let ours = rig.load(&product, "/seckill", &load)?;
            ensure!(
                ours.report.sold_out == ours.report.asked,
                "not all answers were sold out"
            );
            ratios.push(theirs.cpu_us() / ours.cpu_us());
            per_s.push(ours.per_s());
            cpu_us.push(ours.cpu_us());
            p99.push(ours.p99_ms()?);
        }
        let at = |what: &str| format!("{what}, {connections} connections");
        lines.push(
            Line::of(at("CPU of bare hyper ÷ CPU of a rejection"), "", &ratios).at_least(0.95),
        );
        lines.push(Line::of(at("rejections per second"), "/s", &per_s));
        lines.push(Line::of(at("server CPU of a rejection"), "µs", &cpu_us));
        lines.push(Line::of(at("p99"), "ms", &p99));
    }
    Ok(lines)
}

fn confirmations(rig: &Harness, round: u32, connections: &str) -> anyhow::Result<Run> {
    let folder = rig.folder(&format!("confirmations-{connections}-{round}"));
    let product = rig.product(&folder, CONFIRMATIONS)?;
    let load = [
        "--requests",
        &CONFIRMATIONS.to_string(),
        "--connections",
        connections,
    ];
    let run = rig.load(&product, "/seckill", &load)?;
    ensure!(
        run.report.won == u64::from(CONFIRMATIONS),
        "not all attempts were won"
    );
    Ok(run)
}

/// A durable confirmation over HTTP against a rejection.
fn confirmation(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let sold_out = rig.product(&rig.folder("confirmation-rejection"), 0)?;
    let mut lines = Vec::new();
    for connections in ["64", "512"] {
        let (mut ratios, mut per_s, mut cpu_us, mut p99) = (vec![], vec![], vec![], vec![]);
        for round in 0..rig.rounds {
            let load = ["--requests", REJECTIONS, "--connections", connections];
            let rejections = rig.load(&sold_out, "/seckill", &load)?;
            let confirmed = confirmations(rig, round, connections)?;
            ratios.push(rejections.cpu_us() / confirmed.cpu_us());
            per_s.push(confirmed.per_s());
            cpu_us.push(confirmed.cpu_us());
            p99.push(confirmed.p99_ms()?);
        }
        let at = |what: &str| format!("{what}, {connections} connections");
        lines.push(
            Line::of(
                at("CPU of a rejection ÷ CPU of a durable confirmation"),
                "",
                &ratios,
            )
            .at_least(0.6),
        );
        lines.push(Line::of(
            at("durable confirmations per second"),
            "/s",
            &per_s,
        ));
        lines.push(Line::of(
            at("server CPU of a durable confirmation"),
            "µs",
            &cpu_us,
        ));
        lines.push(Line::of(at("p99"), "ms", &p99));
    }
    Ok(lines)
}

/// Claims through the engine's port against a bare loop of group commits of the same rows.
fn claims(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let dir = rig.folder("claims").display().to_string();
    std::fs::create_dir_all(&dir)?;
    let rounds = rig.rounds.to_string();
    let measured = part(&rig.xtask, &["claims", "200000", "256", &rounds, &dir])?;
    let engine = numbers(&measured, "engine_per_s")?;
    let bare = numbers(&measured, "bare_per_s")?;
    let ratios: Vec<f64> = engine
        .iter()
        .zip(&bare)
        .map(|(engine, bare)| engine / bare)
        .collect();
    Ok(vec![
        Line::of("claims ÷ bare SQLite inserts, 256 per commit", "", &ratios).at_least(0.8),
        Line::of("durable claims per second, without HTTP", "/s", &engine),
        Line::of("bare SQLite inserts per second", "/s", &bare),
    ])
}

/// The CPU time of loadgen itself against wrk's.
fn load(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let product = rig.product(&rig.folder("load"), 0)?;
    let (mut ratios, mut ours_us) = (vec![], vec![]);
    for _ in 0..rig.rounds {
        let load = ["--requests", REJECTIONS, "--connections", "64"];
        let ours = rig.load(&product, "/seckill", &load)?;
        let ours = ours.load_cpu_s * 1e6 / ours.report.asked.max(1) as f64;
        ours_us.push(ours);
        if let Some((requests, cpu_s)) = rig.wrk(&product, 64)? {
            ratios.push(cpu_s * 1e6 / requests.max(1) as f64 / ours);
        }
    }
    let mut lines = vec![Line::of("CPU of the load tool per request", "µs", &ours_us)];
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
