//! The command line: what each command prints, and its exit code.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::Path;

use assert_cmd::Command;
use seckill_testkit::{ServerProcess, post};
use serde_json::Value;
use tempfile::TempDir;

fn seckill(dir: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seckill"));
    command.current_dir(dir.path());
    command
}

fn output_of(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn json_of(command: &mut Command) -> Value {
    let (code, out, error) = output_of(command);
    assert_eq!(code, 0, "{out}{error}");
    serde_json::from_str(&out).unwrap()
}

fn serve(dir: &TempDir, units: &str) -> ServerProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_seckill"));
    ServerProcess::start(
        binary,
        &dir.path().join("seckill-data"),
        &[],
        &["--units", units],
    )
    .unwrap()
}

#[test]
fn the_demo_sells_each_unit_once() {
    let dir = TempDir::new().unwrap();
    let demo = [
        "demo",
        "--json",
        "--ramp",
        "500ms",
        "--listen",
        "127.0.0.1:0",
    ];
    // The second run starts over in the data folder of the first.
    for _ in 0..2 {
        let report = json_of(seckill(&dir).args(demo));
        let expected = [
            ("asked", 2_000),
            ("won", 100),
            ("sold_out", 1_900),
            ("failed", 0),
            ("gate_left", 0),
            ("store_rows", 100),
            ("oversold", 0),
            ("undersold", 0),
            ("duplicates", 0),
        ];
        for (key, value) in expected {
            assert_eq!(report[key], value, "{key} of {report:#}");
        }
        assert_eq!(
            (&report["verdict"], &report["log_records"]),
            (&"clean".into(), &Value::Null)
        );
    }
    let file = rusqlite::Connection::open(dir.path().join("seckill-demo/seckill.db")).unwrap();
    let rows: u32 = file
        .query_row("SELECT count(*) FROM seckill", (), |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 100);
    let audit = output_of(seckill(&dir).args(["audit", "--data", "seckill-demo"]));
    assert_eq!(audit.0, 0, "{}{}", audit.1, audit.2);
}

#[test]
fn the_demo_works_with_more_units_than_buyers_and_with_zero_units() {
    let dir = TempDir::new().unwrap();
    let demo = |units: &str| {
        let args = [
            "demo",
            "--json",
            "--ramp",
            "0",
            "--requests",
            "50",
            "--units",
            units,
            "--listen",
            "127.0.0.1:0",
        ];
        json_of(seckill(&dir).args(args))
    };
    let report = demo("80");
    assert_eq!(
        (&report["won"], &report["gate_left"], &report["verdict"]),
        (&50.into(), &30.into(), &"clean".into())
    );
    let report = demo("0");
    assert_eq!(
        (&report["won"], &report["sold_out"], &report["verdict"]),
        (&0.into(), &50.into(), &"clean".into())
    );
}

#[test]
fn the_demo_refuses_a_folder_that_it_did_not_create() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("other")).unwrap();
    std::fs::write(dir.path().join("other/orders"), "precious").unwrap();
    let (code, _, error) = output_of(seckill(&dir).args(["demo", "--data", "other"]));
    assert_eq!(code, 2);
    assert!(
        error.contains("not the demo's own") && error.contains("--data"),
        "{error}"
    );
    assert_eq!(
        std::fs::read_to_string(dir.path().join("other/orders")).unwrap(),
        "precious"
    );
}

#[test]
fn the_demo_refuses_its_own_folder_after_other_commands_used_it() {
    let dir = TempDir::new().unwrap();
    let demo = [
        "demo",
        "--json",
        "--ramp",
        "0",
        "--requests",
        "10",
        "--units",
        "5",
        "--listen",
        "127.0.0.1:0",
    ];
    // A configured default sale does not affect the demo.
    std::fs::write(dir.path().join("seckill.toml"), "[sale]\nid = 'phone'\n").unwrap();
    json_of(seckill(&dir).args(demo));
    std::fs::remove_file(dir.path().join("seckill.toml")).unwrap();
    std::fs::write(dir.path().join("seckill-demo/notes"), "mine").unwrap();
    let assert_refused = |expected: &str| {
        let (code, _, error) = output_of(seckill(&dir).args(demo));
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(expected), "{error}");
    };
    assert_refused("not the demo's own");
    std::fs::remove_file(dir.path().join("seckill-demo/notes")).unwrap();
    json_of(seckill(&dir).args(demo));
    let create = [
        "sale",
        "create",
        "real",
        "--units",
        "5",
        "--data",
        "seckill-demo",
    ];
    assert_eq!(output_of(seckill(&dir).args(create)).0, 0);
    assert_refused("not the demo's own");
}

