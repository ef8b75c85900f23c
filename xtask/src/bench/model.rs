//! Compares what an order costs in this build with what it cost before a change of the data model:
//! claims, stored rows, the gate's memory and a restart. The cluster's part is in `model_cluster`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use seckill_testkit::servers::wait_until;

use super::comparison::{Builds, NAMED, PLAIN, Target, compared, no_target};
use super::model_cluster;
use super::report::Line;
use super::rig::{Harness, Run, cpu_s, numbers, part, serve};
use super::servers::READY_WAIT;
use super::turns::{Pair, Side, in_turns};

/// Claims of the embedded engine in each turn, and how many share a commit.
const CLAIMS: &str = "400000";
const CLAIMS_PER_COMMIT: &str = "256";
/// Orders in each new folder whose size is measured.
const ROWS: u32 = 100_000;
/// Orders in the folders that are restarted.
const RESTART_ROWS: u32 = 1_000_000;

pub(crate) fn model(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let Some(before) = &rig.before else {
        eprintln!("no --before BINARY, so there is no comparison with its data model");
        return Ok(Vec::new());
    };
    let builds = Builds { rig, before };
    let mut lines = claims(rig)?;
    lines.extend(feed(rig)?);
    for part in [rows, restart, model_cluster::claims] {
        lines.extend(part(&builds)?);
    }
    Ok(lines)
}

/// Durable claims of the embedded engine without HTTP, by an `xtask` of each side.
fn claims(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let Some(before) = &rig.before_xtask else {
        eprintln!("no --before-xtask BINARY, so there is no comparison with its embedded claims");
        return Ok(Vec::new());
    };
    let pairs = in_turns(rig.rounds, |side, _| {
        let folder = emptied(rig, "model-claims")?;
        std::fs::create_dir_all(&folder)?;
        let dir = folder.display().to_string();
        let arguments = ["claims", CLAIMS, CLAIMS_PER_COMMIT, "1", &dir];
        let measured = part(side.of(before, &rig.xtask), &arguments)?;
        let first = |key| {
            let numbers = numbers(&measured, key)?;
            numbers
                .first()
                .copied()
                .with_context(|| format!("{key} is empty"))
        };
        // An older build does not report its CPU time.
        let cpu_us = measured
            .get("engine_cpu_us")
            .map(|_| first("engine_cpu_us"));
        Ok((first("engine_per_s")?, cpu_us.transpose()?))
    })?;
    let what = "embedded claims per second";
    let target = |line: Line| line.at_least(1.25);
    let mut lines = compared(what, "/s", target, &pairs, |(per_s, _)| *per_s).to_vec();
    let cpu = pairs.iter().map(|pair| {
        let (before, now) = (pair.before.1?, pair.now.1?);
        Some(Pair { before, now })
    });
    if let Some(pairs) = cpu.collect::<Option<Vec<_>>>() {
        let target = |line: Line| line.at_most(0.8);
        let what = "CPU of an embedded claim";
        lines.extend(compared(what, "µs", target, &pairs, |cpu_us| *cpu_us));
    } else {
        eprintln!("{} does not report its CPU time", before.display());
    }
    Ok(lines)
}

/// What the feed adds to the rows of a claim, as a part of what a claim costs the embedded engine.
fn feed(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let folder = emptied(rig, "model-feed")?;
    std::fs::create_dir_all(&folder)?;
    let dir = folder.display().to_string();
    let rounds = rig.rounds.to_string();
    let arguments = ["claims", CLAIMS, CLAIMS_PER_COMMIT, &rounds, &dir];
    let measured = part(&rig.xtask, &arguments)?;
    let figures = |key| numbers(&measured, key);
    let with = figures("bare_cpu_us")?.into_iter();
    let with = with.zip(figures("without_feed_cpu_us")?);
    let shares: Vec<f64> = with
        .zip(figures("engine_cpu_us")?)
        .map(|((with, without), engine)| (with - without) / engine)
        .collect();
    let what = "CPU of the feed ÷ CPU of an embedded claim";
    Ok(vec![Line::of(what.to_owned(), "", &shares).at_most(0.03)])
}

/// The size of a new data folder after its service has stopped, and the CPU time of filling it.
fn rows(builds: &Builds<'_>) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let loads: [(_, &[&str], Target); 2] = [
        ("", &PLAIN, |line| line.at_most(0.8)),
        (", with buyer and key", &NAMED, no_target),
    ];
    for (suffix, load, target) in loads {
        let pairs = in_turns(builds.rig.rounds, |side, _| {
            let folder = emptied(builds.rig, "model-rows")?;
            let run = fill(builds, side, &folder, ROWS, load)?;
            Ok((bytes_in(&folder)? as f64 / f64::from(ROWS), run.cpu_us()))
        })?;
        let size = format!("bytes on disk of a row{suffix}");
        lines.extend(compared(&size, "B", target, &pairs, |(bytes, _)| *bytes));
        let cpu = format!("server CPU of a durable confirmation{suffix}");
        lines.extend(compared(&cpu, "µs", no_target, &pairs, |(_, cpu_us)| {
            *cpu_us
        }));
    }
    Ok(lines)
}

/// From the start of the process until it is ready, each side over the orders that it has stored
/// itself.
fn restart(builds: &Builds<'_>) -> anyhow::Result<Vec<Line>> {
    let rig = builds.rig;
    let folder = |side: Side| rig.folder(&format!("model-restart-{}", side.name()));
    for side in [Side::Before, Side::Now] {
        fill(builds, side, &folder(side), RESTART_ROWS, &PLAIN)?;
    }
    let pairs = in_turns(rig.rounds, |side, _| {
        let began = Instant::now();
        let product = serve(builds.of(side), &folder(side), 0)?;
        wait_until("a ready server", READY_WAIT, || {
            Ok(seckill_testkit::get(product.address, "/readyz")?.status == 200)
        })?;
        let taken = (began.elapsed().as_secs_f64(), cpu_s(product.pid())?);
        product.end(Signal::TERM)?;
        Ok(taken)
    })?;
    let what = format!("restart over {RESTART_ROWS} orders");
    let cpu = format!("CPU of a {what}");
    let target = |line: Line| line.at_most(1.0);
    let mut lines = compared(&what, "s", target, &pairs, |(wall_s, _)| *wall_s).to_vec();
    lines.extend(compared(&cpu, "s", no_target, &pairs, |(_, cpu_s)| *cpu_s));
    Ok(lines)
}

/// Sells this many units in a new folder and stops the service.
fn fill(
    builds: &Builds<'_>,
    side: Side,
    folder: &Path,
    orders: u32,
    load: &[&str],
) -> anyhow::Result<Run> {
    let product = serve(builds.of(side), folder, orders)?;
    let requests = orders.to_string();
    let load = [&["--requests", &requests], load].concat();
    let run = builds
        .rig
        .load(&product, "/v1/sales/counter/orders", &load)?;
    ensure!(
        run.report.won == u64::from(orders),
        "not all attempts were won: {:?}",
        run.report
    );
    let status = product.end(Signal::TERM)?;
    ensure!(status.success(), "the service stopped with {status}");
    Ok(run)
}

/// The path of a folder in the scratch folder, which does not exist any more.
fn emptied(rig: &Harness, name: &str) -> anyhow::Result<PathBuf> {
    let folder = rig.folder(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(folder)
}

fn bytes_in(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}
