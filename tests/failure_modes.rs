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

fn data_folder(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

fn serve(dir: &TempDir) -> ServerProcess {
    ServerProcess::start(binary(), &data_folder(dir), &[], &["--units", "1000"]).unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a command on the data folder, and returns its exit code and its output.
fn run_command(dir: &TempDir, args: &[&str]) -> (i32, String) {
    let folder = data_folder(dir).display().to_string();
    let mut args = args.to_vec();
    args.extend(["--data", &folder]);
    let output = run(binary(), &args).unwrap();
    (output.status.code().unwrap_or(-1), text(&output))
}

fn assert_output(output: &(i32, String), code: i32, expected: &[&str]) {
    assert_eq!(output.0, code, "{}", output.1);
    for part in expected {
        assert!(output.1.contains(part), "{part:?} is not in {}", output.1);
    }
    assert!(!output.1.contains("panicked"), "{}", output.1);
}

/// Returns a folder with 40 orders, after a clean shutdown of its service.
fn folder_with_orders() -> TempDir {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    for _ in 0..40 {
        assert_eq!(
            post(server.address, "/seckill", "").unwrap().json()["result"],
            "won"
        );
    }
    assert!(server.end(Signal::TERM).unwrap().success());
    dir
}

fn database_file(dir: &TempDir) -> PathBuf {
    data_folder(dir).join("seckill.db")
}

#[test]
fn a_port_in_use_is_named_in_the_error() {
    let dir = TempDir::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run_command(&dir, &["serve", "--listen", &address]);
    assert_output(
        &output,
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
fn a_data_folder_that_is_a_file_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::write(data_folder(&dir), "a file").unwrap();
    assert_output(
        &run_command(&dir, &["serve", "--listen", "127.0.0.1:0"]),
        2,
        &["data folder", "--data"],
    );
}

#[test]
fn a_second_process_on_the_same_folder_is_refused() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    let pid = format!("process {}", server.pid());
    let output = run_command(&dir, &["serve", "--listen", "127.0.0.1:0"]);
    assert_output(
        &output,
        2,
        &["in use by", &pid, "serve on 127.0.0.1:", "--data"],
    );
    assert_output(&run_command(&dir, &["demo"]), 2, &["in use by", &pid]);
    assert_eq!(
        post(server.address, "/seckill", "").unwrap().json()["result"],
        "won"
    );
}

#[test]
fn a_file_that_is_not_a_database_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(data_folder(&dir)).unwrap();
    std::fs::write(
        database_file(&dir),
        "this is not a database, but it is long enough to have a header".repeat(20),
    )
    .unwrap();
    for args in [
        &["serve", "--listen", "127.0.0.1:0"][..],
        &["audit"],
        &["sale", "list"],
    ] {
        assert_output(
            &run_command(&dir, args),
            2,
            &["is not a seckill database", "--data"],
        );
    }
}

#[test]
fn databases_of_other_programs_and_of_newer_versions_are_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(data_folder(&dir)).unwrap();
    let other = rusqlite::Connection::open(database_file(&dir)).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert_output(
        &run_command(&dir, &["serve", "--listen", "127.0.0.1:0"]),
        2,
        &["another program's"],
    );
    drop(other);

    let dir = folder_with_orders();
    let ours = rusqlite::Connection::open(database_file(&dir)).unwrap();
    ours.pragma_update(None, "user_version", 99).unwrap();
    drop(ours);
    for args in [&["serve", "--listen", "127.0.0.1:0"][..], &["audit"]] {
        assert_output(
            &run_command(&dir, args),
            2,
            &["schema version 99", "newer seckill"],
        );
    }
}

#[test]
fn a_truncated_database_is_refused() {
    let dir = folder_with_orders();
    let length = std::fs::metadata(database_file(&dir)).unwrap().len();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(database_file(&dir))
        .unwrap();
    file.set_len(length / 2).unwrap();
    assert_output(
        &run_command(&dir, &["serve", "--listen", "127.0.0.1:0"]),
        2,
        &["damaged"],
    );
    let audit = run_command(&dir, &["audit"]);
    assert_ne!(audit.0, 0, "{}", audit.1);
}

#[test]
fn a_flipped_bit_in_an_order_is_detected() {
    let dir = folder_with_orders();
    // A byte of a row that is not also in an index: one of its checksum.
    let database = rusqlite::Connection::open(database_file(&dir)).unwrap();
    let query = "SELECT checksum FROM seckill WHERE id = 7";
    let checksum: i64 = database.query_row(query, (), |row| row.get(0)).unwrap();
    drop(database);
    let bytes = std::fs::read(database_file(&dir)).unwrap();
    let mut windows = bytes.windows(8);
    let at = windows.position(|window| window == checksum.to_be_bytes());
    let at = at.expect("SQLite stores integers with the most significant byte first");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(database_file(&dir))
        .unwrap();
    file.seek(SeekFrom::Start(at as u64 + 1)).unwrap();
    file.write_all(&[bytes[at + 1] ^ 1]).unwrap();
    drop(file);
    let output = run_command(&dir, &["serve", "--listen", "127.0.0.1:0"]);
    assert_output(
        &output,
        2,
        &["damaged", "row ", "was modified", "seckill audit"],
    );
    assert_output(
        &run_command(&dir, &["audit"]),
        1,
        &["broken", "no phantoms", "unit ", "checksum differs"],
    );
}

