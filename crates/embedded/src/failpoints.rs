//! Named places where a test can make the engine's writes fail. Without the feature they are empty.

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
/// Before the number of orders is updated.
pub(crate) const COUNT_ORDERS: &str = "count-orders";
/// Before and after the commit of a batch.
pub(crate) const BEFORE_COMMIT: &str = "before-commit";
pub(crate) const AFTER_COMMIT: &str = "after-commit";
/// Before the file is opened again after a failure.
pub(crate) const REOPEN: &str = "reopen";
/// Before the write that shows that a file can be written.
pub(crate) const PROBE: &str = "probe";
/// Before the write-ahead log is moved into the main file at the end.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// At the start of a batch; meant for the action `panic`.
pub(crate) const BATCH: &str = "batch";

/// Fails with an I/O error if a test asked for it.
pub(crate) fn check(
    registry: &Arc<FailPointRegistry>,
    place: &'static str,
) -> rusqlite::Result<()> {
    let _ = (registry, place);
    fail_point!(Arc::clone(registry), place, |_| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
        let detail = format!("injected at {place}");
        Err(rusqlite::Error::SqliteFailure(code, Some(detail)))
    });
    Ok(())
}
