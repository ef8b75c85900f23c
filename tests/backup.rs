//! Copies of the database: those that can be trusted, and those that must not be.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;
use seckill_testkit::{ServerProcess, get, post, run};
use tempfile::TempDir;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn command(dir: &TempDir, words: &[&str]) -> (i32, String) {
    let done = std::process::Command::new(binary())
        .args(words)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    (done.status.code().unwrap_or(-1), text)
}

fn succeeds(dir: &TempDir, words: &[&str]) -> String {
    let (code, text) = command(dir, words);
    assert_eq!(code, 0, "{words:?}: {text}");
    text
}

fn fails(dir: &TempDir, words: &[&str], part: &str) {
    let (code, text) = command(dir, words);
    assert_eq!(code, 2, "{words:?}: {text}");
    assert!(text.contains(part), "{part:?} is not in {text}");
}

fn serve(dir: &TempDir, data: &str) -> ServerProcess {
    ServerProcess::start(binary(), &dir.path().join(data), &[], &["--units", "100"]).unwrap()
}

fn buy(served: &ServerProcess, times: u32) {
    for _ in 0..times {
        let won = post(served.address, "/seckill", "").unwrap().json();
        assert_eq!(won["result"], "won");
    }
}

fn remaining(served: &ServerProcess) -> serde_json::Value {
    let sale = get(served.address, "/v1/sales/counter").unwrap();
    sale.json()["remaining"].clone()
}

#[test]
fn a_backup_of_a_running_service_is_whole_and_can_be_restored() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "data");
    buy(&served, 30);
    let made = succeeds(&dir, &["backup", "copy.db", "--data", "data"]);
    assert!(made.contains("30") && made.contains("clean"), "{made}");
    let mode = std::fs::metadata(dir.path().join("copy.db"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    fails(
        &dir,
        &["backup", "copy.db", "--data", "data"],
        "exists already",
    );
    fails(&dir, &["restore", "copy.db", "--data", "data"], "in use");
    // The service has gone on meanwhile.
    buy(&served, 5);
    assert_eq!(remaining(&served), 65);
    assert!(served.end(Signal::TERM).unwrap().success());
    fails(
        &dir,
        &["restore", "copy.db", "--data", "data"],
        "has a database already",
    );

    let restored = succeeds(&dir, &["restore", "copy.db", "--data", "other"]);
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
fn a_copy_without_its_log_is_no_empty_shop() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "data");
    buy(&served, 10);
    std::fs::create_dir(dir.path().join("copy")).unwrap();
    std::fs::copy(
        dir.path().join("data/seckill.db"),
        dir.path().join("copy/seckill.db"),
    )
    .unwrap();
    for words in [
        &["serve", "--listen", "127.0.0.1:0", "--data", "copy"][..],
        &["audit", "--data", "copy"],
        &["sale", "list", "--data", "copy"],
    ] {
        fails(&dir, words, "seckill backup");
    }
    let restore = ["restore", "copy/seckill.db", "--data", "new"];
    fails(&dir, &restore, "--accept-live-copy");
    assert!(!dir.path().join("new/seckill.db").exists());
    // The original is not affected, also after a crash.
    served.kill().unwrap();
    succeeds(&dir, &["audit", "--data", "data"]);
    assert_eq!(remaining(&serve(&dir, "data")), 90);
}

#[test]
fn a_copy_by_sqlites_own_backup_can_be_accepted() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "data");
    buy(&served, 10);
    let source = rusqlite::Connection::open(dir.path().join("data/seckill.db")).unwrap();
    let copy = dir.path().join("copy.db");
    source
        .execute("VACUUM INTO ?1", [copy.display().to_string()])
        .unwrap();
    let restore = ["restore", "copy.db", "--data", "new", "--accept-live-copy"];
    let restored = succeeds(&dir, &restore);
    assert!(restored.contains("10"), "{restored}");
}

#[test]
fn a_broken_copy_is_not_restored() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "data");
    buy(&served, 10);
    succeeds(&dir, &["backup", "copy.db", "--data", "data"]);
    let copy = rusqlite::Connection::open(dir.path().join("copy.db")).unwrap();
    copy.execute("DELETE FROM seckill WHERE id = 4", ())
        .unwrap();
    drop(copy);
    fails(&dir, &["restore", "copy.db", "--data", "new"], "row ids 4");
    assert!(!dir.path().join("new/seckill.db").exists());
}

#[test]
fn a_stopped_service_and_a_missing_one() {
    let dir = TempDir::new().unwrap();
    fails(
        &dir,
        &["backup", "copy.db", "--data", "data"],
        "there is no data/seckill.db",
    );
    let served = serve(&dir, "data");
    buy(&served, 3);
    assert!(served.end(Signal::TERM).unwrap().success());
    succeeds(&dir, &["backup", "copy.db", "--data", "data"]);
    fails(
        &dir,
        &["restore", "nowhere.db", "--data", "new"],
        "there is no nowhere.db",
    );
    std::fs::write(dir.path().join("text.db"), "text".repeat(1_000)).unwrap();
    fails(
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