#[test]
fn a_manually_copied_order_is_detected() {
    let dir = folder_with_orders();
    let file = rusqlite::Connection::open(database_file(&dir)).unwrap();
    file.execute_batch(
        "DROP INDEX seckill_active_unit; DROP INDEX seckill_generation; DROP INDEX seckill_order_id;
         CREATE TABLE one AS SELECT * FROM seckill WHERE id = 7;
         UPDATE one SET id = 1000;
         INSERT INTO seckill SELECT * FROM one;
         DROP TABLE one",
    )
    .unwrap();
    drop(file);
    assert_output(
        &run_command(&dir, &["audit"]),
        1,
        &["no oversell", "unit 7", "no duplicates"],
    );
    assert_output(
        &run_command(&dir, &["serve", "--listen", "127.0.0.1:0"]),
        2,
        &["unit 7 is sold twice"],
    );
}

#[test]
fn a_running_service_applies_a_manual_state_edit() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    let won = post(server.address, "/seckill", "").unwrap().json();
    let order_id = won["order_id"].as_str().unwrap();
    let other = rusqlite::Connection::open(database_file(&dir)).unwrap();
    let cancel = "UPDATE seckill SET state = 3, state_checksum = 0 WHERE order_id = unhex(?1)";
    assert_eq!(other.execute(cancel, [order_id]).unwrap(), 1);
    drop(other);
    // Attempts during the rebuild get 503 with Retry-After. None is rejected.
    let again = loop {
        let response = post(server.address, "/v1/sales/counter/orders", "").unwrap();
        match response.status {
            201 => break response.json(),
            503 => assert_eq!(response.header("retry-after"), Some("1"), "{response:?}"),
            _ => panic!("{response:?}"),
        }
    };
    assert_eq!(
        (&again["unit"], &again["generation"]),
        (&1.into(), &2.into())
    );
    assert_output(&run_command(&dir, &["audit"]), 0, &["clean"]);
}

#[test]
fn a_sold_out_sale_sells_a_manually_released_unit() {
    let dir = TempDir::new().unwrap();
    let server =
        ServerProcess::start(binary(), &data_folder(&dir), &[], &["--units", "1"]).unwrap();
    let won = post(server.address, "/seckill", "").unwrap().json();
    let sold_out = post(server.address, "/seckill", "").unwrap().json();
    assert_eq!(sold_out["result"], "sold_out");
    let other = rusqlite::Connection::open(database_file(&dir)).unwrap();
    let cancel = "UPDATE seckill SET state = 3, state_checksum = 0 WHERE order_id = unhex(?1)";
    let order_id = won["order_id"].as_str().unwrap();
    assert_eq!(other.execute(cancel, [order_id]).unwrap(), 1);
    let started = std::time::Instant::now();
    while post(server.address, "/seckill", "").unwrap().json()["result"] != "won" {
        assert!(
            started.elapsed().as_secs() < 60,
            "the released unit was never sold"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn audits_of_a_running_service_are_clean() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    for _ in 0..10 {
        post(server.address, "/seckill", "").unwrap();
        assert_output(&run_command(&dir, &["audit"]), 0, &["verdict", "clean"]);
    }
}

/// Runs itself again in its own mount namespace, with a small tmpfs as the disk.
#[test]
fn a_full_disk_pauses_the_sale_and_keeps_every_confirmation() {
    const IN_NAMESPACE: &str = "TEST_IN_NAMESPACE";
    if std::env::var_os(IN_NAMESPACE).is_some() {
        return fill_the_disk();
    }
    let as_root = rustix::process::geteuid().is_root();
    let output = std::process::Command::new("unshare")
        .arg(if as_root { "-m" } else { "-rm" })
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_full_disk_pauses_the_sale_and_keeps_every_confirmation",
            "--nocapture",
        ])
        .env(IN_NAMESPACE, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

fn fill_the_disk() {
    let dir = TempDir::new().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "seckill-test"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    let server =
        ServerProcess::start(binary(), &data_folder(&dir), &[], &["--units", "100000"]).unwrap();
    let mut won = 0_u64;
    let refused = loop {
        let response = post(server.address, "/v1/sales/counter/orders", "").unwrap();
        match response.status {
            201 => won += 1,
            _ => break response,
        }
        assert!(won < 100_000, "the disk never filled up");
    };
    // Not a rejection. If the outcome is unknown, the status is 202, with the order's address.
    assert!([202, 503].contains(&refused.status), "{refused:?}");
    let mut pending = u64::from(refused.status == 202);
    for _ in 0..20 {
        let full = post(server.address, "/v1/sales/counter/orders", "").unwrap();
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
                    "the response reveals a path: {full:?}"
                );
            }
        }
    }
    let ready = get(server.address, "/readyz").unwrap();
    if ready.status == 503 {
        let component = &ready.json()["components"][0];
        assert!(
            component["detail"].as_str().unwrap().contains("full"),
            "{ready:?}"
        );
    }
    // Once the disk has space again, the service resumes without a restart.
    std::fs::remove_file(data_folder(&dir).with_extension("log")).unwrap();
    let bigger = std::process::Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(bigger.success());
    let started = std::time::Instant::now();
    loop {
        let response = post(server.address, "/v1/sales/counter/orders", "").unwrap();
        if response.status == 201 {
            won += 1;
            break;
        }
        assert_eq!(response.status, 503, "{response:?}");
        assert!(
            started.elapsed().as_secs() < 60,
            "the service did not resume: {response:?}"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (code, report) = run_command(&dir, &["audit", "--json"]);
    assert_eq!(code, 0, "{report}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let rows = report["store_rows"].as_u64().unwrap();
    // Every confirmation is a row. Pending attempts may have become rows too.
    assert!(
        (won..=won + pending).contains(&rows),
        "{rows} rows, {won} confirmations, {pending} pending"
    );
}
