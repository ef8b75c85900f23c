//! Opens an engine, and starts its writer thread and its tasks. No request is answered here.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{EmbeddedEngine, EmbeddedOptions};
use crate::file::lock::FolderLock;
use crate::file::schema::Tuning;
use crate::file::{DATABASE_FILE, FileError};
use crate::memory::Digester;
use crate::opened::Opened;
use crate::operations::{self, Op, Response};
use crate::order_id::OrderIds;
use crate::readers::Readers;
use crate::shared::{Condition, Shared};
use crate::writer::{Bounds, Writer};

/// How often the engine checks the file and follows the system clock, even without requests.
const CHECK_EVERY: Duration = Duration::from_millis(200);

impl EmbeddedEngine {
    /// Locks the folder, opens or creates the file, and rebuilds memory from it. Must be called
    /// within a Tokio runtime.
    pub fn open(options: EmbeddedOptions) -> Result<Self, FileError> {
        let lock = FolderLock::take(&options.dir, &options.owner)?;
        // Absolute, so that the file is found even if the process changes its working directory.
        let folder_error = |error: std::io::Error| FileError::Folder {
            path: options.dir.clone(),
            error,
        };
        let path = std::path::absolute(options.dir.join(DATABASE_FILE)).map_err(folder_error)?;
        let tuning = Tuning {
            busy_wait_ms: options.busy_wait_ms,
            cache_kib: options.cache_kib,
            checkpoint_pages: options.checkpoint_pages,
            vfs: options.vfs.as_deref().map(Into::into),
        };
        let digester =
            Digester::new().map_err(|error| folder_error(std::io::Error::other(error)))?;
        let (opened, memory) = Opened::open(&path, &tuning, digester)?;
        let answer_wait = Duration::from_millis(options.answer_wait_ms);
        let shared = Arc::new(Shared::new(memory));
        let orders = opened.counts.orders;
        shared.counts.orders.store(orders, Ordering::Relaxed);
        let readers = Readers::new(
            path.clone(),
            opened.files.clone(),
            tuning.clone(),
            answer_wait,
        );
        let (queue, waiting) = mpsc::channel(options.queue_max);
        let (responses, to_send) = mpsc::unbounded_channel();
        let writer = Writer {
            path,
            bounds: Bounds {
                batch_max: options.batch_max,
                rebuild_pause_max_ms: options.rebuild_pause_max_ms,
                tuning,
            },
            opened,
            is_trusted: true,
            shared: Arc::clone(&shared),
            failpoints: options.failpoints,
            responses,
        };
        let writer = std::thread::Builder::new()
            .name("seckill-writer".into())
            .spawn({
                let guard = WriterGuard(Arc::clone(&shared));
                move || {
                    let _guard = guard;
                    writer.run(waiting);
                }
            })
            .map_err(folder_error)?;
        tokio::spawn(send_responses(to_send));
        tokio::spawn(check_regularly(Arc::clone(&shared), queue.downgrade()));
        Ok(Self {
            started_ms: shared.clock.now_ms(),
            shared,
            ids: OrderIds::new(),
            readers,
            answer_wait,
            weak_queue: queue.downgrade(),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(Some(writer)),
            _lock: lock,
        })
    }
}

/// Reports that the writer has stopped, even by a panic: the engine cannot sell without it.
struct WriterGuard(Arc<Shared>);

impl Drop for WriterGuard {
    fn drop(&mut self) {
        if *self.0.condition() == Condition::Stopping && !std::thread::panicking() {
            return;
        }
        let reason = "the writer thread stopped; restart the service";
        tracing::error!("{reason}");
        self.0.set_condition(Condition::Dead(reason.to_owned()));
    }
}

/// Makes the writer check the file even when there are no attempts for it: a sold-out sale is
/// answered from memory, but must notice that another program released a unit or removed the file.
async fn check_regularly(shared: Arc<Shared>, queue: mpsc::WeakSender<Op>) {
    let mut checks = tokio::time::interval(CHECK_EVERY);
    checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        shared.clock.follow_system();
        let Some(queue) = queue.upgrade() else { return };
        let (to, _answer) = oneshot::channel();
        // A full queue means that the writer checks anyway.
        let _ = queue.try_send(Op::Barrier(to));
    }
}

/// Sends responses from within the runtime, where waking a request costs no system call.
async fn send_responses(mut to_send: mpsc::UnboundedReceiver<Vec<Response>>) {
    while let Some(responses) = to_send.recv().await {
        operations::send_all(responses);
    }
}
