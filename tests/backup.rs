//! `seckill backup` and `seckill restore`: which copies of the database are accepted, and which are
//! refused.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;
use seckill_testkit::{ServerProcess, get, post, run};
use tempfile::TempDir;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn run_command(dir: &TempDir, args: &[&str]) -> (i32, String) {
    let output = std::process::Command::new(binary())
        .args(args)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.code().unwrap_or(-1), text)
}

fn assert_succeeds(dir: &TempDir, args: &[&str]) -> String {
    let (code, text) = run_command(dir, args);
    assert_eq!(code, 0, "{args:?}: {text}");
    text
}

fn assert_fails(dir: &TempDir, args: &[&str], expected: &str) {
    let (code, text) = run_command(dir, args);
    assert_eq!(code, 2, "{args:?}: {text}");
    assert!(text.contains(expected), "{expected:?} is not in {text}");
}

fn serve(dir: &TempDir, data: &str) -> ServerProcess {
    ServerProcess::start(binary(), &dir.path().join(data), &[], &["--units", "100"]).unwrap()
}

fn buy(server: &ServerProcess, count: u32) {
    for _ in 0..count {
        let won = post(server.address, "/seckill", "").unwrap().json();
        assert_eq!(won["result"], "won");
    }
}

fn remaining(server: &ServerProcess) -> serde_json::Value {
    let sale = get(server.address, "/v1/sales/counter").unwrap();
    sale.json()["remaining"].clone()
}

#[test]
fn a_backup_of_a_running_service_is_complete_and_can_be_restored() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "data");
    buy(&server, 30);
    let report = assert_succeeds(&dir, &["backup", "copy.db", "--data", "data"]);
    assert!(
        report.contains("30") && report.contains("clean"),
        "{report}"
    );
    let mode = std::fs::metadata(dir.path().join("copy.db"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    assert_fails(
        &dir,
        &["backup", "copy.db", "--data", "data"],
        "exists already",
    );
    assert_fails(&dir, &["restore", "copy.db", "--data", "data"], "in use");
    // The service keeps selling after the backup.
    buy(&server, 5);
    assert_eq!(remaining(&server), 65);
    assert!(server.end(Signal::TERM).unwrap().success());
    assert_fails(
        &dir,
        &["restore", "copy.db", "--data", "data"],
        "has a database already",
    );

    let restored = assert_succeeds(&dir, &["restore", "copy.db", "--data", "other"]);
    assert!(restored.contains("30"), "{restored}");
    assert_eq!(remaining(&serve(&dir, "other")), 70);
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("unfinished"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn a_copy_without_its_wal_is_refused() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "data");
    buy(&server, 10);
    std::fs::create_dir(dir.path().join("copy")).unwrap();
    std::fs::copy(
        dir.path().join("data/seckill.db"),
        dir.path().join("copy/seckill.db"),
    )
    .unwrap();
    for args in [
        &["serve", "--listen", "127.0.0.1:0", "--data", "copy"][..],
        &["audit", "--data", "copy"],
        &["sale", "list", "--data", "copy"],
    ] {
        assert_fails(&dir, args, "seckill backup");
    }
    let restore = ["restore", "copy/seckill.db", "--data", "new"];
    assert_fails(&dir, &restore, "--accept-live-copy");
    assert!(!dir.path().join("new/seckill.db").exists());
    // The original is unaffected, even after a crash.
    server.kill().unwrap();
    assert_succeeds(&dir, &["audit", "--data", "data"]);
    assert_eq!(remaining(&serve(&dir, "data")), 90);
}

/// Also in the folder that it came from, once the service has been stopped.
#[test]
fn a_copy_without_its_wal_is_refused_in_its_own_folder() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "data");
    buy(&server, 10);
    let (database, copy) = (dir.path().join("data/seckill.db"), dir.path().join("b.db"));
    std::fs::copy(&database, &copy).unwrap();
    assert!(server.end(Signal::TERM).unwrap().success());
    let right = dir.path().join("right.db");
    std::fs::copy(&database, &right).unwrap();
    std::fs::copy(&copy, &database).unwrap();
    let serve_again = ["serve", "--listen", "127.0.0.1:0", "--data", "data"];
    assert_fails(&dir, &serve_again, "seckill backup");
    assert_fails(&dir, &["audit", "--data", "data"], "seckill backup");
    // A copy of the stopped service is complete.
    std::fs::copy(&right, &database).unwrap();
    assert_eq!(remaining(&serve(&dir, "data")), 90);
}

