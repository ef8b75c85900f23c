//! `cargo xtask engines`: finds the programs of Redis, Kafka, and MySQL or MariaDB, and tracks
//! which servers run on loopback, with data under `target/`. How a server starts is in the testkit.

pub(crate) mod fetch;

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use seckill_testkit::servers::{
    Kafka, KafkaLayout, Listener, Mysql, PROGRAMS_FILE, Programs, Redis, URLS_FILE, Urls,
    end_recorded, free_port, use_dir,
};
use serde_json::json;

use crate::build::{root, succeed, target};

/// The database in the MySQL server that is started here.
const DATABASE: &str = "seckill";
/// The environment variables with URLs, which the product reads as well.
const VARIABLES: [&str; 3] = [
    "SECKILL_CLUSTER__REDIS",
    "SECKILL_CLUSTER__KAFKA",
    "SECKILL_CLUSTER__MYSQL",
];

/// Manage real servers for the cluster engine
#[derive(Debug, Subcommand)]
pub(crate) enum Engines {
    /// Start the servers unless they are already running
    Up {
        /// Print only {"redis": url, "kafka": "host:port", "mysql": url}
        #[arg(long)]
        json: bool,
        /// Use the tutorial's layout: Kafka 3.9 with ZooKeeper
        #[arg(long)]
        zookeeper: bool,
    },
    /// Stop the servers and delete their data
    Down,
    /// Show which servers are running
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop the servers that a process has started, once it has exited
    #[command(hide = true)]
    Guard {
        /// Id of the process
        pid: u32,
        /// Folder of its servers
        dir: PathBuf,
    },
}

pub(crate) fn run(engines: &Engines) -> anyhow::Result<()> {
    let dir = target().join("engines");
    match engines {
        Engines::Up { json, zookeeper } => {
            let layout = if *zookeeper {
                KafkaLayout::ZooKeeper
            } else {
                KafkaLayout::Kraft
            };
            let urls = up(&dir, layout)?;
            if *json {
                println!("{}", serde_json::to_string(&urls)?);
            } else {
                println!(
                    "redis  {}\nkafka  {}\nmysql  {}",
                    urls.redis, urls.kafka, urls.mysql
                );
                println!(
                    "\n`seckill demo --engine cluster` finds them; `cargo xtask engines down` stops them."
                );
            }
        }
        Engines::Down => println!("{} processes stopped", down(&dir)?),
        Engines::Status { json } => status(&dir, *json)?,
        Engines::Guard { pid, dir } => guard(*pid, dir)?,
    }
    Ok(())
}

/// Starts the servers in this folder and records their URLs there.
pub(crate) fn up(dir: &Path, layout: KafkaLayout) -> anyhow::Result<Urls> {
    use_dir(dir);
    std::fs::create_dir_all(dir)?;
    let file = dir.join(URLS_FILE);
    if let Ok(text) = std::fs::read_to_string(&file)
        && let Ok(urls) = serde_json::from_str::<Urls>(&text)
    {
        if answering(&urls).iter().all(|(_, answers)| *answers) && layout_of(dir) == Some(layout) {
            return Ok(urls);
        }
        down(dir)?;
    }
    let given = VARIABLES.map(|name| std::env::var(name).ok());
    let urls = if let [Some(redis), Some(kafka), Some(mysql)] = given.clone() {
        Urls {
            redis,
            kafka,
            mysql,
        }
    } else {
        match fetch::programs(layout) {
            Ok(programs) => start(dir, &programs, layout, given)?,
            Err(missing) => with_docker().map_err(|docker| missing.context(docker))?,
        }
    };
    std::fs::write(layout_file(dir), format!("{layout:?}"))?;
    std::fs::write(&file, serde_json::to_string_pretty(&urls)?)?;
    Ok(urls)
}

fn layout_file(dir: &Path) -> PathBuf {
    dir.join("layout")
}

fn layout_of(dir: &Path) -> Option<KafkaLayout> {
    let text = std::fs::read_to_string(layout_file(dir)).ok()?;
    [KafkaLayout::Kraft, KafkaLayout::ZooKeeper]
        .into_iter()
        .find(|layout| format!("{layout:?}") == text)
}

fn start(
    dir: &Path,
    programs: &Programs,
    layout: KafkaLayout,
    given: [Option<String>; 3],
) -> anyhow::Result<Urls> {
    std::fs::write(
        dir.join(PROGRAMS_FILE),
        serde_json::to_string_pretty(programs)?,
    )?;
    let [redis, kafka, mysql] = given;
    // Kafka takes the longest; the others start meanwhile.
    let kafka_dir = dir.join("kafka");
    std::thread::scope(|scope| {
        let brought = scope.spawn(|| match kafka {
            Some(address) => Ok((None, address)),
            None => {
                let kafka = Kafka::start(
                    programs,
                    &kafka_dir,
                    free_port()?,
                    layout,
                    &Listener::plain(),
                )?;
                let address = kafka.address();
                anyhow::Ok((Some(kafka), address))
            }
        });
        let redis = match redis {
            Some(url) => (None, url),
            None => {
                let redis = Redis::start(programs, &dir.join("redis"), free_port()?, &[])?;
                let url = redis.url();
                (Some(redis), url)
            }
        };
        let mysql = match mysql {
            Some(url) => (None, url),
            None => {
                let mysql = Mysql::start(programs, &dir.join("mysql"), free_port()?, &[])?;
                let url = mysql.url(DATABASE);
                (Some(mysql), url)
            }
        };
        let kafka = brought
            .join()
            .map_err(|_| anyhow::anyhow!("Kafka's thread panicked"))??;
        // From here on, the processes outlive this one.
        redis.0.into_iter().for_each(|redis| redis.daemon.detach());
        mysql.0.into_iter().for_each(|mysql| mysql.daemon.detach());
        if let Some(kafka) = kafka.0 {
            kafka.daemon.detach();
            kafka
                .zookeeper
                .into_iter()
                .for_each(seckill_testkit::servers::Daemon::detach);
        }
        Ok(Urls {
            redis: redis.1,
            kafka: kafka.1,
            mysql: mysql.1,
        })
    })
}

