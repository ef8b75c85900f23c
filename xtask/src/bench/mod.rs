//! `cargo xtask bench`: each case against its baseline, interleaved in one run, so that the machine's moods cancel out.
//! Figures are medians over rounds with their spread; docs/PERFORMANCE.md is written from them by `--write`.

mod bare;
mod cases;
mod cluster;
mod gate;
mod million;
mod report;
mod rig;
mod scale;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::build;
use report::Report;
use rig::Harness;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Only the cases whose name contains this
    #[arg(long, default_value = "")]
    case: String,
    /// Rounds of each case; the baseline is measured in each, too
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Write the tables to docs/PERFORMANCE.md and docs/PERFORMANCE-CLUSTER.md, whichever has a case among these
    #[arg(long)]
    write: bool,
}

/// What runs in a process of its own, pinned to a core.
#[derive(Debug, Subcommand)]
pub(crate) enum Component {
    /// A bare hyper server that sends the bytes of a sold-out answer
    Http,
    /// Durable claims through the engine's port against a bare loop of the same commits; prints JSON
    Claims {
        /// Rows a round
        rows: u32,
        /// Rows a commit
        batch: u32,
        /// Rounds
        rounds: u32,
        /// The folder to work in
        dir: PathBuf,
    },
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let rig = Harness::new(args.rounds)?;
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
        Component::Http => bare::http(),
        Component::Claims {
            rows,
            batch,
            rounds,
            dir,
        } => bare::claims(*rows, *batch, *rounds, dir),
    }
}
