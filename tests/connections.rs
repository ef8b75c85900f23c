//! HTTP connections: the service never closes one in use, and each response reaches its client.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use seckill_loadgen::{Outcome, Pacing, Plan, Progress, Target};
use seckill_testkit::{ServerProcess, raise_file_limit, wait_until};
use tempfile::TempDir;

const REQUEST: &str = "POST /seckill HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n";

fn serve(dir: &TempDir, prefix: &[&str], units: &str) -> ServerProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_seckill"));
    ServerProcess::start(
        binary,
        &dir.path().join("data"),
        prefix,
        &["--units", units],
    )
    .unwrap()
}

/// Keeps connections busy over many ticks of the timer that closes idle ones, on several threads.
#[test]
fn connections_in_use_are_never_closed() {
    raise_file_limit();
    for threads in [2, 4] {
        let dir = TempDir::new().unwrap();
        let threads = format!("SECKILL_SERVICE__THREADS={threads}");
        // A tick is an eighth of `head_wait_ms`: 32 ticks in 4 seconds.
        let prefix = ["env", "SECKILL_SERVICE__HEAD_WAIT_MS=1000", &threads];
        let server = serve(&dir, &prefix, "0");
        let plan = Plan {
            connections: 256,
            pacing: Pacing::Closed,
            ..Plan::new(Target::parse(&server.url("/seckill")).unwrap(), u64::MAX)
        };
        let progress = Progress::default();
        let run = std::thread::scope(|scope| {
            let load = scope.spawn(|| seckill_loadgen::run(&plan, &progress));
            std::thread::sleep(Duration::from_secs(4));
            progress.stop();
            load.join().unwrap().unwrap()
        });
        let report = run.report;
        assert_eq!(report.failed, 0, "{threads}: {:?}", report.failures);
        assert_eq!(report.count(Outcome::SoldOut), report.answered);
        assert!(report.answered > 1_000, "{report:?}");
    }
}

/// A client may shut down its sending side before it reads the response.
#[test]
fn a_half_closed_client_receives_its_confirmation() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, &[], "10");
    for _ in 0..10 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(REQUEST.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.contains(r#""result":"won""#), "{response:?}");
    }
}

/// Sends a request on a connection that stays open, and reads the head of its response.
fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(REQUEST.as_bytes()).unwrap();
    let mut response = vec![0; 4_096];
    let length = stream.read(&mut response).unwrap();
    String::from_utf8_lossy(&response[..length]).into_owned()
}

#[test]
fn a_connection_beyond_the_limit_gets_503_and_buys_nothing() {
    let dir = TempDir::new().unwrap();
    let prefix = ["env", "SECKILL_SERVICE__MAX_CONNECTIONS=3"];
    let server = serve(&dir, &prefix, "10");
    let connect = || TcpStream::connect(server.address).unwrap();
    let mut open: Vec<TcpStream> = (0..3).map(|_| connect()).collect();
    for stream in &mut open {
        assert!(ask(stream).starts_with("HTTP/1.1 200"));
    }
    let mut beyond = connect();
    let mut refused = ask(&mut beyond);
    beyond.read_to_string(&mut refused).unwrap();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    for expected in [
        "retry-after: 1\r\n",
        "connection: close\r\n",
        "urn:seckill:problem:overloaded",
        r#""effect":"none""#,
    ] {
        assert!(refused.contains(expected), "{expected:?}: {refused}");
    }
    // The others are served as before, and there is room again once one has closed.
    assert!(ask(&mut open[0]).contains(r#""unit":4"#));
    open.pop();
    wait_until("room for a connection", || {
        ask(&mut connect()).starts_with("HTTP/1.1 200")
    });
}