/// Starts the same three servers from the compose file, if Docker is available.
fn with_docker() -> Result<Urls, String> {
    let quiet = |arguments: &[&str]| {
        let mut docker = Command::new("docker");
        docker
            .current_dir(root())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        docker.status().is_ok_and(|status| status.success())
    };
    if !quiet(&["info"]) || !quiet(&["compose", "version"]) {
        return Err("Docker with Compose is not available either".into());
    }
    let compose = [
        "compose",
        "--file",
        "deploy/compose.yml",
        "up",
        "--detach",
        "--wait",
        "redis",
        "kafka",
        "mysql",
    ];
    let mut docker = Command::new("docker");
    succeed(docker.current_dir(root()).args(compose))
        .map_err(|error| format!("docker compose: {error:#}"))?;
    Ok(Urls {
        redis: "redis://127.0.0.1:6379".into(),
        kafka: "127.0.0.1:9092".into(),
        mysql: "mysql://root:seckill@127.0.0.1:3306/seckill".into(),
    })
}

/// Stops only the processes that were started in this folder, and deletes their data.
pub(crate) fn down(dir: &Path) -> anyhow::Result<u32> {
    let ended = end_recorded(dir)?;
    for data in ["redis", "kafka", "mysql"] {
        remove(&dir.join(data))?;
    }
    for file in [URLS_FILE, "layout"] {
        let path = dir.join(file);
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(ended)
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Each server, and whether its address accepts connections.
fn answering(urls: &Urls) -> [(&'static str, bool); 3] {
    let place = |url: &str| {
        let behind = url.rsplit_once('@').map_or(url, |(_, behind)| behind);
        let behind = behind
            .rsplit_once("://")
            .map_or(behind, |(_, behind)| behind);
        behind
            .split(['/', ','])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let answers = |url: &str| {
        let addresses = place(url).to_socket_addrs().into_iter().flatten();
        addresses
            .into_iter()
            .any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
    };
    [
        ("redis", answers(&urls.redis)),
        ("kafka", answers(&urls.kafka)),
        ("mysql", answers(&urls.mysql)),
    ]
}

fn status(dir: &Path, as_json: bool) -> anyhow::Result<()> {
    let Ok(text) = std::fs::read_to_string(dir.join(URLS_FILE)) else {
        if as_json {
            println!("{}", json!({"up": false}));
        } else {
            println!("no servers are running; `cargo xtask engines up` starts them");
        }
        return Ok(());
    };
    let urls: Urls = serde_json::from_str(&text)
        .context("engines.json cannot be parsed; `cargo xtask engines down` removes it")?;
    let answers = answering(&urls);
    let all = answers.iter().all(|(_, answers)| *answers);
    if as_json {
        let each: serde_json::Map<_, _> = answers
            .iter()
            .map(|(name, answers)| ((*name).to_owned(), json!(answers)))
            .collect();
        println!("{}", json!({"up": all, "answers": each, "urls": urls}));
        return Ok(());
    }
    for ((name, answers), url) in answers
        .into_iter()
        .zip([&urls.redis, &urls.kafka, &urls.mysql])
    {
        println!("{name:6} {} {url}", if answers { "up  " } else { "down" });
    }
    if !all {
        bail!("not all servers are running; `cargo xtask engines up` restarts them");
    }
    Ok(())
}

/// Servers that stop when this value is dropped, or when this process exits, even by SIGKILL.
pub(crate) struct Lease {
    dir: PathBuf,
}

impl Lease {
    /// Starts servers in a folder of their own.
    pub(crate) fn up(dir: &Path) -> anyhow::Result<(Self, Urls)> {
        std::fs::create_dir_all(dir)?;
        down(dir)?;
        let lease = Self {
            dir: dir.to_owned(),
        };
        spawn_guard(dir)?;
        let urls = up(dir, KafkaLayout::Kraft)?;
        Ok((lease, urls))
    }
}

impl Lease {
    /// Stops servers that another command will start in this folder. Returns `None` if servers are
    /// already running there, because those belong to someone else.
    pub(crate) fn over(dir: &Path) -> anyhow::Result<Option<Self>> {
        if dir.join(URLS_FILE).exists() {
            return Ok(None);
        }
        let lease = Self {
            dir: dir.to_owned(),
        };
        spawn_guard(dir)?;
        Ok(Some(lease))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = down(&self.dir) {
            eprintln!(
                "xtask: the servers in {} were not stopped: {error:#}",
                self.dir.display()
            );
        }
    }
}

fn spawn_guard(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    Command::new(std::env::current_exe()?)
        .args(["engines", "guard", &std::process::id().to_string()])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("the servers' guard process cannot be started")?;
    Ok(())
}

fn guard(pid: u32, dir: &Path) -> anyhow::Result<()> {
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let born = |stat: String| {
        stat.rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(19).map(str::to_owned))
    };
    let began = stat().and_then(born);
    while began.is_some() && stat().and_then(born) == began {
        std::thread::sleep(Duration::from_millis(300));
    }
    down(dir).map(|_| ())
}
