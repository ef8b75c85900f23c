//! `seckill init`: creates what the cluster engine needs before it sells. Must be safe to repeat.

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
            "the embedded engine creates what it needs by itself; for a cluster, run `seckill init --engine cluster`"
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
            .context("not everything was deleted; run the command again")?;
        output::print("all sales and orders were deleted\n")?;
    }
    let topic = if made.topic_made { "created" } else { "exists" };
    output::print(format!(
        "tables   exist\ntopic    {} {topic}\n",
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
    bootstrap::make_default_sale(engine, bootstrap::default_sale(configuration)).await?;
    let id = &configuration.sale.id;
    let stock = engine
        .sale(id)
        .await?
        .with_context(|| format!("the sale {id} was deleted in the meantime"))?;
    Ok(format!(
        "sale     {id}: {} of {} units left",
        stock.remaining(),
        stock.sale.total()
    ))
}
