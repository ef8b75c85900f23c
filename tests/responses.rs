//! The responses of the service over real HTTP, endpoint by endpoint.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::net::SocketAddr;
use std::path::Path;

use rustix::process::Signal;
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

#[test]
fn the_tutorials_endpoint_sells_and_then_returns_sold_out_with_200() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "3");
    for remaining in [2, 1, 0] {
        let response = post(server.address, "/seckill", "").unwrap();
        let body = response.json();
        assert_eq!(
            (response.status, &body["result"]),
            (200, &"won".into()),
            "{response:?}"
        );
        assert_eq!(
            (&body["unit"], &body["remaining"]),
            (&(3 - remaining).into(), &remaining.into())
        );
        let order_id = body["order_id"].as_str().unwrap();
        let order = get(server.address, &format!("/v1/orders/{order_id}"))
            .unwrap()
            .json();
        assert_eq!(
            (&order["sale"], &order["state"]),
            (&"counter".into(), &"reserved".into())
        );
        assert_eq!(order["unit"], body["unit"]);
    }
    for _ in 0..3 {
        let response = post(server.address, "/seckill", "").unwrap();
        assert_eq!(
            (response.status, response.body.as_str()),
            (200, r#"{"result":"sold_out"}"#)
        );
    }
    // A form body, as load tools send it, is ignored. A JSON body may name the buyer.
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let response = exchange(server.address, "POST", "/seckill", &form, "a=b").unwrap();
    assert_eq!(response.body, r#"{"result":"sold_out"}"#);
    let named = post(server.address, "/seckill", r#"{"buyer":"ann"}"#).unwrap();
    assert_eq!(named.body, r#"{"result":"sold_out"}"#);
}

#[test]
fn v1_reports_each_outcome_by_its_status() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "0");
    run_sale_command(&dir, &["create", "phone", "--units", "3", "--limit", "1"]);
    let orders = "/v1/sales/phone/orders";

    let first = post_with_key(server.address, orders, "k1", r#"{"buyer":"ann"}"#);
    assert_eq!(first.status, 201, "{first:?}");
    let location = first.header("location").unwrap().to_owned();
    assert_eq!(
        location,
        format!("/v1/orders/{}", first.json()["order_id"].as_str().unwrap())
    );
    let order = get(server.address, &location).unwrap();
    assert_eq!((order.status, &order.json()["buyer"]), (200, &"ann".into()));
    assert_eq!(order.header("cache-control"), Some("no-store"));

    let again = post_with_key(server.address, orders, "\"k1\"", r#"{"buyer":"ann"}"#);
    assert_eq!(
        (again.status, again.header("idempotent-replayed")),
        (201, Some("true"))
    );
    assert_eq!(again.json()["order_id"], first.json()["order_id"]);
    let other = post_with_key(
        server.address,
        orders,
        "k1",
        r#"{"buyer":"ann","quantity":2}"#,
    );
    assert_eq!(
        (other.status, other.problem()),
        (422, "idempotency-key-reused".into())
    );

    let limit = post(server.address, orders, r#"{"buyer":"ann"}"#).unwrap();
    assert_eq!(
        (limit.status, limit.problem(), &limit.json()["limit"]),
        (409, "limit-reached".into(), &1.into())
    );
    let anonymous = post(server.address, orders, "").unwrap();
    assert_eq!(
        (anonymous.status, anonymous.problem()),
        (400, "buyer-required".into())
    );
    let many = post(server.address, orders, r#"{"buyer":"bob","quantity":17}"#).unwrap();
    assert_eq!(
        (many.status, many.problem(), &many.json()["max"]),
        (400, "quantity-not-sold".into(), &16.into())
    );
    let unknown = post(server.address, "/v1/sales/unknown/orders", "").unwrap();
    assert_eq!(
        (unknown.status, unknown.problem()),
        (404, "no-such-sale".into())
    );
    let sold_out = post(server.address, "/v1/sales/counter/orders", "").unwrap();
    assert_eq!(
        (sold_out.status, sold_out.problem()),
        (409, "sold-out".into())
    );
    assert_eq!(
        sold_out.header("content-type"),
        Some("application/problem+json")
    );

    run_sale_command(
        &dir,
        &["change", "phone", "--opens-at", "2099-01-01T08:00:00+08:00"],
    );
    let early = post(server.address, orders, r#"{"buyer":"bob"}"#).unwrap();
    assert_eq!((early.status, early.problem()), (403, "not-open".into()));
    assert_eq!(early.json()["opens_at"], "2099-01-01T00:00:00.000Z");
    let tutorial_style = post(server.address, "/seckill", "").unwrap();
    assert_eq!(tutorial_style.status, 200);
    run_sale_command(
        &dir,
        &[
            "change",
            "phone",
            "--opens-at",
            "none",
            "--closes-at",
            "now",
        ],
    );
    let late = post(server.address, orders, r#"{"buyer":"bob"}"#).unwrap();
    assert_eq!((late.status, late.problem()), (410, "closed".into()));
}

/// Another buyer may hold the unit of a cancelled order. A request that repeats the key
/// of that order must never get a response that looks like a confirmation.
#[test]
fn the_key_of_a_cancelled_order_returns_its_state() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "1");
    for path in ["/seckill", "/v1/sales/counter/orders"] {
        let buyer = format!(r#"{{"buyer":"of {path}"}}"#);
        let won = post_with_key(server.address, path, "k", &buyer);
        let units = &won.json()["units"];
        let generation = &won.json()["generation"];
        assert_eq!(won.json()["state"], "reserved", "{won:?}");
        assert_eq!(
            (&units[0]["unit"], &units[0]["generation"]),
            (&1.into(), generation)
        );
        let again = post_with_key(server.address, path, "k", &buyer);
        assert_eq!((again.status, again.json()), (won.status, won.json()));
        assert_eq!(again.header("idempotent-replayed"), Some("true"));

        let order_id = won.json()["order_id"].as_str().unwrap().to_owned();
        let cancel = format!("/v1/orders/{order_id}/cancel");
        let cancelled = post(server.address, &cancel, "").unwrap().json();
        assert!(cancelled["cancelled_at"].is_string(), "{cancelled}");
        let other = format!(r#"{{"buyer":"other than {path}"}}"#);
        let other = post_with_key(server.address, path, "k", &other);
        assert_eq!(other.json()["result"], "won", "{other:?}");

        let ended = post_with_key(server.address, path, "k", &buyer);
        assert_eq!((ended.status, ended.problem()), (409, "order-ended".into()));
        let body = ended.json();
        assert_eq!(
            (
                &body["state"],
                &body["order_id"],
                &body["unit"],
                &body["generation"]
            ),
            (&"cancelled".into(), &order_id.into(), &1.into(), generation)
        );
        assert_eq!(body["units"], *units);
        assert!(!ended.body.contains("won"), "{ended:?}");
        let order_id = other.json()["order_id"].as_str().unwrap().to_owned();
        let cancel = format!("/v1/orders/{order_id}/cancel");
        post(server.address, &cancel, "").unwrap();
    }
}

/// Anonymous buyers share the key space of a sale, so one must not be able to guess another's key.
#[test]
fn a_key_without_a_buyer_must_be_unguessable() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "9");
    for path in ["/seckill", "/v1/sales/counter/orders"] {
        for key in ["1", "my-order", "8e03978e40d543e8bc936894a57f932"] {
            let refused = post_with_key(server.address, path, key, "{}");
            assert_eq!(
                (refused.status, refused.problem()),
                (400, "key-needs-buyer".into()),
                "{key}"
            );
        }
    }
    let uuid = "8e03978e-40d5-43e8-bc93-6894a57f9324";
    let won = post_with_key(server.address, "/seckill", uuid, "");
    assert_eq!(won.json()["result"], "won", "{won:?}");
    let named = post_with_key(server.address, "/seckill", "1", r#"{"buyer":"ann"}"#);
    assert_eq!(named.json()["result"], "won", "{named:?}");
}

#[test]
fn an_anonymous_buyer_is_null_and_an_invalid_quantity_is_refused() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "9");
    let won = post(server.address, "/seckill", "").unwrap().json();
    let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
    let order = get(server.address, &order).unwrap().json();
    assert!(
        order["buyer"].is_null() && order["cancelled_at"].is_null(),
        "{order}"
    );
    for quantity in [
        "-1",
        "0",
        "17",
        "1.0",
        "1e0",
        "1e400",
        "99999999999999999999",
    ] {
        let body = format!(r#"{{"quantity":{quantity}}}"#);
        let refused = post(server.address, "/v1/sales/counter/orders", &body).unwrap();
        assert_eq!(
            (refused.status, refused.problem()),
            (400, "quantity-not-sold".into()),
            "{quantity}"
        );
    }
    // A JSON body with another content type is refused, so that its buyer is not ignored.
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let body = r#"{"buyer":"ann"}"#;
    let lost = exchange(server.address, "POST", "/seckill", &form, body).unwrap();
    assert_eq!((lost.status, lost.problem()), (415, "not-json".into()));
    assert!(lost.body.contains("Content-Type"), "{lost:?}");
}

#[test]
fn a_cancelled_unit_goes_back_on_sale_once() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "1");
    let won = post(server.address, "/seckill", "").unwrap().json();
    let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
    for _ in 0..2 {
        let cancelled = post(server.address, &format!("{order}/cancel"), "").unwrap();
        assert_eq!(
            (cancelled.status, &cancelled.json()["state"]),
            (200, &"cancelled".into())
        );
    }
    let sale = get(server.address, "/v1/sales/counter").unwrap().json();
    assert_eq!(
        (&sale["remaining"], &sale["status"]),
        (&1.into(), &"open".into())
    );
    let again = post(server.address, "/v1/sales/counter/orders", "")
        .unwrap()
        .json();
    assert_eq!(
        (&again["unit"], &again["generation"]),
        (&1.into(), &2.into())
    );
    let sale = get(server.address, "/v1/sales/counter").unwrap().json();
    assert_eq!(sale["status"], "sold_out");
    for path in [
        "/v1/orders/0123456789abcdef0123456789abcdef",
        "/v1/orders/nonsense",
    ] {
        assert_eq!(
            get(server.address, path).unwrap().problem(),
            "no-such-order"
        );
        let cancel = post(server.address, &format!("{path}/cancel"), "").unwrap();
        assert_eq!(
            (cancel.status, cancel.problem()),
            (404, "no-such-order".into())
        );
    }
}

#[test]
fn a_running_service_applies_a_change_immediately() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "1");
    for round in 0..5 {
        let won = post(server.address, "/seckill", "").unwrap();
        assert_eq!(won.json()["result"], "won", "round {round}");
        let sold_out = post(server.address, "/seckill", "").unwrap();
        assert_eq!(sold_out.json()["result"], "sold_out", "round {round}");
        run_sale_command(&dir, &["change", "counter", "--add-units", "1"]);
    }
}

#[test]
fn probes_and_metrics_report_the_state() {
    let dir = TempDir::new().unwrap();
    let server = serve(&dir, "1");
    post(server.address, "/seckill", "").unwrap();
    post(server.address, "/seckill", "").unwrap();
    assert_eq!(get(server.address, "/livez").unwrap().status, 200);
    let ready = get(server.address, "/readyz").unwrap();
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &true.into()));
    assert_eq!(ready.json()["components"][0]["component"], "store");
    let metrics = get(server.address, "/metrics").unwrap();
    for line in [
        "seckill_responses_total{result=\"won\"} 1",
        "seckill_responses_total{result=\"sold_out\"} 1",
        "seckill_writer_failed_batches_total 0",
        "seckill_writer_batch_seconds_total",
        "seckill_orders_stored 1",
        "seckill_clock_lag_seconds",
    ] {
        assert!(
            metrics.body.contains(line),
            "{line} is not in {}",
            metrics.body
        );
    }
    assert!(metrics.body.ends_with("# EOF\n"));
}

#[test]
fn sigterm_and_sigint_shut_the_service_down_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = TempDir::new().unwrap();
        let server = serve(&dir, "5");
        let won = post(server.address, "/seckill", "").unwrap().json();
        let status = server.end(signal).unwrap();
        assert!(status.success(), "{status}");
        let server = serve(&dir, "5");
        let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
        assert_eq!(
            get(server.address, &order).unwrap().json()["unit"],
            won["unit"]
        );
    }
}
