//! A pool of read-only connections, each used by one query at a time.
//! They do not involve the writer, and see only committed rows.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use seckill_engine::{Cause, Fault};
use tokio::sync::Semaphore;

use crate::file::identity::OpenedFiles;
use crate::file::schema::{self, Tuning};

/// The maximum number of concurrent queries; further ones wait. SQLite's readers do not block each
/// other, but each needs a thread.
const READERS_MAX: usize = 8;

pub(crate) struct Readers {
    path: PathBuf,
    files: OpenedFiles,
    tuning: Tuning,
    wait: Duration,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

fn store_fault(detail: &dyn std::fmt::Display) -> Fault {
    Fault::without_effect(Cause::Store, detail.to_string())
}

fn lock(idle: &Mutex<Vec<Connection>>) -> MutexGuard<'_, Vec<Connection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readers {
    /// `files` are the files that must still be at the path.
    pub(crate) fn new(path: PathBuf, files: OpenedFiles, tuning: Tuning, wait: Duration) -> Self {
        Self {
            path,
            files,
            tuning,
            wait,
            permits: Arc::new(Semaphore::new(READERS_MAX)),
            idle: Arc::default(),
        }
    }

    /// Runs a query on a blocking thread. A connection whose query failed is not used again.
    pub(crate) async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let permit = tokio::time::timeout(self.wait, Arc::clone(&self.permits).acquire_owned());
        let permit = permit.await.map_err(|_| {
            Fault::without_effect(Cause::Overloaded, "too many queries are waiting")
        })?;
        let (path, tuning) = (self.path.clone(), self.tuning.clone());
        let (files, idle) = (self.files.clone(), Arc::clone(&self.idle));
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let idle_conn = lock(&idle).pop();
            let conn = match idle_conn {
                Some(conn) => conn,
                None => schema::open_copy(&path, &tuning).map_err(|error| store_fault(&error))?,
            };
            let found = query(&conn).map_err(|error| store_fault(&error))?;
            // A result from another file must not be used.
            files
                .check_database()
                .map_err(|error| store_fault(&error))?;
            lock(&idle).push(conn);
            Ok(found)
        });
        task.await.map_err(|error| store_fault(&error))?
    }
}