#[test]
fn sales_can_be_created_and_changed_with_and_without_a_running_service() {
    let dir = TempDir::new().unwrap();
    let (code, _, error) = output_of(seckill(&dir).args(["sale", "list"]));
    assert_eq!(code, 2);
    assert!(
        error.contains("there is no seckill-data/seckill.db"),
        "{error}"
    );
    assert!(!dir.path().join("seckill-data").exists());
    let create = [
        "sale", "create", "phone", "--units", "5", "--limit", "2", "--title", "手机", "--json",
    ];
    let sale = json_of(seckill(&dir).args(create));
    assert_eq!(
        (&sale["id"], &sale["remaining"], &sale["version"]),
        (&"phone".into(), &5.into(), &1.into())
    );
    let (code, _, error) = output_of(seckill(&dir).args(create));
    assert_eq!(code, 2);
    assert!(
        error.contains("sale phone exists already, with 5 units"),
        "{error}"
    );

    let server = serve(&dir, "1");
    let change = [
        "sale",
        "change",
        "phone",
        "--add-units",
        "2",
        "--limit",
        "none",
        "--json",
    ];
    let sale = json_of(seckill(&dir).args(change));
    assert_eq!(
        (&sale["total"], &sale["buyer_limit"], &sale["version"]),
        (&7.into(), &Value::Null, &2.into())
    );
    let (code, table, _) = output_of(seckill(&dir).args(["sale", "list"]));
    assert_eq!(code, 0);
    for expected in ["SALE", "counter", "phone", "手机"] {
        assert!(table.contains(expected), "{expected} is not in {table}");
    }
    let refusals: [(&[&str], &str); 5] = [
        (&["sale", "show", "tablet"], "there is no sale tablet"),
        (&["sale", "change", "phone"], "nothing to change"),
        (&["sale", "change", "phone", "--limit", "65"], "1 to 64"),
        (&["sale", "create", "a b", "--units", "1"], "sale id"),
        (
            &[
                "sale",
                "create",
                "w",
                "--units",
                "1",
                "--opens-at",
                "tomorrow",
            ],
            "2026-11-11T00:00:00+08:00",
        ),
    ];
    for (args, expected) in refusals {
        let (code, out, error) = output_of(seckill(&dir).args(args));
        assert_eq!(code, 2, "{args:?}: {out}{error}");
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    drop(server);
    let list = json_of(seckill(&dir).args(["sale", "list", "--json"]));
    assert_eq!(list.as_array().map(Vec::len), Some(2));
}

#[test]
fn load_counts_outcomes_and_writes_a_history_that_the_audit_checks() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "30");
    let url = server.url("/v1/sales/counter/orders");
    let load = [
        "load",
        &url,
        "--requests",
        "300",
        "--ramp",
        "0",
        "--buyers",
        "10",
        "--keys",
        "5",
        "--history",
        "won.jsonl",
        "--json",
    ];
    let report = json_of(seckill(&dir).args(load));
    let outcome = |name: &str| report["outcomes"][name].as_u64().unwrap_or(0);
    // 10 buyers with 5 keys each: 50 keys for 30 units, each key used 6 times.
    assert_eq!(
        (outcome("won"), outcome("repeat"), outcome("sold_out")),
        (30, 150, 120),
        "{report:#}"
    );
    assert_eq!(report["latency_from"], "sent");
    let audit = ["audit", "--history", "won.jsonl", "--json"];
    let audited = json_of(seckill(&dir).args(audit));
    assert_eq!(
        (&audited["confirmations_checked"], &audited["verdict"]),
        (&180.into(), &"clean".into())
    );

    // A confirmation without an order fails the audit, which names the order.
    let lost = r#"{"order_id":"0123456789abcdef0123456789abcdef","sale":"counter","unit":3}"#;
    std::fs::write(dir.path().join("lost.jsonl"), lost).unwrap();
    let (code, out, _) = output_of(seckill(&dir).args(["audit", "--history", "lost.jsonl"]));
    assert_eq!(code, 1);
    assert!(
        out.contains("a confirmation is kept") && out.contains("0123456789abcdef"),
        "{out}"
    );
    std::fs::write(dir.path().join("bad.jsonl"), "{}").unwrap();
    let (code, _, error) = output_of(seckill(&dir).args(["audit", "--history", "bad.jsonl"]));
    assert_eq!(code, 2);
    assert!(error.contains("line 1 of the history bad.jsonl"), "{error}");
}

