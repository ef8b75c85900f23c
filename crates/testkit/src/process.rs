//! Runs `seckill serve` as a process, and other commands to completion. A server process is stopped
//! when its value is dropped, so that no test leaves one behind.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The text before the address in the line that `serve` prints once it listens.
const LISTENING: &str = "seckill is listening on http://";
const END_WAIT: Duration = Duration::from_secs(30);

/// A running service. It is killed on drop.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    pub address: SocketAddr,
    log: PathBuf,
}

impl ServerProcess {
    /// Starts `seckill serve` on a free port with `dir` as its data folder, and waits until it
    /// listens. `prefix` is a command to run it under, such as `taskset -c 0`; `more` holds further
    /// arguments.
    pub fn start(
        binary: &Path,
        dir: &Path,
        prefix: &[&str],
        more: &[&str],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let (binary, data) = (binary.display().to_string(), dir.display().to_string());
        let words = [prefix, &[binary.as_str()]].concat();
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", &data];
        // The log is next to the data folder, because that folder belongs to the product.
        Self::spawn(
            &words,
            &[&arguments, more].concat(),
            &dir.with_extension("log"),
        )
    }

    /// Starts any program that prints the same line as `serve` once it listens.
    pub fn spawn(words: &[&str], arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        let (program, words) = words.split_first().context("no program")?;
        let mut child = Command::new(program)
            .args(words)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log)?)
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        let mut first = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut first)?;
        }
        let Some(address) = first.trim().strip_prefix(LISTENING) else {
            let status = child.wait()?;
            bail!(
                "{program} stopped with {status}: {}",
                std::fs::read_to_string(log)?
            );
        };
        let address = address.parse()?;
        Ok(Self {
            child,
            address,
            log: log.to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log so far; empty if it cannot be read.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Stops the process immediately with SIGKILL, as a crash would.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends this signal and waits until the process has exited.
    pub fn end(mut self, signal: Signal) -> anyhow::Result<ExitStatus> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("not a process id")?;
        kill_process(pid, signal)?;
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if asked.elapsed() > END_WAIT {
                bail!("serve did not exit within {END_WAIT:?}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Normally the process has exited already; a failing test must not leave it running.
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Polls a condition until it holds. Panics after a minute, since only tests wait like this.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    const WAIT: Duration = Duration::from_secs(60);
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < WAIT, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the binary to completion.
pub fn run(binary: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    Command::new(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", binary.display()))
}

/// Raises this process's limit on open files to the maximum that the system allows.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // If this fails, opening the connections fails and reports the reason.
    let _ = setrlimit(Resource::Nofile, raised);
}
