//! The cluster's servers for the bench, and the product's processes on them. Measures no case
//! itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use seckill_api::{Audited, LoadReport};
use seckill_testkit::ServerProcess;
use seckill_testkit::servers::{Urls, wait_until};

use super::rig::{Harness, cpu_s, output};
use crate::build;
use crate::engines::Lease;

pub(crate) const READY_WAIT: Duration = Duration::from_secs(60);

/// The running servers, and the product that uses them. The servers stop on drop.
pub(crate) struct Servers<'a> {
    rig: &'a Harness,
    _lease: Lease,
    binary: PathBuf,
    /// The product's environment variables, in the form `NAME=value`.
    settings: Vec<String>,
    pub(crate) urls: Urls,
}

impl<'a> Servers<'a> {
    pub(crate) fn up(rig: &'a Harness) -> anyhow::Result<Self> {
        let (lease, urls) = Lease::up(&build::target().join("engines-bench"))?;
        Ok(Self {
            rig,
            _lease: lease,
            binary: rig.binary.clone(),
            settings: Vec::new(),
            urls,
        })
    }

    /// Continues with this binary on an empty Redis, and on a database and a topic of this name,
    /// which must be new.
    pub(crate) fn start_over(
        &mut self,
        binary: &Path,
        name: &str,
        units: &str,
    ) -> anyhow::Result<()> {
        ensure!(
            server_pids("redis").is_ok_and(|pids| !pids.is_empty()),
            "{} is not a Redis that the bench has started, so it is not emptied; unset SECKILL_CLUSTER__REDIS",
            self.urls.redis
        );
        let said = self.urls.redis("FLUSHALL SYNC")?;
        ensure!(said.starts_with("+OK"), "FLUSHALL SYNC: {said}");
        self.binary = binary.to_owned();
        self.settings = vec![format!("SECKILL_CLUSTER__TOPIC={name}")];
        self.urls = self.urls.with_database(name);
        self.command(&["init", "--units", units])
    }

    /// Starts over with this many units of `counter`.
    pub(crate) fn reset(&self, units: &str) -> anyhow::Result<()> {
        self.command(&["init", "--units", units])
            .and_then(|()| self.command(&["init", "--reset", "--units", units]))
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let flags = self.urls.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let binary = self.binary.display().to_string();
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        let words = [&settings[..], &[&binary], arguments, &flags].concat();
        output(Path::new("env"), &words).map(|_| ())
    }

    /// Audits with this build.
    pub(crate) fn audit(&self) -> anyhow::Result<Audited> {
        let flags = self.urls.flags();
        let flags = flags.iter().map(String::as_str);
        let arguments: Vec<&str> = ["audit", "--json"].into_iter().chain(flags).collect();
        self.rig.command(&arguments)
    }

    /// Starts `seckill serve` and waits until it is ready.
    pub(crate) fn serve(&self, more: &[&str]) -> anyhow::Result<ServerProcess> {
        let binary = self.binary.display().to_string();
        let mut words = vec!["env"];
        words.extend(self.settings.iter().map(String::as_str));
        words.push(&binary);
        let flags = self.urls.flags();
        let mut arguments = vec!["serve", "--listen", "127.0.0.1:0"];
        arguments.extend(flags.iter().map(String::as_str));
        arguments.extend(more);
        let served = ServerProcess::spawn(&words, &arguments, &self.rig.folder("serve.log"))?;
        wait_until("a ready server", READY_WAIT, || {
            Ok(seckill_testkit::get(served.address, "/readyz")?.status == 200)
        })?;
        Ok(served)
    }

    /// Runs the load of this build, on the same cores.
    pub(crate) fn load(&self, served: &ServerProcess, more: &[&str]) -> anyhow::Result<LoadReport> {
        let url = served.url("/seckill");
        let arguments = [&["load", &url, "--ramp", "0", "--json"], more].concat();
        self.rig.command(&arguments)
    }

    /// The CPU time of each server so far, in seconds.
    pub(crate) fn cpu(&self, served: &ServerProcess) -> anyhow::Result<[(&'static str, f64); 4]> {
        Ok([
            ("seckill", cpu_s(served.pid())?),
            ("Redis", server_cpu_s("redis")?),
            ("MySQL", self.mysql_cpu_s()?),
            ("Kafka", server_cpu_s("java")?),
        ])
    }

    /// The CPU time of MySQL so far, in seconds.
    pub(crate) fn mysql_cpu_s(&self) -> anyhow::Result<f64> {
        Ok(server_cpu_s("mariadbd")? + server_cpu_s("mysqld")?)
    }
}

/// The servers that the bench has started and whose program's name starts like this.
fn server_pids(name: &str) -> anyhow::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(build::target().join("engines-bench").join("pids"))? {
        let pid = entry?.file_name().to_string_lossy().parse()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if command.trim().starts_with(name) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

fn server_cpu_s(name: &str) -> anyhow::Result<f64> {
    server_pids(name)?.into_iter().map(cpu_s).sum()
}
