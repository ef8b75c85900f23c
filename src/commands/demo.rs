//! `seckill demo`: runs the tutorial's experiment over real HTTP, and audits the result.
//! It must never delete anything that it did not create.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use seckill_api::{AuditReport, AuditVerdict, DemoReport, HistoryEntry, LoadReport};
use seckill_embedded::{DATA_FILES, DATABASE_FILE};
use seckill_loadgen::{Lines, Outcome, Pacing, Plan, Progress, Target};
use seckill_sale::{DEFAULT_SALE_ID, ItemId, NewItem, NewSale};
use seckill_service::convert;
use tokio::net::TcpListener;

use crate::CommandOutcome;
use crate::bootstrap::{self, Roles};
use crate::cli::DemoArgs;
use crate::commands::{audit, demo_cluster, load};
use crate::configuration::{Configuration, EngineKind, Flag};
use crate::output;
use crate::table::{self, grouped};

/// The demo's default data folder, which it empties each time.
const DEMO_FOLDER: &str = "seckill-demo";
/// The file that marks a folder as the demo's own.
const MARK: &str = "made-by-seckill-demo";
/// The most connections: one for each request of the tutorial.
const CONNECTIONS_MAX: u64 = 2_000;

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<CommandOutcome> {
    let dir = args
        .common
        .data()
        .cloned()
        .unwrap_or_else(|| PathBuf::from(DEMO_FOLDER));
    let mut loaded = args.common.load(flags(args, &dir))?;
    if loaded.configuration.engine == EngineKind::Cluster {
        let found = demo_cluster::found(&loaded)?;
        loaded = args
            .common
            .load(flags(args, &dir).into_iter().chain(found))?;
    }
    let configuration = loaded.configuration;
    bootstrap::raise_file_limit();
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    runtime.block_on(demo(args, &configuration, &dir))
}

fn flags(args: &DemoArgs, dir: &Path) -> Vec<Flag> {
    let flag = |name, key, value: String| Flag { name, key, value };
    let named = if args.items.is_some() {
        "--items"
    } else {
        "--units"
    };
    vec![
        flag(named, "sale.units", units(args).to_string()),
        flag("demo", "sale.id", DEFAULT_SALE_ID.to_owned()),
        flag("--data", "embedded.data", dir.display().to_string()),
    ]
}

/// Units for sale, over all items.
fn units(args: &DemoArgs) -> u64 {
    match &args.items {
        Some(items) => items.0.iter().map(|(_, total)| u64::from(*total)).sum(),
        None => args.units.into(),
    }
}

/// The sale that the demo sells.
fn sale(args: &DemoArgs, configuration: &Configuration) -> NewSale {
    let mut sale = bootstrap::default_sale(configuration);
    if let Some(items) = &args.items {
        let item = |(id, total): &(ItemId, u32)| NewItem {
            id: id.clone(),
            title: String::new(),
            total: *total,
            price: None,
        };
        sale.items = items.0.iter().map(item).collect();
    }
    sale
}

/// What each request asks for.
fn lines(args: &DemoArgs) -> Lines {
    let units = args.quantity.0.clone();
    match &args.items {
        Some(items) => Lines::Random {
            units,
            items: items.0.iter().map(|(id, _)| id.to_string()).collect(),
        },
        None => Lines::Quantity(units),
    }
}

/// Empties the folder, but only if the demo created it and no other command has used it.
fn clear(dir: &Path) -> anyhow::Result<()> {
    let failed = || format!("the demo's folder {} cannot be prepared", dir.display());
    if let Some(owner) = seckill_embedded::lock_owner(dir) {
        bail!(
            "{} is in use by {owner}; stop that process, or use --data to choose another folder",
            dir.display()
        );
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(failed)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(failed)? {
        found.push(entry.with_context(failed)?.file_name());
    }
    let is_ours =
        |name: &std::ffi::OsString| name == MARK || DATA_FILES.iter().any(|ours| name == ours);
    let is_demo = found.iter().any(|name| name == MARK) && found.iter().all(is_ours);
    if !found.is_empty() && !is_demo {
        bail!(
            "{} is not empty, and not the demo's own: the demo empties its folder each time, so it refuses one that other commands have used; use --data to choose another folder",
            dir.display()
        );
    }
    // The mark stays: were this interrupted, the folder would still be the demo's.
    for name in found.into_iter().filter(|name| name != MARK) {
        std::fs::remove_file(dir.join(name)).with_context(failed)?;
    }
    std::fs::write(
        dir.join(MARK),
        "`seckill demo` empties this folder each time it runs.\n",
    )
    .with_context(failed)
}

/// Removes the mark, so that later demos do not empty the folder.
pub(crate) fn keep(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(dir.join(MARK)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be written", dir.display()))
        }
        _ => Ok(()),
    }
}

