//! A `seckill serve` process, and commands that run to their end. Whatever is started here is ended here.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// What `serve` prints before its address, once it answers.
const LISTENING: &str = "seckill is listening on http://";
const END_WAIT: Duration = Duration::from_secs(30);

/// A service in a process of its own.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    log: PathBuf,
}

impl ServerProcess {
    /// Starts `seckill serve` on a free port over this folder and waits until it listens. `prefix` are words to run it
    /// under, such as `taskset -c 0`; `more` are further arguments.
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
        // The log lies beside the folder, since the folder is the product's.
        Self::spawn(
            &words,
            &[&arguments, more].concat(),
            &dir.with_extension("log"),
        )
    }

    /// Starts any program that prints the line of `serve` once it listens.
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
                "{program} ended with {status}: {}",
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

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A URL of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Ends it at once, as a power cut would: SIGKILL.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end with this signal and waits until it has.
    pub fn end(mut self, signal: Signal) -> anyhow::Result<ExitStatus> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("a process id")?;
        kill_process(pid, signal)?;
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if asked.elapsed() > END_WAIT {
                bail!("serve did not end within {END_WAIT:?}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Ended already in the good case; in a failing test nothing may be left.
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Runs the binary to its end.
pub fn run(binary: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    Command::new(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", binary.display()))
}

/// Lets this test have as many open connections as the system allows.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Where it is refused, the connections themselves will fail and say why.
    let _ = setrlimit(Resource::Nofile, raised);
}
