//! A server's process: started in a group of its own, recorded so that nothing is left behind, ended by its id.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

const END_WAIT: Duration = Duration::from_secs(20);
const PIDS: &str = "pids";

/// A process that ends with this value, unless it is let go.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    pid: u32,
    log: PathBuf,
    record: PathBuf,
}

impl Daemon {
    /// Starts a program; what it says goes to `log`.
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
            // Ctrl-C in a terminal goes to the whole group; these are ended in order instead.
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

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The end of what it has said.
    pub fn last_words(&self) -> String {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let from = said.len().saturating_sub(2_000);
        said.get(from..).unwrap_or_default().to_owned()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_none_or(|child| matches!(child.try_wait(), Ok(Some(_)) | Err(_)))
    }

    /// Waits until it is ready; one that ends instead says why.
    pub fn wait_ready(
        &mut self,
        within: Duration,
        mut is_ready: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while !is_ready() {
            if self.has_ended() {
                bail!("it ended: {}", self.last_words());
            }
            if began.elapsed() > within {
                bail!("it was not ready within {within:?}: {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends it at once: SIGKILL.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.end_now();
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) -> anyhow::Result<()> {
        signal(self.pid, Signal::TERM)?;
        let began = Instant::now();
        while !self.has_ended() {
            if began.elapsed() > END_WAIT {
                bail!("process {} did not end within {END_WAIT:?}", self.pid);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Lets it go on without this process; `end_recorded` ends it.
    pub fn let_go(mut self) {
        self.child = None;
    }

    /// Stops it where it stands, until `go_on`.
    pub fn pause(&self) -> anyhow::Result<()> {
        signal(self.pid, Signal::STOP)
    }

    /// Lets a paused one go on.
    pub fn go_on(&self) -> anyhow::Result<()> {
        signal(self.pid, Signal::CONT)
    }

    fn end_now(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Ended already is as good.
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
    let pid = Pid::from_raw(pid.cast_signed()).context("a process id")?;
    Ok(kill_process(pid, signal)?)
}

/// When a process began, by the system's count: a number that a later process with its id does not have.
fn started_at(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may have spaces; the 20th field behind it is the start.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

/// Ends every process that was started here and is still there. Only those: an id that is another process's by now is left
/// alone. Says how many were ended.
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
            // A paused process hears nothing before it goes on.
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
