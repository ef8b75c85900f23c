//! How parts hear that their process is to end.

use tokio::sync::watch;

/// Ends when the process is to end, or whoever could say so is gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Gone is as good as said.
    drop(stop.wait_for(|stop| *stop).await);
}
