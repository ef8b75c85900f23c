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
fn the_demo_with_items_sells_whole_orders() {
    let dir = TempDir::new().unwrap();
    let demo = |more: &[&str]| {
        let args = [
            "demo",
            "--json",
            "--ramp",
            "300ms",
            "--listen",
            "127.0.0.1:0",
        ];
        json_of(seckill(&dir).args([&args, more].concat()))
    };
    let report = demo(&["--items", "S=40,M=40,L=20", "--quantity", "1-3"]);
    assert_eq!(report["verdict"], "clean", "{report:#}");
    let number = |name: &str| report[name].as_u64().unwrap();
    assert_eq!((number("units"), number("wrong_units")), (100, 0));
    assert_eq!(number("units_won"), number("store_rows"));
    assert_eq!(number("store_rows") + number("gate_left"), 100);
    assert!(number("won") < number("units_won"), "{report:#}");
    let orders = &report["audit"]["sales"][0]["orders"];
    assert_eq!(*orders, report["won"]);

    let report = demo(&["--units", "50", "--quantity", "3", "--requests", "100"]);
    let short = &report["outcomes"]["not_enough_left"];
    assert_eq!(
        (&report["verdict"], &report["won"]),
        (&"clean".into(), &16.into())
    );
    assert_eq!((&report["gate_left"], short), (&2.into(), &84.into()));
    let (code, _, error) = output_of(seckill(&dir).args(["demo", "--quantity", "17"]));
    assert_eq!(code, 2);
    assert!(error.contains("1 to 16"), "{error}");
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
fn a_sale_with_items_is_shown_and_changed_by_item() {
    let dir = TempDir::new().unwrap();
    let create = [
        "sale",
        "create",
        "shirt",
        "--items",
        "S=2,M=3",
        "--item-title",
        "S=Small",
        "--price",
        "S=1999",
        "--currency",
        "CNY",
        "--json",
    ];
    let sale = json_of(seckill(&dir).args(create));
    assert_eq!(
        (&sale["total"], &sale["items"][0]["title"]),
        (&5.into(), &"Small".into())
    );
    let price = serde_json::json!({"amount": 1999, "currency": "CNY"});
    assert_eq!(sale["items"][0]["price"], price);
    assert_eq!(sale["items"][1]["price"], Value::Null);
    let server = serve(&dir, "1");
    let change = [
        "sale",
        "change",
        "shirt",
        "--items",
        "M=5",
        "--price",
        "S=none",
        "--price",
        "M=2499",
        "--currency",
        "CNY",
        "--item-title",
        "M=Medium",
        "--json",
    ];
    let sale = json_of(seckill(&dir).args(change));
    assert_eq!((&sale["total"], &sale["version"]), (&7.into(), &2.into()));
    assert_eq!(sale["items"][0]["price"], Value::Null);
    assert_eq!(sale["items"][1]["price"]["amount"], 2_499);
    let (_, table, _) = output_of(seckill(&dir).args(["sale", "show", "shirt"]));
    for expected in ["ITEM", "Small", "Medium", "2,499 CNY"] {
        assert!(table.contains(expected), "{expected} is not in {table}");
    }
    let (_, table, _) = output_of(seckill(&dir).args(["sale", "show", "counter"]));
    assert!(!table.contains("ITEM"), "{table}");
    // A sale with one item changes as before, also its price.
    let one = [
        "sale",
        "change",
        "counter",
        "--units",
        "3",
        "--price",
        "5",
        "--currency",
        "JPY",
        "--json",
    ];
    let sale = json_of(seckill(&dir).args(one));
    assert_eq!(
        (&sale["total"], &sale["items"][0]["price"]["amount"]),
        (&3.into(), &5.into())
    );
    post(
        server.address,
        "/v1/sales/shirt/orders",
        r#"{"lines":[{"item":"S","quantity":2}]}"#,
    )
    .unwrap();
    let refusals: [(&[&str], &str); 8] = [
        (
            &["change", "shirt", "--units", "9"],
            "which are now S=2,M=5",
        ),
        (&["change", "shirt", "--add-units", "1"], "--items"),
        (&["change", "shirt", "--items", "XL=1"], "no such item"),
        (&["change", "shirt", "--items", "S=1"], "unit 2 is sold"),
        (&["change", "shirt", "--price", "S=1"], "--currency"),
        (&["create", "w", "--items", "S=1,S=2"], "named twice"),
        (
            &["create", "w", "--items", "S=1", "--item-title", "XL=x"],
            "XL",
        ),
        (
            &["create", "w", "--items", "S=1", "--units", "1"],
            "--units",
        ),
    ];
    for (args, expected) in refusals {
        let (code, out, error) = output_of(seckill(&dir).arg("sale").args(args));
        assert_eq!(code, 2, "{args:?}: {out}{error}");
        assert!(error.contains(expected), "{args:?}: {error}");
    }
}

#[test]
fn load_with_lines_writes_a_history_that_the_audit_checks() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "0");
    let create = [
        "sale",
        "create",
        "shirt",
        "--items",
        "S=40,M=40,L=20",
        "--limit",
        "8",
    ];
    assert_eq!(output_of(seckill(&dir).args(create)).0, 0);
    let url = server.url("/v1/sales/shirt/orders");
    let load = |more: &[&str]| {
        let args = ["load", &url, "--ramp", "0", "--json"];
        json_of(seckill(&dir).args([&args, more].concat()))
    };
    let random = [
        "--requests",
        "300",
        "--items",
        "S,M,L",
        "--quantity",
        "1-3",
        "--buyers",
        "30",
        "--keys",
        "4",
        "--seed",
        "7",
        "--history",
        "random.jsonl",
    ];
    let report = load(&random);
    assert_eq!(
        (&report["failed"], &report["wrong_units"]),
        (&0.into(), &0.into()),
        "{report:#}"
    );
    assert!(report["outcomes"]["mismatch"].is_null(), "{report:#}");
    assert!(
        report["outcomes"]["repeat"].as_u64().is_some(),
        "{report:#}"
    );
    let sold = report["units_won"].as_u64().unwrap();
    let fixed = [
        "--requests",
        "50",
        "--lines",
        "S=1,M=2",
        "--buyers",
        "unique",
        "--history",
        "fixed.jsonl",
    ];
    let report = load(&fixed);
    assert_eq!(report["wrong_units"], 0, "{report:#}");
    let sold = sold + report["units_won"].as_u64().unwrap();
    let lines = std::fs::read_to_string(dir.path().join("random.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["sale"], "shirt");
    assert!(
        first["units"][0]["item"].is_string() && first["key"].is_string(),
        "{first}"
    );
    for history in ["random.jsonl", "fixed.jsonl"] {
        let audit = ["audit", "--history", history, "--json"];
        let audited = json_of(seckill(&dir).args(audit));
        assert_eq!(
            (&audited["verdict"], &audited["store_rows"]),
            (&"clean".into(), &sold.into())
        );
    }
    // A confirmation with a unit that the order does not have.
    let mut wrong = first;
    wrong["units"][0]["unit"] = 1_000.into();
    std::fs::write(dir.path().join("wrong.jsonl"), wrong.to_string()).unwrap();
    let (code, out, _) = output_of(seckill(&dir).args(["audit", "--history", "wrong.jsonl"]));
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("a confirmation is kept"), "{out}");
    let (code, _, error) = output_of(seckill(&dir).args(["load", &url, "--items", "S"]));
    assert_eq!(code, 2);
    assert!(error.contains("--quantity"), "{error}");
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
