//! Failures of a cluster's servers: unreachable, refusing access, or holding unexpected data. Each
//! gets a message that names the cause and the next step, and nothing is lost.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use seckill_testkit::servers::{Programs, Redis, Urls, free_port, wait_until};
use seckill_testkit::{Cluster, LoadPlan, ServerProcess, Shape, fast_settings, get, post};
use tempfile::TempDir;

const WAIT: Duration = Duration::from_secs(40);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

/// Returns a folder, a name, addresses and settings that no other test uses.
fn setup(name: &str) -> (TempDir, String, Urls, Vec<String>) {
    let name = format!("{name}_{}", std::process::id());
    let urls = Urls::up().unwrap().with_database(&name);
    let settings = fast_settings(&name);
    (TempDir::new().unwrap(), name, urls, settings)
}

fn run(urls: &Urls, settings: &[String], arguments: &[&str]) -> Output {
    let pairs = settings
        .iter()
        .filter_map(|setting| setting.split_once('='));
    std::process::Command::new(binary())
        .args(arguments)
        .args(urls.flags())
        .envs(pairs)
        .output()
        .unwrap()
}

/// Asserts that the command was refused, and returns its error message.
fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts a server without waiting until it is ready.
fn serve(urls: &Urls, settings: &[String], dir: &TempDir) -> ServerProcess {
    let binary = binary().display().to_string();
    let mut command = vec!["env"];
    command.extend(settings.iter().map(String::as_str));
    command.push(&binary);
    let flags = urls.flags();
    let mut arguments = vec!["serve", "--listen", "127.0.0.1:0"];
    arguments.extend(flags.iter().map(String::as_str));
    ServerProcess::spawn(&command, &arguments, &dir.path().join("serve.log")).unwrap()
}

fn wait_until_ready(server: &ServerProcess) {
    wait_until("a ready server", WAIT, || {
        Ok(get(server.address, "/readyz")?.status == 200)
    })
    .unwrap();
}

/// Waits until `/readyz` returns 503 with this text.
fn wait_until_not_ready(server: &ServerProcess, text: &str) {
    let waited = wait_until(text, WAIT, || {
        let response = get(server.address, "/readyz")?;
        Ok(response.status == 503 && response.json().to_string().contains(text))
    });
    waited.unwrap_or_else(|error| {
        panic!(
            "{error}: {}",
            get(server.address, "/readyz").unwrap().json()
        )
    });
}

#[test]
fn a_service_that_starts_before_redis_becomes_ready_after_init() {
    let (dir, _, mut urls, settings) = setup("late");
    let port = free_port().unwrap();
    urls.redis = format!("redis://127.0.0.1:{port}");
    let server = serve(&urls, &settings, &dir);
    wait_until_not_ready(&server, "seckill init");
    assert_eq!(post(server.address, "/seckill", "").unwrap().status, 503);
    let programs = Programs::found().unwrap();
    let _redis = Redis::start(&programs, &dir.path().join("redis"), port, &[]).unwrap();
    let output = run(&urls, &settings, &["init", "--units", "2"]);
    assert!(output.status.success(), "{output:?}");
    wait_until_ready(&server);
    let mut won = 0;
    wait_until("a confirmation", WAIT, || {
        won += u32::from(
            post(server.address, "/seckill", "")?
                .json()
                .to_string()
                .contains("\"won\""),
        );
        Ok(won > 0)
    })
    .unwrap();
}

#[test]
fn a_process_with_a_different_lease_is_refused() {
    let (_dir, _, urls, mut settings) = setup("lease");
    assert!(run(&urls, &settings, &["init"]).status.success());
    settings.push("SECKILL_CLUSTER__LEASE_MS=500".into());
    let text = refusal(&run(&urls, &settings, &["sale", "list"]));
    assert!(
        text.contains("cluster.lease_ms is 500 here, and 300 in the cluster"),
        "{text}"
    );
    assert!(run(&urls, &settings, &["init"]).status.success());
    assert!(run(&urls, &settings, &["sale", "list"]).status.success());
}

