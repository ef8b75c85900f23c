//! The feed in the file: how a reader finds claims among the rows of other sales, and that an event
//! is stored with its change or not at all.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::Path;
use std::sync::Arc;

use fail_parallel::FailPointRegistry;
use rusqlite::Connection;
use seckill_embedded::{DATABASE_FILE, EmbeddedEngine, EmbeddedOptions};
use seckill_engine::{DECIDE_MAX, Effect, Engine, Outcome};
use seckill_sale::{Attempt, Claim, Event, NewSale, OrderChange, OrderState, SaleId, Verdict};
use tempfile::TempDir;

fn sale(name: &str) -> SaleId {
    SaleId::new(name).unwrap()
}

fn open(path: &Path) -> EmbeddedEngine {
    EmbeddedEngine::open(EmbeddedOptions::new(path)).unwrap()
}

async fn create(engine: &EmbeddedEngine, name: &str, total: u32) {
    let new = NewSale::units(sale(name), total);
    engine.create_sale(new).await.unwrap().unwrap();
}

async fn buy(engine: &EmbeddedEngine, name: &str) -> Claim {
    let attempt = Attempt::anonymous(sale(name));
    match engine.decide_one(attempt).await {
        Ok(Verdict::Claimed(claim)) => claim,
        other => panic!("{other:?}"),
    }
}

async fn events(engine: &EmbeddedEngine, name: &str, after: u64) -> Vec<Event> {
    let found = engine.events(&sale(name), after).await;
    found.unwrap().unwrap()
}

fn names(events: &[Event]) -> Vec<(u64, &'static str)> {
    let name = |event: &Event| (event.sequence, event.kind.name());
    events.iter().map(name).collect()
}

/// Between two claims of a quiet sale, a busy one sells more units than a reader would scan.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_found_behind_many_rows_of_another_sale() {
    let dir = TempDir::new().unwrap();
    let engine = open(dir.path());
    create(&engine, "quiet", 10).await;
    create(&engine, "busy", 100_000).await;
    buy(&engine, "quiet").await;
    for _ in 0..140 {
        let attempts = vec![Attempt::anonymous(sale("busy")); DECIDE_MAX];
        let verdicts = engine.decide(attempts).await;
        assert!(
            verdicts
                .iter()
                .all(|v| matches!(v, Ok(Verdict::Claimed(_))))
        );
    }
    let late = buy(&engine, "quiet").await;
    buy(&engine, "quiet").await;
    let expected = [
        (1, "sale.created"),
        (2, "order.reserved"),
        (3, "order.reserved"),
        (4, "order.reserved"),
    ];
    for after in 0..4_usize {
        let found = events(&engine, "quiet", after as u64).await;
        assert_eq!(names(&found), expected[after..]);
    }
    engine.close().await;
    drop(engine);
    let engine = open(dir.path());
    let found = events(&engine, "quiet", 2).await;
    assert_eq!(names(&found), expected[2..]);
    assert_eq!(found[0].kind.order_id(), Some(&late.order_id));
    let busy = events(&engine, "busy", 35_000).await;
    assert_eq!(busy.first().map(|event| event.sequence), Some(35_001));
    let report = engine.audit(Vec::new()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.violations);
    assert_eq!(report.events, 140 * DECIDE_MAX as u64 + 5);
}

/// If the event cannot be stored, neither is the change.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_without_its_event_is_not_stored() {
    let dir = TempDir::new().unwrap();
    let failpoints = Arc::new(FailPointRegistry::new());
    let engine = EmbeddedEngine::open(EmbeddedOptions {
        failpoints: Arc::clone(&failpoints),
        ..EmbeddedOptions::new(dir.path())
    });
    let engine = engine.unwrap();
    create(&engine, "s", 2).await;
    let claim = buy(&engine, "s").await;
    fail_parallel::cfg(Arc::clone(&failpoints), "insert-event", "1*return").unwrap();
    let cancel = || engine.change_order(&claim.order_id, OrderChange::Cancel);
    assert_eq!(cancel().await.unwrap_err().effect, Effect::None);
    while !engine.components().iter().all(|component| component.ready) {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let Ok(Outcome::Order(order)) = engine.order(&claim.order_id).await else {
        panic!("no order");
    };
    assert_eq!(order.state, OrderState::Reserved);
    assert!(matches!(cancel().await, Ok(Ok(_))));
    let expected = [
        (1, "sale.created"),
        (2, "order.reserved"),
        (3, "order.cancelled"),
    ];
    assert_eq!(names(&events(&engine, "s", 0).await), expected);
}

