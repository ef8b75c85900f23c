//! Failures of files, disks and processes: each gets a message that names the cause and the next
//! step, and nothing is lost.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Output;

use rustix::process::Signal;
use seckill_testkit::{ServerProcess, get, post, run};
use tempfile::TempDir;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn data(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

fn serve(dir: &TempDir) -> ServerProcess {
    ServerProcess::start(binary(), &data(dir), &[], &["--units", "1000"]).unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a command over the folder and returns its exit code and what it said.
fn command(dir: &TempDir, words: &[&str]) -> (i32, String) {
    let folder = data(dir).display().to_string();
    let mut words = words.to_vec();
    words.extend(["--data", &folder]);
    let done = run(binary(), &words).unwrap();
    (done.status.code().unwrap_or(-1), text(&done))
}

fn says(said: &(i32, String), code: i32, parts: &[&str]) {
    assert_eq!(said.0, code, "{}", said.1);
    for part in parts {
        assert!(said.1.contains(part), "{part:?} is not in {}", said.1);
    }
    assert!(!said.1.contains("panicked"), "{}", said.1);
}

/// A folder with 40 orders in it, its service ended in order.
fn sold_folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir);
    for _ in 0..40 {
        assert_eq!(
            post(served.address, "/seckill", "").unwrap().json()["result"],
            "won"
        );
    }
    assert!(served.end(Signal::TERM).unwrap().success());
    dir
}

fn database(dir: &TempDir) -> PathBuf {
    data(dir).join("seckill.db")
}

#[test]
fn a_busy_port() {
    let dir = TempDir::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = command(&dir, &["serve", "--listen", &address]);
    says(
        &said,
        2,
        &[
            "cannot listen on",
            &address,
            "--listen",
            "Address already in use",
        ],
    );
}

#[test]
fn a_data_folder_that_cannot_be() {
    let dir = TempDir::new().unwrap();
    std::fs::write(data(&dir), "a file").unwrap();
    says(
        &command(&dir, &["serve", "--listen", "127.0.0.1:0"]),
        2,
        &["data folder", "--data"],
    );
}

#[test]
fn a_second_process() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir);
    let pid = format!("process {}", served.pid());
    let said = command(&dir, &["serve", "--listen", "127.0.0.1:0"]);
    says(
        &said,
        2,
        &["in use by", &pid, "serve on 127.0.0.1:", "--data"],
    );
    says(&command(&dir, &["demo"]), 2, &["in use by", &pid]);
    assert_eq!(
        post(served.address, "/seckill", "").unwrap().json()["result"],
        "won"
    );
}

#[test]
fn a_file_that_is_no_database() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(data(&dir)).unwrap();
    std::fs::write(
        database(&dir),
        "this is no database, but it is long enough to have a header".repeat(20),
    )
    .unwrap();
    for words in [
        &["serve", "--listen", "127.0.0.1:0"][..],
        &["audit"],
        &["sale", "list"],
    ] {
        says(
            &command(&dir, words),
            2,
            &["is not a seckill database", "--data"],
        );
    }
}

#[test]
fn another_programs_database_and_a_newer_one() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(data(&dir)).unwrap();
    let other = rusqlite::Connection::open(database(&dir)).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    says(
        &command(&dir, &["serve", "--listen", "127.0.0.1:0"]),
        2,
        &["another program's"],
    );
    drop(other);

    let dir = sold_folder();
    let ours = rusqlite::Connection::open(database(&dir)).unwrap();
    ours.pragma_update(None, "user_version", 99).unwrap();
    drop(ours);
    for words in [&["serve", "--listen", "127.0.0.1:0"][..], &["audit"]] {
        says(
            &command(&dir, words),
            2,
            &["schema version 99", "newer seckill"],
        );
    }
}

#[test]
fn a_file_cut_short() {
    let dir = sold_folder();
    let length = std::fs::metadata(database(&dir)).unwrap().len();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(database(&dir))
        .unwrap();
    file.set_len(length / 2).unwrap();
    says(
        &command(&dir, &["serve", "--listen", "127.0.0.1:0"]),
        2,
        &["damaged"],
    );
    let audit = command(&dir, &["audit"]);
    assert_ne!(audit.0, 0, "{}", audit.1);
}

#[test]
fn a_flipped_byte_in_an_order() {
    let dir = sold_folder();
    let bytes = std::fs::read(database(&dir)).unwrap();
    // Inside a row: the dates of orders are the only place with this text that no index holds.
    let at = bytes.windows(6).position(|window| {
        window == b"Zcount" || window.starts_with(b".") && window.ends_with(b"Z0")
    });
    let at = at.expect("a row's date stands in front of its order id");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(database(&dir))
        .unwrap();
    file.seek(SeekFrom::Start(at as u64 + 1)).unwrap();
    file.write_all(&[bytes[at + 1] ^ 1]).unwrap();
    drop(file);
    let said = command(&dir, &["serve", "--listen", "127.0.0.1:0"]);
    says(
        &said,
        2,
        &["damaged", "row ", "not what was written", "seckill audit"],
    );
    says(
        &command(&dir, &["audit"]),
        1,
        &["broken", "no phantoms", "unit ", "checksum differs"],
    );
}

