//! The cluster's real servers on loopback: Redis, MariaDB or MySQL, and Kafka, with their data in a
//! given folder. Starts installed programs only; `cargo xtask engines` fetches them.

mod certificates;
mod daemon;
mod kafka;
mod manual_edits;
mod mysql;
mod proxy;
mod redis;
mod redis_cluster;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

pub use certificates::Certificates;
pub use daemon::{Daemon, end_recorded};
pub use kafka::{Kafka, KafkaLayout, Listener};
pub use mysql::Mysql;
pub use proxy::Proxy;
pub use redis::{Redis, Sentinels};
pub use redis_cluster::{Lost, RedisCluster};

/// The environment variable that names the folder with the list of programs and the records of
/// running processes.
pub const ENGINES_DIR_VARIABLE: &str = "SECKILL_ENGINES_DIR";
/// The file in that folder with the servers' URLs, which `seckill demo --engine cluster` reads.
pub const URLS_FILE: &str = "engines.json";
/// The file in that folder with the paths of the programs.
pub const PROGRAMS_FILE: &str = "programs.json";

/// The paths of the servers' programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    pub redis_server: PathBuf,
    /// `mariadbd` or `mysqld`.
    pub mysqld: PathBuf,
    /// `mariadb-install-db`; `None` if `mysqld --initialize-insecure` creates the data folder.
    pub mysql_install: Option<PathBuf>,
    /// Java, 17 or later.
    pub java: PathBuf,
    /// The folder of Kafka's jars.
    pub kafka: PathBuf,
}

/// The addresses of the three servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Urls {
    /// `redis://…`
    pub redis: String,
    /// `host:port`
    pub kafka: String,
    /// `mysql://…`
    pub mysql: String,
}

impl Urls {
    /// The command-line flags that make `seckill` use these servers.
    pub fn flags(&self) -> Vec<String> {
        let flags = [
            "--engine",
            "cluster",
            "--redis",
            &self.redis,
            "--kafka",
            &self.kafka,
            "--mysql",
            &self.mysql,
        ];
        flags.map(str::to_owned).to_vec()
    }

    /// The same servers with another MySQL database.
    pub fn with_database(&self, name: &str) -> Self {
        let place = self
            .mysql
            .rsplit_once('/')
            .map_or(self.mysql.as_str(), |(place, _)| place);
        Self {
            mysql: format!("{place}/{name}"),
            ..self.clone()
        }
    }
}

static DIR: OnceLock<PathBuf> = OnceLock::new();

/// Sets the servers' folder for this process. Only the first call takes effect.
pub fn use_dir(dir: &Path) {
    DIR.get_or_init(|| dir.to_owned());
}

/// The folder where `cargo xtask` keeps the servers.
pub fn engines_dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = DIR.get() {
        return Ok(dir.clone());
    }
    match std::env::var_os(ENGINES_DIR_VARIABLE) {
        Some(dir) => Ok(dir.into()),
        None => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"))
                .ancestors()
                .nth(2)
                .context("the workspace root was not found")?;
            Ok(root.join("target").join("engines"))
        }
    }
}

fn read<T: for<'de> Deserialize<'de>>(file: &str) -> anyhow::Result<T> {
    let path = engines_dir()?.join(file);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "{} cannot be read; `cargo xtask test` and `cargo xtask engines up` create it",
            path.display()
        )
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} cannot be parsed", path.display()))
}

impl Programs {
    /// The programs that `cargo xtask` found or fetched.
    pub fn found() -> anyhow::Result<Self> {
        read(PROGRAMS_FILE)
    }
}

impl Urls {
    /// The servers that are running. Without them a test fails; it is never skipped.
    pub fn up() -> anyhow::Result<Self> {
        read(URLS_FILE)
    }
}

/// A port that is free at the time of the call.
pub fn free_port() -> anyhow::Result<u16> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(probe.local_addr()?.port())
}

/// Polls until the condition is true. On timeout, the error names `what`.
pub fn wait_until(
    what: &str,
    within: Duration,
    mut is_so: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match is_so() {
            Ok(true) => return Ok(()),
            Ok(false) if began.elapsed() > within => {
                bail!("timed out after {within:?} waiting for {what}")
            }
            Err(error) if began.elapsed() > within => {
                return Err(error.context(format!("timed out after {within:?} waiting for {what}")));
            }
            Ok(false) | Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn answers(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}
