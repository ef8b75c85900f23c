//! The database of a running service is replaced, removed or truncated. From then on the service
//! confirms nothing through any interface, and one log line names both files.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::{Path, PathBuf};

use seckill_testkit::{ServerProcess, get, post, run, wait_until};
use tempfile::TempDir;

const FILES: [&str; 3] = ["seckill.db", "seckill.db-wal", "seckill.db-shm"];

struct TestContext {
    dir: TempDir,
    server: ServerProcess,
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

impl TestContext {
    /// Starts a service and buys seven units.
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        let server = ServerProcess::start(binary(), &data, &[], &["--units", "1000"]).unwrap();
        for _ in 0..7 {
            let won = post(server.address, "/seckill", "").unwrap().json();
            assert_eq!(won["result"], "won");
        }
        Self { dir, server }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    fn move_files_away(&self) {
        std::fs::create_dir(self.dir.path().join("away")).unwrap();
        for name in FILES {
            let away = self.dir.path().join("away").join(name);
            std::fs::rename(self.file(name), away).unwrap();
        }
    }

    fn run_command(&self, args: &[&str]) -> (i32, String) {
        let data = self.dir.path().join("data").display().to_string();
        let mut args = args.to_vec();
        args.extend(["--data", &data]);
        let output = run(binary(), &args).unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.code().unwrap_or(-1), text)
    }

    /// Asserts that no attempt is confirmed or rejected, and that the service becomes not ready.
    /// Returns how many attempts are pending: those of the batch that found the file changed.
    fn assert_sells_nothing(&self) -> u64 {
        let mut pending = 0;
        for _ in 0..20 {
            let refused = post(self.server.address, "/seckill", "").unwrap();
            assert!([202, 503].contains(&refused.status), "{refused:?}");
            pending += u64::from(refused.status == 202);
            assert!(
                !refused.body.contains("seckill.db"),
                "the response reveals a path: {refused:?}"
            );
        }
        wait_until("a service that is not ready", || {
            get(self.server.address, "/readyz").unwrap().status == 503
        });
        assert!(pending <= 1, "{pending} attempts are pending");
        pending
    }

    fn assert_commands_are_refused(&self) {
        let change = ["sale", "change", "counter", "--add-units", "1"];
        let audit = ["audit"];
        for args in [&change[..], &audit] {
            let (code, text) = self.run_command(args);
            assert_eq!(code, 2, "{args:?}: {text}");
        }
    }

    fn count_logged_errors(&self, expected: &str) -> usize {
        let log = self.server.log();
        let lines = log.lines();
        lines
            .filter(|line| line.contains("ERROR") && line.contains(expected))
            .count()
    }
}

#[test]
fn a_replaced_file_stops_sales() {
    let context = TestContext::start();
    let copy = context.dir.path().join("copy.db").display().to_string();
    let (code, text) = context.run_command(&["backup", &copy]);
    assert_eq!(code, 0, "{text}");
    let won = post(context.server.address, "/seckill", "").unwrap().json();
    let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
    context.move_files_away();
    std::fs::copy(&copy, context.file("seckill.db")).unwrap();
    context.assert_sells_nothing();
    context.assert_commands_are_refused();
    let ready = get(context.server.address, "/readyz").unwrap().json();
    let detail = ready["components"][0]["detail"].as_str().unwrap();
    assert_eq!(detail.matches("inode").count(), 2, "{detail}");
    assert_eq!(
        context.count_logged_errors("inode"),
        1,
        "{}",
        context.server.log()
    );
    // The copy does not have this order, which is no reason to deny it.
    assert_eq!(get(context.server.address, &order).unwrap().status, 503);
}

#[test]
fn a_removed_file_stops_sales_until_it_is_put_back() {
    let context = TestContext::start();
    let won = post(context.server.address, "/seckill", "").unwrap().json();
    let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
    context.move_files_away();
    context.assert_sells_nothing();
    context.assert_commands_are_refused();
    assert_ne!(get(context.server.address, &order).unwrap().status, 404);
    assert!(
        !context.file("seckill.db").exists(),
        "a new file was created"
    );
    assert_eq!(
        context.count_logged_errors("there is no file at that path"),
        1,
        "{}",
        context.server.log()
    );
    for name in FILES {
        let away = context.dir.path().join("away").join(name);
        std::fs::rename(away, context.file(name)).unwrap();
    }
    wait_until("a ready service", || {
        get(context.server.address, "/readyz").unwrap().status == 200
    });
    let found = get(context.server.address, &order).unwrap().json();
    assert_eq!(found["unit"], won["unit"]);
    assert_eq!(context.run_command(&["audit"]).0, 0);
}

#[test]
fn a_folder_without_its_database_is_not_initialized_again() {
    let context = TestContext::start();
    context.move_files_away();
    let TestContext { dir, server } = context;
    server.kill().unwrap();
    let data = dir.path().join("data").display().to_string();
    let args = ["serve", "--listen", "127.0.0.1:0", "--data", &data];
    let output = run(binary(), &args).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("seckill restore") && text.contains("seckill.id"),
        "{text}"
    );
}

#[test]
fn a_truncated_file_stops_sales() {
    let context = TestContext::start();
    std::fs::OpenOptions::new()
        .write(true)
        .open(context.file("seckill.db"))
        .unwrap()
        .set_len(0)
        .unwrap();
    context.assert_sells_nothing();
    context.assert_commands_are_refused();
    assert!(
        context.count_logged_errors("seckill.db") >= 1,
        "{}",
        context.server.log()
    );
}

/// The orders since the last checkpoint are only in the WAL. They must survive its removal.
#[test]
fn a_removed_wal_stops_sales_and_loses_nothing() {
    let context = TestContext::start();
    std::fs::remove_file(context.file("seckill.db-wal")).unwrap();
    let pending = context.assert_sells_nothing();
    assert_eq!(
        context.count_logged_errors("seckill.db-wal"),
        1,
        "{}",
        context.server.log()
    );
    let TestContext { dir, server } = context;
    server.kill().unwrap();
    let data = dir.path().join("data");
    let server = ServerProcess::start(binary(), &data, &[], &[]).unwrap();
    let sale = get(server.address, "/v1/sales/counter").unwrap().json();
    let remaining = sale["remaining"].as_u64().unwrap();
    assert!((993 - pending..=993).contains(&remaining), "{sale}");
}
