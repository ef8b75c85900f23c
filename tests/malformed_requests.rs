//! Malformed requests: each response names the cause. The service must not panic or hang, and
//! must keep serving other clients.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use seckill_testkit::{Response, ServerProcess, exchange, get, post, raw};
use tempfile::TempDir;

const ORDERS: &str = "/v1/sales/counter/orders";

struct TestContext {
    dir: TempDir,
    server: ServerProcess,
}

fn start(flags: &[&str]) -> TestContext {
    let dir = TempDir::new().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_seckill"));
    let mut arguments = vec!["--units", "1000"];
    arguments.extend(flags);
    let server = ServerProcess::start(binary, &dir.path().join("data"), &[], &arguments).unwrap();
    TestContext { dir, server }
}

/// Writes a configuration file with short deadlines, and returns its path.
fn config_with_short_deadlines(dir: &TempDir) -> String {
    let path = dir.path().join("short.toml");
    let text = "[service]\nhead_wait_ms = 300\nbody_wait_ms = 300\n";
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

impl TestContext {
    fn order(&self, headers: &[(&str, &str)], body: &str) -> Response {
        exchange(self.server.address, "POST", ORDERS, headers, body).unwrap()
    }

    /// Asserts that the service still sells and has not logged a panic.
    fn assert_still_sells(&self) {
        let won = post(self.server.address, "/seckill", "").unwrap();
        assert_eq!(won.json()["result"], "won", "{won:?}");
        let log = self.server.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn assert_problem(response: &Response, status: u16, problem: &str) {
    assert_eq!(
        (response.status, response.problem().as_str()),
        (status, problem),
        "{response:?}"
    );
    assert!(
        !response.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
    );
}

#[test]
fn invalid_bodies_get_400_or_415() {
    let context = start(&[]);
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
        assert_problem(&context.order(&json, body), 400, "bad-request");
    }
    assert_problem(&context.order(&json, r#"{"buyer":""}"#), 400, "bad-request");
    assert_problem(
        &context.order(&[("Content-Type", "text/xml")], "<buyer/>"),
        415,
        "not-json",
    );
    let long = format!(r#"{{"buyer":"{}"}}"#, "b".repeat(10_000));
    let response = context.order(&json, &long);
    assert_problem(&response, 400, "bad-request");
    assert!(
        response.body.contains("10000 bytes") && response.body.contains("1 to 128 bytes"),
        "{response:?}"
    );
    context.assert_still_sells();
}

#[test]
fn a_body_of_one_megabyte_gets_413() {
    let context = start(&[]);
    let body = "x".repeat(1 << 20);
    assert_problem(&context.order(&[], &body), 413, "body-too-large");
    let response = exchange(context.server.address, "POST", "/seckill", &[], &body).unwrap();
    assert_problem(&response, 413, "body-too-large");
    // A body without a Content-Length is cut off at the limit.
    let mut chunked =
        format!("POST {ORDERS} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    chunked.push_str(&format!("100000\r\n{body}\r\n0\r\n\r\n"));
    assert_problem(
        &raw(context.server.address, chunked.as_bytes()).unwrap(),
        413,
        "body-too-large",
    );
    context.assert_still_sells();
}

#[test]
fn oversized_heads_and_invalid_http_get_a_client_error() {
    let context = start(&[]);
    let long = "x".repeat(64 << 10);
    let response = exchange(
        context.server.address,
        "POST",
        "/seckill",
        &[("X-Long", &long)],
        "",
    )
    .unwrap();
    assert_eq!(response.status, 431, "{response:?}");
    let many = "X-Many: x\r\n".repeat(5_000);
    let request = format!("POST /seckill HTTP/1.1\r\nHost: t\r\n{many}\r\n");
    assert_eq!(
        raw(context.server.address, request.as_bytes())
            .unwrap()
            .status,
        431
    );
    assert_eq!(
        raw(context.server.address, b"\x16\x03\x01 hello\r\n\r\n")
            .unwrap()
            .status,
        400
    );
    let path = format!("GET /{long} HTTP/1.1\r\n\r\n");
    let status = raw(context.server.address, path.as_bytes()).unwrap().status;
    assert!([414, 431].contains(&status), "{status}");
    context.assert_still_sells();
}

#[test]
fn unknown_paths_get_404_and_wrong_methods_get_405() {
    let context = start(&[]);
    let address = context.server.address;
    assert_problem(&get(address, "/nothing").unwrap(), 404, "no-such-page");
    assert_problem(&post(address, "/", "").unwrap(), 404, "no-such-page");
    let wrong = get(address, "/seckill").unwrap();
    assert_problem(&wrong, 405, "wrong-method");
    assert_eq!(wrong.header("allow"), Some("POST"));
    assert_problem(
        &exchange(address, "DELETE", "/v1/sales/counter", &[], "").unwrap(),
        405,
        "wrong-method",
    );
    assert_problem(
        &post(address, "/v1/sales/a%20b/orders", "").unwrap(),
        400,
        "bad-request",
    );
    assert_problem(
        &get(address, "/v1/sales/nothing").unwrap(),
        404,
        "no-such-sale",
    );
    assert_problem(
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
    context.assert_still_sells();
}

#[test]
fn invalid_idempotency_keys_get_400() {
    let context = start(&[]);
    let long = "k".repeat(10_000);
    assert_problem(
        &context.order(&[("Idempotency-Key", &long)], ""),
        400,
        "bad-request",
    );
    assert_problem(
        &context.order(&[("Idempotency-Key", "a"), ("Idempotency-Key", "a")], ""),
        400,
        "bad-request",
    );
    assert_problem(
        &context.order(&[("Idempotency-Key", "")], ""),
        400,
        "bad-request",
    );
    assert_problem(
        &context.order(&[("Idempotency-Key", "a b")], ""),
        400,
        "bad-request",
    );
    context.assert_still_sells();
}

#[test]
fn the_service_sells_while_five_thousand_connections_are_idle() {
    seckill_testkit::raise_file_limit();
    let context = start(&[]);
    let idle: Vec<TcpStream> = (0..5_000)
        .map(|_| TcpStream::connect(context.server.address).unwrap())
        .collect();
    for _ in 0..50 {
        context.assert_still_sells();
    }
    assert_eq!(idle.len(), 5_000);
}

#[test]
fn a_client_that_sends_too_slowly_is_timed_out() {
    let dir = TempDir::new().unwrap();
    let config = config_with_short_deadlines(&dir);
    let context = start(&["--config", &config]);
    let send_slowly = |start: &str, byte: &[u8]| {
        let mut stream = TcpStream::connect(context.server.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        stream.write_all(start.as_bytes()).unwrap();
        let mut response = Vec::new();
        let mut part = [0; 1_024];
        // The service's deadline, which this test checks, ends the loop.
        loop {
            match stream.read(&mut part) {
                Ok(0) => return String::from_utf8(response).unwrap(),
                Ok(count) => response.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    // The next read notices a closed connection.
                    drop(stream.write_all(byte));
                }
                Err(_) => return String::from_utf8(response).unwrap(),
            }
        }
    };
    let head = send_slowly("POST /seckill HTTP/1.1\r\nX-Slow: ", b"x");
    assert!(
        head.is_empty() || head.starts_with("HTTP/1.1 408"),
        "{head}"
    );
    let start = format!("POST {ORDERS} HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n");
    let body = send_slowly(&start, b"x");
    assert!(
        body.starts_with("HTTP/1.1 408") && body.contains("body-too-slow"),
        "{body}"
    );
    context.assert_still_sells();
}

#[test]
fn clients_can_disconnect_before_the_response() {
    let context = start(&[]);
    for _ in 0..200 {
        let mut stream = TcpStream::connect(context.server.address).unwrap();
        stream
            .write_all(b"POST /seckill HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    }
    context.assert_still_sells();
    // Whatever the outcomes of those attempts, units and orders must agree.
    let data = context.dir.path().join("data").display().to_string();
    let binary = Path::new(env!("CARGO_BIN_EXE_seckill"));
    let audit = seckill_testkit::run(binary, &["audit", "--data", &data, "--json"]).unwrap();
    assert!(audit.status.success(), "{audit:?}");
}
