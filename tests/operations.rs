//! What an operator relies on: who may read the files, who may change sales, what is printed where.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use seckill_testkit::{ServerProcess, get, post, run};
use tempfile::TempDir;

/// A user without rights: `nobody` on every Linux.
const NOBODY_UID: u32 = 65_534;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn data(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

fn serve(dir: &TempDir, prefix: &[&str]) -> ServerProcess {
    ServerProcess::start(binary(), &data(dir), prefix, &["--units", "10"]).unwrap()
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

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a child that a failing test leaves behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn nobody_else_can_read_the_data_folder() {
    let dir = TempDir::new().unwrap();
    // Without a umask, the modes are those that the program asks for.
    let words = ["sh", "-c", "umask 0; exec \"$0\" \"$@\""];
    let data = dir.path().join("new/data");
    let shown = data.display().to_string();
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", &shown];
    let program = binary().display().to_string();
    let words = [&words[..], &[program.as_str()]].concat();
    let log = dir.path().join("log");
    let served = ServerProcess::spawn(&words, &arguments, &log).unwrap();
    post(served.address, "/seckill", "").unwrap();
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
fn files_that_were_open_to_others_are_closed() {
    let dir = TempDir::new().unwrap();
    drop(serve(&dir, &[]));
    for name in ["seckill.db", "seckill.lock"] {
        let open = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(data(&dir).join(name), open).unwrap();
    }
    let _served = serve(&dir, &[]);
    for name in ["seckill.db", "seckill.lock"] {
        assert_eq!(mode(&data(&dir).join(name)), 0o600);
    }
}

/// Needs root, to become another user.
#[test]
fn another_user_cannot_use_the_control_socket() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, &[]);
    // Even where an operator opened it to everybody by mistake.
    let everybody = || std::fs::Permissions::from_mode(0o777);
    let socket = data(&dir).join("seckill.sock");
    for path in [dir.path(), &data(&dir), &socket] {
        std::fs::set_permissions(path, everybody()).unwrap();
    }
    let ask = || {
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
    let own = ask().output().unwrap();
    assert!(text(&own).contains("counter"), "{}", text(&own));
    let other = ask().uid(NOBODY_UID).gid(NOBODY_UID).output().unwrap();
    assert!(!other.status.success(), "{}", text(&other));
    assert!(!text(&other).contains("counter"), "{}", text(&other));
    assert!(served.log().contains("another user"), "{}", served.log());
}

/// Needs root, to become another user. That user runs this test again, as the false service.
#[test]
fn the_socket_of_another_user_is_not_trusted() {
    const FALSE_SERVICE_IN: &str = "TEST_FALSE_SERVICE_IN";
    if let Some(folder) = std::env::var_os(FALSE_SERVICE_IN) {
        return be_a_false_service(Path::new(&folder));
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(data(&dir)).unwrap();
    for path in [dir.path(), &data(&dir)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // The other user must be able to run it.
    let test = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    let mut service = Command::new(&test);
    let service = service
        .args([
            "--exact",
            "the_socket_of_another_user_is_not_trusted",
            "--nocapture",
        ])
        .env(FALSE_SERVICE_IN, data(&dir))
        .uid(NOBODY_UID)
        .gid(NOBODY_UID)
        .stdout(Stdio::null());
    let _service = Killed(service.spawn().unwrap());
    until("the false service is up", || {
        data(&dir).join("seckill.sock").exists()
    });
    let shown = data(&dir).display().to_string();
    let change = [
        "sale", "change", "counter", "--units", "5", "--data", &shown,
    ];
    let refused = run(binary(), &change).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(
        text(&refused).contains("belongs to user 65534"),
        "{}",
        text(&refused)
    );
}

fn be_a_false_service(folder: &Path) {
    let mut lock = std::fs::File::create(folder.join("seckill.lock")).unwrap();
    lock.lock().unwrap();
    lock.write_all(br#"{"pid":1,"purpose":"serve","takes_commands":true}"#)
        .unwrap();
    let everybody = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(folder.join("seckill.lock"), everybody).unwrap();
    let listener = UnixListener::bind(folder.join("seckill.sock")).unwrap();
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";
    for stream in listener.incoming() {
        drop(stream.unwrap().write_all(answer.as_bytes()));
    }
}

#[test]
fn a_data_folder_with_a_long_path_has_its_socket_too() {
    let dir = TempDir::new().unwrap();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    let served = ServerProcess::start(binary(), &deep, &[], &["--units", "10"]).unwrap();
    let shown = deep.display().to_string();
    let change = [
        "sale", "change", "counter", "--units", "12", "--data", &shown,
    ];
    let changed = run(binary(), &change).unwrap();
    assert!(changed.status.success(), "{}", text(&changed));
    let sale = get(served.address, "/v1/sales/counter").unwrap().json();
    assert_eq!(sale["total"], 12);
}

#[test]
fn a_change_that_is_sent_twice_is_made_once() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, &[]);
    let shown = data(&dir).display().to_string();
    let change = |more: &[&str]| {
        let words = [&["sale", "change", "counter", "--data", &shown], more].concat();
        run(binary(), &words).unwrap()
    };
    let more = ["--add-units", "5", "--if-version", "1"];
    assert!(change(&more).status.success());
    let again = change(&more);
    assert_eq!(again.status.code(), Some(2), "{}", text(&again));
    assert!(text(&again).contains("has version 2"), "{}", text(&again));
    let sale = get(served.address, "/v1/sales/counter").unwrap().json();
    assert_eq!((&sale["total"], &sale["version"]), (&15.into(), &2.into()));
    for _ in 0..3 {
        post(served.address, "/seckill", "").unwrap();
    }
    let fewer = change(&["--units", "2"]);
    assert!(text(&fewer).contains("unit 3 is sold"), "{}", text(&fewer));
    assert!(change(&["--units", "3"]).status.success());
    let sold_out = post(served.address, "/seckill", "").unwrap();
    assert_eq!(sold_out.json()["result"], "sold_out");
}

#[test]
fn an_output_that_is_closed_or_full_is_no_panic() {
    let dir = TempDir::new().unwrap();
    let _served = serve(&dir, &[]);
    let shown = data(&dir).display().to_string();
    for words in [
        &["config", "--default"][..],
        &["config"],
        &["sale", "list", "--data", &shown],
        &["audit", "--data", &shown],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(binary());
        let closed = command.args(words).stdout(writer).output().unwrap();
        assert!(closed.status.success(), "{words:?}: {}", text(&closed));
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut command = Command::new(binary());
        let full = command.args(words).stdout(full).output().unwrap();
        assert_eq!(full.status.code(), Some(2), "{words:?}: {}", text(&full));
        assert!(
            text(&full).contains("standard output"),
            "{words:?}: {}",
            text(&full)
        );
        assert!(!text(&full).contains("panicked"), "{}", text(&full));
    }
}

#[test]
fn a_service_sells_on_though_nothing_can_be_printed() {
    let dir = TempDir::new().unwrap();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let shown = data(&dir).display().to_string();
    let serve = Command::new(binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--data", &shown])
        .stdout(full)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut serve = Killed(serve);
    // The lock file tells where it listens.
    let mut address = None;
    until("it listens", || {
        let lock = std::fs::read_to_string(data(&dir).join("seckill.lock")).unwrap_or_default();
        let behind = lock.split_once("serve on ").map(|(_, behind)| behind);
        address = behind.and_then(|behind| behind.split('"').next()?.parse().ok());
        address.is_some_and(|address| std::net::TcpStream::connect(address).is_ok())
    });
    let won = post(address.unwrap(), "/seckill", "").unwrap();
    assert_eq!(won.json()["result"], "won");
    let pid = Pid::from_raw(serve.0.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(serve.0.wait().unwrap().success());
}

#[test]
fn a_wrong_log_filter_is_refused() {
    for wrong in ["foo", "json", "info,=", "seckill_embedded=loud"] {
        let done = Command::new(binary())
            .arg("config")
            .env("SECKILL_LOG", wrong)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(2), "{wrong}: {}", text(&done));
        assert!(
            text(&done).contains("SECKILL_LOG"),
            "{wrong}: {}",
            text(&done)
        );
    }
    for right in ["", "debug", "OFF", "info,seckill_embedded=debug"] {
        let done = Command::new(binary())
            .arg("config")
            .env("SECKILL_LOG", right)
            .output()
            .unwrap();
        assert!(done.status.success(), "{right}: {}", text(&done));
    }
}

#[test]
fn it_starts_beside_a_kubernetes_service_of_its_name() {
    let dir = TempDir::new().unwrap();
    let injected = [
        "env",
        "SECKILL_SERVICE_HOST=10.0.0.1",
        "SECKILL_SERVICE_PORT=3000",
        "SECKILL_PORT=tcp://10.0.0.1:3000",
        "SECKILL_PORT_3000_TCP=tcp://10.0.0.1:3000",
        "SECKILL_PORT_3000_TCP_ADDR=10.0.0.1",
    ];
    let served = serve(&dir, &injected);
    assert_eq!(get(served.address, "/livez").unwrap().status, 200);
}

#[test]
fn the_configuration_as_json_has_native_types() {
    let done = run(binary(), &["config", "--json"]).unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let value = |key: &str| {
        let settings = settings.as_array().unwrap();
        let found = settings.iter().find(|setting| setting["key"] == key);
        found.unwrap()["value"].clone()
    };
    assert_eq!(value("engine"), "embedded");
    assert_eq!(value("sale.units"), 100);
    let mut command = Command::new(binary());
    let done = command
        .args(["config", "--json"])
        .env("SECKILL_SALE__UNITS", "7")
        .output()
        .unwrap();
    assert!(text(&done).contains("\"value\": 7,"), "{}", text(&done));
}

#[test]
fn load_writes_its_history_while_it_runs_and_stops_in_order() {
    let dir = TempDir::new().unwrap();
    let served = ServerProcess::start(binary(), &data(&dir), &[], &["--units", "1000000"]).unwrap();
    let history = dir.path().join("history.jsonl");
    let url = served.url("/seckill");
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
    until("the history grows", || lines() > 200);
    let pid = Pid::from_raw(load.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let done = load.wait_with_output().unwrap();
    let shown = text(&done);
    assert!(done.status.success(), "{shown}");
    let asked = shown.lines().find(|line| line.contains("asked")).unwrap();
    let asked = asked.replace(',', "");
    assert!(
        asked.ends_with(&format!(" {}", lines())),
        "{} lines: {shown}",
        lines()
    );

    let data = data(&dir).display().to_string();
    let history = history.display().to_string();
    let audit = run(binary(), &["audit", "--data", &data, "--history", &history]).unwrap();
    assert!(audit.status.success(), "{}", text(&audit));
    let again = run(binary(), &["load", &url, "--history", &history]).unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again).contains("exists already"), "{}", text(&again));
}

#[test]
fn load_on_a_mistyped_path_fails_and_shows_the_status() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, &[]);
    let url = served.url("/sekill");
    let done = run(binary(), &["load", &url, "--requests", "10", "--ramp", "0"]).unwrap();
    assert_eq!(done.status.code(), Some(1), "{}", text(&done));
    assert!(text(&done).contains("status 404"), "{}", text(&done));
    let full = ["load", &url, "--requests", "10", "--history", "/dev/full/x"];
    let done = run(binary(), &full).unwrap();
    assert_eq!(done.status.code(), Some(2), "{}", text(&done));
}
