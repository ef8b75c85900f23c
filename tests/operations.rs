//! What operators rely on: file permissions, the control socket, output streams, configuration.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use seckill_testkit::{ServerProcess, get, post, run, wait_until};
use tempfile::TempDir;

/// The id of the unprivileged Linux user `nobody`.
const NOBODY_UID: u32 = 65_534;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn data_folder(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

fn serve(dir: &TempDir, prefix: &[&str]) -> ServerProcess {
    ServerProcess::start(binary(), &data_folder(dir), prefix, &["--units", "10"]).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Kills the child process when dropped, also when the test fails.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn only_the_owner_can_access_the_data_folder() {
    let dir = TempDir::new().unwrap();
    // With a umask of 0, the modes are exactly those that the program sets.
    let shell = ["sh", "-c", "umask 0; exec \"$0\" \"$@\""];
    let data = dir.path().join("new/data");
    let folder = data.display().to_string();
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", &folder];
    let program = binary().display().to_string();
    let command = [&shell[..], &[program.as_str()]].concat();
    let log = dir.path().join("log");
    let server = ServerProcess::spawn(&command, &arguments, &log).unwrap();
    post(server.address, "/seckill", "").unwrap();
    assert_eq!(mode(&data), 0o700);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&data).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    for name in [
        "seckill.db",
        "seckill.db-wal",
        "seckill.lock",
        "seckill.sock",
    ] {
        assert!(
            names.iter().any(|found| found == name),
            "{name} is not in {names:?}"
        );
    }
}

#[test]
fn startup_removes_the_permissions_of_other_users() {
    let dir = TempDir::new().unwrap();
    drop(serve(&dir, &[]));
    for name in ["seckill.db", "seckill.lock"] {
        let world_writable = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(data_folder(&dir).join(name), world_writable).unwrap();
    }
    let _served = serve(&dir, &[]);
    for name in ["seckill.db", "seckill.lock"] {
        assert_eq!(mode(&data_folder(&dir).join(name)), 0o600);
    }
}

/// Needs root to run a process as another user.
#[test]
fn another_user_cannot_use_the_control_socket() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, &[]);
    // This must hold even if an operator grants everyone access by mistake.
    let all_access = || std::fs::Permissions::from_mode(0o777);
    let socket = data_folder(&dir).join("seckill.sock");
    for path in [dir.path(), &data_folder(&dir), &socket] {
        std::fs::set_permissions(path, all_access()).unwrap();
    }
    let request = || {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--unix-socket",
        ]);
        curl.arg(&socket).arg("http://seckill/sales");
        curl
    };
    let own = request().output().unwrap();
    assert!(text(&own).contains("counter"), "{}", text(&own));
    let other = request().uid(NOBODY_UID).gid(NOBODY_UID).output().unwrap();
    assert!(!other.status.success(), "{}", text(&other));
    assert!(!text(&other).contains("counter"), "{}", text(&other));
    assert!(server.log().contains("another user"), "{}", server.log());
}

