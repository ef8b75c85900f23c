//! The cluster's command line on real servers: the tutorial's experiment with both gates, and which
//! commands can be run again.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::process::{Command, Output};

use seckill_testkit::fast_settings;
use seckill_testkit::servers::Urls;
use serde_json::Value;

fn setup(name: &str) -> (String, Urls, Vec<String>) {
    let name = format!("{name}_{}", std::process::id());
    let urls = Urls::up().unwrap().with_database(&name);
    let settings = fast_settings(&name);
    (name, urls, settings)
}

fn run(urls: &Urls, settings: &[String], arguments: &[&str]) -> Output {
    let pairs = settings
        .iter()
        .filter_map(|setting| setting.split_once('='));
    Command::new(env!("CARGO_BIN_EXE_seckill"))
        .args(arguments)
        .args(urls.flags())
        .envs(pairs)
        .output()
        .unwrap()
}

/// Asserts that the command succeeded, and returns its standard output.
fn stdout_of(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[test]
fn the_tutorials_experiment_ends_with_counter_0_100_messages_and_100_rows() {
    let (name, urls, settings) = setup("demo");
    for gate in ["script", "watch"] {
        let demo = [
            "demo",
            "--json",
            "--ramp",
            "500ms",
            "--listen",
            "127.0.0.1:0",
            "--gate",
            gate,
        ];
        let report: Value =
            serde_json::from_str(&stdout_of(&run(&urls, &settings, &demo))).unwrap();
        let expected = [
            ("asked", 2_000),
            ("won", 100),
            ("sold_out", 1_900),
            ("failed", 0),
            ("gate_left", 0),
            ("log_records", 100),
            ("store_rows", 100),
            ("oversold", 0),
            ("undersold", 0),
            ("duplicates", 0),
        ];
        for (key, value) in expected {
            assert_eq!(report[key], value, "{key} of {report:#}");
        }
        assert_eq!(report["verdict"], "clean");
        assert_eq!(
            urls.redis(&format!("GET {name}:counter"))
                .unwrap()
                .trim_end(),
            "$1\r\n0"
        );
        assert_eq!(urls.mysql("SELECT COUNT(*) FROM seckill").unwrap(), ["100"]);
    }
}

#[test]
fn init_can_run_twice_and_only_reset_removes_sales() {
    let (_, urls, settings) = setup("init");
    for units in ["7", "9"] {
        let text = stdout_of(&run(&urls, &settings, &["init", "--units", units]));
        assert!(text.contains("counter: 7 of 7 units left"), "{text}");
    }
    stdout_of(&run(
        &urls,
        &settings,
        &["sale", "create", "phone", "--units", "3", "--limit", "1"],
    ));
    // The demo refuses to remove sales that it did not create.
    let refused = run(&urls, &settings, &["demo", "--listen", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("init --engine cluster --reset"), "{text}");
    let text = stdout_of(&run(&urls, &settings, &["init", "--units", "9", "--reset"]));
    assert!(text.contains("counter: 9 of 9 units left"), "{text}");
    let list = stdout_of(&run(&urls, &settings, &["sale", "list", "--json"]));
    assert!(!list.contains("phone"), "{list}");
}

#[test]
fn cluster_commands_are_refused_on_the_embedded_engine() {
    for command in ["relay", "record", "init"] {
        let refused = Command::new(env!("CARGO_BIN_EXE_seckill"))
            .arg(command)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{text}");
        assert!(text.contains("--engine cluster"), "{text}");
    }
}

#[test]
fn config_never_shows_passwords() {
    let output = Command::new(env!("CARGO_BIN_EXE_seckill"))
        .args([
            "config",
            "--mysql",
            "mysql://shop:hidden1@db:3306/shop",
            "--redis",
            "redis://:hidden2@r:6379",
        ])
        .env(
            "SECKILL_CLUSTER__KAFKA_PROPERTIES",
            "sasl.username=shop,sasl.password=hidden3",
        )
        .output()
        .unwrap();
    let text = stdout_of(&output);
    assert!(
        text.contains("mysql://…@db:3306/shop") && text.contains("sasl.password=…"),
        "{text}"
    );
    assert!(!text.contains("hidden"), "{text}");
}
