//! `cargo xtask jmeter`: runs the tutorial's JMeter plan against a service. Needs no installed
//! JMeter: downloads its jars from Maven Central and lays them out as JMeter expects.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::build::{root, succeed, target};
use crate::engines::fetch;

const VERSION: &str = "5.6.3";
/// JMeter's own components, which it loads from `lib/ext`.
const EXTENSIONS: [&str; 4] = [
    "ApacheJMeter_core",
    "ApacheJMeter_components",
    "ApacheJMeter_http",
    "ApacheJMeter_functions",
];

/// Run the tutorial's JMeter plan against a service
#[derive(Debug, Args)]
pub(crate) struct JmeterArgs {
    /// Host of the service
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port of the service
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Number of buyers, with one thread each
    #[arg(long, default_value_t = 2_000)]
    threads: u32,
    /// Time over which the buyers start, in seconds
    #[arg(long, default_value_t = 5)]
    ramp_s: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The results of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Samples {
    pub(crate) count: u64,
    pub(crate) errors: u64,
}

pub(crate) fn run(args: &JmeterArgs) -> anyhow::Result<()> {
    let samples = run_plan(&args.host, args.port, args.threads, args.ramp_s)?;
    ensure!(
        samples.count == u64::from(args.threads),
        "JMeter recorded {} samples instead of {}",
        samples.count,
        args.threads
    );
    if args.json {
        println!(
            "{}",
            json!({"samples": samples.count, "errors": samples.errors})
        );
    } else {
        println!("{} samples, {} errors", samples.count, samples.errors);
    }
    ensure!(samples.errors == 0, "{} samples failed", samples.errors);
    Ok(())
}

/// Runs the plan without a GUI and counts its samples.
pub(crate) fn run_plan(
    host: &str,
    port: u16,
    threads: u32,
    ramp_s: u32,
) -> anyhow::Result<Samples> {
    let java = fetch::java_installed()?;
    let home = home()?;
    let results = home.join("results.jtl");
    if results.exists() {
        std::fs::remove_file(&results)?;
    }
    let mut jmeter = Command::new(java);
    jmeter
        .current_dir(&home)
        .arg("-Xmx1g")
        .arg(format!("-Djmeter.home={}", home.display()))
        .arg("-jar")
        .arg(home.join("bin").join("ApacheJMeter.jar"))
        .args(["-n", "-t"])
        .arg(root().join("deploy/jmeter/seckill.jmx"))
        .arg("-l")
        .arg(&results)
        .args([
            "-Jjmeterengine.nongui.port=0",
            "-Jjmeter.save.saveservice.output_format=csv",
        ])
        .args([format!("-Jhost={host}"), format!("-Jport={port}")])
        .args([format!("-Jthreads={threads}"), format!("-Jramp={ramp_s}")])
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    succeed(&mut jmeter)?;
    count(&results)
}

/// Counts the samples in JMeter's results file.
fn count(results: &Path) -> anyhow::Result<Samples> {
    let text = std::fs::read_to_string(results).with_context(|| results.display().to_string())?;
    let mut lines = text.lines();
    let heads: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let Some(code) = heads.iter().position(|head| *head == "responseCode") else {
        bail!("JMeter's results have no responseCode column: {heads:?}");
    };
    let mut samples = Samples {
        count: 0,
        errors: 0,
    };
    for line in lines {
        samples.count += 1;
        // The columns before it hold numbers and the sampler's name, none of which has a comma.
        samples.errors += u64::from(line.split(',').nth(code) != Some("200"));
    }
    Ok(samples)
}

/// JMeter's home folder, assembled from its jars if missing.
fn home() -> anyhow::Result<PathBuf> {
    let dir = target().join("engines").join(format!("jmeter-{VERSION}"));
    let home = dir.join("home");
    let done = home.join("done");
    if done.exists() {
        return Ok(home);
    }
    fetch::installed_maven()?;
    let artifacts = [
        "ApacheJMeter",
        "ApacheJMeter_http",
        "ApacheJMeter_functions",
        "ApacheJMeter_config",
    ]
    .map(|artifact| ("org.apache.jmeter", artifact, VERSION));
    fetch::fetch_artifacts(&dir, &artifacts)?;
    for folder in ["bin", "lib/ext", "lib/junit"] {
        std::fs::create_dir_all(home.join(folder))?;
    }
    for jar in std::fs::read_dir(dir.join("libs"))? {
        let path = jar?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        let place = if name == format!("ApacheJMeter-{VERSION}.jar") {
            home.join("bin").join("ApacheJMeter.jar")
        } else if EXTENSIONS
            .iter()
            .any(|extension| name == format!("{extension}-{VERSION}.jar"))
        {
            home.join("lib/ext").join(&name)
        } else {
            home.join("lib").join(&name)
        };
        std::fs::copy(&path, place)?;
    }
    // The settings are in a separate jar.
    let config = dir
        .join("libs")
        .join(format!("ApacheJMeter_config-{VERSION}.jar"));
    let mut unpack = Command::new("jar");
    unpack
        .current_dir(&home)
        .args(["--extract", "--file"])
        .arg(&config);
    if succeed(&mut unpack).is_err() {
        let mut unzip = Command::new("python3");
        succeed(
            unzip
                .current_dir(&home)
                .args(["-m", "zipfile", "-e"])
                .arg(&config)
                .arg("."),
        )
        .context("neither `jar` nor `python3` could unpack JMeter's settings; install a JDK")?;
    }
    std::fs::write(done, VERSION)?;
    Ok(home)
}
