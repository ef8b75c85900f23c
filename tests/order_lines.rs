//! Orders of several units and items over real HTTP: all or nothing, and each problem of a line.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::net::SocketAddr;
use std::path::Path;

use seckill_testkit::{Response, ServerProcess, exchange, get, post, run};
use tempfile::TempDir;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_seckill"))
}

fn serve(dir: &TempDir, units: &str) -> ServerProcess {
    ServerProcess::start(binary(), &dir.path().join("data"), &[], &["--units", units]).unwrap()
}

fn run_sale_command(dir: &TempDir, arguments: &[&str]) {
    let data = dir.path().join("data").display().to_string();
    let mut args = vec!["sale"];
    args.extend(arguments);
    args.extend(["--data", &data]);
    let output = run(binary(), &args).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn post_with_key(address: SocketAddr, path: &str, key: &str, body: &str) -> Response {
    let headers = [
        ("Idempotency-Key", key),
        ("Content-Type", "application/json"),
    ];
    exchange(address, "POST", path, &headers, body).unwrap()
}

/// A shirt with 2 units of S and 3 of M, and a service that sells it.
fn serve_shirt(dir: &TempDir, more: &[&str]) -> ServerProcess {
    let server = serve(dir, "0");
    let create = ["create", "shirt", "--items", "S=2,M=3"];
    run_sale_command(dir, &[&create, more].concat());
    server
}

const SHIRTS: &str = "/v1/sales/shirt/orders";

#[test]
fn an_order_of_several_lines_is_all_or_nothing() {
    let dir = TempDir::new().unwrap();
    let server = serve_shirt(&dir, &[]);
    let lines = r#"{"lines":[{"item":"M","quantity":2},{"item":"S"}]}"#;
    let won = post(server.address, SHIRTS, lines).unwrap();
    assert_eq!(won.status, 201, "{won:?}");
    let body = won.json();
    let unit =
        |item: &str, unit: u32| serde_json::json!({"item": item, "unit": unit, "generation": 1});
    assert_eq!(
        body["units"],
        serde_json::json!([unit("M", 1), unit("M", 2), unit("S", 1)])
    );
    assert_eq!(
        (&body["remaining"], &body["unit"]),
        (&2.into(), &serde_json::Value::Null)
    );
    let address = won.header("location").unwrap().to_owned();
    let order = get(server.address, &address).unwrap().json();
    assert_eq!(order["units"], body["units"]);
    assert!(
        order.get("unit").is_none() && order.get("generation").is_none(),
        "{order}"
    );

    // Two units of M are not left, so the order gets no unit of S either.
    let short = post(server.address, SHIRTS, lines).unwrap();
    assert_eq!(
        (short.status, short.problem()),
        (409, "not-enough-left".into())
    );
    let left = serde_json::json!([{"item": "M", "remaining": 1}, {"item": "S", "remaining": 1}]);
    assert_eq!(short.json()["remaining"], left);
    let sale = get(server.address, "/v1/sales/shirt").unwrap().json();
    assert_eq!((&sale["total"], &sale["remaining"]), (&5.into(), &2.into()));
    assert_eq!(sale["items"][0]["remaining"], 1);

    let cancelled = post(server.address, &format!("{address}/cancel"), "")
        .unwrap()
        .json();
    assert_eq!(cancelled["units"], body["units"]);
    let again = post(server.address, SHIRTS, lines).unwrap().json();
    assert_eq!(
        again["units"][0],
        serde_json::json!({"item": "M", "unit": 1, "generation": 2})
    );
}

#[test]
fn a_line_that_cannot_be_bought_has_its_problem() {
    let dir = TempDir::new().unwrap();
    let server = serve_shirt(&dir, &["--limit", "3"]);
    let buy = |body: &str| post(server.address, SHIRTS, body).unwrap();
    let unnamed = buy(r#"{"buyer":"ann","quantity":2}"#);
    assert_eq!(
        (unnamed.status, unnamed.problem()),
        (400, "item-required".into())
    );
    assert_eq!(unnamed.json()["items"], serde_json::json!(["S", "M"]));
    let bare = post(server.address, SHIRTS, "").unwrap();
    assert_eq!(bare.problem(), "item-required");
    let missing = buy(r#"{"buyer":"ann","lines":[{"item":"XL"}]}"#);
    assert_eq!(
        (missing.status, missing.problem()),
        (400, "no-such-item".into())
    );
    assert_eq!(missing.json()["item"], "XL");
    assert_eq!(missing.json()["items"], serde_json::json!(["S", "M"]));
    for body in [
        r#"{"lines":[]}"#,
        r#"{"lines":[{"item":"a b"}]}"#,
        r#"{"lines":[{"item":"S","size":1}]}"#,
        r#"{"buyer":"ann","lines":[["S",1]]}"#,
        r#"{"buyer":"ann","lines":[["M"]]}"#,
        r#"{"buyer":"ann","lines":null}"#,
        r#"{"quantity":1,"lines":[{"item":"S"}]}"#,
    ] {
        let refused = buy(body);
        assert_eq!(
            (refused.status, refused.problem()),
            (400, "bad-request".into()),
            "{body}"
        );
    }
    let many =
        buy(r#"{"buyer":"ann","lines":[{"item":"S","quantity":9},{"item":"M","quantity":8}]}"#);
    assert_eq!(
        (many.status, many.problem()),
        (400, "quantity-not-sold".into())
    );

    // The limit counts units, not orders.
    let two = r#"{"buyer":"ann","lines":[{"item":"S"},{"item":"M"}]}"#;
    assert_eq!(buy(two).status, 201);
    let beyond = buy(two);
    assert_eq!(
        (beyond.status, beyond.problem()),
        (409, "limit-reached".into())
    );
    let detail = beyond.json()["detail"].to_string();
    assert!(detail.contains("the 2 units of this order"), "{detail}");
    assert!(detail.contains("more than 3 units"), "{detail}");
    assert_eq!(buy(r#"{"buyer":"ann","lines":[{"item":"M"}]}"#).status, 201);
    // None is left of what was asked for, but of the sale.
    assert_eq!(buy(r#"{"buyer":"bob","lines":[{"item":"S"}]}"#).status, 201);
    let sold_out = buy(r#"{"buyer":"cat","lines":[{"item":"S"}]}"#);
    assert_eq!(
        (sold_out.status, sold_out.problem()),
        (409, "sold-out".into())
    );
    assert_eq!(buy(r#"{"buyer":"cat","lines":[{"item":"M"}]}"#).status, 201);
}

#[test]
fn a_key_repeats_its_lines_in_any_order() {
    let dir = TempDir::new().unwrap();
    let server = serve_shirt(&dir, &[]);
    let buy = |body: &str| post_with_key(server.address, SHIRTS, "k", body);
    let first = buy(r#"{"buyer":"ann","lines":[{"item":"S"},{"item":"M","quantity":2}]}"#);
    assert_eq!(first.status, 201, "{first:?}");
    let again = buy(r#"{"buyer":"ann","lines":[{"item":"M"},{"item":"S"},{"item":"M"}]}"#);
    assert_eq!(
        (again.status, again.header("idempotent-replayed")),
        (201, Some("true"))
    );
    assert_eq!(again.json(), first.json());
    let other = buy(r#"{"buyer":"ann","lines":[{"item":"S"},{"item":"M"}]}"#);
    assert_eq!(
        (other.status, other.problem()),
        (422, "idempotency-key-reused".into())
    );
}

#[test]
fn the_tutorials_endpoint_sells_several_units_of_the_only_item() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "3");
    let two = post(server.address, "/seckill", r#"{"quantity":2}"#).unwrap();
    assert_eq!((two.status, &two.json()["result"]), (200, &"won".into()));
    assert_eq!(two.json()["units"].as_array().map(Vec::len), Some(2));
    let short = post(server.address, "/seckill", r#"{"quantity":2}"#).unwrap();
    assert_eq!(
        (short.status, short.problem()),
        (409, "not-enough-left".into())
    );
    let last = post(server.address, "/seckill", "").unwrap();
    assert_eq!(last.json()["unit"], 3);
    let metrics = get(server.address, "/metrics").unwrap().body;
    let counted = "seckill_responses_total{result=\"not_enough_left\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn the_units_of_an_order_can_be_limited() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let prefix = ["env", "SECKILL_SERVICE__ORDER_UNITS_MAX=2"];
    let server = ServerProcess::start(binary(), &data, &prefix, &["--units", "9"]).unwrap();
    assert_eq!(
        post(server.address, "/seckill", r#"{"quantity":2}"#)
            .unwrap()
            .status,
        200
    );
    let many = post(server.address, "/seckill", r#"{"quantity":3}"#).unwrap();
    assert_eq!(
        (many.problem(), &many.json()["max"]),
        ("quantity-not-sold".into(), &2.into())
    );
    let detail = many.json()["detail"].to_string();
    assert!(detail.contains("3 units"), "{detail}");
}

#[test]
fn a_key_keeps_its_order_when_fewer_units_are_sold_in_one() {
    const ORDERS: &str = "/v1/sales/counter/orders";
    let dir = TempDir::new().unwrap();
    let three = r#"{"buyer":"ann","quantity":3}"#;
    let first = {
        let server = serve(&dir, "9");
        post_with_key(server.address, ORDERS, "cart-9", three)
    };
    assert_eq!(first.status, 201, "{first:?}");
    let prefix = ["env", "SECKILL_SERVICE__ORDER_UNITS_MAX=2"];
    let data = dir.path().join("data");
    let server = ServerProcess::start(binary(), &data, &prefix, &[]).unwrap();
    let again = post_with_key(server.address, ORDERS, "cart-9", three);
    assert_eq!(
        (again.status, again.header("idempotent-replayed")),
        (201, Some("true")),
        "{again:?}"
    );
    assert_eq!(again.json(), first.json());
    for (key, quantity, expected) in [
        ("cart-9", 4, (422, "idempotency-key-reused")),
        ("cart-9", 1, (422, "idempotency-key-reused")),
        ("cart-10", 3, (400, "quantity-not-sold")),
    ] {
        let body = format!(r#"{{"buyer":"ann","quantity":{quantity}}}"#);
        let answer = post_with_key(server.address, ORDERS, key, &body);
        let (status, problem) = expected;
        assert_eq!((answer.status, answer.problem()), (status, problem.into()));
    }
}
