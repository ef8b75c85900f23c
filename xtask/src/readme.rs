//! Runs the commands in the READMEs as written, in the workspace root. Every `sh` block is one
//! script; a block whose first line is `# not run: REASON` is skipped.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::build::{root, succeed};

const DOCUMENTS: [&str; 2] = ["README.md", "README.zh-CN.md"];
/// Stops what a script leaves running, and makes the script fail at its first failing command.
const PRELUDE: &str = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n";

pub(crate) fn run() -> anyhow::Result<()> {
    require("sqlite3")?;
    require("curl")?;
    let mut first: Option<Vec<String>> = None;
    for name in DOCUMENTS {
        let text = std::fs::read_to_string(root().join(name)).with_context(|| name.to_owned())?;
        let scripts = scripts(&text);
        ensure!(!scripts.is_empty(), "{name} has no sh block to run");
        match &first {
            // Both languages have the same commands, so running them once covers both.
            Some(first) => ensure!(
                *first == scripts,
                "the commands in {name} differ from those in {}",
                DOCUMENTS[0]
            ),
            None => {
                for script in &scripts {
                    run_script(name, script)?;
                }
                first = Some(scripts);
            }
        }
    }
    Ok(())
}

fn scripts(text: &str) -> Vec<String> {
    let mut scripts = Vec::new();
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once("```sh\n") {
        let (script, after) = behind.split_once("```").unwrap_or((behind, ""));
        if !script.starts_with("# not run:") {
            scripts.push(script.to_owned());
        }
        rest = after;
    }
    scripts
}

fn run_script(name: &str, script: &str) -> anyhow::Result<()> {
    println!("+ from {name}:\n{script}");
    let status = Command::new("bash")
        .args(["-c", &format!("{PRELUDE}{script}")])
        .current_dir(root())
        .stdin(Stdio::null())
        .status()
        .context("bash cannot be started")?;
    ensure!(
        status.success(),
        "a block of {name} failed with {status}:\n{script}"
    );
    Ok(())
}

/// Fails unless a tool that the READMEs use is available. On Debian, installs it if missing.
fn require(tool: &str) -> anyhow::Result<()> {
    let is_there = || {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {tool} >/dev/null")])
            .status();
        found.is_ok_and(|status| status.success())
    };
    if is_there() {
        return Ok(());
    }
    if Path::new("/etc/debian_version").exists() {
        succeed(Command::new("apt-get").args(["update", "--quiet"]))?;
        let install = ["install", "--yes", "--no-install-recommends", tool];
        succeed(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(install),
        )?;
    }
    ensure!(
        is_there(),
        "the READMEs use {tool}, which is not installed; install it"
    );
    Ok(())
}