/// SQLite deletes the write-ahead log of an empty database. No command may let it.
#[test]
fn an_empty_database_does_not_cost_its_wal() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "data");
    buy(&server, 10);
    server.kill().unwrap();
    let (database, whole) = (
        dir.path().join("data/seckill.db"),
        dir.path().join("whole.db"),
    );
    std::fs::copy(&database, &whole).unwrap();
    std::fs::write(&database, "").unwrap();
    let wal = dir.path().join("data/seckill.db-wal");
    let wal_bytes = std::fs::metadata(&wal).unwrap().len();
    for args in [
        &["serve", "--listen", "127.0.0.1:0", "--data", "data"][..],
        &["audit", "--data", "data"],
        &["backup", "copy.db", "--data", "data"],
    ] {
        assert_fails(&dir, args, "empty");
        assert_eq!(
            std::fs::metadata(&wal).unwrap().len(),
            wal_bytes,
            "{args:?}"
        );
    }
    std::fs::copy(&whole, &database).unwrap();
    assert_eq!(remaining(&serve(&dir, "data")), 90);
}

/// A backup that was killed leaves a file, which must not become part of a later one.
#[test]
fn a_leftover_of_a_killed_backup_is_replaced() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "data");
    buy(&server, 3);
    assert_succeeds(&dir, &["backup", "archive.db", "--data", "data"]);
    let archived = std::fs::read(dir.path().join("archive.db")).unwrap();
    std::fs::hard_link(
        dir.path().join("archive.db"),
        dir.path().join("copy.db.unfinished"),
    )
    .unwrap();
    buy(&server, 4);
    let report = assert_succeeds(&dir, &["backup", "copy.db", "--data", "data"]);
    assert!(report.contains(" 7"), "{report}");
    assert_eq!(
        std::fs::read(dir.path().join("archive.db")).unwrap(),
        archived
    );
}

#[test]
fn a_copy_made_by_sqlite_is_restored_with_accept_live_copy() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "data");
    buy(&server, 10);
    let source = rusqlite::Connection::open(dir.path().join("data/seckill.db")).unwrap();
    let copy = dir.path().join("copy.db");
    source
        .execute("VACUUM INTO ?1", [copy.display().to_string()])
        .unwrap();
    let restore = ["restore", "copy.db", "--data", "new", "--accept-live-copy"];
    let restored = assert_succeeds(&dir, &restore);
    assert!(restored.contains("10"), "{restored}");
}

#[test]
fn a_copy_that_fails_the_audit_is_not_restored() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "data");
    buy(&server, 10);
    assert_succeeds(&dir, &["backup", "copy.db", "--data", "data"]);
    let copy = rusqlite::Connection::open(dir.path().join("copy.db")).unwrap();
    copy.execute("DELETE FROM seckill WHERE id = 4", ())
        .unwrap();
    drop(copy);
    assert_fails(
        &dir,
        &["restore", "copy.db", "--data", "new"],
        "did not pass its audit",
    );
    assert!(!dir.path().join("new/seckill.db").exists());
}

#[test]
fn a_stopped_service_can_be_backed_up_and_unusable_files_are_named() {
    let dir = TempDir::new().unwrap();
    assert_fails(
        &dir,
        &["backup", "copy.db", "--data", "data"],
        "there is no data/seckill.db",
    );
    let server = serve(&dir, "data");
    buy(&server, 3);
    assert!(server.end(Signal::TERM).unwrap().success());
    assert_succeeds(&dir, &["backup", "copy.db", "--data", "data"]);
    assert_fails(
        &dir,
        &["restore", "missing.db", "--data", "new"],
        "there is no missing.db",
    );
    std::fs::write(dir.path().join("text.db"), "text".repeat(1_000)).unwrap();
    assert_fails(
        &dir,
        &["restore", "text.db", "--data", "new"],
        "not a seckill database",
    );
    let audited = run(
        binary(),
        &[
            "audit",
            "--data",
            &dir.path().join("data").display().to_string(),
        ],
    );
    assert!(audited.unwrap().status.success());
}
