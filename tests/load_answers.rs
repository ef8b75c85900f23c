//! `seckill load` against a server that answers something else than the service does, and against
//! requests that the service refuses.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use assert_cmd::Command;
use seckill_testkit::ServerProcess;
use tempfile::TempDir;

/// Answers each request with this status line and body, until the test ends.
fn answering(status: &'static str, body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream, status, body));
        }
    });
    address
}

/// Ends when the client closes the connection.
fn answer(stream: TcpStream, status: &str, body: &str) -> std::io::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut answers = stream;
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        requests.read_exact(&mut vec![0; length])?;
        let length = body.len();
        write!(
            answers,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
    }
}

fn load(dir: &TempDir, url: &str, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seckill"));
    let args = ["load", url, "--ramp", "0", "--requests", "10"];
    let output = command
        .current_dir(dir.path())
        .args(args)
        .args(more)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_confirmation_that_cannot_be_read_is_wrong() {
    let dir = TempDir::new().unwrap();
    let old = r#"{"result":"won","order_id":"x","unit":7,"remaining":93}"#;
    let url = format!("http://{}/seckill", answering("200 OK", old));
    let checked = ["--quantity", "2", "--history", "f", "--json"];
    let (code, out, error) = load(&dir, &url, &checked);
    assert_eq!(code, 1, "{out}{error}");
    assert!(error.contains("10 confirmations cannot be read"), "{error}");
    let report: seckill_api::LoadReport = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (report.won, report.units_won, report.wrong_units),
        (10, Some(0), Some(10))
    );
    // Without a history, confirmations are only counted.
    let (code, _, error) = load(&dir, &url, &[]);
    assert_eq!(code, 0, "{error}");
}

#[test]
fn an_error_is_shown_with_its_reason() {
    let dir = TempDir::new().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_seckill"));
    let data = dir.path().join("seckill-data");
    let server = ServerProcess::start(binary, &data, &[], &["--units", "5"]).unwrap();
    for sale in [["shirt", "--items", "S=4,M=4"], ["mug", "--units", "4"]] {
        let mut create = Command::new(binary);
        create
            .current_dir(dir.path())
            .args(["sale", "create"])
            .args(sale)
            .args(["--limit", "2"]);
        create.assert().success();
    }
    let of = |sale: &str| server.url(&format!("/v1/sales/{sale}/orders"));
    let named = ["--buyers", "unique"];
    let wrong = ["--buyers", "unique", "--lines", "XL=1"];
    let cases: [(String, &[&str], &[&str]); 4] = [
        (of("shirt"), &wrong, &["status 400, no-such-item: ", "XL"]),
        (of("shirt"), &named, &["status 400, item-required: "]),
        (of("mug"), &[], &["status 400, buyer-required: "]),
        (of("cup"), &named, &["status 404, ", "check the method"]),
    ];
    for (url, more, expected) in cases {
        let (code, out, error) = load(&dir, &url, more);
        assert_eq!(code, 1, "{out}{error}");
        for expected in expected {
            assert!(error.contains(expected), "{url}: {error}");
        }
        assert_eq!(error.contains("path"), error.contains("404"), "{error}");
    }
    let other = format!("http://{}/", answering("500 Internal Server Error", "oh"));
    let (code, _, error) = load(&dir, &other, &[]);
    assert_eq!(code, 1);
    assert!(error.contains("10 of 10"), "{error}");
    assert!(error.contains("such as status 500"), "{error}");
}

#[test]
fn an_item_is_named_once() {
    let dir = TempDir::new().unwrap();
    let twice = ["--items", "S,M,S", "--quantity", "1-3"];
    let (code, _, error) = load(&dir, "http://127.0.0.1:9/", &twice);
    assert_eq!(code, 2);
    assert!(error.contains("the item S is named twice"), "{error}");
}
