//! `seckill demo`: runs the tutorial's experiment over real HTTP, and audits the result.
//! It must never delete anything that it did not create.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use seckill_api::{AuditVerdict, HistoryEntry};
use seckill_embedded::DATA_FILES;
use seckill_loadgen::{Lines, Pacing, Plan, Progress, Target};
use seckill_sale::{DEFAULT_SALE_ID, ItemId, NewItem, NewSale};
use seckill_service::convert;
use tokio::net::TcpListener;

use crate::CommandOutcome;
use crate::bootstrap::{self, Roles};
use crate::cli::DemoArgs;
use crate::commands::demo_result::{self, DemoResult};
use crate::commands::{demo_cluster, load};
use crate::configuration::{Configuration, EngineKind, Flag};
use crate::output;
use crate::table::grouped;

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
    let (most, max) = (
        args.quantity.0.end(),
        configuration.service_options().order_units_max,
    );
    if *most > max {
        bail!(
            "--quantity: a request may ask for {most} units, but an order has at most {max} (service.order_units_max)"
        );
    }
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
pub(crate) fn units(args: &DemoArgs) -> u64 {
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
    let run = tokio::task::block_in_place(|| load::send(&plan, &progress, keep))?;
    let audited = running
        .engine
        .audit(convert::history(confirmations)?)
        .await?;
    let result = DemoResult::new(units(args), &plan, run, convert::audit_report(audited));
    if args.json {
        for failed in result.failed_checks() {
            eprintln!("seckill: {failed}");
        }
        output::print(serde_json::to_string_pretty(&result.report())? + "\n")?;
    } else {
        let next = demo_result::next_steps(args, configuration, running.address, dir);
        output::print(result.text() + &next)?;
    }
    if args.keep {
        tokio::signal::ctrl_c()
            .await
            .context("waiting for Ctrl-C")?;
    }
    running.end().await;
    Ok(match result.verdict() {
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
