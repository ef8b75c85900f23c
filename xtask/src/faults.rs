//! `cargo xtask faults`: the runs under faults, longer than the tests have them.

use anyhow::Context;
use clap::Subcommand;
use seckill_testkit::{
    Cluster, KillPlan, Scenario, Shape, cluster_kill_rounds, fast_settings, kill_rounds,
    raise_file_limit, survive,
};

use crate::build;
use crate::engines::Lease;

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
    /// The same on a cluster: of 3 servers, 2 relays and 2 recorders, one of each is killed in every round
    ClusterKill {
        /// How many times
        #[arg(long, default_value_t = 50)]
        rounds: u32,
        /// Units of each round's sale
        #[arg(long, default_value_t = 2_000)]
        units: u64,
        /// The latest moment of a kill after the first answer, in milliseconds
        #[arg(long, default_value_t = 500)]
        within_ms: u64,
        /// Where the random moments begin
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Each server of a cluster lost in its own way under load: Redis wiped, rolled back, failed over; MySQL and Kafka
    /// killed; the topic made again
    Servers {
        /// Only the scenarios whose name contains this
        #[arg(long, default_value = "")]
        scenario: String,
        /// How often each
        #[arg(long, default_value_t = 1)]
        rounds: u32,
    },
}

pub(crate) fn run(fault: &Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Kill {
            rounds,
            units,
            within_ms,
            seed,
        } => kill(*rounds, *units, *within_ms, *seed),
        Fault::ClusterKill {
            rounds,
            units,
            within_ms,
            seed,
        } => cluster_kill(*rounds, *units, *within_ms, *seed),
        Fault::Servers { scenario, rounds } => servers(scenario, *rounds),
    }
}

fn cluster_kill(rounds: u32, units: u64, within_ms: u64, seed: u64) -> anyhow::Result<()> {
    raise_file_limit();
    let binary = build::release("seckill", "seckill")?;
    let dir = tempfile::tempdir()?;
    let (_lease, urls) = Lease::up(&build::target().join("engines-faults"))?;
    let shape = Shape {
        serves: 3,
        relays: 2,
        records: 2,
    };
    let settings = fast_settings("faults");
    let mut cluster = Cluster::start(&binary, dir.path(), &urls, &settings, shape)?;
    let summary = cluster_kill_rounds(&mut cluster, rounds, units, within_ms, seed)?;
    println!(
        "{} rounds, in each a server, a relay and a recorder killed while {units} units were being sold\n\
         {} confirmations that clients read, each of them one row\n\
         {} answers that told an address, {} attempts cut off\nall units sold, all audits clean",
        summary.rounds, summary.confirmations, summary.pending, summary.failed
    );
    Ok(())
}

fn servers(wanted: &str, rounds: u32) -> anyhow::Result<()> {
    raise_file_limit();
    let binary = build::release("seckill", "seckill")?;
    let (_lease, _) = Lease::up(&build::target().join("engines-faults"))?;
    let mut ran = 0;
    for round in 0..rounds {
        for (name, scenario) in Scenario::ALL {
            if !name.contains(wanted) {
                continue;
            }
            let dir = tempfile::tempdir()?;
            let database = format!("{}_{round}", name.replace('-', "_"));
            let survived =
                survive(scenario, &binary, dir.path(), &database).with_context(|| name)?;
            let crowd = survived.crowd;
            println!(
                "{name}: yes {}, told an address {}, 503 {}, false sold out {}; rebuilt in {} ms, no order for {} ms; all sold, audit clean",
                crowd.won,
                crowd.pending,
                crowd.unavailable,
                crowd.sold_out,
                survived.closed_ms,
                survived.gap_ms
            );
            ran += 1;
        }
    }
    anyhow::ensure!(ran > 0, "no scenario's name contains {wanted:?}");
    Ok(())
}

fn kill(rounds: u32, units: u32, within_ms: u64, seed: u64) -> anyhow::Result<()> {
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
         {} confirmations read before the kills, each of them one order afterwards\n\
         {} attempts cut off by a kill\nall audits clean",
        summary.rounds,
        summary.killed_while_selling,
        summary.confirmations_before_kills,
        summary.cut_off
    );
    anyhow::ensure!(
        summary.killed_while_selling > 0,
        "no kill came while units were being sold, so nothing was shown; try more units or a shorter time"
    );
    Ok(())
}
