//! The worker threads: each runs an event loop with its own listener, connections, timers and counters,
//! and no work moves between them. What a loop does is in `event_loop`.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};

use crate::Service;
use crate::event_loop::EventLoop;

/// The running worker threads.
#[derive(Debug)]
pub struct Workers {
    stop: watch::Sender<bool>,
    ended: mpsc::UnboundedReceiver<()>,
    threads: Vec<JoinHandle<()>>,
}

/// Reports the end of its thread when dropped, even by a panic.
struct Ended(mpsc::UnboundedSender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        // The receiver is gone if nobody waits for the threads.
        let _ = self.0.send(());
    }
}

impl Workers {
    /// Starts the threads of a service. All loops accept from the same socket. Each has its listener
    /// before any thread starts, so nothing fails later. Routes other than attempts run on
    /// `background`.
    pub fn start(
        listener: &TcpListener,
        service: &Arc<Service>,
        background: &Handle,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut loops = Vec::new();
        for counts in service.metrics.loops() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let listener = {
                let _entered = runtime.enter();
                tokio::net::TcpListener::from_std(listener.try_clone()?)?
            };
            let event_loop = EventLoop::new(listener, service, Arc::clone(counts), background);
            loops.push((runtime, event_loop.run(stopped.clone())));
        }
        Self::spawn(loops, stop)
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        loops: Vec<(Runtime, F)>,
        stop: watch::Sender<bool>,
    ) -> io::Result<Self> {
        let (report, ended) = mpsc::unbounded_channel();
        let mut threads = Vec::with_capacity(loops.len());
        for (number, (runtime, event_loop)) in loops.into_iter().enumerate() {
            let report = Ended(report.clone());
            let thread = std::thread::Builder::new().name(format!("seckill-http-{number}"));
            threads.push(thread.spawn(move || {
                let _report = report;
                runtime.block_on(event_loop);
                // Connections that are still open are closed; a loop has no blocking work.
                runtime.shutdown_background();
            })?);
        }
        Ok(Self {
            stop,
            ended,
            threads,
        })
    }

    /// Completes when a thread has ended although nobody stopped it.
    pub async fn died(&mut self) {
        self.ended.recv().await;
    }

    /// Answers the requests in flight for at most `shutdown_wait_ms`, and ends the threads.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // Completes when no thread is left that could report its end.
        while self.ended.recv().await.is_some() {}
        for thread in self.threads {
            // It has ended, so this does not block.
            if thread.join().is_err() {
                tracing::error!("a thread that serves connections panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn spawn(panics: [bool; 2]) -> Workers {
        let (stop, stopped) = watch::channel(false);
        let event_loop = |panics: bool| {
            let mut stopped = stopped.clone();
            async move {
                assert!(!panics, "a worker that panics");
                let _ = stopped.wait_for(|stop| *stop).await;
            }
        };
        let loops = panics.map(|panics| (runtime(), event_loop(panics)));
        Workers::spawn(loops.into(), stop).unwrap()
    }

    #[test]
    fn the_death_of_one_worker_is_reported() {
        let mut workers = spawn([false, true]);
        runtime().block_on(async {
            workers.died().await;
            workers.stop().await;
        });
    }

    #[test]
    fn workers_stop_when_they_are_told_to() {
        let mut workers = spawn([false, false]);
        runtime().block_on(async {
            let died = tokio::time::timeout(std::time::Duration::from_millis(20), workers.died());
            assert!(died.await.is_err());
            workers.stop().await;
        });
    }
}
