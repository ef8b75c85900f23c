//! The binary `seckill`: reads the command line, wires the components together, and turns failures
//! into a message and an exit code. What a command does belongs in `commands`, one file each.

mod bootstrap;
mod cli;
mod commands;
mod configuration;
mod control_client;
mod data_folder;
mod output;
mod table;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::cli::{Cli, Command};

/// An attempt is allocated on one thread and freed on another, which is slow with the system's
/// allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a command that ran and found something broken.
const BROKEN: u8 = 1;
/// Exit code of a command that could not do its work.
const FAILED: u8 = 2;
/// The environment variable that selects what is logged.
pub(crate) const LOG_VARIABLE: &str = "SECKILL_LOG";

/// The result of a command that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandOutcome {
    Ok,
    /// A check found something wrong.
    Failed,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The demo reports through its table.
    let quiet = matches!(cli.command, Command::Demo(_));
    let logged = log_to_stderr(if quiet { "warn" } else { "info" });
    match logged.and_then(|()| run(cli)) {
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
        Command::Events(args) => commands::events::run(&args),
        Command::Sale(args) => commands::sale::run(&args),
        Command::Backup(args) => commands::backup::backup(&args),
        Command::Restore(args) => commands::backup::restore(&args),
        Command::Config(args) => commands::config::run(&args),
    }
}

/// Logs go to standard error, results to standard output.
fn log_to_stderr(default: &str) -> anyhow::Result<()> {
    use tracing_subscriber::EnvFilter;
    let wanted = std::env::var(LOG_VARIABLE).unwrap_or_default();
    let filter = if wanted.is_empty() {
        EnvFilter::new(default)
    } else {
        // A bare word that is not a level would select one module and silence all others.
        let is_level = wanted
            .parse::<tracing::level_filters::LevelFilter>()
            .is_ok();
        let parsed = EnvFilter::builder().parse(&wanted);
        parsed
            .ok()
            .filter(|_| is_level || wanted.contains('='))
            .with_context(|| {
                format!(
                    "{LOG_VARIABLE} = {wanted:?}: it must be off, error, warn, info, debug or trace, \
                     or directives such as info,seckill_embedded=debug"
                )
            })?
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}