/// Needs root to run a process as another user. The process runs this test again as a fake service.
#[test]
fn the_socket_of_another_user_is_not_trusted() {
    const FAKE_SERVICE_FOLDER: &str = "TEST_FAKE_SERVICE_FOLDER";
    if let Some(folder) = std::env::var_os(FAKE_SERVICE_FOLDER) {
        return run_fake_service(Path::new(&folder));
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(data_folder(&dir)).unwrap();
    for path in [dir.path(), &data_folder(&dir)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // The other user must be able to execute this copy of the test.
    let test = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    let mut service = Command::new(&test);
    let service = service
        .args([
            "--exact",
            "the_socket_of_another_user_is_not_trusted",
            "--nocapture",
        ])
        .env(FAKE_SERVICE_FOLDER, data_folder(&dir))
        .uid(NOBODY_UID)
        .gid(NOBODY_UID)
        .stdout(Stdio::null());
    let _service = KillOnDrop(service.spawn().unwrap());
    wait_until("the socket of the fake service", || {
        data_folder(&dir).join("seckill.sock").exists()
    });
    let folder = data_folder(&dir).display().to_string();
    let change = [
        "sale", "change", "counter", "--units", "5", "--data", &folder,
    ];
    let refused = run(binary(), &change).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(
        text(&refused).contains("belongs to user 65534"),
        "{}",
        text(&refused)
    );
}

fn run_fake_service(folder: &Path) {
    let mut lock = std::fs::File::create(folder.join("seckill.lock")).unwrap();
    lock.lock().unwrap();
    lock.write_all(br#"{"pid":1,"purpose":"serve","takes_commands":true}"#)
        .unwrap();
    let world_writable = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(folder.join("seckill.lock"), world_writable).unwrap();
    let listener = UnixListener::bind(folder.join("seckill.sock")).unwrap();
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";
    for stream in listener.incoming() {
        drop(stream.unwrap().write_all(response.as_bytes()));
    }
}

#[test]
fn the_control_socket_works_in_a_data_folder_with_a_long_path() {
    let dir = TempDir::new().unwrap();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    let server = ServerProcess::start(binary(), &deep, &[], &["--units", "10"]).unwrap();
    let folder = deep.display().to_string();
    let change = [
        "sale", "change", "counter", "--units", "12", "--data", &folder,
    ];
    let changed = run(binary(), &change).unwrap();
    assert!(changed.status.success(), "{}", text(&changed));
    let sale = get(server.address, "/v1/sales/counter").unwrap().json();
    assert_eq!(sale["total"], 12);
}

/// One request to the control socket: the status and the problem's type.
fn ask_control(dir: &TempDir, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(data_folder(dir).join("seckill.sock")).unwrap();
    let length = body.len();
    let head = "Host: seckill\r\nContent-Type: application/json\r\nConnection: close";
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/problem+json"), "{answer}");
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(problem["status"], status, "{answer}");
    assert_ne!(problem["detail"], "", "{answer}");
    let problem_type = problem["type"].as_str().unwrap();
    (status, problem_type.replace("urn:seckill:problem:", ""))
}

#[test]
fn errors_on_the_control_socket_are_problems() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, &[]);
    let twice = r#"{"items":[{"id":"default","total":11},{"id":"default","total":12}]}"#;
    for (method, path, body, status, problem) in [
        ("GET", "/events?after=1", "", 400, "bad-request"),
        (
            "GET",
            "/events?sale=counter&after=x",
            "",
            400,
            "bad-request",
        ),
        ("GET", "/sales/a%20b", "", 400, "bad-request"),
        ("POST", "/sales", "{", 400, "bad-request"),
        ("POST", "/sales", r#"["s","",1]"#, 400, "bad-request"),
        (
            "POST",
            "/audit",
            r#"[["01a2","counter",[],1]]"#,
            400,
            "bad-request",
        ),
        ("PATCH", "/sales/counter", twice, 422, "sale-refused"),
        ("GET", "/orders", "", 404, "no-such-page"),
        ("DELETE", "/sales", "", 405, "wrong-method"),
    ] {
        let expected = (status, problem.to_owned());
        let answer = ask_control(&dir, method, path, body);
        assert_eq!(answer, expected, "{method} {path} {body}");
    }
    let sale = get(server.address, "/v1/sales/counter").unwrap().json();
    assert_eq!((&sale["total"], &sale["version"]), (&10.into(), &1.into()));
}

#[test]
fn a_change_that_is_sent_twice_is_applied_once() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, &[]);
    let folder = data_folder(&dir).display().to_string();
    let change = |more: &[&str]| {
        let args = [&["sale", "change", "counter", "--data", &folder], more].concat();
        run(binary(), &args).unwrap()
    };
    let more = ["--add-units", "5", "--if-version", "1"];
    assert!(change(&more).status.success());
    let again = change(&more);
    assert_eq!(again.status.code(), Some(2), "{}", text(&again));
    assert!(text(&again).contains("has version 2"), "{}", text(&again));
    let sale = get(server.address, "/v1/sales/counter").unwrap().json();
    assert_eq!((&sale["total"], &sale["version"]), (&15.into(), &2.into()));
    for _ in 0..3 {
        post(server.address, "/seckill", "").unwrap();
    }
    let fewer = change(&["--units", "2"]);
    assert!(text(&fewer).contains("unit 3 is sold"), "{}", text(&fewer));
    assert!(change(&["--units", "3"]).status.success());
    let sold_out = post(server.address, "/seckill", "").unwrap();
    assert_eq!(sold_out.json()["result"], "sold_out");
}

#[test]
fn a_closed_or_full_output_does_not_cause_a_panic() {
    let dir = TempDir::new().unwrap();
    let _served = serve(&dir, &[]);
    let folder = data_folder(&dir).display().to_string();
    for args in [
        &["config", "--default"][..],
        &["config"],
        &["sale", "list", "--data", &folder],
        &["audit", "--data", &folder],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(binary());
        let closed = command.args(args).stdout(writer).output().unwrap();
        assert!(closed.status.success(), "{args:?}: {}", text(&closed));
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut command = Command::new(binary());
        let full = command.args(args).stdout(full).output().unwrap();
        assert_eq!(full.status.code(), Some(2), "{args:?}: {}", text(&full));
        assert!(
            text(&full).contains("standard output"),
            "{args:?}: {}",
            text(&full)
        );
        assert!(!text(&full).contains("panicked"), "{}", text(&full));
    }
}