/// A state that an operator sets by hand gets its event when the service reads the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_manual_edit_gets_its_event() {
    let dir = TempDir::new().unwrap();
    let engine = open(dir.path());
    create(&engine, "s", 3).await;
    for _ in 0..3 {
        buy(&engine, "s").await;
    }
    engine.close().await;
    drop(engine);
    let edit = |sql: &str| {
        let conn = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
        assert_eq!(conn.execute(sql, ()).unwrap(), 1);
    };
    edit("UPDATE seckill SET state = 3, state_checksum = 0 WHERE unit = 1");
    edit("UPDATE seckill SET state = 1, state_checksum = 0 WHERE unit = 2");
    // Before it is adopted, the audit of the file does not miss the event.
    let report = seckill_embedded::audit_file(dir.path(), &[]).unwrap();
    assert!(report.is_clean(), "{:#?}", report.violations);
    for _ in 0..2 {
        let engine = open(dir.path());
        let found = events(&engine, "s", 4).await;
        let expected = [(5, "order.cancelled"), (6, "order.paid")];
        assert_eq!(names(&found), expected);
        let stock = engine.sale(&sale("s")).await.unwrap().unwrap();
        assert_eq!(stock.free, [1]);
        let report = engine.audit(Vec::new()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.violations);
    }
}

/// A service with one sale and three orders, one of them cancelled, whose file was edited since.
async fn edited(sql: &str) -> (TempDir, Result<EmbeddedEngine, seckill_embedded::FileError>) {
    let dir = TempDir::new().unwrap();
    let engine = open(dir.path());
    create(&engine, "s", 3).await;
    let first = buy(&engine, "s").await;
    buy(&engine, "s").await;
    buy(&engine, "s").await;
    let cancelled = engine.change_order(&first.order_id, OrderChange::Cancel);
    assert!(matches!(cancelled.await, Ok(Ok(_))));
    engine.close().await;
    drop(engine);
    let conn = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    conn.execute_batch(sql).unwrap();
    drop(conn);
    let opened = EmbeddedEngine::open(EmbeddedOptions::new(dir.path()));
    (dir, opened)
}

/// A damaged entry is refused with its number, and the audit lists it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_event_is_named() {
    let off = "PRAGMA ignore_check_constraints = ON;";
    for edit in [
        "UPDATE seckill_event SET row_id = 2 WHERE sequence = 5",
        "UPDATE seckill_event SET sequence = 9 WHERE sequence = 5",
        "UPDATE seckill_event SET sequence = -1 WHERE sequence = 5",
        "UPDATE seckill_event SET order_id = x'00' WHERE sequence = 5",
        "UPDATE seckill_event SET type = 'order.paid' WHERE sequence = 5",
    ] {
        let (dir, opened) = edited(&format!("{off} {edit}")).await;
        let refused = opened.err().map(|error| error.to_string());
        let refused = refused.unwrap_or_else(|| panic!("{edit}"));
        assert!(refused.contains("event"), "{edit}: {refused}");
        let report = seckill_embedded::audit_file(dir.path(), &[]).unwrap();
        let named = report.violations.iter().any(|v| v.detail.contains("event"));
        assert!(named, "{edit}: {report:?}");
    }
}

/// A value that cannot be in a row is refused with the row, and hides no other row from the audit.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_is_named() {
    let off = "PRAGMA ignore_check_constraints = ON;";
    for edit in [
        "UPDATE seckill SET item = 0 WHERE id = 2",
        "UPDATE seckill SET item = 65 WHERE id = 2",
        "UPDATE seckill SET unit = -1 WHERE id = 2",
        "UPDATE seckill SET order_id = x'00' WHERE id = 2",
        "UPDATE seckill SET sequence = -1 WHERE id = 2",
        "UPDATE seckill SET lines = 2 WHERE id = 2",
    ] {
        let (dir, opened) = edited(&format!("{off} {edit}")).await;
        let refused = opened.err().map(|error| error.to_string());
        let refused = refused.unwrap_or_else(|| panic!("{edit}"));
        assert!(refused.contains("row 2"), "{edit}: {refused}");
        let report = seckill_embedded::audit_file(dir.path(), &[]).unwrap();
        let all: String = report
            .violations
            .iter()
            .map(|v| v.detail.as_str())
            .collect();
        assert!(!report.is_clean(), "{edit}");
        assert!(
            !all.contains("row 3") && !all.contains("not all orders"),
            "{edit}: {all}"
        );
    }
}

/// A missing event stops readers at its place; it is never skipped.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_event_is_not_skipped() {
    let (_dir, engine) = edited("DELETE FROM seckill_event WHERE sequence = 1").await;
    let engine = engine.unwrap();
    let fault = engine.events(&sale("s"), 0).await.unwrap_err();
    assert!(fault.detail.contains("event 1 is missing"), "{fault}");
    assert_eq!(events(&engine, "s", 1).await.len(), 4);
    let report = engine.audit(Vec::new()).await.unwrap();
    assert!(!report.is_clean());
}

/// An order that has ended never becomes active again, also by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_manual_edit_cannot_reopen_an_order() {
    let edit =
        |state| format!("UPDATE seckill SET state = {state}, state_checksum = 0 WHERE unit = 1");
    for state in [0, 1] {
        let (_dir, opened) = edited(&edit(state)).await;
        let refused = opened.err().map(|error| error.to_string()).unwrap();
        assert!(refused.contains("set it back to cancelled"), "{refused}");
    }
    // The state that it has already is no event.
    let (_dir, opened) = edited(&edit(3)).await;
    let engine = opened.unwrap();
    assert_eq!(events(&engine, "s", 0).await.len(), 5);
    let report = engine.audit(Vec::new()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.violations);
}
