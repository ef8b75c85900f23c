//! Failpoints: named points where a test can make the engine's writes fail.
//! They do nothing without the feature `failpoints` of the crate `fail-parallel`.

use std::sync::Arc;

use fail_parallel::{FailPointRegistry, fail_point};

/// Before the transaction of a batch begins.
pub(crate) const BEGIN: &str = "begin";
/// Before an order is inserted.
pub(crate) const INSERT: &str = "insert";
/// Before an order's state is updated.
pub(crate) const SET_STATE: &str = "set-state";
/// Before the terms of a sale are written.
pub(crate) const PUT_SALE: &str = "put-sale";
/// Before the number of rows is updated.
pub(crate) const COUNT_ROWS: &str = "count-rows";
/// Before an event is inserted.
pub(crate) const INSERT_EVENT: &str = "insert-event";
/// Before and after the commit of a batch.
pub(crate) const BEFORE_COMMIT: &str = "before-commit";
pub(crate) const AFTER_COMMIT: &str = "after-commit";
/// Before the file is opened again after a failure.
pub(crate) const REOPEN: &str = "reopen";
/// Before the write that shows whether the file can be written.
pub(crate) const PROBE: &str = "probe";
/// Before the write-ahead log is moved into the main file at shutdown.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// At the start of a batch, also for the action `panic`.
pub(crate) const BATCH: &str = "batch";

/// Fails with an I/O error if a test has activated the failpoint.
pub(crate) fn check(registry: &Arc<FailPointRegistry>, name: &'static str) -> rusqlite::Result<()> {
    let _ = (registry, name);
    fail_point!(Arc::clone(registry), name, |_| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
        let detail = format!("injected at {name}");
        Err(rusqlite::Error::SqliteFailure(code, Some(detail)))
    });
    Ok(())
}