#[test]
fn errors_name_the_wrong_password_the_unreachable_server_and_the_invalid_url() {
    let (_dir, _, mut urls, settings) = setup("password");
    urls.mysql = urls.mysql.replacen("seckill:seckill@", "seckill:wrong@", 1);
    let text = refusal(&run(&urls, &settings, &["init"]));
    assert!(
        text.contains("check the user and the password") && !text.contains("wrong"),
        "{text}"
    );
    urls.mysql = format!("mysql://a:b@127.0.0.1:{}/x", free_port().unwrap());
    let text = refusal(&run(&urls, &settings, &["audit"]));
    assert!(text.contains("MySQL at mysql://…@127.0.0.1"), "{text}");
    urls.kafka = "nonsense".into();
    urls.redis = "http://h".into();
    let text = refusal(&run(&urls, &settings, &["sale", "list"]));
    assert!(text.contains("redis+cluster://"), "{text}");
}

#[test]
fn a_redis_that_may_evict_keys_is_refused() {
    let (dir, _, mut urls, settings) = setup("evict");
    let programs = Programs::found().unwrap();
    let evicting = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let redis = Redis::start(
        &programs,
        &dir.path().join("redis"),
        free_port().unwrap(),
        &evicting,
    )
    .unwrap();
    urls.redis = redis.url();
    let settings = [
        settings,
        vec!["SECKILL_CLUSTER__REBUILD_LEASE_MS=2000".into()],
    ]
    .concat();
    let text = refusal(&run(&urls, &settings, &["init"]));
    assert!(text.contains("set it to noeviction"), "{text}");
}

#[test]
fn a_redis_key_of_another_type_is_named_and_left_unchanged() {
    let (_dir, name, urls, settings) = setup("types");
    urls.redis(&format!("RPUSH {name}:counter mine")).unwrap();
    let settings = [
        settings,
        vec!["SECKILL_CLUSTER__REBUILD_LEASE_MS=2000".into()],
    ]
    .concat();
    let text = refusal(&run(&urls, &settings, &["init"]));
    assert!(
        text.contains(&format!("{name}:counter")) && text.contains("cluster.key_prefix"),
        "{text}"
    );
    let kept = urls.redis(&format!("LRANGE {name}:counter 0 -1")).unwrap();
    assert!(kept.contains("mine"), "{kept}");
}

#[test]
fn a_newer_schema_is_refused() {
    let (_dir, _, urls, settings) = setup("newer");
    assert!(run(&urls, &settings, &["init"]).status.success());
    urls.mysql("INSERT INTO seckill_schema (version) VALUES (99)")
        .unwrap();
    let text = refusal(&run(&urls, &settings, &["init"]));
    assert!(
        text.contains("version 99") && text.contains("use the newer binary"),
        "{text}"
    );
}

#[test]
fn foreign_records_and_a_manually_set_counter_are_harmless() {
    let (dir, name, urls, settings) = setup("manual");
    let shape = Shape {
        serves: 2,
        relays: 0,
        records: 0,
    };
    let mut cluster = Cluster::start(binary(), dir.path(), &urls, &settings, shape).unwrap();
    cluster
        .seckill(&["sale", "create", "s", "--units", "300"])
        .unwrap();
    for record in [&b"hello"[..], b"{}", b"{\"v\":1}", b"\xff\xfe", b"[1,2"] {
        urls.produce(&name, record).unwrap();
    }
    let load = LoadPlan {
        requests: 50,
        ..LoadPlan::closed(8)
    };
    assert_eq!(cluster.load("s", &load, |_| Ok(())).unwrap().won, 100);
    urls.redis(&format!("SET {name}:s 100000")).unwrap();
    let report = cluster.sell_out_and_audit("s", 300).unwrap();
    assert_eq!(report.store_rows, 300);
    let dead = urls.mysql("SELECT COUNT(*) FROM seckill_dead").unwrap();
    assert_eq!(dead, ["5"]);
    assert_eq!(
        urls.redis(&format!("GET {name}:s")).unwrap().trim_end(),
        "$1\r\n0"
    );
}
