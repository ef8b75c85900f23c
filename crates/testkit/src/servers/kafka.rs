//! A Kafka broker for tests: KRaft, or the tutorial's layout with ZooKeeper.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Daemon, Programs, answers, free_port};

const READY_WAIT: Duration = Duration::from_secs(60);
const METADATA_WAIT: Duration = Duration::from_secs(5);
/// 16 bytes in URL-safe base64, as Kafka requires.
const CLUSTER_ID: &str = "c2Vja2lsbC1jbHVzdGVyMA";

/// How a broker coordinates with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KafkaLayout {
    /// Without a separate service, the current layout.
    Kraft,
    /// With ZooKeeper, as in the tutorial; up to Kafka 3.9.
    ZooKeeper,
}

/// How clients connect to a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// The security protocol, which is also the listener's name.
    pub protocol: &'static str,
    /// Lines of the broker's properties for this listener.
    pub properties: String,
}

impl Listener {
    /// Unencrypted and without authentication.
    pub fn plain() -> Self {
        Self {
            protocol: "PLAINTEXT",
            properties: String::new(),
        }
    }
}

#[derive(Debug)]
pub struct Kafka {
    pub daemon: Daemon,
    /// `None` in the KRaft layout.
    pub zookeeper: Option<Daemon>,
    /// On loopback.
    pub port: u16,
}

impl Kafka {
    /// Starts a broker with its data in `dir`.
    pub fn start(
        programs: &Programs,
        dir: &Path,
        port: u16,
        layout: KafkaLayout,
        listener: &Listener,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let libs = format!("{}/*", programs.kafka.display());
        let zookeeper = match layout {
            KafkaLayout::Kraft => None,
            KafkaLayout::ZooKeeper => Some(zookeeper(programs, &libs, dir)?),
        };
        let file = match &zookeeper {
            None => kraft_properties(programs, &libs, dir, port, listener)?,
            Some((_, zookeeper)) => write(
                dir,
                "server.properties",
                &format!(
                    "{}broker.id=1\nzookeeper.connect=127.0.0.1:{zookeeper}\n",
                    common(dir, port, listener)
                ),
            )?,
        };
        let arguments = [
            "-Xmx384m",
            "-Xms128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=4",
            "-cp",
            &libs,
            "kafka.Kafka",
            &file.display().to_string(),
        ]
        .map(str::to_owned);
        let mut daemon = Daemon::spawn(&programs.java, &arguments, &dir.join("log"))?;
        daemon
            .wait_ready(READY_WAIT, || {
                answers(port) && (*listener != Listener::plain() || has_brokers(port))
            })
            .context("Kafka")?;
        Ok(Self {
            daemon,
            zookeeper: zookeeper.map(|(daemon, _)| daemon),
            port,
        })
    }

    pub fn delete_topic(&self, topic: &str) -> anyhow::Result<()> {
        use rdkafka::admin::{AdminClient, AdminOptions};
        let admin: AdminClient<_> = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", self.address())
            .create()?;
        let wait = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let deleted = runtime.block_on(admin.delete_topics(&[topic], &wait))?;
        for each in deleted {
            each.map_err(|(topic, code)| anyhow::anyhow!("topic {topic}: {code}"))?;
        }
        Ok(())
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Whether the broker handles requests. Its port is open before that.
fn has_brokers(port: u16) -> bool {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let client: Result<BaseConsumer, _> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", format!("127.0.0.1:{port}"))
        .create();
    let metadata = client.and_then(|client| client.fetch_metadata(None, METADATA_WAIT));
    metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
}

fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

fn common(dir: &Path, port: u16, listener: &Listener) -> String {
    let Listener {
        protocol,
        properties,
    } = listener;
    format!(
        "listeners={protocol}://127.0.0.1:{port}\nadvertised.listeners={protocol}://127.0.0.1:{port}\n\
         inter.broker.listener.name={protocol}\n{properties}log.dirs={}\noffsets.topic.replication.factor=1\noffsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\ngroup.min.session.timeout.ms=1000\nauto.create.topics.enable=false\nnum.network.threads=2\nnum.io.threads=2\n",
        dir.join("data").display()
    )
}

fn kraft_properties(
    programs: &Programs,
    libs: &str,
    dir: &Path,
    port: u16,
    listener: &Listener,
) -> anyhow::Result<PathBuf> {
    let path = dir.join("server.properties");
    let protocol = listener.protocol;
    let controller = free_port()?;
    let text = format!(
        "{}process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\nlistener.security.protocol.map={protocol}:{protocol},CONTROLLER:PLAINTEXT\n\
         share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\n",
        common(dir, port, listener)
    )
    .replacen(
        &format!("listeners={protocol}://127.0.0.1:{port}\n"),
        &format!("listeners={protocol}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n"),
        1,
    );
    std::fs::write(&path, text)?;
    if !dir.join("data").join("meta.properties").exists() {
        let formatted = Command::new(&programs.java)
            .args([
                "-cp",
                libs,
                "kafka.tools.StorageTool",
                "format",
                "-t",
                CLUSTER_ID,
                "-c",
            ])
            .arg(&path)
            .output()
            .context("Java cannot be started")?;
        ensure!(
            formatted.status.success(),
            "Kafka's data folder could not be created: {}{}",
            String::from_utf8_lossy(&formatted.stdout),
            String::from_utf8_lossy(&formatted.stderr)
        );
    }
    Ok(path)
}

fn zookeeper(programs: &Programs, libs: &str, dir: &Path) -> anyhow::Result<(Daemon, u16)> {
    let port = free_port()?;
    let text = format!(
        "dataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n",
        dir.join("zookeeper").display()
    );
    let file = write(dir, "zookeeper.properties", &text)?;
    let arguments = [
        "-Xmx256m",
        "-XX:+UseSerialGC",
        "-cp",
        libs,
        "org.apache.zookeeper.server.quorum.QuorumPeerMain",
        &file.display().to_string(),
    ]
    .map(str::to_owned);
    let mut daemon = Daemon::spawn(&programs.java, &arguments, &dir.join("zookeeper.log"))?;
    daemon
        .wait_ready(READY_WAIT, || answers(port))
        .context("ZooKeeper")?;
    Ok((daemon, port))
}
