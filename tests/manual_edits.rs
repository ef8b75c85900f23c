//! Manual edits of the database: lost and changed rows are reported, and the service stops selling.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustix::process::Signal;
use seckill_testkit::{ServerProcess, get, post, run, wait_until};
use tempfile::TempDir;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn data_folder(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

/// Starts a service and buys five units.
fn serve_with_orders(dir: &TempDir) -> ServerProcess {
    let server =
        ServerProcess::start(binary(), &data_folder(dir), &[], &["--units", "10"]).unwrap();
    for _ in 0..5 {
        post(server.address, "/seckill", "").unwrap();
    }
    // The file records the number of its rows once a second.
    let file = Connection::open(data_folder(dir).join("seckill.db")).unwrap();
    let recorded = "SELECT row_count FROM seckill_meta";
    wait_until("the number of rows is recorded", || {
        file.query_row(recorded, (), |row| row.get::<_, u32>(0)) == Ok(5)
    });
    server
}

fn edit(dir: &TempDir, sql: &str) {
    let file = Connection::open(data_folder(dir).join("seckill.db")).unwrap();
    file.execute_batch(sql).unwrap();
}

fn audit(dir: &TempDir) -> (i32, String) {
    let folder = data_folder(dir).display().to_string();
    let output = run(binary(), &["audit", "--data", &folder]).unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.code().unwrap_or(-1), text)
}

/// Asserts that the running service reports the edit, and so does an audit after it has stopped.
fn assert_edit_is_reported(sql: &str, expected: &str) {
    let dir = TempDir::new().unwrap();
    let server = serve_with_orders(&dir);
    edit(&dir, sql);
    wait_until(&format!("{expected:?} in the log"), || {
        let log = server.log();
        log.lines()
            .any(|line| line.contains("ERROR") && line.contains(expected))
    });
    assert_eq!(post(server.address, "/seckill", "").unwrap().status, 503);
    assert_eq!(get(server.address, "/readyz").unwrap().status, 503);
    let (code, text) = audit(&dir);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("broken") && text.contains(expected), "{text}");
    assert!(text.contains("its file alone was audited"), "{text}");
    assert!(server.end(Signal::TERM).unwrap().success());
    let (code, text) = audit(&dir);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("broken") && text.contains(expected), "{text}");
}

#[test]
fn a_deleted_order_is_reported() {
    assert_edit_is_reported(
        "DELETE FROM seckill WHERE id = 2",
        "1 of 5 rows were deleted: row ids 2",
    );
}

#[test]
fn orders_deleted_from_the_end_are_reported() {
    assert_edit_is_reported(
        "DELETE FROM seckill WHERE id >= 4",
        "2 of 5 rows were deleted: row ids 4, 5",
    );
}

#[test]
fn a_state_edit_that_keeps_the_checksum_is_reported() {
    assert_edit_is_reported(
        "UPDATE seckill SET state = 1 WHERE id = 3",
        "state_checksum differs",
    );
    assert_edit_is_reported(
        "UPDATE seckill SET state = 3 WHERE id = 3",
        "state_checksum differs",
    );
}

#[test]
fn changed_terms_are_reported() {
    assert_edit_is_reported(
        "UPDATE seckill_item SET total = 1000",
        "terms were modified",
    );
    assert_edit_is_reported(
        "UPDATE seckill_sale SET buyer_limit = 2",
        "terms were modified",
    );
}

#[test]
fn an_accepted_loss_is_no_longer_reported() {
    let dir = TempDir::new().unwrap();
    let server = serve_with_orders(&dir);
    assert!(server.end(Signal::TERM).unwrap().success());
    edit(&dir, "DELETE FROM seckill WHERE id = 2");
    assert_eq!(audit(&dir).0, 1);
    edit(
        &dir,
        "UPDATE seckill_meta SET row_count = (SELECT count(*) FROM seckill), \
         deleted = (SELECT coalesce(max(id), 0) - count(*) FROM seckill)",
    );
    let (code, text) = audit(&dir);
    assert_eq!(code, 0, "{text}");
    let server = ServerProcess::start(binary(), &data_folder(&dir), &[], &[]).unwrap();
    let won = post(server.address, "/seckill", "").unwrap().json();
    assert_eq!(won["result"], "won");
}
