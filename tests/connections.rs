//! HTTP connections: the service never closes one in use, and each response reaches its client.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use seckill_loadgen::{Outcome, Pacing, Plan, Progress, Target};
use seckill_testkit::{ServerProcess, raise_file_limit};
use tempfile::TempDir;

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
        let request = "POST /seckill HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.contains(r#""result":"won""#), "{response:?}");
    }
}
