//! `cargo xtask test`: checks the format, the lints, every test and the READMEs' commands. A
//! missing program is a failure; no test is skipped.

use std::path::Path;

use anyhow::Context;
use clap::Args;
use seckill_testkit::servers::ENGINES_DIR_VARIABLE;

use crate::build::{cargo, root, succeed, target};
use crate::engines::Lease;
use crate::readme;

/// The prefix of integration tests that need Redis, Kafka and MySQL.
const CLUSTER_TESTS: &str = "cluster_";

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Run only the tests that need no servers, without the READMEs' commands
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(args: &TestArgs) -> anyhow::Result<()> {
    succeed(cargo().args(["fmt", "--all", "--check"]))?;
    succeed(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "--deny",
        "warnings",
    ]))?;
    if args.quick {
        return quick();
    }
    // Build first, so that the servers do not run meanwhile.
    succeed(cargo().args(["test", "--workspace", "--no-run", "--locked"]))?;
    let dir = target().join("engines-test");
    let (_lease, _) = Lease::up(&dir)?;
    succeed(cargo().env(ENGINES_DIR_VARIABLE, &dir).args([
        "test",
        "--workspace",
        "--no-fail-fast",
        "--locked",
    ]))?;
    // The READMEs start servers as well and stop them; this stops them if a script fails.
    let _guarded = Lease::over(&target().join("engines"))?;
    readme::run()
}

/// The embedded engine's tests, and the unit tests of everything.
fn quick() -> anyhow::Result<()> {
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--no-fail-fast",
        "--locked",
        "--lib",
        "--bins",
    ]);
    succeed(&mut command)?;
    let mut command = cargo();
    command.args(["test", "--no-fail-fast", "--locked"]);
    for package in ["seckill", "seckill-embedded", "seckill-powercut"] {
        command.args(["--package", package]);
    }
    for folder in [".", "crates/embedded", "crates/powercut"] {
        for name in tests_in(&root().join(folder))? {
            command.args(["--test", &name]);
        }
    }
    succeed(&mut command)
}

/// The integration tests of a package that need no servers.
fn tests_in(package: &Path) -> anyhow::Result<Vec<String>> {
    let dir = package.join("tests");
    let mut names = Vec::new();
    let entries = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    for entry in entries {
        let name = entry?.file_name().into_string().unwrap_or_default();
        match name.strip_suffix(".rs") {
            Some(name) if !name.starts_with(CLUSTER_TESTS) => names.push(name.to_owned()),
            _ => {}
        }
    }
    names.sort_unstable();
    Ok(names)
}
