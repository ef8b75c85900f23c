//! The harness of the cases: runs server and load on separate cores and measures their CPU time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use seckill_api::LoadReport;
use seckill_testkit::{ServerProcess, run};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

use crate::build;

/// Pins the measured program to core 0.
const SERVER: [&str; 3] = ["taskset", "-c", "0"];
/// Pins the load to core 1.
const LOAD: [&str; 3] = ["taskset", "-c", "1"];
/// Clock ticks in /proc/PID/stat: `getconf CLK_TCK` is 100 on all common Linux systems.
const TICKS_PER_S: f64 = 100.0;

pub(crate) struct Harness {
    pub(crate) rounds: u32,
    pub(crate) binary: PathBuf,
    /// The product before a change.
    pub(crate) before: Option<PathBuf>,
    /// This program before a change, with the product's crates of that time.
    pub(crate) before_xtask: Option<PathBuf>,
    pub(crate) xtask: PathBuf,
    scratch: TempDir,
}

/// A measured load: its report and the CPU time of the server.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) report: LoadReport,
    pub(crate) cpu_s: f64,
    /// The CPU time of the load itself.
    pub(crate) load_cpu_s: f64,
}

impl Run {
    pub(crate) fn per_s(&self) -> f64 {
        self.report.answers_per_s
    }

    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu_s * 1e6 / self.report.answered.max(1) as f64
    }

    pub(crate) fn p99_ms(&self) -> anyhow::Result<f64> {
        Ok(latency_ms(&self.report)?.p99)
    }
}

pub(crate) struct LatencyMs {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

pub(crate) fn latency_ms(report: &LoadReport) -> anyhow::Result<LatencyMs> {
    let latency = report.latency.context("a load without answers")?;
    let ms = |us: u64| us as f64 / 1e3;
    Ok(LatencyMs {
        p50: ms(latency.p50_us),
        p99: ms(latency.p99_us),
    })
}

impl Harness {
    pub(crate) fn new(
        rounds: u32,
        before: Option<PathBuf>,
        before_xtask: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        ensure!(
            cores >= 2,
            "the bench needs two cores, one for the server and one for the load"
        );
        Ok(Self {
            rounds,
            before,
            before_xtask,
            binary: build::release("seckill", "seckill")?,
            xtask: build::release("xtask", "xtask")?,
            scratch: tempfile::tempdir_in(build::target())?,
        })
    }

    /// A path in the scratch folder, which is on the same disk as the build.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Starts the product on the server's core.
    pub(crate) fn product(&self, folder: &Path, units: u32) -> anyhow::Result<ServerProcess> {
        serve(&self.binary, folder, units)
    }

    /// Starts the bare HTTP server on the server's core.
    pub(crate) fn bare_http(&self) -> anyhow::Result<ServerProcess> {
        let mut words = SERVER.to_vec();
        let xtask = self.xtask.display().to_string();
        words.push(&xtask);
        ServerProcess::spawn(&words, &["bench-part", "http"], &self.folder("bare.log"))
    }

    /// Runs the load on its core against a server.
    pub(crate) fn load(
        &self,
        served: &ServerProcess,
        path: &str,
        more: &[&str],
    ) -> anyhow::Result<Run> {
        let url = served.url(path);
        let before = cpu_s(served.pid())?;
        let children = children_cpu_s();
        let done = Command::new(LOAD[0])
            .args(&LOAD[1..])
            .arg(&self.binary)
            .args(["load", &url, "--ramp", "0", "--json"])
            .args(more)
            .stdin(Stdio::null())
            .output()?;
        let load_cpu_s = children_cpu_s() - children;
        let cpu_s = cpu_s(served.pid())? - before;
        ensure!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(Run {
            report: serde_json::from_slice(&done.stdout)?,
            cpu_s,
            load_cpu_s,
        })
    }

