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

fn sale(dir: &TempDir, arguments: &[&str]) {
    let data = dir.path().join("data").display().to_string();
    let mut words = vec!["sale"];
    words.extend(arguments);
    words.extend(["--data", &data]);
    let done = run(binary(), &words).unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn keyed(address: SocketAddr, path: &str, key: &str, body: &str) -> Response {
    let headers = [
        ("Idempotency-Key", key),
        ("Content-Type", "application/json"),
    ];
    exchange(address, "POST", path, &headers, body).unwrap()
}

#[test]
fn the_tutorials_endpoint_sells_and_then_returns_sold_out_with_200() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "3");
    for remaining in [2, 1, 0] {
        let answer = post(served.address, "/seckill", "").unwrap();
        let body = answer.json();
        assert_eq!(
            (answer.status, &body["result"]),
            (200, &"won".into()),
            "{answer:?}"
        );
        assert_eq!(
            (&body["unit"], &body["remaining"]),
            (&(3 - remaining).into(), &remaining.into())
        );
        let order_id = body["order_id"].as_str().unwrap();
        let order = get(served.address, &format!("/v1/orders/{order_id}"))
            .unwrap()
            .json();
        assert_eq!(
            (&order["sale"], &order["state"]),
            (&"counter".into(), &"reserved".into())
        );
        assert_eq!(order["unit"], body["unit"]);
    }
    for _ in 0..3 {
        let answer = post(served.address, "/seckill", "").unwrap();
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, r#"{"result":"sold_out"}"#)
        );
    }
    // A form, as load tools send it, is ignored; JSON may name the buyer.
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let answer = exchange(served.address, "POST", "/seckill", &form, "a=b").unwrap();
    assert_eq!(answer.body, r#"{"result":"sold_out"}"#);
    let named = post(served.address, "/seckill", r#"{"buyer":"ann"}"#).unwrap();
    assert_eq!(named.body, r#"{"result":"sold_out"}"#);
}

#[test]
fn v1_tells_each_verdict_by_its_status() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "0");
    sale(&dir, &["create", "phone", "--units", "3", "--limit", "1"]);
    let orders = "/v1/sales/phone/orders";

    let first = keyed(served.address, orders, "k1", r#"{"buyer":"ann"}"#);
    assert_eq!(first.status, 201, "{first:?}");
    let location = first.header("location").unwrap().to_owned();
    assert_eq!(
        location,
        format!("/v1/orders/{}", first.json()["order_id"].as_str().unwrap())
    );
    let order = get(served.address, &location).unwrap();
    assert_eq!((order.status, &order.json()["buyer"]), (200, &"ann".into()));
    assert_eq!(order.header("cache-control"), Some("no-store"));

    let again = keyed(served.address, orders, "\"k1\"", r#"{"buyer":"ann"}"#);
    assert_eq!(
        (again.status, again.header("idempotent-replayed")),
        (201, Some("true"))
    );
    assert_eq!(again.json()["order_id"], first.json()["order_id"]);
    let other = keyed(
        served.address,
        orders,
        "k1",
        r#"{"buyer":"ann","quantity":2}"#,
    );
    assert_eq!(
        (other.status, other.problem()),
        (422, "idempotency-key-reused".into())
    );

    let limit = post(served.address, orders, r#"{"buyer":"ann"}"#).unwrap();
    assert_eq!(
        (limit.status, limit.problem(), &limit.json()["limit"]),
        (409, "limit-reached".into(), &1.into())
    );
    let anonymous = post(served.address, orders, "").unwrap();
    assert_eq!(
        (anonymous.status, anonymous.problem()),
        (400, "buyer-required".into())
    );
    let many = post(served.address, orders, r#"{"buyer":"bob","quantity":2}"#).unwrap();
    assert_eq!(
        (many.status, many.problem()),
        (400, "quantity-not-sold".into())
    );
    let nowhere = post(served.address, "/v1/sales/nowhere/orders", "").unwrap();
    assert_eq!(
        (nowhere.status, nowhere.problem()),
        (404, "no-such-sale".into())
    );
    let sold_out = post(served.address, "/v1/sales/counter/orders", "").unwrap();
    assert_eq!(
        (sold_out.status, sold_out.problem()),
        (409, "sold-out".into())
    );
    assert_eq!(
        sold_out.header("content-type"),
        Some("application/problem+json")
    );

    sale(
        &dir,
        &["change", "phone", "--opens-at", "2099-01-01T08:00:00+08:00"],
    );
    let early = post(served.address, orders, r#"{"buyer":"bob"}"#).unwrap();
    assert_eq!((early.status, early.problem()), (403, "not-open".into()));
    assert_eq!(early.json()["opens_at"], "2099-01-01T00:00:00.000Z");
    let tutorial_style = post(served.address, "/seckill", "").unwrap();
    assert_eq!(tutorial_style.status, 200);
    sale(
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
    let late = post(served.address, orders, r#"{"buyer":"bob"}"#).unwrap();
    assert_eq!((late.status, late.problem()), (410, "closed".into()));
}

/// The unit of a cancelled order may be another buyer's. Its key must never look like a confirmation.
#[test]
fn the_key_of_a_cancelled_order_is_answered_with_its_state() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "1");
    for path in ["/seckill", "/v1/sales/counter/orders"] {
        let buyer = format!(r#"{{"buyer":"of {path}"}}"#);
        let won = keyed(served.address, path, "k", &buyer);
        let units = &won.json()["units"];
        let generation = &won.json()["generation"];
        assert_eq!(won.json()["state"], "reserved", "{won:?}");
        assert_eq!(
            (&units[0]["unit"], &units[0]["generation"]),
            (&1.into(), generation)
        );
        let again = keyed(served.address, path, "k", &buyer);
        assert_eq!((again.status, again.json()), (won.status, won.json()));
        assert_eq!(again.header("idempotent-replayed"), Some("true"));

        let order_id = won.json()["order_id"].as_str().unwrap().to_owned();
        let cancel = format!("/v1/orders/{order_id}/cancel");
        let cancelled = post(served.address, &cancel, "").unwrap().json();
        assert!(cancelled["cancelled_at"].is_string(), "{cancelled}");
        let other = format!(r#"{{"buyer":"other than {path}"}}"#);
        let other = keyed(served.address, path, "k", &other);
        assert_eq!(other.json()["result"], "won", "{other:?}");

        let ended = keyed(served.address, path, "k", &buyer);
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
        post(served.address, &cancel, "").unwrap();
    }
}

/// Strangers without names share a sale's keys, so one must not be able to guess another's.
#[test]
fn a_key_without_a_buyer_must_be_unguessable() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "9");
    for path in ["/seckill", "/v1/sales/counter/orders"] {
        for key in ["1", "my-order", "8e03978e40d543e8bc936894a57f932"] {
            let refused = keyed(served.address, path, key, "{}");
            assert_eq!(
                (refused.status, refused.problem()),
                (400, "key-needs-buyer".into()),
                "{key}"
            );
        }
    }
    let uuid = "8e03978e-40d5-43e8-bc93-6894a57f9324";
    let won = keyed(served.address, "/seckill", uuid, "");
    assert_eq!(won.json()["result"], "won", "{won:?}");
    let named = keyed(served.address, "/seckill", "1", r#"{"buyer":"ann"}"#);
    assert_eq!(named.json()["result"], "won", "{named:?}");
}

#[test]
fn an_anonymous_buyer_is_null_and_a_quantity_is_a_whole_number() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "9");
    let won = post(served.address, "/seckill", "").unwrap().json();
    let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
    let order = get(served.address, &order).unwrap().json();
    assert!(
        order["buyer"].is_null() && order["cancelled_at"].is_null(),
        "{order}"
    );
    for quantity in ["-1", "0", "2", "1.0", "1e0", "99999999999999999999"] {
        let body = format!(r#"{{"quantity":{quantity}}}"#);
        let refused = post(served.address, "/v1/sales/counter/orders", &body).unwrap();
        assert_eq!(
            (refused.status, refused.problem()),
            (400, "quantity-not-sold".into()),
            "{quantity}"
        );
    }
    // A buyer in a body that is not declared as JSON must not be lost.
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let body = r#"{"buyer":"ann"}"#;
    let lost = exchange(served.address, "POST", "/seckill", &form, body).unwrap();
    assert_eq!((lost.status, lost.problem()), (415, "not-json".into()));
    assert!(lost.body.contains("Content-Type"), "{lost:?}");
}

#[test]
fn a_cancelled_unit_goes_back_on_sale_once() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "1");
    let won = post(served.address, "/seckill", "").unwrap().json();
    let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
    for _ in 0..2 {
        let cancelled = post(served.address, &format!("{order}/cancel"), "").unwrap();
        assert_eq!(
            (cancelled.status, &cancelled.json()["state"]),
            (200, &"cancelled".into())
        );
    }
    let shown = get(served.address, "/v1/sales/counter").unwrap().json();
    assert_eq!(
        (&shown["remaining"], &shown["status"]),
        (&1.into(), &"open".into())
    );
    let again = post(served.address, "/v1/sales/counter/orders", "")
        .unwrap()
        .json();
    assert_eq!(
        (&again["unit"], &again["generation"]),
        (&1.into(), &2.into())
    );
    let shown = get(served.address, "/v1/sales/counter").unwrap().json();
    assert_eq!(shown["status"], "sold_out");
    for path in [
        "/v1/orders/0123456789abcdef0123456789abcdef",
        "/v1/orders/nonsense",
    ] {
        assert_eq!(
            get(served.address, path).unwrap().problem(),
            "no-such-order"
        );
        let cancel = post(served.address, &format!("{path}/cancel"), "").unwrap();
        assert_eq!(
            (cancel.status, cancel.problem()),
            (404, "no-such-order".into())
        );
    }
}

#[test]
fn a_change_is_seen_by_the_running_service_at_once() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "1");
    for round in 0..5 {
        let won = post(served.address, "/seckill", "").unwrap();
        assert_eq!(won.json()["result"], "won", "round {round}");
        let none = post(served.address, "/seckill", "").unwrap();
        assert_eq!(none.json()["result"], "sold_out", "round {round}");
        sale(&dir, &["change", "counter", "--add-units", "1"]);
    }
}

#[test]
fn probes_and_metrics_tell_the_state() {
    let dir = TempDir::new().unwrap();
    let served = serve(&dir, "1");
    post(served.address, "/seckill", "").unwrap();
    post(served.address, "/seckill", "").unwrap();
    assert_eq!(get(served.address, "/livez").unwrap().status, 200);
    let ready = get(served.address, "/readyz").unwrap();
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &true.into()));
    assert_eq!(ready.json()["components"][0]["component"], "store");
    let metrics = get(served.address, "/metrics").unwrap();
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
fn sigterm_and_ctrl_c_end_it_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = TempDir::new().unwrap();
        let served = serve(&dir, "5");
        let won = post(served.address, "/seckill", "").unwrap().json();
        let status = served.end(signal).unwrap();
        assert!(status.success(), "{status}");
        let served = serve(&dir, "5");
        let order = format!("/v1/orders/{}", won["order_id"].as_str().unwrap());
        assert_eq!(
            get(served.address, &order).unwrap().json()["unit"],
            won["unit"]
        );
    }
}
