//! Connections that only read, beside the writer: a few, kept open, each lent to one question at a time.
//! They see committed rows alone.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use seckill_engine::{Cause, Fault};
use tokio::sync::Semaphore;

use crate::file::schema::{self, Tuning};

/// Questions answered at once; more wait. SQLite's readers do not block each other, but each takes a thread.
const READERS_MAX: usize = 8;

/// The readers of one file.
pub(crate) struct Readers {
    path: PathBuf,
    tuning: Tuning,
    wait: Duration,
    places: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

fn store(detail: &dyn std::fmt::Display) -> Fault {
    Fault::without_effect(Cause::Store, detail.to_string())
}

fn lock(idle: &Mutex<Vec<Connection>>) -> MutexGuard<'_, Vec<Connection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readers {
    pub(crate) fn new(path: PathBuf, tuning: Tuning, wait: Duration) -> Self {
        Self {
            path,
            tuning,
            wait,
            places: Arc::new(Semaphore::new(READERS_MAX)),
            idle: Arc::default(),
        }
    }

    /// Asks on a thread that may block. A connection whose question failed is not used again.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let place = tokio::time::timeout(self.wait, Arc::clone(&self.places).acquire_owned());
        let place = place.await.map_err(|_| {
            Fault::without_effect(
                Cause::Overloaded,
                "too many questions about orders are waiting",
            )
        })?;
        let (path, tuning, idle) = (self.path.clone(), self.tuning, Arc::clone(&self.idle));
        let asked = tokio::task::spawn_blocking(move || {
            let _place = place;
            let kept = lock(&idle).pop();
            let conn = match kept {
                Some(conn) => conn,
                None => schema::open_reader(&path, tuning).map_err(|error| store(&error))?,
            };
            let answer = question(&conn).map_err(|error| store(&error))?;
            lock(&idle).push(conn);
            Ok(answer)
        });
        asked.await.map_err(|error| store(&error))?
    }
}