    /// Runs wrk on the load's core, if it is installed. Returns its requests and its CPU time.
    pub(crate) fn wrk(
        &self,
        served: &ServerProcess,
        connections: u32,
    ) -> anyhow::Result<Option<(u64, f64)>> {
        let script = self.folder("post.lua");
        std::fs::write(&script, "wrk.method = 'POST'\n")?;
        let children = children_cpu_s();
        let done = Command::new(LOAD[0])
            .args(&LOAD[1..])
            .args([
                "wrk",
                "-t",
                "1",
                "-d",
                "3",
                "-c",
                &connections.to_string(),
                "-s",
            ])
            .arg(&script)
            .arg(served.url("/seckill"))
            .stdin(Stdio::null())
            .output()?;
        if !done.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&done.stdout);
        let requests = text
            .lines()
            .find_map(|line| line.trim().split_once(" requests in "));
        let requests = requests
            .and_then(|(count, _)| count.parse().ok())
            .context("unexpected output of wrk")?;
        Ok(Some((requests, children_cpu_s() - children)))
    }

    /// Runs a command of this build to completion and reads its JSON.
    pub(crate) fn command<T: DeserializeOwned>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        output_json(&self.binary, arguments)
    }
}

/// Runs a program to completion and returns its output. The program must succeed.
pub(crate) fn output(program: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let done = run(program, arguments)?;
    ensure!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(done.stdout)
}

fn output_json<T: DeserializeOwned>(program: &Path, arguments: &[&str]) -> anyhow::Result<T> {
    let said = output(program, arguments)?;
    serde_json::from_slice(&said).with_context(|| {
        format!(
            "unexpected output of {} {arguments:?}: {}",
            program.display(),
            String::from_utf8_lossy(&said)
        )
    })
}

/// Runs a component of a bench on the server's core to completion, and returns its standard output
/// as JSON, whose members depend on the build.
pub(crate) fn part(xtask: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let xtask = xtask.display().to_string();
    let words = [&SERVER[1..], &[&xtask, "bench-part"], arguments].concat();
    output_json(Path::new(SERVER[0]), &words)
}

/// The numbers in the list under a key.
pub(crate) fn numbers(report: &Value, key: &str) -> anyhow::Result<Vec<f64>> {
    let values = report[key].as_array();
    let values = values.and_then(|values| values.iter().map(Value::as_f64).collect());
    values.with_context(|| format!("no list of numbers {key:?} in {report}"))
}

/// Starts a product on the server's core.
pub(crate) fn serve(binary: &Path, folder: &Path, units: u32) -> anyhow::Result<ServerProcess> {
    ServerProcess::start(binary, folder, &SERVER, &["--units", &units.to_string()])
}

/// User and system time of a process, in seconds.
pub(crate) fn cpu_s(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name in parentheses, which may contain spaces, utime and stime are the 12th and
    // 13th fields.
    let behind = stat
        .rsplit_once(')')
        .context("unexpected format of /proc/PID/stat")?
        .1;
    let fields: Vec<&str> = behind.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let both = ticks(11)
        .zip(ticks(12))
        .context("unexpected format of /proc/PID/stat")?;
    Ok((both.0 + both.1) / TICKS_PER_S)
}

/// User and system time of this process's exited children, in seconds.
fn children_cpu_s() -> f64 {
    let usage = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind = usage.rsplit_once(')').map_or("", |(_, behind)| behind);
    let fields: Vec<f64> = behind
        .split_whitespace()
        .map(|f| f.parse().unwrap_or(0.0))
        .collect();
    // cutime and cstime.
    (fields.get(13).unwrap_or(&0.0) + fields.get(14).unwrap_or(&0.0)) / TICKS_PER_S
}

/// A field of /proc/PID/status, in KiB.
pub(crate) fn memory_kib(pid: u32, line: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status
        .lines()
        .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let found = found.with_context(|| format!("no {line} in /proc/{pid}/status"))?;
    Ok(found.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_member_is_an_error() {
        let report = serde_json::json!({"per_s": [1.5, 2], "name": "x", "mixed": [1, "x"]});
        assert_eq!(numbers(&report, "per_s").unwrap(), [1.5, 2.0]);
        for wrong in ["per_second", "name", "mixed"] {
            let error = numbers(&report, wrong).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
