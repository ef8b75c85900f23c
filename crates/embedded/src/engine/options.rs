//! The settings of an embedded engine, with their defaults.

use std::path::PathBuf;
use std::sync::Arc;

use fail_parallel::FailPointRegistry;

use crate::file::LockOwner;

/// The settings of an engine. Limits have the same names as in the configuration file.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The data folder. Created if it does not exist.
    pub dir: PathBuf,
    /// How this process describes itself to another that finds the folder in use.
    pub owner: LockOwner,
    /// The maximum number of calls that wait for the writer; further ones fail as overloaded.
    pub queue_max: usize,
    /// The maximum number of calls in one transaction of the writer.
    pub batch_max: usize,
    /// The longest time that a call waits for its answer, in milliseconds.
    pub answer_wait_ms: u64,
    /// The longest time to wait for another program's lock on the file, in milliseconds.
    pub busy_wait_ms: u32,
    /// The longest pause between two attempts to read an unusable file, in milliseconds.
    pub rebuild_pause_max_ms: u64,
    /// SQLite's page cache, in KiB.
    pub cache_kib: u32,
    /// Pages in the write-ahead log at which SQLite moves them to the main file.
    pub checkpoint_pages: u32,
    /// SQLite's VFS by name, for tests that simulate a disk; `None` means the default.
    pub vfs: Option<String>,
    /// Lets tests make writes fail. Has no effect unless failpoints are compiled in.
    pub failpoints: Arc<FailPointRegistry>,
}

impl EmbeddedOptions {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            owner: LockOwner::default(),
            queue_max: 65_536,
            batch_max: 4_096,
            answer_wait_ms: 5_000,
            busy_wait_ms: 1_000,
            rebuild_pause_max_ms: 2_000,
            cache_kib: 65_536,
            checkpoint_pages: 4_096,
            vfs: None,
            failpoints: Arc::new(FailPointRegistry::new()),
        }
    }
}
