//! Lets tasks wait for the shutdown of their process. Nothing here stops a task.

use tokio::sync::watch;

/// Completes when shutdown is requested or the sender is dropped.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender counts as a request to stop.
    drop(stop.wait_for(|stop| *stop).await);
}
