//! The project's own tasks, run as `cargo xtask …`. They build and drive the product; nothing here
//! ships with it.

mod bench;
mod build;
mod engines;
mod faults;
mod jmeter;
mod readme;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks for developing Seckill
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check format and lints, and run every test and the commands in the READMEs
    Test(test::TestArgs),
    /// Measure the product against its baselines, interleaved in one run
    Bench(bench::BenchArgs),
    /// Manage real servers for the cluster engine: Redis, Kafka, and MySQL or MariaDB
    Engines {
        #[command(subcommand)]
        engines: engines::Engines,
    },
    /// Run the tutorial's JMeter plan against a service
    Jmeter(jmeter::JmeterArgs),
    /// Run the fault tests for longer than `test` does
    Faults {
        #[command(subcommand)]
        fault: faults::Fault,
    },
    /// Run a component of the bench in its own process
    #[command(hide = true)]
    BenchPart {
        #[command(subcommand)]
        part: bench::Component,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Engines { engines } => engines::run(&engines),
        Task::Jmeter(args) => jmeter::run(&args),
        Task::Faults { fault } => faults::run(&fault),
        Task::BenchPart { part } => bench::run_part(&part),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
