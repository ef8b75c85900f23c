//! The cases for size: a million requests, a million orders, and the time and memory that they
//! take.

use std::time::Instant;

use anyhow::ensure;
use seckill_api::{AuditVerdict, Audited, Sale};

use super::report::Line;
use super::rig::{Harness, memory_kib};

const MILLION: u32 = 1_000_000;

/// A million requests for 100,000 units, from the first request to the last row.
pub(crate) fn million(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let folder = rig.folder("million");
    let product = rig.product(&folder, 100_000)?;
    let load = ["--requests", "1000000", "--connections", "512"];
    let run = rig.load(&product, "/seckill", &load)?;
    ensure!(
        run.report.won == 100_000 && run.report.sold_out == 900_000,
        "{:?}",
        run.report
    );
    // The last answer came after the last row, because a confirmation is a stored row.
    let data = folder.display().to_string();
    let audit: Audited = rig.command(&["audit", "--json", "--data", &data])?;
    ensure!(
        audit.report.store_rows == 100_000 && audit.verdict == AuditVerdict::Clean,
        "{audit:#?}"
    );
    let peak = memory_kib(product.pid(), "VmHWM")? as f64 / 1024.0;
    Ok(vec![
        Line::one(
            "1,000,000 requests for 100,000 units, first request to last row",
            "s",
            run.report.elapsed_s,
        ),
        Line::one("orders afterwards", "", 100_000.0).within(100_000.0, 100_000.0),
        Line::one("peak memory of the server", "MiB", peak),
    ])
}

/// The server's memory per claim, and per buyer who got nothing.
pub(crate) fn memory(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let folder = rig.folder("memory");
    let product = rig.product(&folder, 0)?;
    let data = folder.display().to_string();
    let create = [
        "sale", "create", "big", "--units", "1000000", "--limit", "1", "--data", &data, "--json",
    ];
    rig.command::<Sale>(&create)?;
    let orders = "/v1/sales/big/orders";
    let unique = ["--connections", "512", "--buyers", "unique"];
    let few = [&unique[..], &["--keys", "unique", "--requests", "50000"]].concat();
    // The first claims fill SQLite's page cache and the allocator's pools, which do not grow with
    // the number of claims.
    rig.load(&product, orders, &few)?;
    let before = memory_kib(product.pid(), "VmRSS")?;
    // Buyers are numbered from 0 in each run: 50,000 repeat their attempt, 950,000 are new.
    let all = [&unique[..], &["--keys", "unique", "--requests", "1000000"]].concat();
    let run = rig.load(&product, orders, &all)?;
    ensure!(run.report.won == 950_000, "{:?}", run.report);
    let claims = memory_kib(product.pid(), "VmRSS")?;
    let losers = [&unique[..], &["--requests", "1000000"]].concat();
    let lost = rig.load(&product, orders, &losers)?;
    ensure!(lost.report.won == 0, "{:?}", lost.report);
    let after = memory_kib(product.pid(), "VmRSS")?;
    let bytes = |kib: u64, count: f64| kib as f64 * 1024.0 / count;
    Ok(vec![
        Line::one(
            "memory of a claim with a key and a limit",
            "B",
            bytes(claims.saturating_sub(before), 950_000.0),
        ),
        Line::one(
            "memory of a buyer who got nothing",
            "B",
            bytes(after.saturating_sub(claims), 1e6),
        )
        .at_most(1.0),
    ])
}

/// From the start of the process until it listens, with a million orders with keys and limits.
pub(crate) fn restart(rig: &Harness) -> anyhow::Result<Vec<Line>> {
    let folder = rig.folder("memory");
    if !folder.exists() {
        memory(rig)?;
    }
    let mut seconds = Vec::new();
    for _ in 0..rig.rounds {
        let began = Instant::now();
        let product = rig.product(&folder, 0)?;
        seconds.push(began.elapsed().as_secs_f64());
        product.kill()?;
    }
    let what = format!("restart over {MILLION} orders with keys and limits");
    Ok(vec![Line::of(what, "s", &seconds).at_most(2.0)])
}