#[test]
fn a_service_keeps_selling_when_its_output_cannot_be_written() {
    let dir = TempDir::new().unwrap();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let folder = data_folder(&dir).display().to_string();
    let serve = Command::new(binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--data", &folder])
        .stdout(full)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut serve = KillOnDrop(serve);
    // The lock file contains the address on which the service listens.
    let mut address = None;
    wait_until("a listening service", || {
        let lock =
            std::fs::read_to_string(data_folder(&dir).join("seckill.lock")).unwrap_or_default();
        let rest = lock.split_once("serve on ").map(|(_, rest)| rest);
        address = rest.and_then(|rest| rest.split('"').next()?.parse().ok());
        address.is_some_and(|address| std::net::TcpStream::connect(address).is_ok())
    });
    let won = post(address.unwrap(), "/seckill", "").unwrap();
    assert_eq!(won.json()["result"], "won");
    let pid = Pid::from_raw(serve.0.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(serve.0.wait().unwrap().success());
}

#[test]
fn an_invalid_log_filter_is_refused() {
    for invalid in ["foo", "json", "info,=", "seckill_embedded=loud"] {
        let output = Command::new(binary())
            .arg("config")
            .env("SECKILL_LOG", invalid)
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{invalid}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains("SECKILL_LOG"),
            "{invalid}: {}",
            text(&output)
        );
    }
    for valid in ["", "debug", "OFF", "info,seckill_embedded=debug"] {
        let output = Command::new(binary())
            .arg("config")
            .env("SECKILL_LOG", valid)
            .output()
            .unwrap();
        assert!(output.status.success(), "{valid}: {}", text(&output));
    }
}

#[test]
fn environment_variables_of_a_kubernetes_service_are_ignored() {
    let dir = TempDir::new().unwrap();
    let injected = [
        "env",
        "SECKILL_SERVICE_HOST=10.0.0.1",
        "SECKILL_SERVICE_PORT=3000",
        "SECKILL_PORT=tcp://10.0.0.1:3000",
        "SECKILL_PORT_3000_TCP=tcp://10.0.0.1:3000",
        "SECKILL_PORT_3000_TCP_ADDR=10.0.0.1",
    ];
    let server = serve(&dir, &injected);
    assert_eq!(get(server.address, "/livez").unwrap().status, 200);
}

#[test]
fn config_json_has_native_types() {
    let output = run(binary(), &["config", "--json"]).unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let value = |key: &str| {
        let settings = settings.as_array().unwrap();
        let found = settings.iter().find(|setting| setting["key"] == key);
        found.unwrap()["value"].clone()
    };
    assert_eq!(value("engine"), "embedded");
    assert_eq!(value("sale.units"), 100);
    let mut command = Command::new(binary());
    let output = command
        .args(["config", "--json"])
        .env("SECKILL_SALE__UNITS", "7")
        .output()
        .unwrap();
    assert!(text(&output).contains("\"value\": 7,"), "{}", text(&output));
}

#[test]
fn load_writes_its_history_while_it_runs_and_stops_cleanly() {
    let dir = TempDir::new().unwrap();
    let server =
        ServerProcess::start(binary(), &data_folder(&dir), &[], &["--units", "1000000"]).unwrap();
    let history = dir.path().join("history.jsonl");
    let url = server.url("/seckill");
    let load = Command::new(binary())
        .args([
            "load",
            &url,
            "--requests",
            "1000000",
            "--rate",
            "2000",
            "--history",
        ])
        .arg(&history)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = || {
        let text = std::fs::read_to_string(&history).unwrap_or_default();
        text.lines().count()
    };
    wait_until("a growing history", || lines() > 200);
    let pid = Pid::from_raw(load.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = load.wait_with_output().unwrap();
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    let asked = printed.lines().find(|line| line.contains("asked")).unwrap();
    let asked = asked.replace(',', "");
    assert!(
        asked.ends_with(&format!(" {}", lines())),
        "{} lines: {printed}",
        lines()
    );

    let folder = data_folder(&dir).display().to_string();
    let history = history.display().to_string();
    let audit = run(
        binary(),
        &["audit", "--data", &folder, "--history", &history],
    )
    .unwrap();
    assert!(audit.status.success(), "{}", text(&audit));
    let again = run(binary(), &["load", &url, "--history", &history]).unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again).contains("exists already"), "{}", text(&again));
}

#[test]
fn load_on_a_mistyped_path_fails_and_shows_the_status() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, &[]);
    let url = server.url("/sekill");
    let output = run(binary(), &["load", &url, "--requests", "10", "--ramp", "0"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("status 404"), "{}", text(&output));
    let full = ["load", &url, "--requests", "10", "--history", "/dev/full/x"];
    let output = run(binary(), &full).unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}