async fn demo(
    args: &DemoArgs,
    configuration: &Configuration,
    dir: &Path,
) -> anyhow::Result<CommandOutcome> {
    let listener = listen(args, configuration)?;
    match configuration.engine {
        EngineKind::Embedded => clear(dir)?,
        EngineKind::Cluster => demo_cluster::begin_afresh(configuration).await?,
    }
    let sale = sale(args, configuration);
    let running = bootstrap::serve(configuration, listener, Roles::ALL, sale.clone()).await?;
    if configuration.engine == EngineKind::Cluster {
        bootstrap::make_default_sale(running.engine.as_ref(), sale).await?;
    }
    let url = format!("http://{}/seckill", running.address);
    if !args.json {
        let within = if args.ramp.is_zero() {
            "as fast as they are answered".to_owned()
        } else {
            format!("in {:?}", args.ramp)
        };
        output::print(format!(
            "{} units, {} requests {within}, {url}\n",
            grouped(units(args)),
            grouped(args.requests),
        ))?;
    }
    let pacing = if args.ramp.is_zero() {
        Pacing::Closed
    } else {
        Pacing::Over(args.ramp)
    };
    let plan = Plan {
        pacing,
        connections: args.requests.clamp(1, CONNECTIONS_MAX) as usize,
        lines: lines(args),
        seed: args.seed,
        keep_confirmations: true,
        ..Plan::new(Target::parse(&url)?, args.requests)
    };
    let mut confirmations = Vec::new();
    let keep = |arrived: &[HistoryEntry]| {
        confirmations.extend_from_slice(arrived);
        Ok(())
    };
    let progress = Progress::default();
    let report = tokio::task::block_in_place(|| load::send(&plan, &progress, keep))?.report;
    let audited = running
        .engine
        .audit(convert::history(confirmations)?)
        .await?;
    let audited = convert::audit_report(audited);
    let verdict = AuditVerdict::new(is_clean(args, &report, &audited));
    if args.json {
        let demo = demo_report(args, &report, audited, verdict);
        output::print(serde_json::to_string_pretty(&demo)? + "\n")?;
    } else {
        let mut text = table::pairs(&rows(&report, &audited, verdict));
        text.push_str(&audit::broken(&audited));
        text.push_str(&next_steps(configuration, &running, dir, args.keep));
        output::print(text)?;
    }
    if args.keep {
        tokio::signal::ctrl_c()
            .await
            .context("waiting for Ctrl-C")?;
    }
    running.end().await;
    Ok(match verdict {
        AuditVerdict::Clean => CommandOutcome::Ok,
        AuditVerdict::Broken => CommandOutcome::Failed,
    })
}

/// Listens on the given address. Without one, it listens on the configured address or, if that is
/// taken, on any free port.
fn listen(args: &DemoArgs, configuration: &Configuration) -> anyhow::Result<TcpListener> {
    let backlog = configuration.backlog();
    if let Some(address) = args.listen {
        return bootstrap::listen(address, backlog);
    }
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    bootstrap::try_listen(configuration.service.listen, backlog)
        .or_else(|_| bootstrap::listen(any, backlog))
}

