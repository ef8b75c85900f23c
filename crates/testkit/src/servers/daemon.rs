//! A server process in its own process group. Its id is recorded in a file, so that it can be
//! stopped even after the process that started it has exited.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

const END_WAIT: Duration = Duration::from_secs(20);
const PIDS: &str = "pids";

/// A process that is killed on drop, unless `detach` has released it.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    pid: u32,
    log: PathBuf,
    record: PathBuf,
}

impl Daemon {
    /// Starts a program and appends its output to `log`.
    pub fn spawn(
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let output = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C in a terminal signals the whole group; these processes stop in order instead.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let pid = child.id();
        let records = super::engines_dir()?.join(PIDS);
        std::fs::create_dir_all(&records)?;
        let record = records.join(pid.to_string());
        std::fs::write(&record, started_at(pid).unwrap_or_default())?;
        Ok(Self {
            child: Some(child),
            pid,
            log: log.to_owned(),
            record,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The end of the process's output.
    pub fn output_tail(&self) -> String {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let from = said.len().saturating_sub(2_000);
        said.get(from..).unwrap_or_default().to_owned()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_none_or(|child| matches!(child.try_wait(), Ok(Some(_)) | Err(_)))
    }

    /// Waits until the process is ready. If it exits instead, the error contains its output.
    pub fn wait_ready(
        &mut self,
        within: Duration,
        mut is_ready: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while !is_ready() {
            if self.has_ended() {
                bail!("the process exited: {}", self.output_tail());
            }
            if began.elapsed() > within {
                bail!(
                    "the process was not ready within {within:?}: {}",
                    self.output_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Stops the process immediately with SIGKILL.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.end_now();
        Ok(())
    }

    /// Sends SIGTERM and waits until the process has exited.
    pub fn stop(mut self) -> anyhow::Result<()> {
        signal(self.pid, Signal::TERM)?;
        let began = Instant::now();
        while !self.has_ended() {
            if began.elapsed() > END_WAIT {
                bail!("process {} did not exit within {END_WAIT:?}", self.pid);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Lets the process outlive this one; `end_recorded` stops it.
    pub fn detach(mut self) {
        self.child = None;
    }

    /// Suspends the process with SIGSTOP until `resume`.
    pub fn pause(&self) -> anyhow::Result<()> {
        signal(self.pid, Signal::STOP)
    }

    /// Resumes a paused process with SIGCONT.
    pub fn resume(&self) -> anyhow::Result<()> {
        signal(self.pid, Signal::CONT)
    }

    fn end_now(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that the process has already exited.
            drop(child.kill());
            drop(child.wait());
            drop(std::fs::remove_file(&self.record));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end_now();
    }
}

fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("not a process id")?;
    Ok(kill_process(pid, signal)?)
}

/// The start time of a process in clock ticks since boot, which distinguishes it from a later
/// process with the same id.
fn started_at(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain spaces; the start time is the 20th field after it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

/// Stops every recorded process that is still running and returns their number. A process that has
/// only reused a recorded id is not touched.
pub fn end_recorded(dir: &Path) -> anyhow::Result<u32> {
    let mut ended = 0;
    let Ok(records) = std::fs::read_dir(dir.join(PIDS)) else {
        return Ok(0);
    };
    let mut waiting = Vec::new();
    for record in records {
        let path = record?.path();
        let pid = path
            .file_name()
            .and_then(OsStr::to_str)
            .and_then(|name| name.parse().ok());
        let began = std::fs::read_to_string(&path)?;
        if let Some(pid) = pid
            && started_at(pid).is_some_and(|at| at == began)
        {
            // A paused process does not handle SIGTERM until it is resumed.
            drop(signal(pid, Signal::CONT));
            signal(pid, Signal::TERM)?;
            waiting.push((pid, began));
            ended += 1;
        }
        std::fs::remove_file(&path)?;
    }
    let asked = Instant::now();
    for (pid, began) in waiting {
        let is_there = || started_at(pid).is_some_and(|at| at == began && !is_zombie(pid));
        while is_there() && asked.elapsed() < END_WAIT {
            std::thread::sleep(Duration::from_millis(20));
        }
        if is_there() {
            signal(pid, Signal::KILL)?;
        }
    }
    Ok(ended)
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}
