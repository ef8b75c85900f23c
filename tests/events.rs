//! `seckill events`: from a running service, from the file, and across a restart.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use seckill_testkit::{ServerProcess, post, run, wait_until};
use serde_json::Value;
use tempfile::TempDir;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn data_folder(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

fn serve(dir: &TempDir) -> ServerProcess {
    ServerProcess::start(binary(), &data_folder(dir), &[], &["--units", "5000"]).unwrap()
}

fn buy(server: &ServerProcess, body: &str) -> String {
    let won = post(server.address, "/seckill", body).unwrap().json();
    won["order_id"].as_str().unwrap().to_owned()
}

fn events(dir: &TempDir, more: &[&str]) -> (i32, String, String) {
    let data = data_folder(dir).display().to_string();
    let args = [&["events", "--data", &data, "--sale", "counter"], more].concat();
    let output = run(binary(), &args).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Kills the child process when dropped, also when the test fails.
struct Follower {
    child: Child,
    lines: Receiver<String>,
    messages: Receiver<String>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn lines_of(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Follower {
    fn start(dir: &TempDir) -> Self {
        let mut child = Command::new(binary())
            .args([
                "events", "--sale", "counter", "--follow", "--json", "--data",
            ])
            .arg(data_folder(dir))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let messages = lines_of(child.stderr.take().unwrap());
        Self {
            child,
            lines,
            messages,
        }
    }

    /// The sequence and the order of the next event.
    fn next(&self) -> (u64, Option<String>) {
        let line = self.lines.recv_timeout(Duration::from_secs(30)).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        let order = event["subject"].as_str().map(str::to_owned);
        (event["sequence"].as_u64().unwrap(), order)
    }

    fn wait_for_message(&self, expected: &str) {
        loop {
            let message = self.messages.recv_timeout(Duration::from_secs(30)).unwrap();
            if message.contains(expected) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        wait_until("the end of the follower", || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap().code()
    }
}

#[test]
fn events_are_the_same_from_the_service_and_from_the_file() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    let order = buy(&server, r#"{"buyer":"ann","quantity":2}"#);
    let cancel = format!("/v1/orders/{order}/cancel");
    assert_eq!(post(server.address, &cancel, "").unwrap().status, 200);
    let again = buy(&server, "");
    let (code, text, error) = events(&dir, &[]);
    assert_eq!(code, 0, "{error}");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().skip(1).collect())
        .collect();
    assert_eq!(lines[0][..3], ["1", "sale.created", "-"]);
    let reserved = [
        "2",
        "order.reserved",
        &order,
        "ann",
        "default:1",
        "default:2",
    ];
    assert_eq!(lines[1], reserved);
    let cancelled = [
        "3",
        "order.cancelled",
        &order,
        "-",
        "default:1",
        "default:2",
    ];
    assert_eq!(lines[2], cancelled);
    assert_eq!(
        lines[3],
        ["4", "order.reserved", &again, "-", "default:1@2"]
    );

    let (_, served, _) = events(&dir, &["--json"]);
    assert!(server.end(Signal::TERM).unwrap().success());
    let (code, read, error) = events(&dir, &["--json"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(read, served);
    let first: Value = serde_json::from_str(read.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["specversion"], &first["id"]),
        (&"1.0".into(), &"counter/1".into())
    );
    assert_eq!(first["data"]["items"][0]["total"], 5_000);
    let (_, rest, _) = events(&dir, &["--json", "--after", "3"]);
    assert_eq!(rest.lines().count(), 1);
    assert_eq!(events(&dir, &["--after", "4"]).1, "");
}

#[test]
fn more_events_than_a_page_are_complete() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    let load = [
        "load",
        &server.url("/seckill"),
        "--requests",
        "2500",
        "--ramp",
        "0",
    ];
    assert!(run(binary(), &load).unwrap().status.success());
    for _ in 0..2 {
        let (code, text, error) = events(&dir, &["--json"]);
        assert_eq!(code, 0, "{error}");
        let sequences = text.lines().map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["sequence"].as_u64().unwrap()
        });
        assert!(sequences.eq(1..=2_501));
        let data = data_folder(&dir).display().to_string();
        let audited = run(binary(), &["audit", "--json", "--data", &data]).unwrap();
        let audited: Value = serde_json::from_slice(&audited.stdout).unwrap();
        assert_eq!(audited["events"], 2_501);
    }
}

#[test]
fn followed_events_go_on_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    let first = buy(&server, "");
    let follower = Follower::start(&dir);
    assert_eq!(follower.next(), (1, None));
    assert_eq!(follower.next(), (2, Some(first)));
    let second = buy(&server, "");
    assert_eq!(follower.next(), (3, Some(second)));
    server.kill().unwrap();
    follower.wait_for_message("has stopped");
    let server = serve(&dir);
    follower.wait_for_message("running");
    let third = buy(&server, "");
    assert_eq!(follower.next(), (4, Some(third)));
    follower.signal(Signal::INT);
    let mut follower = follower;
    assert_eq!(follower.exit_code(), Some(0));
}

/// Puts a backup in the place of the data of a service that has stopped.
fn restore(dir: &TempDir, backup: &Path) {
    std::fs::remove_dir_all(data_folder(dir)).unwrap();
    let data = data_folder(dir).display().to_string();
    let args = ["restore", &backup.display().to_string(), "--data", &data];
    let restored = run(binary(), &args).unwrap();
    assert!(restored.status.success(), "{restored:?}");
}

#[test]
fn a_feed_that_ends_before_the_reader_is_an_error() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    buy(&server, "");
    for more in [&[][..], &["--follow"]] {
        let (code, out, error) = events(&dir, &[&["--after", "999"], more].concat());
        assert_eq!((code, &*out), (2, ""), "{error}");
        assert!(
            error.contains("the feed ends at event 2, before 999"),
            "{error}"
        );
        assert!(error.contains("--after 0"), "{error}");
    }
    drop(server);
    let (code, _, error) = events(&dir, &["--after", "3"]);
    assert_eq!(code, 2);
    assert!(
        error.contains("the feed ends at event 2, before 3"),
        "{error}"
    );
    assert_eq!(events(&dir, &["--after", "2"]).0, 0);
}

#[test]
fn a_follower_notices_that_a_backup_was_restored() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    buy(&server, "");
    let backup = dir.path().join("backup.db");
    let data = data_folder(&dir).display().to_string();
    let file = backup.display().to_string();
    let made = run(binary(), &["backup", &file, "--data", &data]).unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut server = Some(server);
    // With fewer events than the follower has read, and with more of them.
    for sold_after in [0, 3] {
        let running = server.take().unwrap_or_else(|| serve(&dir));
        buy(&running, "");
        let mut follower = Follower::start(&dir);
        for number in 1..=3 {
            assert_eq!(follower.next().0, number);
        }
        follower.signal(Signal::STOP);
        assert!(running.end(Signal::TERM).unwrap().success());
        restore(&dir, &backup);
        let restored = serve(&dir);
        for _ in 0..sold_after {
            buy(&restored, r#"{"buyer":"ann"}"#);
        }
        follower.signal(Signal::CONT);
        follower.wait_for_message(if sold_after == 0 {
            "the feed ends at event 2, before 3: was a backup restored?"
        } else {
            "event 3 is not the one that was read before: was a backup restored?"
        });
        assert_eq!(follower.exit_code(), Some(2));
        drop(restored);
        restore(&dir, &backup);
    }
}

#[test]
fn without_the_control_socket_the_file_is_read() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    buy(&server, "");
    let (_, served, _) = events(&dir, &[]);
    std::fs::remove_file(data_folder(&dir).join("seckill.sock")).unwrap();
    let (code, read, error) = events(&dir, &[]);
    assert_eq!((code, read), (0, served), "{error}");
    assert!(error.contains("only its file is read"), "{error}");
    let data = data_folder(&dir).display().to_string();
    let run = |args: &[&str]| {
        let output = run(binary(), &[args, &["--data", &data]].concat()).unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), error)
    };
    let (code, error) = run(&["audit"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(error.contains("only its file is read"), "{error}");
    let (code, error) = run(&["sale", "list"]);
    assert_eq!(code, Some(2));
    for expected in ["is in use by process", "control socket", "try again"] {
        assert!(error.contains(expected), "{error}");
    }
    // Followed events come once, and the message does, too.
    let follower = Follower::start(&dir);
    assert_eq!((follower.next().0, follower.next().0), (1, 2));
    buy(&server, "");
    assert_eq!(follower.next().0, 3);
    let messages: Vec<String> = follower.messages.try_iter().collect();
    assert_eq!(messages.len(), 1, "{messages:?}");
}

#[test]
fn a_follower_ends_when_nobody_reads_its_output() {
    let dir = TempDir::new().unwrap();
    let _server = serve(&dir);
    let mut child = Command::new(binary())
        .args(["events", "--sale", "counter", "--follow", "--data"])
        .arg(data_folder(&dir))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(line.contains("sale.created"), "{line}");
    drop(output);
    let mut follower = Follower {
        child,
        lines: channel().1,
        messages: channel().1,
    };
    assert_eq!(follower.exit_code(), Some(0));
}

#[test]
fn a_wrong_sale_or_folder_is_an_error_that_says_what_to_do() {
    let dir = TempDir::new().unwrap();
    let (code, _, error) = events(&dir, &[]);
    assert_eq!(code, 2);
    assert!(error.contains("seckill serve"), "{error}");
    let server = serve(&dir);
    let data = data_folder(&dir).display().to_string();
    let wrong = |sale: &str| {
        let args = ["events", "--data", &data, "--sale", sale, "--follow"];
        let output = run(binary(), &args).unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(
        wrong("phone").contains("seckill sale list"),
        "{}",
        wrong("phone")
    );
    assert!(wrong("a b").contains("sale id"), "{}", wrong("a b"));
    drop(server);
    assert!(
        wrong("phone").contains("seckill sale list"),
        "{}",
        wrong("phone")
    );
}
