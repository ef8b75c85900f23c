//! `seckill relay` and `seckill record`: a part of the cluster as a process of its own, until Ctrl-C or SIGTERM.

use anyhow::bail;
use seckill_cluster::{ClusterEngine, RecorderProcess};
use seckill_engine::{Engine, Part};
use tokio::signal::unix::{SignalKind, signal};

use crate::Ended;
use crate::cli::PartArgs;
use crate::configuration::{Configuration, EngineKind};
use crate::open;

pub(crate) fn relay(args: &PartArgs) -> anyhow::Result<Ended> {
    run(args, "relay", async |configuration| {
        let engine = ClusterEngine::start_relay(configuration.cluster_options())?;
        until_signal("relay", || engine.parts()).await?;
        engine.close().await;
        Ok(())
    })
}

pub(crate) fn record(args: &PartArgs) -> anyhow::Result<Ended> {
    run(args, "record", async |configuration| {
        let recorder = RecorderProcess::start(configuration.cluster_options())?;
        until_signal("record", || vec![recorder.part()]).await?;
        tracing::info!(
            orders = recorder.orders(),
            "stopping: storing what is in hand"
        );
        recorder.stop().await;
        Ok(())
    })
}

fn run(
    args: &PartArgs,
    name: &str,
    part: impl AsyncFnOnce(&Configuration) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let configuration = args.common.load([])?.configuration;
    if configuration.engine != EngineKind::Cluster {
        bail!("`seckill {name}` is a part of the cluster; run it with --engine cluster");
    }
    let runtime = open::runtime(configuration.service.threads.get())?;
    runtime.block_on(part(&configuration))?;
    Ok(Ended::Well)
}

/// Says what becomes of the parts until somebody asks this process to end.
async fn until_signal(name: &str, parts: impl Fn() -> Vec<Part>) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    println!("seckill {name} is running");
    let mut known = Vec::new();
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = tokio::time::sleep(open::PARTS_POLL) => {}
        }
        let now = parts();
        open::say_changes(&known, &now);
        known = now;
    }
}
