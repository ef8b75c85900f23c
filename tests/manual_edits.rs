//! Edits of the database with other programs: what is lost or changed is reported, never sold on.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::Signal;
use seckill_testkit::{ServerProcess, get, post, run};
use tempfile::TempDir;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn data(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

/// A running service with five orders.
fn shop(dir: &TempDir) -> ServerProcess {
    let served = ServerProcess::start(binary(), &data(dir), &[], &["--units", "10"]).unwrap();
    for _ in 0..5 {
        post(served.address, "/seckill", "").unwrap();
    }
    served
}

fn edit(dir: &TempDir, sql: &str) {
    let file = Connection::open(data(dir).join("seckill.db")).unwrap();
    file.execute_batch(sql).unwrap();
}

fn audit(dir: &TempDir) -> (i32, String) {
    let data = data(dir).display().to_string();
    let done = run(binary(), &["audit", "--data", &data]).unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    (done.status.code().unwrap_or(-1), text)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The edit is noticed while the service runs, and by the audit of the stopped one.
fn is_reported(sql: &str, part: &str) {
    let dir = TempDir::new().unwrap();
    let served = shop(&dir);
    edit(&dir, sql);
    until(&format!("{part:?} in the log"), || {
        let log = served.log();
        log.lines()
            .any(|line| line.contains("ERROR") && line.contains(part))
    });
    assert_eq!(post(served.address, "/seckill", "").unwrap().status, 503);
    assert_eq!(get(served.address, "/readyz").unwrap().status, 503);
    assert!(served.end(Signal::TERM).unwrap().success());
    let (code, text) = audit(&dir);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("broken") && text.contains(part), "{text}");
}

#[test]
fn a_deleted_order() {
    is_reported(
        "DELETE FROM seckill WHERE id = 2",
        "1 of 5 rows were deleted: row ids 2",
    );
}

#[test]
fn deleted_orders_at_the_end() {
    is_reported(
        "DELETE FROM seckill WHERE id >= 4",
        "2 of 5 rows were deleted: row ids 4, 5",
    );
}

#[test]
fn a_state_that_was_changed_without_saying_so() {
    is_reported(
        "UPDATE seckill SET state = 'paid' WHERE id = 3",
        "state_checksum differs",
    );
    is_reported(
        "UPDATE seckill SET state = 'cancelled' WHERE id = 3",
        "state_checksum differs",
    );
}

#[test]
fn terms_that_were_changed() {
    is_reported(
        "UPDATE seckill_sale SET total = 1000",
        "terms are not what was written",
    );
    is_reported(
        "UPDATE seckill_sale SET buyer_limit = 2",
        "terms are not what was written",
    );
}

#[test]
fn a_loss_that_was_accepted_is_reported_no_more() {
    let dir = TempDir::new().unwrap();
    let served = shop(&dir);
    assert!(served.end(Signal::TERM).unwrap().success());
    edit(&dir, "DELETE FROM seckill WHERE id = 2");
    assert_eq!(audit(&dir).0, 1);
    edit(
        &dir,
        "UPDATE seckill_meta SET orders = (SELECT count(*) FROM seckill)",
    );
    let (code, text) = audit(&dir);
    assert_eq!(code, 0, "{text}");
    let served = ServerProcess::start(binary(), &data(&dir), &[], &[]).unwrap();
    let won = post(served.address, "/seckill", "").unwrap().json();
    assert_eq!(won["result"], "won");
}
