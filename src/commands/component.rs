//! `seckill relay` and `seckill record`: run a component of the cluster as a separate process until
//! Ctrl-C or SIGTERM.

use anyhow::bail;
use seckill_cluster::{ClusterEngine, RecorderProcess};
use seckill_engine::{Component, Engine};
use tokio::signal::unix::{SignalKind, signal};

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::ComponentArgs;
use crate::configuration::{Configuration, EngineKind};
use crate::output;

pub(crate) fn relay(args: &ComponentArgs) -> anyhow::Result<CommandOutcome> {
    run(args, "relay", async |configuration| {
        let engine = ClusterEngine::start_relay(configuration.cluster_options())?;
        until_signal("relay", || engine.components()).await?;
        engine.close().await;
        Ok(())
    })
}

pub(crate) fn record(args: &ComponentArgs) -> anyhow::Result<CommandOutcome> {
    run(args, "record", async |configuration| {
        let recorder = RecorderProcess::start(configuration.cluster_options())?;
        until_signal("record", || vec![recorder.part()]).await?;
        tracing::info!(
            orders = recorder.orders(),
            "stopping: storing the claims that were read"
        );
        recorder.stop().await;
        Ok(())
    })
}

fn run(
    args: &ComponentArgs,
    name: &str,
    part: impl AsyncFnOnce(&Configuration) -> anyhow::Result<()>,
) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load([])?.configuration;
    if configuration.engine != EngineKind::Cluster {
        bail!("`seckill {name}` runs a component of the cluster engine; add --engine cluster");
    }
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    runtime.block_on(part(&configuration))?;
    Ok(CommandOutcome::Ok)
}

/// Logs changes of the components until a signal stops the process.
async fn until_signal(
    name: &str,
    components_now: impl Fn() -> Vec<Component>,
) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    output::announce(&format!("seckill {name} is running"));
    let mut known = Vec::new();
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = tokio::time::sleep(bootstrap::COMPONENTS_POLL) => {}
        }
        let now = components_now();
        bootstrap::log_changes(&known, &now);
        known = now;
    }
}
