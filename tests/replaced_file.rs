//! The database under a running service is replaced, removed or truncated: nothing is confirmed from
//! then on, by any way into the service, and one line of the log names both files.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use seckill_testkit::{ServerProcess, get, post, run};
use tempfile::TempDir;

const FILES: [&str; 3] = ["seckill.db", "seckill.db-wal", "seckill.db-shm"];

struct Shop {
    dir: TempDir,
    served: ServerProcess,
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

impl Shop {
    /// A running service that has confirmed seven orders.
    fn open() -> Self {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        let served = ServerProcess::start(binary(), &data, &[], &["--units", "1000"]).unwrap();
        for _ in 0..7 {
            let won = post(served.address, "/seckill", "").unwrap().json();
            assert_eq!(won["result"], "won");
        }
        Self { dir, served }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    fn move_away(&self) {
        std::fs::create_dir(self.dir.path().join("away")).unwrap();
        for name in FILES {
            let away = self.dir.path().join("away").join(name);
            std::fs::rename(self.file(name), away).unwrap();
        }
    }

    fn command(&self, words: &[&str]) -> (i32, String) {
        let data = self.dir.path().join("data").display().to_string();
        let mut words = words.to_vec();
        words.extend(["--data", &data]);
        let done = run(binary(), &words).unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        (done.status.code().unwrap_or(-1), text)
    }

    /// Not one attempt is confirmed or rejected from the first on.
    fn sells_nothing(&self) {
        for _ in 0..20 {
            let refused = post(self.served.address, "/seckill", "").unwrap();
            assert_eq!(refused.status, 503, "{refused:?}");
            assert!(
                !refused.body.contains("seckill.db"),
                "a path is told: {refused:?}"
            );
        }
        until("the service is not ready", || {
            get(self.served.address, "/readyz").unwrap().status == 503
        });
    }

    fn is_refused_to_operators(&self) {
        let change = ["sale", "change", "counter", "--add-units", "1"];
        let audit = ["audit"];
        for words in [&change[..], &audit] {
            let (code, text) = self.command(words);
            assert_eq!(code, 2, "{words:?}: {text}");
        }
    }

    fn errors_logged(&self, part: &str) -> usize {
        let log = self.served.log();
        let lines = log.lines();
        lines
            .filter(|line| line.contains("ERROR") && line.contains(part))
            .count()
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_replaced_file_needs_a_restart() {
    let shop = Shop::open();
    let copy = shop.dir.path().join("copy.db").display().to_string();
    let (code, text) = shop.command(&["backup", &copy]);
    assert_eq!(code, 0, "{text}");
    shop.move_away();
    std::fs::copy(&copy, shop.file("seckill.db")).unwrap();
    shop.sells_nothing();
    shop.is_refused_to_operators();
    let ready = get(shop.served.address, "/readyz").unwrap().json();
    let detail = ready["components"][0]["detail"].as_str().unwrap();
    assert_eq!(detail.matches("inode").count(), 2, "{detail}");
    assert_eq!(shop.errors_logged("inode"), 1, "{}", shop.served.log());
    // An order that was confirmed is not denied, whatever the other file has.
    let order = get(
        shop.served.address,
        "/v1/orders/0123456789abcdef0123456789abcdef",
    );
    assert_ne!(order.unwrap().status, 200);
}

#[test]
fn a_removed_file_is_missed_at_once_and_found_again() {
    let shop = Shop::open();
    let won = post(shop.served.address, "/seckill", "").unwrap().json();
    let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
    shop.move_away();
    shop.sells_nothing();
    shop.is_refused_to_operators();
    assert_ne!(get(shop.served.address, &order).unwrap().status, 404);
    assert!(!shop.file("seckill.db").exists(), "a new file was made");
    assert_eq!(
        shop.errors_logged("there is no file at that path"),
        1,
        "{}",
        shop.served.log()
    );
    for name in FILES {
        let away = shop.dir.path().join("away").join(name);
        std::fs::rename(away, shop.file(name)).unwrap();
    }
    until("the service is ready again", || {
        get(shop.served.address, "/readyz").unwrap().status == 200
    });
    let found = get(shop.served.address, &order).unwrap().json();
    assert_eq!(found["unit"], won["unit"]);
    assert_eq!(shop.command(&["audit"]).0, 0);
}

#[test]
fn a_folder_that_lost_its_file_is_no_new_shop() {
    let shop = Shop::open();
    shop.move_away();
    let Shop { dir, served } = shop;
    served.kill().unwrap();
    let data = dir.path().join("data").display().to_string();
    let words = ["serve", "--listen", "127.0.0.1:0", "--data", &data];
    let done = run(binary(), &words).unwrap();
    let text = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{text}");
    assert!(
        text.contains("seckill restore") && text.contains("seckill.id"),
        "{text}"
    );
}

#[test]
fn a_truncated_file_confirms_nothing() {
    let shop = Shop::open();
    std::fs::OpenOptions::new()
        .write(true)
        .open(shop.file("seckill.db"))
        .unwrap()
        .set_len(0)
        .unwrap();
    shop.sells_nothing();
    shop.is_refused_to_operators();
    assert!(
        shop.errors_logged("seckill.db") >= 1,
        "{}",
        shop.served.log()
    );
}

/// The orders since the last checkpoint are only in the log. Whoever removes it must not lose them.
#[test]
fn a_removed_log_confirms_nothing_and_loses_nothing() {
    let shop = Shop::open();
    std::fs::remove_file(shop.file("seckill.db-wal")).unwrap();
    shop.sells_nothing();
    assert_eq!(
        shop.errors_logged("seckill.db-wal"),
        1,
        "{}",
        shop.served.log()
    );
    let Shop { dir, served } = shop;
    served.kill().unwrap();
    let data = dir.path().join("data");
    let served = ServerProcess::start(binary(), &data, &[], &[]).unwrap();
    let shown = get(served.address, "/v1/sales/counter").unwrap().json();
    assert_eq!(shown["remaining"], 993);
}
