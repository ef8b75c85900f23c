//! `cargo xtask bench`: measures each case against its baseline, interleaved in one run, so that
//! changes in the machine's speed cancel out. Figures are medians over rounds with their spread.

mod bare;
mod bare_http;
mod before;
mod cases;
mod cluster;
mod comparison;
mod gate;
mod million;
mod model;
mod model_cluster;
mod report;
mod rig;
mod scale;
mod servers;
mod turns;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::build;
use report::Report;
use rig::Harness;

/// Measure the product against its baselines, interleaved in one run
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Run only cases whose name contains this
    #[arg(long, default_value = "")]
    case: String,
    /// Number of rounds of each case; each round also measures the baseline
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A `seckill` that was built before a change, for the cases `before` and `model`
    #[arg(long, value_name = "BINARY")]
    before: Option<PathBuf>,
    /// An `xtask` that was built before a change, for the embedded claims of the case `model`
    #[arg(long, value_name = "BINARY")]
    before_xtask: Option<PathBuf>,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Write docs/PERFORMANCE.md, docs/PERFORMANCE-CLUSTER.md and docs/PERFORMANCE-MODEL.md, each if
    /// any of its cases ran
    #[arg(long)]
    write: bool,
}

/// Run a component of the bench in its own process
#[derive(Debug, Subcommand)]
pub(crate) enum Component {
    Http(bare_http::BareHttp),
    /// Measure durable claims of the engine against a bare loop of the same commits; prints JSON
    Claims {
        /// Rows per round
        rows: u32,
        /// Rows per commit
        batch: u32,
        /// Number of rounds
        rounds: u32,
        /// Working folder
        dir: PathBuf,
    },
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let rig = Harness::new(args.rounds, args.before.clone(), args.before_xtask.clone())?;
    let mut report = Report::new();
    for (name, case) in cases::ALL {
        if name.contains(&args.case) {
            eprintln!("measuring {name}");
            report.add(name, case(&rig)?);
        }
    }
    let shown = if args.json {
        report.to_json()?
    } else {
        report.to_table()
    };
    println!("{shown}");
    if args.write {
        for (name, text) in report.documents() {
            std::fs::write(build::root().join(name), text)?;
            eprintln!("wrote {name}");
        }
    }
    Ok(())
}

pub(crate) fn run_part(part: &Component) -> anyhow::Result<()> {
    match part {
        Component::Http(args) => bare_http::run(args),
        Component::Claims {
            rows,
            batch,
            rounds,
            dir,
        } => bare::claims(*rows, *batch, *rounds, dir),
    }
}
