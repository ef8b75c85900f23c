//! The command line with items and orders of several lines: demo, sale and load.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::io::{BufRead, BufReader};
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
    // Whoever was rejected asked for more units of an item than are left.
    let left: Vec<u64> = (0..3)
        .map(|item| report["audit"]["sales"][0]["items"][item]["gate_left"].as_u64())
        .map(Option::unwrap)
        .collect();
    assert_eq!(left.iter().sum::<u64>(), number("gate_left"));
    assert!(left.iter().any(|left| *left < 3), "{report:#}");

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
    let too_many = ["demo", "--quantity", "1-3"];
    let mut too_many_args = seckill(&dir);
    too_many_args
        .args(too_many)
        .env("SECKILL_SERVICE__ORDER_UNITS_MAX", "2");
    let (code, out, error) = output_of(&mut too_many_args);
    assert_eq!((code, &*out), (2, ""), "{error}");
    assert!(
        error.contains("--quantity") && error.contains("at most 2 "),
        "{error}"
    );
}

/// Sends SIGKILL when dropped, also when the test fails.
struct Demo(std::process::Child);

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_commands_that_the_demo_suggests_work() {
    for sale in [&["--items", "S=4,M=4"][..], &["--units", "8"]] {
        let dir = TempDir::new().unwrap();
        let args = ["demo", "--keep", "--ramp", "0", "--requests", "40"];
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_seckill"))
            .current_dir(dir.path())
            .args(args)
            .args(["--listen", "127.0.0.1:0"])
            .args(sale)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut demo = Demo(child);
        let said = BufReader::new(demo.0.stdout.take().unwrap());
        let said = said.lines().map(Result::unwrap);
        let said: Vec<String> = said
            .take_while(|line| !line.starts_with("The service is running"))
            .collect();
        let suggested = |program: &str| {
            let mut lines = said.iter().map(|line| line.trim_start());
            let line = lines.find(|line| line.starts_with(program)).unwrap();
            let arguments = line.strip_prefix("seckill ");
            let line = match arguments {
                Some(arguments) => format!("{} {arguments}", env!("CARGO_BIN_EXE_seckill")),
                None => format!("{line} --silent --show-error --fail-with-body"),
            };
            let mut shell = Command::new("sh");
            shell.current_dir(dir.path()).arg("-c");
            output_of(shell.arg(line))
        };
        for program in ["seckill audit", "seckill sale change", "curl"] {
            let (code, out, error) = suggested(program);
            assert_eq!(code, 0, "{program}: {out}{error}");
        }
    }
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
    let refusals: [(&[&str], &str); 9] = [
        (
            &["change", "shirt", "--units", "9"],
            "which are now S=2,M=5",
        ),
        (&["change", "shirt", "--add-units", "1"], "--items"),
        (&["change", "shirt", "--items", "XL=1"], "no such item"),
        (&["change", "shirt", "--items", "S=1"], "unit 2 is sold"),
        (&["change", "shirt", "--price", "S=1"], "--currency"),
        (
            &["change", "shirt", "--price", "5", "--currency", "CNY"],
            "name one of S, M",
        ),
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

/// The arguments after `sale`, separated by spaces.
fn sale(dir: &TempDir, args: &str) -> (i32, String, String) {
    output_of(seckill(dir).arg("sale").args(args.split(' ')))
}

#[test]
fn a_price_without_an_item_is_that_of_the_only_item() {
    let dir = TempDir::new().unwrap();
    let read = |args: &str| -> Value {
        let (code, out, error) = sale(&dir, &format!("{args} --json"));
        assert_eq!(code, 0, "{args}: {out}{error}");
        serde_json::from_str(&out).unwrap()
    };
    let created = read("create mug --items S=1 --title Mug --price 5 --currency CNY");
    // An item that was named has its own title.
    assert_eq!(
        (&created["title"], &created["items"][0]["title"]),
        (&"Mug".into(), &"S".into())
    );
    assert_eq!(created["items"][0]["price"]["amount"], 5);
    let changed = read("change mug --price 7 --currency CNY --item-title S=Small");
    let item = &changed["items"][0];
    assert_eq!(
        (&item["price"]["amount"], &item["title"]),
        (&7.into(), &"Small".into())
    );
    let changed = read("change mug --price none");
    assert_eq!(changed["items"][0]["price"], Value::Null);
    let created = read("create cup --units 1 --title Cup --price 5 --currency CNY");
    assert_eq!(created["items"][0]["title"], "Cup");
}

#[test]
fn a_wrong_flag_of_an_item_is_named() {
    let dir = TempDir::new().unwrap();
    assert_eq!(sale(&dir, "create mug --items S=1").0, 0);
    let refusals = [
        (
            "create x --units 5 --price S=5 --currency CNY",
            "--price S=5: with --units, the only item has no name; give --price 5, or --items",
        ),
        (
            "create x --units 5 --item-title S=Small",
            "--item-title S=Small: with --units, the only item has no name; give --title, or --items",
        ),
        (
            "create x --items S=1,M=1 --price 5 --currency CNY",
            "--price 5: the sale has several items; name one, such as --price S=5",
        ),
        (
            "create x --items S=1 --price XL=5 --currency CNY",
            "--price XL=5: --items does not name the item XL",
        ),
        (
            "create x --items S=1 --price S=none --currency CNY",
            "give an item and its price",
        ),
        (
            "create x --items S=1 --price S=1 --price S=2 --currency CNY",
            "--price: the item S is named twice",
        ),
        (
            "create x --items S=1 --price 1 --price S=2 --currency CNY",
            "--price: the item S is named twice",
        ),
        (
            "create x --items S=1 --item-title S=a --item-title S=b",
            "--item-title: the item S is named twice",
        ),
        (
            "change mug --price S=1 --price S=none --currency CNY",
            "--price: the item S is named twice",
        ),
        (
            "change mug --price 1 --price S=2 --currency CNY",
            "--price 1: the price of the only item is given twice",
        ),
        (
            "change mug --price 1 --price none --currency CNY",
            "the price of the only item is given twice",
        ),
        (
            "change mug --item-title S=a --item-title S=b",
            "--item-title: the item S is named twice",
        ),
        (
            "change mug --item-title S=",
            "--item-title S=: give a title",
        ),
        ("change mug --price 5", "--price 5: give --currency"),
    ];
    for (args, expected) in refusals {
        let (code, out, error) = sale(&dir, args);
        assert_eq!(code, 2, "{args}: {out}{error}");
        assert!(error.contains(expected), "{args}: {error}");
    }
    let empty = output_of(seckill(&dir).args(["sale", "change", "mug", "--title", ""]));
    assert_eq!(empty.0, 2);
    assert!(empty.2.contains("1 to 200 bytes"), "{}", empty.2);
    assert_eq!(sale(&dir, "list").1.lines().count(), 2);
}

#[test]
fn a_units_flag_without_effect_on_items_is_logged_with_what_changes_them() {
    let dir = TempDir::new().unwrap();
    assert_eq!(sale(&dir, "create counter --items S=2,M=3").0, 0);
    let server = serve(&dir, "7");
    let log = server.log();
    for expected in [
        "--units 7 has no effect",
        "seckill sale change counter --items S=2,M=3",
    ] {
        assert!(log.contains(expected), "{log}");
    }
    assert!(!log.contains("change counter --units"), "{log}");
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
    let audited = json_of(seckill(&dir).args(["audit", "--json"]));
    let sales = audited["sales"].as_array().unwrap();
    let items = &sales.iter().find(|sale| sale["sale"] == "shirt").unwrap()["items"];
    for (item, total) in [("S", 40), ("M", 40), ("L", 20)] {
        let found = items.as_array().unwrap().iter();
        let found: Vec<_> = found.filter(|found| found["item"] == item).collect();
        let number = |name: &str| found[0][name].as_u64().unwrap();
        assert_eq!((found.len(), number("total")), (1, total), "{items:#}");
        assert_eq!(number("active") + number("gate_left"), total, "{items:#}");
    }
    let (_, table, _) = output_of(seckill(&dir).arg("audit"));
    for expected in ["SALE   ITEM", "shirt  S", "shirt  L"] {
        assert!(table.contains(expected), "{expected} is not in {table}");
    }
    assert!(!table.contains("counter  "), "{table}");
    // Confirmations with a unit, a buyer or a key that the order does not have.
    for (member, value) in [
        ("/units/0/unit", 1_000.into()),
        ("/buyer", "nobody".into()),
        ("/key", "another".into()),
    ] {
        let mut wrong = first.clone();
        *wrong.pointer_mut(member).unwrap() = value;
        std::fs::write(dir.path().join("wrong.jsonl"), wrong.to_string()).unwrap();
        let (code, out, _) = output_of(seckill(&dir).args(["audit", "--history", "wrong.jsonl"]));
        assert_eq!(code, 1, "{member}: {out}");
        assert!(out.contains("a confirmation is kept"), "{member}: {out}");
    }
    let (code, _, error) = output_of(seckill(&dir).args(["load", &url, "--items", "S"]));
    assert_eq!(code, 2);
    assert!(error.contains("--quantity"), "{error}");
}