#[test]
fn load_at_a_fixed_rate_measures_latency_from_the_intended_time() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "10");
    let url = server.url("/seckill");
    let load = [
        "load",
        &url,
        "--requests",
        "100",
        "--rate",
        "1000",
        "--threads",
        "2",
        "--json",
    ];
    let report = json_of(seckill(&dir).args(load));
    assert_eq!(
        (&report["won"], &report["sold_out"]),
        (&10.into(), &90.into())
    );
    assert_eq!(report["latency_from"], "intended");
    assert!(report["elapsed_s"].as_f64().unwrap() >= 0.099, "{report:#}");
}

#[test]
fn load_reports_an_unreachable_or_unsupported_target() {
    let dir = TempDir::new().unwrap();
    let unused_address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{unused_address}/seckill");
    let (code, out, error) =
        output_of(seckill(&dir).args(["load", &url, "--requests", "5", "--ramp", "0"]));
    assert_eq!(code, 1, "{out}{error}");
    assert!(error.contains("5 of 5 requests got no answer"), "{error}");
    let (code, _, error) = output_of(seckill(&dir).args(["load", "https://127.0.0.1/"]));
    assert_eq!(code, 2);
    assert!(error.contains("http://127.0.0.1:3000/seckill"), "{error}");
}

#[test]
fn config_shows_the_origin_of_each_setting() {
    let dir = TempDir::new().unwrap();
    let (code, default, _) = output_of(seckill(&dir).args(["config", "--default"]));
    assert_eq!(code, 0);
    // The printed default is a valid configuration file, which is found by its default name.
    std::fs::write(
        dir.path().join("seckill.toml"),
        default.replace("units = 100", "units = 7"),
    )
    .unwrap();
    let mut config = seckill(&dir);
    config
        .env("SECKILL_SERVICE__LISTEN", "127.0.0.1:8080")
        .args(["config", "--data", "elsewhere"]);
    let (code, table, error) = output_of(&mut config);
    assert_eq!(code, 0, "{error}");
    let line = |key: &str| {
        let line = table.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("sale.units"), "sale.units 7 file seckill.toml");
    assert_eq!(
        line("service.listen"),
        "service.listen \"127.0.0.1:8080\" environment SECKILL_SERVICE__LISTEN"
    );
    assert_eq!(
        line("embedded.data"),
        "embedded.data \"elsewhere\" flag --data"
    );
    let (code, _, error) = output_of(seckill(&dir).args(["serve", "--units", "-3"]));
    assert_eq!(code, 2);
    assert!(
        error.contains("sale.units = \"-3\"") && error.contains("flag --units"),
        "{error}"
    );
}

#[test]
fn help_has_examples_and_wrong_words_are_refused() {
    let dir = TempDir::new().unwrap();
    for command in [
        "demo", "serve", "load", "audit", "sale", "events", "config", "backup", "restore", "relay",
        "record",
    ] {
        let (code, help, _) = output_of(seckill(&dir).args([command, "--help"]));
        assert_eq!(code, 0);
        assert!(help.contains("Examples:\n  "), "{command}: {help}");
        assert!(
            help.contains(&format!("seckill {command}")),
            "{command}: {help}"
        );
    }
    let (code, _, error) = output_of(seckill(&dir).args(["serve", "--prot", "1"]));
    assert_eq!(code, 2);
    assert!(error.contains("--prot"), "{error}");
    let (_, help, _) = output_of(seckill(&dir).arg("--help"));
    insta::assert_snapshot!(help);
}

#[test]
fn a_units_flag_that_has_no_effect_is_logged() {
    let dir = TempDir::new().unwrap();
    drop(serve(&dir, "5"));
    let server = serve(&dir, "9");
    assert_eq!(
        post(server.address, "/seckill", "").unwrap().json()["remaining"],
        4
    );
    assert!(
        server.log().contains("--units 9 has no effect"),
        "{}",
        server.log()
    );
}
