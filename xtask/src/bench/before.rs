//! Compares the binary with one that was built before a change, in alternating rounds, to detect
//! slowdowns. Without that binary, the case is skipped.

use std::path::Path;

use anyhow::ensure;
use seckill_api::LoadOutcome;

use super::report::Line;
use super::rig::{Harness, Run, serve};
use super::turns::{Pair, in_turns};

const REQUESTS: u32 = 60_000;

/// One kind of load: its name, the units on sale, and the arguments of the load.
type Load<'a> = (&'a str, u32, &'a [&'a str]);

pub(crate) fn before(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let Some(before) = &rig.before else {
        eprintln!("no --before BINARY, so there is no comparison with it");
        return Ok(Vec::new());
    };
    let named = ["--buyers", "unique", "--keys", "unique"];
    let loads: [Load<'_>; 5] = [
        ("rejections, 64 connections", 0, &["--connections", "64"]),
        ("rejections, 512 connections", 0, &["--connections", "512"]),
        (
            "confirmations, 64 connections",
            REQUESTS,
            &["--connections", "64"],
        ),
        (
            "confirmations, 512 connections",
            REQUESTS,
            &["--connections", "512"],
        ),
        (
            "confirmations with buyer and key, 64 connections",
            REQUESTS,
            &named,
        ),
    ];
    let mut lines = Vec::new();
    for load in loads {
        let pairs = in_turns(rig.rounds, |side, _| {
            one(rig, side.of(before, &rig.binary), load, side.name())
        })?;
        let ratios = |ratio: fn(&Pair<Run>) -> f64| pairs.iter().map(ratio).collect::<Vec<_>>();
        let cpu = ratios(|pair| pair.before.cpu_us() / pair.now.cpu_us());
        let rate = ratios(|pair| pair.now.per_s() / pair.before.per_s());
        let name = load.0;
        lines.push(Line::of(format!("CPU before ÷ now, {name}"), "", &cpu));
        lines.push(Line::of(format!("rate now ÷ before, {name}"), "", &rate));
    }
    Ok(lines)
}

fn one(rig: &Harness, binary: &Path, load: Load<'_>, which: &str) -> anyhow::Result<Run> {
    let (name, units, arguments) = load;
    let folder = rig.folder(which);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let product = serve(binary, &folder, units)?;
    let requests = REQUESTS.to_string();
    let arguments = [&["--requests", &requests], arguments].concat();
    let run = rig.load(&product, "/v1/sales/counter/orders", &arguments)?;
    let expected = if units == 0 {
        LoadOutcome::SoldOut
    } else {
        LoadOutcome::Won
    };
    ensure!(
        run.report.count(expected) == u64::from(REQUESTS),
        "{name}: not all answers were {expected}: {:?}",
        run.report
    );
    Ok(run)
}