/// Checks more than the audit: every request was answered with won, sold out or not enough left,
/// each confirmation has all units that were asked for, and the numbers add up.
fn is_clean(args: &DemoArgs, report: &LoadReport, audited: &AuditReport) -> bool {
    let won = report.count(Outcome::Won);
    let rejected = report.count(Outcome::SoldOut) + report.count(Outcome::NotEnoughLeft);
    let adds_up = audited.verdict() == AuditVerdict::Clean
        && report.failed == 0
        && won + rejected == args.requests
        && report.wrong_units == Some(0)
        && report.units_won == Some(audited.store_rows)
        && audited.store_rows + audited.gate_left == units(args)
        && audited.log_records.is_none_or(|records| records == won);
    let is_sold_as_far_as_asked = match &args.items {
        // Only what is asked for decides which items sell out.
        Some(_) => true,
        // A rejected request asked for more units than were free.
        None => rejected == 0 || audited.gate_left < u64::from(*args.quantity.0.end()),
    };
    adds_up && is_sold_as_far_as_asked
}

fn demo_report(
    args: &DemoArgs,
    report: &LoadReport,
    audited: AuditReport,
    verdict: AuditVerdict,
) -> DemoReport {
    DemoReport {
        asked: report.asked,
        won: report.won,
        sold_out: report.sold_out,
        failed: report.failed,
        units_won: report.units_won.unwrap_or_default(),
        wrong_units: report.wrong_units.unwrap_or_default(),
        gate_left: audited.gate_left,
        log_records: audited.log_records,
        store_rows: audited.store_rows,
        oversold: audited.oversold,
        undersold: audited.undersold,
        duplicates: audited.duplicates,
        verdict,
        units: units(args),
        elapsed_s: report.elapsed_s,
        latency: report.latency,
        outcomes: report.outcomes.clone(),
        audit: audited.into(),
    }
}

fn rows(
    report: &LoadReport,
    audited: &AuditReport,
    verdict: AuditVerdict,
) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("asked", grouped(report.asked)),
        ("won", grouped(report.won)),
        ("sold out", grouped(report.sold_out)),
    ];
    let count = |name, count: u64| (count > 0).then(|| (name, grouped(count)));
    rows.extend(count(
        "not enough left",
        report.count(Outcome::NotEnoughLeft),
    ));
    rows.push(("failed", grouped(report.failed)));
    rows.extend(count("wrong units", report.wrong_units.unwrap_or_default()));
    // The same number where each order has one unit.
    let units_won = report.units_won.filter(|units| *units != report.won);
    rows.extend(units_won.map(|units| ("units sold", grouped(units))));
    rows.extend(report.latency.iter().flat_map(load::latency_rows));
    rows.extend([
        (
            "time",
            format!(
                "{:.2} s",
                Duration::from_secs_f64(report.elapsed_s).as_secs_f64()
            ),
        ),
        ("units left", grouped(audited.gate_left)),
    ]);
    rows.extend(
        audited
            .log_records
            .map(|records| ("messages in the order log", grouped(records))),
    );
    rows.extend([
        ("rows in the order store", grouped(audited.store_rows)),
        ("oversold", grouped(audited.oversold)),
        ("undersold", grouped(audited.undersold)),
        ("duplicates", grouped(audited.duplicates)),
        ("verdict", verdict.to_string()),
    ]);
    rows
}

fn next_steps(
    configuration: &Configuration,
    running: &bootstrap::Running,
    dir: &Path,
    keep: bool,
) -> String {
    let mut text = "\nTry next:\n".to_owned();
    let of_engine = match configuration.engine {
        EngineKind::Embedded => {
            let (database, dir) = (dir.join(DATABASE_FILE), dir.display());
            text.push_str(&format!(
                "  sqlite3 {} 'select * from seckill_orders limit 5'\n  seckill audit --data {dir}\n",
                database.display()
            ));
            format!("--data {dir}")
        }
        EngineKind::Cluster => {
            text.push_str(&demo_cluster::look(&configuration.cluster_options()));
            "--engine cluster".to_owned()
        }
    };
    if keep {
        let address = running.address;
        text.push_str(&format!(
            "  curl -X POST http://{address}/seckill\n  seckill sale change counter --add-units 1 {of_engine}\n\
             \nThe service is running on http://{address}; Ctrl-C stops it.\n"
        ));
    } else {
        text.push_str(
            "  seckill demo --keep          leave the service running\n  seckill serve --help\n",
        );
    }
    text
}
