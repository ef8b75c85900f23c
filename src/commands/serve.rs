//! `seckill serve`: runs the HTTP service until Ctrl-C or SIGTERM.

use std::time::Duration;

use seckill_sale::Item;
use tokio::signal::unix::{SignalKind, signal};

use crate::CommandOutcome;
use crate::bootstrap::{self, Roles};
use crate::cli::ServeArgs;
use crate::commands::demo;
use crate::configuration::{Configuration, EngineKind};
use crate::output;

/// The longest wait for threads that are busy with files when the process stops.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load(args.flags())?.configuration;
    bootstrap::raise_file_limit();
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    let roles = Roles {
        relays: !args.no_relay,
        records: !args.no_record,
    };
    let served = runtime.block_on(serve(&configuration, roles, args.names_units()));
    // An audit that is still running must not keep the process alive.
    runtime.shutdown_timeout(SHUTDOWN_WAIT);
    served?;
    Ok(CommandOutcome::Ok)
}

async fn serve(
    configuration: &Configuration,
    roles: Roles,
    names_units: bool,
) -> anyhow::Result<()> {
    // Before anything is opened: from here on, a signal leads to an orderly shutdown.
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let default_sale = bootstrap::default_sale(configuration);
    let listener = bootstrap::listen(configuration.service.listen, configuration.backlog())?;
    let mut running = bootstrap::serve(configuration, listener, roles, default_sale).await?;
    if configuration.engine == EngineKind::Embedded {
        demo::keep(&configuration.embedded.data)?;
        warn_of_other_units(&running, configuration, names_units).await?;
    }
    output::announce(&format!(
        "seckill is listening on http://{}",
        running.address
    ));
    let stopped = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = running.worker_died() => {
            Err(anyhow::anyhow!("a thread that serves connections died; its log message says why"))
        }
    };
    tracing::info!("stopping: answering requests in flight");
    running.end().await;
    tracing::info!("stopped");
    stopped
}

/// Warns if `--units` has no effect because the sale exists, and tells what changes its total.
async fn warn_of_other_units(
    running: &bootstrap::Running,
    configuration: &Configuration,
    names_units: bool,
) -> anyhow::Result<()> {
    let id = &configuration.sale.id;
    let units = configuration.units();
    if let Some(stock) = running.engine.sale(id).await?
        && names_units
        && stock.sale.total() != units
    {
        let items = &stock.sale.items;
        let change = if items.len() > 1 {
            let item = |item: &Item| format!("{}={}", item.id, item.total);
            let items: Vec<String> = items.iter().map(item).collect();
            format!(
                "`seckill sale change {id} --items {}` with other numbers",
                items.join(",")
            )
        } else {
            format!("`seckill sale change {id} --units {units}`")
        };
        tracing::warn!(
            "sale {id} already exists with {} units, so --units {units} has no effect; {change} changes it",
            stock.sale.total()
        );
    }
    Ok(())
}
