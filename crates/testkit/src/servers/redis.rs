//! A Redis server for tests, and Sentinels that watch a master and its replica.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Daemon, Programs, answers, free_port, wait_until};

const READY_WAIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Redis {
    pub daemon: Daemon,
    /// On loopback.
    pub port: u16,
}

impl Redis {
    /// Starts a server with its append-only file in `dir`. `more` holds further arguments.
    pub fn start(
        programs: &Programs,
        dir: &Path,
        port: u16,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let (port_text, dir_text) = (port.to_string(), dir.display().to_string());
        let usual = [
            "--port",
            &port_text,
            "--bind",
            "127.0.0.1",
            "--dir",
            &dir_text,
            "--appendonly",
            "yes",
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ];
        let mut daemon = Daemon::spawn(
            &programs.redis_server,
            &[&usual, more].concat(),
            &dir.join("log"),
        )?;
        daemon
            .wait_ready(READY_WAIT, || {
                // A server that requires a password replies NOAUTH, so it is ready as well.
                ask(port, "PING").is_ok_and(|said| said.contains("PONG") || said.contains("NOAUTH"))
            })
            .context("Redis")?;
        Ok(Self { daemon, port })
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs one inline command and returns the raw reply.
    pub fn ask(&self, command: &str) -> anyhow::Result<String> {
        ask(self.port, command)
    }
}

/// Sends one inline command and returns what the first read delivers.
fn ask(port: u16, command: &str) -> anyhow::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut said = vec![0; 65_536];
    let count = stream.read(&mut said)?;
    said.truncate(count);
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// A master, its replica, and three Sentinels that watch them.
#[derive(Debug)]
pub struct Sentinels {
    /// `None` after `kill_master`.
    master: Option<Redis>,
    /// Becomes the master after `kill_master`.
    pub replica: Redis,
    sentinels: Vec<Daemon>,
    ports: Vec<u16>,
}

impl Sentinels {
    /// Starts all five processes, and waits until the Sentinels know each other and the replica.
    pub fn start(programs: &Programs, dir: &Path) -> anyhow::Result<Self> {
        let master = Redis::start(programs, &dir.join("master"), free_port()?, &[])?;
        let of = ["--replicaof", "127.0.0.1", &master.port.to_string()];
        let replica = Redis::start(programs, &dir.join("replica"), free_port()?, &of)?;
        let (mut sentinels, mut ports) = (Vec::new(), Vec::new());
        for index in 0..3 {
            let port = free_port()?;
            let dir = dir.join(format!("sentinel-{index}"));
            std::fs::create_dir_all(&dir)?;
            let file: PathBuf = dir.join("sentinel.conf");
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor shop 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 3000\n",
                dir.display(),
                master.port
            );
            std::fs::write(&file, text)?;
            let arguments = [file.display().to_string(), "--sentinel".into()];
            let mut daemon = Daemon::spawn(&programs.redis_server, &arguments, &dir.join("log"))?;
            daemon
                .wait_ready(READY_WAIT, || answers(port))
                .context("a Sentinel")?;
            sentinels.push(daemon);
            ports.push(port);
        }
        let all = Self {
            master: Some(master),
            replica,
            sentinels,
            ports,
        };
        wait_until(
            "Sentinels that know each other and the replica",
            READY_WAIT,
            || {
                let mut known = true;
                for port in &all.ports {
                    let said = ask(*port, "SENTINEL MASTER shop")?;
                    let field = |name: &str| {
                        let mut lines = said.lines().skip_while(|line| *line != name);
                        lines.nth(2).and_then(|value| value.parse::<u32>().ok())
                    };
                    known &=
                        field("num-slaves") == Some(1) && field("num-other-sentinels") == Some(2);
                }
                Ok(known)
            },
        )?;
        ensure!(!all.sentinels.is_empty(), "no Sentinels");
        Ok(all)
    }

    /// The URL that finds the current master through the Sentinels.
    pub fn url(&self) -> String {
        let places: Vec<String> = self
            .ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        format!("redis+sentinel://{}/shop", places.join(","))
    }

    pub fn kill_master(&mut self) -> anyhow::Result<()> {
        match self.master.take() {
            Some(master) => master.daemon.kill(),
            None => Ok(()),
        }
    }

    /// Waits until the replica is the master.
    pub fn wait_for_master(&self) -> anyhow::Result<()> {
        wait_until("a new master", READY_WAIT, || {
            Ok(self.replica.ask("ROLE")?.contains("master"))
        })
    }
}
