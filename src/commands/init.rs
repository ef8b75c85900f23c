//! `seckill init`: makes what the cluster engine needs before it sells.

use anyhow::{Context, bail};
use seckill_engine::Engine;

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::InitArgs;
use crate::configuration::{Configuration, EngineKind};
use crate::output;

pub(crate) fn run(args: &InitArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load(args.flags())?.configuration;
    if configuration.engine != EngineKind::Cluster {
        bail!(
            "the embedded engine makes what it needs by itself; `seckill init --engine cluster` is for the cluster"
        );
    }
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    runtime.block_on(init(&configuration, args.reset))?;
    Ok(CommandOutcome::Ok)
}

async fn init(configuration: &Configuration, reset: bool) -> anyhow::Result<()> {
    let options = configuration.cluster_options();
    let made = seckill_cluster::init(&options).await?;
    seckill_cluster::set_lease(&options).await?;
    if reset {
        seckill_cluster::reset(&options)
            .await
            .context("not everything was deleted; run it again")?;
        output::print("all sales and orders are deleted\n")?;
    }
    let topic = if made.topic_made { "made" } else { "is there" };
    output::print(format!(
        "tables   are there\ntopic    {} {topic}\n",
        options.topic
    ))?;
    let engine = bootstrap::engine(configuration, "init")?;
    let sale = default_sale(engine.as_ref(), configuration).await;
    engine.close().await;
    output::print(sale? + "\n")?;
    seckill_cluster::mark_as_demo(&options, false).await?;
    Ok(())
}

async fn default_sale(
    engine: &dyn Engine,
    configuration: &Configuration,
) -> anyhow::Result<String> {
    bootstrap::make_default_sale(engine, configuration).await?;
    let id = &configuration.sale.id;
    let stock = engine
        .sale(id)
        .await?
        .with_context(|| format!("the sale {id} is gone again"))?;
    Ok(format!(
        "sale     {id}: {} of {} units left",
        stock.free, stock.sale.total
    ))
}
