//! `cargo xtask faults`: the runs under faults, longer than the tests have them.

use clap::Subcommand;
use seckill_testkit::{KillPlan, kill_rounds};

use crate::build;

/// The faults.
#[derive(Debug, Subcommand)]
pub(crate) enum Fault {
    /// SIGKILL under load at random moments: each yes stays, nobody gets two, the rest sells
    Kill {
        /// How many times
        #[arg(long, default_value_t = 200)]
        rounds: u32,
        /// Units of each round's sale
        #[arg(long, default_value_t = 10_000)]
        units: u32,
        /// The latest moment of a kill after the first answer, in milliseconds
        #[arg(long, default_value_t = 300)]
        within_ms: u64,
        /// Where the random moments begin
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

pub(crate) fn run(fault: &Fault) -> anyhow::Result<()> {
    let Fault::Kill {
        rounds,
        units,
        within_ms,
        seed,
    } = *fault;
    let binary = build::release("seckill", "seckill")?;
    let dir = tempfile::tempdir()?;
    let summary = kill_rounds(&KillPlan {
        binary,
        dir: dir.path().to_owned(),
        rounds,
        units,
        kill_within_ms: within_ms,
        seed,
    })?;
    println!(
        "{} rounds of SIGKILL, {} of them while units were being sold\n\
         {} yeses read before the kills, each of them one order afterwards\n\
         {} attempts cut off by a kill\nall audits clean",
        summary.rounds, summary.killed_while_selling, summary.yeses_before_kills, summary.cut_off
    );
    anyhow::ensure!(
        summary.killed_while_selling > 0,
        "no kill came while units were being sold, so nothing was shown; try more units or a shorter time"
    );
    Ok(())
}
