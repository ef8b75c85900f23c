//! Engine factories on the running servers. Each factory must use its own keys, topic and database.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use seckill_cluster::{ClusterEngine, ClusterOptions, RecorderProcess, Strategy, init};
use seckill_engine::conformance::EngineFactory;
use seckill_engine::{BoxFuture, Engine};
use seckill_testkit::servers::{Programs, RedisCluster, Urls};
use tokio::sync::Mutex;

static FACTORIES: AtomicU32 = AtomicU32::new(0);
/// The Redis Cluster of this process. It runs as long as a factory uses it.
static NODES: std::sync::Mutex<Weak<Nodes>> = std::sync::Mutex::new(Weak::new());

struct Nodes {
    cluster: RedisCluster,
    _dir: tempfile::TempDir,
}

/// A factory with a recorder that outlives its engines, as a separate process would.
pub struct ClusterFactory {
    strategy: Strategy,
    urls: Urls,
    life: Mutex<Option<Life>>,
    _nodes: Option<Arc<Nodes>>,
}

struct Life {
    options: ClusterOptions,
    _recorder: RecorderProcess,
}

impl ClusterFactory {
    pub fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            urls: Urls::up().unwrap(),
            life: Mutex::new(None),
            _nodes: None,
        }
    }

    /// A factory with its gates on a Redis Cluster.
    pub fn on_redis_cluster(strategy: Strategy) -> Self {
        let mut shared = NODES.lock().unwrap();
        let nodes = shared.upgrade().unwrap_or_else(|| {
            let dir = tempfile::tempdir().unwrap();
            let programs = Programs::found().unwrap();
            let cluster = RedisCluster::start(&programs, dir.path()).unwrap();
            Arc::new(Nodes { cluster, _dir: dir })
        });
        *shared = Arc::downgrade(&nodes);
        let mut factory = Self::new(strategy);
        factory.urls.redis = nodes.cluster.url();
        factory._nodes = Some(nodes);
        factory
    }

    fn options(&self) -> ClusterOptions {
        let name = format!(
            "t{}_{}",
            std::process::id(),
            FACTORIES.fetch_add(1, Ordering::Relaxed)
        );
        let urls = self.urls.with_database(&name);
        ClusterOptions {
            topic: name.clone(),
            topic_partitions: 1,
            key_prefix: format!("{name}:"),
            gate: self.strategy,
            // Short, so that changes and rebuilds are fast. Correctness does not depend on its
            // length.
            lease_ms: 150,
            relay_sweep_ms: 100,
            confirm_wait_ms: 20_000,
            store_connections: 6,
            records: false,
            ..ClusterOptions::new(urls.redis, urls.kafka, urls.mysql)
        }
    }
}

impl EngineFactory for ClusterFactory {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Engine>> {
        Box::pin(async move {
            let mut life = self.life.lock().await;
            if life.is_none() {
                let options = self.options();
                init(&options).await.unwrap();
                let recorder = RecorderProcess::start(options.clone()).unwrap();
                *life = Some(Life {
                    options,
                    _recorder: recorder,
                });
            }
            let options = life.as_ref().unwrap().options.clone();
            Arc::new(ClusterEngine::start(options).unwrap()) as Arc<dyn Engine>
        })
    }

    fn clear(&self) {
        // The next `open` starts with new keys, a new topic and a new database.
        *self.life.try_lock().unwrap() = None;
    }

    fn remembers_limits(&self) -> bool {
        false
    }
}
