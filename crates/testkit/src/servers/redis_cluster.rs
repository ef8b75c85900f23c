//! A Redis Cluster for tests: three masters with one replica each. A test can move a slot or take a
//! master away.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Programs, Redis, free_port, wait_until};

const MASTERS: usize = 3;
const SLOTS: u32 = 16_384;
const READY_WAIT: Duration = Duration::from_secs(30);
/// The pause between two keys of a moving slot, so that calls arrive in between.
const MOVE_PAUSE: Duration = Duration::from_millis(60);

#[derive(Debug)]
pub struct RedisCluster {
    /// The first three are the initial masters, the others their replicas in the same order.
    nodes: Vec<Option<Redis>>,
    /// A paused master, kept here because dropping it would kill it.
    silent: Option<Redis>,
}

/// How a node is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Its process is killed, so connections are refused.
    Killed,
    /// It accepts connections but never replies, as behind a broken network link.
    Silent,
}

impl RedisCluster {
    /// Starts all six nodes, and waits until each reports a complete cluster.
    pub fn start(programs: &Programs, dir: &Path) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for index in 0..2 * MASTERS {
            // The default is the port plus 10,000, which may exceed the valid range.
            let bus = free_port()?;
            let node = Redis::start(
                programs,
                &dir.join(format!("node-{index}")),
                free_port()?,
                &[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &bus.to_string(),
                    "--cluster-node-timeout",
                    "1500",
                    "--repl-diskless-sync-delay",
                    "0",
                ],
            )?;
            nodes.push((node, bus));
        }
        for (index, (node, _)) in nodes.iter().take(MASTERS).enumerate() {
            let slot = |index: usize| SLOTS * index as u32 / MASTERS as u32;
            let (first, last) = (slot(index), slot(index + 1) - 1);
            done(node, &format!("CLUSTER ADDSLOTSRANGE {first} {last}"))?;
            // Distinct epochs, so that the masters need not resolve a conflict.
            done(node, &format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1))?;
        }
        let (first, _) = nodes.first().context("no nodes")?;
        for (node, bus) in nodes.iter().skip(1) {
            done(
                first,
                &format!("CLUSTER MEET 127.0.0.1 {} {bus}", node.port),
            )?;
        }
        let cluster = Self {
            nodes: nodes.into_iter().map(|(node, _)| Some(node)).collect(),
            silent: None,
        };
        cluster.wait_for("nodes that know each other", |info| {
            info.contains(&format!("cluster_known_nodes:{}", 2 * MASTERS))
        })?;
        for index in 0..MASTERS {
            let master = cluster.node(index)?.ask("CLUSTER MYID")?;
            let replica = cluster.node(index + MASTERS)?;
            let command = format!("CLUSTER REPLICATE {}", bulk(&master)?);
            // A node that does not know the master's id yet refuses.
            wait_until("a replica", READY_WAIT, || {
                Ok(replica.ask(&command)?.starts_with("+OK"))
            })?;
            wait_until("a replica that is in sync", READY_WAIT, || {
                Ok(replica
                    .ask("INFO replication")?
                    .contains("master_link_status:up"))
            })?;
        }
        cluster.wait_for("a complete cluster", |info| {
            info.contains("cluster_state:ok")
        })?;
        Ok(cluster)
    }

    fn wait_for(&self, what: &str, is_so: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        wait_until(what, READY_WAIT, || {
            for node in self.nodes.iter().flatten() {
                if !is_so(&node.ask("CLUSTER INFO")?) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn node(&self, index: usize) -> anyhow::Result<&Redis> {
        let node = self.nodes.get(index).and_then(Option::as_ref);
        node.with_context(|| format!("node {index} is gone"))
    }

    pub fn url(&self) -> String {
        let places: Vec<String> = self
            .nodes
            .iter()
            .flatten()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        format!("redis+cluster://{}", places.join(","))
    }

    fn slot(&self, key: &str) -> anyhow::Result<u32> {
        let said = self.node(0)?.ask(&format!("CLUSTER KEYSLOT {key}"))?;
        let number = said.trim().strip_prefix(':').and_then(|n| n.parse().ok());
        number.with_context(|| format!("the slot of {key}: {said}"))
    }

    /// The index of the master that initially has a key's slot.
    fn master(&self, key: &str) -> anyhow::Result<usize> {
        Ok((self.slot(key)? as usize * MASTERS + MASTERS - 1) / SLOTS as usize)
    }

    /// Moves a key's slot to another master, key by key, as an operator would.
    pub fn move_slot(&self, key: &str) -> anyhow::Result<()> {
        let (slot, from) = (self.slot(key)?, self.master(key)?);
        let (from, to) = (self.node(from)?, self.node((from + 1) % MASTERS)?);
        let (from_id, to_id) = (
            bulk(&from.ask("CLUSTER MYID")?)?,
            bulk(&to.ask("CLUSTER MYID")?)?,
        );
        done(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"))?;
        done(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"))?;
        let mut moved = 0;
        loop {
            let said = from.ask(&format!("CLUSTER GETKEYSINSLOT {slot} 1"))?;
            let Some(key) = said.lines().nth(2) else {
                break;
            };
            done(from, &format!("MIGRATE 127.0.0.1 {} {key} 0 5000", to.port))?;
            moved += 1;
            std::thread::sleep(MOVE_PAUSE);
        }
        ensure!(moved > 0, "slot {slot} had no keys: {key} is not in it");
        for node in [to, from] {
            done(node, &format!("CLUSTER SETSLOT {slot} NODE {to_id}"))?;
        }
        Ok(())
    }

    /// Lets the replica of a key's master fall behind, takes the master away, and waits until the
    /// replica has taken over.
    pub fn lose_master(&mut self, key: &str, how: Lost) -> anyhow::Result<()> {
        let master = self.master(key)?;
        let replica = master + MASTERS;
        self.node(replica)?.daemon.pause()?;
        std::thread::sleep(Duration::from_millis(300));
        if let Some(master) = self.nodes.get_mut(master).and_then(Option::take) {
            match how {
                Lost::Killed => master.daemon.kill()?,
                Lost::Silent => {
                    master.daemon.pause()?;
                    self.silent = Some(master);
                }
            }
        }
        let replica = self.node(replica)?;
        replica.daemon.resume()?;
        wait_until("a new master", READY_WAIT, || {
            Ok(replica.ask("ROLE")?.contains("master"))
        })
    }
}

/// The text of a bulk-string reply.
fn bulk(said: &str) -> anyhow::Result<String> {
    let text = said.lines().nth(1).with_context(|| said.to_owned())?;
    Ok(text.to_owned())
}

fn done(node: &Redis, command: &str) -> anyhow::Result<()> {
    let said = node.ask(command)?;
    ensure!(said.starts_with("+OK"), "{command}: {said}");
    Ok(())
}
