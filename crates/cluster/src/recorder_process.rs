//! A recorder in a process of its own. It connects only to the log and the store.

use std::sync::Arc;

use seckill_engine::Component;
use seckill_kafka_log::LogCondition;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::options::{ClusterOptions, InvalidOptions};
use crate::record::RecorderState;
use crate::{components, servers};

pub struct RecorderProcess {
    state: Arc<RecorderState>,
    log: LogCondition,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl RecorderProcess {
    /// Starts recording. Kafka and MySQL may be down: it connects once they are reachable.
    pub fn start(options: ClusterOptions) -> Result<Self, InvalidOptions> {
        let (stop, stopped) = watch::channel(false);
        let store = Arc::new(servers::store(&options)?);
        let (state, log, task) = components::record(&Arc::new(options), store, None, &stopped)?;
        Ok(Self {
            state,
            log,
            stop,
            task,
        })
    }

    /// Readiness of the recorder and of its connection to the log.
    pub fn part(&self) -> Component {
        components::part(
            "recorder",
            self.state.trouble().or_else(|| self.log.trouble()),
        )
    }

    /// Number of orders stored since the start.
    pub fn orders(&self) -> u64 {
        self.state.orders.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Finishes the work in progress and leaves the consumer group.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the recorder task failed");
        }
    }
}
