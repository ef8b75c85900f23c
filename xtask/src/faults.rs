//! `cargo xtask faults`: fault runs that are longer than those of the tests.

use anyhow::Context;
use clap::Subcommand;
use seckill_powercut::{PowerPlan, power_rounds};
use seckill_testkit::servers::ENGINES_DIR_VARIABLE;
use seckill_testkit::{
    Cluster, KillPlan, Scenario, Shape, cluster_kill_rounds, fast_settings, kill_rounds,
    raise_file_limit, survive,
};

use crate::build;
use crate::engines::Lease;

/// Run the fault tests for longer than `cargo xtask test` does
#[derive(Debug, Subcommand)]
pub(crate) enum Fault {
    /// Kill the service at random times under load and check that every confirmation survives
    Kill {
        /// Number of rounds
        #[arg(long, default_value_t = 200)]
        rounds: u32,
        /// Units of each round's sale
        #[arg(long, default_value_t = 10_000)]
        units: u32,
        /// Latest time of a kill after the first answer, in milliseconds
        #[arg(long, default_value_t = 300)]
        within_ms: u64,
        /// Seed of the random kill times and lines
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Cut the power under SQLite at random writes and syncs, and check that every confirmation
    /// survives and every rejection was correct
    Power {
        /// Number of rounds
        #[arg(long, default_value_t = 10_000)]
        rounds: u32,
        /// Seed of the random cuts
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Kill a server, a relay and a recorder of a cluster in each round, with the same checks
    ClusterKill {
        /// Number of rounds
        #[arg(long, default_value_t = 50)]
        rounds: u32,
        /// Units of each round's sale
        #[arg(long, default_value_t = 2_000)]
        units: u64,
        /// Latest time of a kill after the first answer, in milliseconds
        #[arg(long, default_value_t = 500)]
        within_ms: u64,
        /// Seed of the random kill times and lines
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run random histories through the ledger, the gate's script and the watch strategy, and compare
    /// every verdict and the whole state after each step
    Differential {
        /// Number of commands
        #[arg(long, default_value_t = 1_000_000)]
        commands: u32,
    },
    /// Break the servers of a cluster under load: Redis wiped, rolled back or failed over; MySQL or
    /// Kafka killed; the topic deleted; replies lost
    Servers {
        /// Run only scenarios whose name contains this
        #[arg(long, default_value = "")]
        scenario: String,
        /// Number of runs of each scenario
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
        Fault::Power { rounds, seed } => power(*rounds, *seed),
        Fault::ClusterKill {
            rounds,
            units,
            within_ms,
            seed,
        } => cluster_kill(*rounds, *units, *within_ms, *seed),
        Fault::Differential { commands } => differential(*commands),
        Fault::Servers { scenario, rounds } => servers(scenario, *rounds),
    }
}

fn power(rounds: u32, seed: u64) -> anyhow::Result<()> {
    println!("{}", power_rounds(&PowerPlan { rounds, seed })?);
    Ok(())
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
        "{} rounds: a server, a relay and a recorder killed in each while {units} units were on sale\n\
         {} confirmations read by clients, each stored as exactly one order, {} orders of several units\n\
         {} attempts above the limit per buyer, all rejected\n\
         {} pending answers, {} attempts without an answer\nall units sold, all audits clean",
        summary.rounds,
        summary.confirmations,
        summary.several_units,
        summary.limit_reached,
        summary.pending,
        summary.failed
    );
    Ok(())
}

fn differential(commands: u32) -> anyhow::Result<()> {
    const TEST: [&str; 4] = ["--package", "seckill-redis-gate", "--test", "differential"];
    build::succeed(
        build::cargo()
            .args(["test", "--release", "--no-run"])
            .args(TEST),
    )?;
    let dir = build::target().join("engines-faults");
    let (_lease, _) = Lease::up(&dir)?;
    let mut test = build::cargo();
    test.env(ENGINES_DIR_VARIABLE, &dir)
        .env("SECKILL_DIFFERENTIAL_COMMANDS", commands.to_string())
        .args(["test", "--release"])
        .args(TEST)
        .args(["--", "--ignored", "--nocapture"]);
    build::succeed(&mut test)
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
            let totals = survived.totals;
            println!(
                "{name}: {} confirmed, {} pending, {} unavailable (503), {} false sold out; rebuilt in {} ms, no order for {} ms; all sold, audit clean",
                totals.won,
                totals.pending,
                totals.unavailable,
                totals.sold_out,
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
        "{} rounds with a SIGKILL, {} of them while units were on sale\n\
         {} confirmations read before a kill, each of them exactly one order afterwards\n\
         {} orders of several units; {} attempts above the limit per buyer, all rejected\n\
         {} attempts without an answer because of a kill\nall audits clean",
        summary.rounds,
        summary.killed_while_selling,
        summary.confirmations_before_kills,
        summary.several_units,
        summary.limit_reached,
        summary.cut_off
    );
    anyhow::ensure!(
        summary.killed_while_selling > 0,
        "no kill happened while units were on sale, so the run proves nothing; use more units or a shorter time"
    );
    Ok(())
}
