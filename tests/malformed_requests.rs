//! What bad input gets: a status that names the cause, no panic, no hang, no effect on others.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use seckill_testkit::{Response, ServerProcess, exchange, get, post, raw};
use tempfile::TempDir;

const ORDERS: &str = "/v1/sales/counter/orders";

struct TestContext {
    _dir: TempDir,
    served: ServerProcess,
}

fn stage(more: &[&str]) -> TestContext {
    let dir = TempDir::new().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_seckill"));
    let mut arguments = vec!["--units", "1000"];
    arguments.extend(more);
    let served = ServerProcess::start(binary, &dir.path().join("data"), &[], &arguments).unwrap();
    TestContext { _dir: dir, served }
}

/// A configuration file with bounds small enough for a test.
fn short_waits(dir: &TempDir) -> String {
    let path = dir.path().join("short.toml");
    let text = "[service]\nhead_wait_ms = 300\nbody_wait_ms = 300\n";
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

impl TestContext {
    fn order(&self, headers: &[(&str, &str)], body: &str) -> Response {
        exchange(self.served.address, "POST", ORDERS, headers, body).unwrap()
    }

    /// The service still sells, and logged no panic.
    fn still_sells(&self) {
        let won = post(self.served.address, "/seckill", "").unwrap();
        assert_eq!(won.json()["result"], "won", "{won:?}");
        let log = self.served.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn is(answer: &Response, status: u16, problem: &str) {
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (status, problem),
        "{answer:?}"
    );
    assert!(
        !answer.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
    );
}

#[test]
fn bodies_that_are_no_order() {
    let stage = stage(&[]);
    let json = [("Content-Type", "application/json")];
    for body in [
        "{",
        "[]",
        "nonsense",
        r#"{"buyer":7}"#,
        r#"{"byer":"ann"}"#,
        "\"ann\"",
        "{\"buyer\":\"\u{1}\"}",
    ] {
        is(&stage.order(&json, body), 400, "bad-request");
    }
    is(&stage.order(&json, r#"{"buyer":""}"#), 400, "bad-request");
    is(
        &stage.order(&[("Content-Type", "text/xml")], "<buyer/>"),
        415,
        "not-json",
    );
    let long = format!(r#"{{"buyer":"{}"}}"#, "b".repeat(10_000));
    let answer = stage.order(&json, &long);
    is(&answer, 400, "bad-request");
    assert!(
        answer.body.contains("10000 bytes") && answer.body.contains("1 to 128 bytes"),
        "{answer:?}"
    );
    stage.still_sells();
}

#[test]
fn a_body_of_a_megabyte() {
    let stage = stage(&[]);
    let body = "x".repeat(1 << 20);
    is(&stage.order(&[], &body), 413, "body-too-large");
    let answer = exchange(stage.served.address, "POST", "/seckill", &[], &body).unwrap();
    is(&answer, 413, "body-too-large");
    // One that does not say its length is cut off at the bound.
    let mut chunked =
        format!("POST {ORDERS} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    chunked.push_str(&format!("100000\r\n{body}\r\n0\r\n\r\n"));
    is(
        &raw(stage.served.address, chunked.as_bytes()).unwrap(),
        413,
        "body-too-large",
    );
    stage.still_sells();
}

#[test]
fn heads_that_are_too_large_or_no_http() {
    let stage = stage(&[]);
    let long = "x".repeat(64 << 10);
    let answer = exchange(
        stage.served.address,
        "POST",
        "/seckill",
        &[("X-Long", &long)],
        "",
    )
    .unwrap();
    assert_eq!(answer.status, 431, "{answer:?}");
    let many = "X-Many: x\r\n".repeat(5_000);
    let request = format!("POST /seckill HTTP/1.1\r\nHost: t\r\n{many}\r\n");
    assert_eq!(
        raw(stage.served.address, request.as_bytes())
            .unwrap()
            .status,
        431
    );
    assert_eq!(
        raw(stage.served.address, b"\x16\x03\x01 hello\r\n\r\n")
            .unwrap()
            .status,
        400
    );
    let path = format!("GET /{long} HTTP/1.1\r\n\r\n");
    let status = raw(stage.served.address, path.as_bytes()).unwrap().status;
    assert!([414, 431].contains(&status), "{status}");
    stage.still_sells();
}

#[test]
fn paths_and_methods_that_there_are_not() {
    let stage = stage(&[]);
    let address = stage.served.address;
    is(&get(address, "/nothing").unwrap(), 404, "no-such-page");
    is(&post(address, "/", "").unwrap(), 404, "no-such-page");
    let wrong = get(address, "/seckill").unwrap();
    is(&wrong, 405, "wrong-method");
    assert_eq!(wrong.header("allow"), Some("POST"));
    is(
        &exchange(address, "DELETE", "/v1/sales/counter", &[], "").unwrap(),
        405,
        "wrong-method",
    );
    is(
        &post(address, "/v1/sales/a%20b/orders", "").unwrap(),
        400,
        "bad-request",
    );
    is(
        &get(address, "/v1/sales/nothing").unwrap(),
        404,
        "no-such-sale",
    );
    is(
        &exchange(
            address,
            "POST",
            "/v1/orders/x/cancel",
            &[],
            &"x".repeat(1 << 20),
        )
        .unwrap(),
        413,
        "body-too-large",
    );
    stage.still_sells();
}

#[test]
fn keys_that_are_none() {
    let stage = stage(&[]);
    let long = "k".repeat(10_000);
    is(
        &stage.order(&[("Idempotency-Key", &long)], ""),
        400,
        "bad-request",
    );
    is(
        &stage.order(&[("Idempotency-Key", "a"), ("Idempotency-Key", "a")], ""),
        400,
        "bad-request",
    );
    is(
        &stage.order(&[("Idempotency-Key", "")], ""),
        400,
        "bad-request",
    );
    is(
        &stage.order(&[("Idempotency-Key", "a b")], ""),
        400,
        "bad-request",
    );
    stage.still_sells();
}

#[test]
fn five_thousand_idle_connections() {
    seckill_testkit::raise_file_limit();
    let stage = stage(&[]);
    let idle: Vec<TcpStream> = (0..5_000)
        .map(|_| TcpStream::connect(stage.served.address).unwrap())
        .collect();
    for _ in 0..50 {
        stage.still_sells();
    }
    assert_eq!(idle.len(), 5_000);
}

#[test]
fn a_client_that_sends_a_byte_now_and_then() {
    let dir = TempDir::new().unwrap();
    let config = short_waits(&dir);
    let stage = stage(&["--config", &config]);
    let drip = |start: &str, drop: &[u8]| {
        let mut stream = TcpStream::connect(stage.served.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        stream.write_all(start.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut part = [0; 1_024];
        // Bounded by the service's own deadline, which is what is looked at here.
        loop {
            match stream.read(&mut part) {
                Ok(0) => return String::from_utf8(answer).unwrap(),
                Ok(count) => answer.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    // A closed connection is noticed by the next read.
                    drop_result(stream.write_all(drop));
                }
                Err(_) => return String::from_utf8(answer).unwrap(),
            }
        }
    };
    let head = drip("POST /seckill HTTP/1.1\r\nX-Slow: ", b"x");
    assert!(
        head.is_empty() || head.starts_with("HTTP/1.1 408"),
        "{head}"
    );
    let start = format!("POST {ORDERS} HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n");
    let body = drip(&start, b"x");
    assert!(
        body.starts_with("HTTP/1.1 408") && body.contains("body-too-slow"),
        "{body}"
    );
    stage.still_sells();
}

fn drop_result<T>(_: T) {}

#[test]
fn a_client_that_leaves_before_its_answer() {
    let stage = stage(&[]);
    for _ in 0..200 {
        let mut stream = TcpStream::connect(stage.served.address).unwrap();
        stream
            .write_all(b"POST /seckill HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    }
    stage.still_sells();
    // Whatever those attempts came to, units and orders add up.
    let data = stage._dir.path().join("data").display().to_string();
    let binary = Path::new(env!("CARGO_BIN_EXE_seckill"));
    let audit = seckill_testkit::run(binary, &["audit", "--data", &data, "--json"]).unwrap();
    assert!(audit.status.success(), "{audit:?}");
}