#[test]
fn an_order_that_was_copied_by_hand() {
    let dir = sold_folder();
    let file = rusqlite::Connection::open(database(&dir)).unwrap();
    file.execute_batch(
        "DROP INDEX seckill_active_unit; DROP INDEX seckill_generation; DROP INDEX seckill_order_id;
         INSERT INTO seckill SELECT 1000, date, order_id, sale, unit, generation, buyer, state, slot, idem_key,
         fingerprint, version, checksum, state_checksum, ended_at FROM seckill WHERE id = 7",
    )
    .unwrap();
    drop(file);
    says(
        &command(&dir, &["audit"]),
        1,
        &["no oversell", "unit 7", "no duplicates"],
    );
    says(
        &command(&dir, &["serve", "--listen", "127.0.0.1:0"]),
        2,
        &["unit 7 is sold twice"],
    );
}

#[test]
fn a_state_that_was_set_by_hand_is_taken_over_while_the_service_runs() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir);
    let won = post(served.address, "/seckill", "").unwrap().json();
    let order_id = won["order_id"].as_str().unwrap();
    let other = rusqlite::Connection::open(database(&dir)).unwrap();
    let cancel = "UPDATE seckill SET state = 'cancelled', state_checksum = 0 WHERE order_id = ?1";
    assert_eq!(other.execute(cancel, [order_id]).unwrap(), 1);
    drop(other);
    // The first attempts may meet the rebuild, and are told to retry; none is rejected.
    let again = loop {
        let answer = post(served.address, "/v1/sales/counter/orders", "").unwrap();
        match answer.status {
            201 => break answer.json(),
            503 => assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
    };
    assert_eq!(
        (&again["unit"], &again["generation"]),
        (&1.into(), &2.into())
    );
    says(&command(&dir, &["audit"]), 0, &["clean"]);
}

#[test]
fn a_sold_out_sale_notices_that_a_unit_was_released_by_hand() {
    let dir = TempDir::new().unwrap();
    let served = ServerProcess::start(binary(), &data(&dir), &[], &["--units", "1"]).unwrap();
    let won = post(served.address, "/seckill", "").unwrap().json();
    let sold_out = post(served.address, "/seckill", "").unwrap().json();
    assert_eq!(sold_out["result"], "sold_out");
    let other = rusqlite::Connection::open(database(&dir)).unwrap();
    let cancel = "UPDATE seckill SET state = 'cancelled', state_checksum = 0 WHERE order_id = ?1";
    let order_id = won["order_id"].as_str().unwrap();
    assert_eq!(other.execute(cancel, [order_id]).unwrap(), 1);
    let asked = std::time::Instant::now();
    while post(served.address, "/seckill", "").unwrap().json()["result"] != "won" {
        assert!(asked.elapsed().as_secs() < 60, "it never noticed");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn audits_beside_a_running_service() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir);
    for _ in 0..10 {
        post(served.address, "/seckill", "").unwrap();
        says(&command(&dir, &["audit"]), 0, &["verdict", "clean"]);
    }
}

/// The disk is a small tmpfs in a mount namespace of its own, so this test runs itself again inside one.
#[test]
fn a_full_disk() {
    const INSIDE: &str = "TEST_IN_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return full_disk();
    }
    let as_root = rustix::process::geteuid().is_root();
    let inside = std::process::Command::new("unshare")
        .arg(if as_root { "-m" } else { "-rm" })
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(inside.status.success(), "{}", text(&inside));
}

fn full_disk() {
    let dir = TempDir::new().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "seckill-test"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    let served = ServerProcess::start(binary(), &data(&dir), &[], &["--units", "100000"]).unwrap();
    let mut won = 0_u64;
    let refused = loop {
        let answer = post(served.address, "/v1/sales/counter/orders", "").unwrap();
        match answer.status {
            201 => won += 1,
            _ => break answer,
        }
        assert!(won < 100_000, "the disk never filled up");
    };
    // Not a rejection: whether the last one was stored may be unknown, and then its address is given.
    assert!([202, 503].contains(&refused.status), "{refused:?}");
    let mut pending = u64::from(refused.status == 202);
    for _ in 0..20 {
        let full = post(served.address, "/v1/sales/counter/orders", "").unwrap();
        match full.status {
            201 => won += 1,
            202 => pending += 1,
            _ => {
                assert_eq!(
                    (full.status, full.problem()),
                    (503, "store-unavailable".into())
                );
                assert!(
                    !full.body.contains("seckill.db"),
                    "a path is told: {full:?}"
                );
            }
        }
    }
    let ready = get(served.address, "/readyz").unwrap();
    if ready.status == 503 {
        let part = &ready.json()["components"][0];
        assert!(
            part["detail"].as_str().unwrap().contains("full"),
            "{ready:?}"
        );
    }
    // With room again it goes on by itself.
    std::fs::remove_file(data(&dir).with_extension("log")).unwrap();
    let bigger = std::process::Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(bigger.success());
    let asked = std::time::Instant::now();
    loop {
        let answer = post(served.address, "/v1/sales/counter/orders", "").unwrap();
        if answer.status == 201 {
            won += 1;
            break;
        }
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(
            asked.elapsed().as_secs() < 60,
            "it did not go on: {answer:?}"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (code, report) = command(&dir, &["audit", "--json"]);
    assert_eq!(code, 0, "{report}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let rows = report["store_rows"].as_u64().unwrap();
    // Every confirmation is a row. The attempts that were pending may have become more.
    assert!(
        (won..=won + pending).contains(&rows),
        "{rows} rows, {won} confirmations, {pending} pending"
    );
}
