//! A recorder as a process of its own. It touches the log and the store alone.

use std::sync::Arc;

use seckill_engine::Component;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::log::LogCondition;
use crate::record::RecorderState;
use crate::{ClusterOptions, InvalidOptions, components};

/// A running recorder.
pub struct RecorderProcess {
    state: Arc<RecorderState>,
    log: LogCondition,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl RecorderProcess {
    /// Starts to record. No server needs to be up.
    pub fn start(options: ClusterOptions) -> Result<Self, InvalidOptions> {
        let (stop, stopped) = watch::channel(false);
        let store = Arc::new(components::store(&options)?);
        let (state, log, task) = components::record(&Arc::new(options), store, None, &stopped)?;
        Ok(Self {
            state,
            log,
            stop,
            task,
        })
    }

    /// Whether it can do its work.
    pub fn part(&self) -> Component {
        components::part(
            "recorder",
            self.state.trouble().or_else(|| self.log.trouble()),
        )
    }

    /// Orders stored since the start.
    pub fn orders(&self) -> u64 {
        self.state.orders.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Finishes what is under way and leaves the group of recorders.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the recorder ended badly");
        }
    }
}
