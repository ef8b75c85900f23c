//! The binary `seckill`: reads the command line, wires the parts together, and turns failures into a message and an exit
//! code. What a command does stands in `commands`, a file each.

mod bootstrap;
mod cli;
mod commands;
mod configuration;
mod control_client;
mod table;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// An attempt's pieces are made on one thread and freed on another, which the system's allocator does slowly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a command that ran and found something broken.
const BROKEN: u8 = 1;
/// Exit code of a command that could not do its work.
const FAILED: u8 = 2;

/// How a command ended that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandOutcome {
    Ok,
    /// What it checked is not as it should be.
    Failed,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A demo speaks through its table.
    let quiet = matches!(cli.command, Command::Demo(_));
    log_to_stderr(if quiet { "warn" } else { "info" });
    match run(cli) {
        Ok(CommandOutcome::Ok) => ExitCode::SUCCESS,
        Ok(CommandOutcome::Failed) => ExitCode::from(BROKEN),
        Err(error) => {
            eprintln!("seckill: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<CommandOutcome> {
    match cli.command {
        Command::Demo(args) => commands::demo::run(&args),
        Command::Init(args) => commands::init::run(&args),
        Command::Serve(args) => commands::serve::run(&args),
        Command::Relay(args) => commands::component::relay(&args),
        Command::Record(args) => commands::component::record(&args),
        Command::Load(args) => commands::load::run(&args),
        Command::Audit(args) => commands::audit::run(&args),
        Command::Sale(args) => commands::sale::run(&args),
        Command::Config(args) => commands::config::run(&args),
    }
}

/// Logs go to standard error, results to standard output. `SECKILL_LOG=debug` shows more.
fn log_to_stderr(default: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("SECKILL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
