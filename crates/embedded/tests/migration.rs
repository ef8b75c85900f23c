//! Files of schema version 1 are migrated when they are opened. `files/version-1` was written by the
//! last program of that version.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use seckill_embedded::{
    DATABASE_FILE, EmbeddedEngine, EmbeddedOptions, FileError, LockOwner, audit_file, backup,
    restore,
};
use seckill_engine::{Engine, Outcome};
use seckill_sale::{
    Attempt, Buyer, HistoryEntry, HistoryUnit, IdempotencyKey, Lines, OrderChange, OrderId,
    OrderState, Rejection, Replay, SaleId, Verdict,
};
use tempfile::TempDir;

/// The confirmations that clients received from that program.
const HISTORY: &str = include_str!("files/version-1/history.jsonl");

fn old_folder() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/version-1");
    for name in [DATABASE_FILE, "seckill.id"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let path = dir.path().to_owned();
    (dir, path)
}

fn open(path: &Path) -> Result<EmbeddedEngine, FileError> {
    EmbeddedEngine::open(EmbeddedOptions::new(path))
}

fn history() -> Vec<HistoryEntry> {
    let entry = |line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        HistoryEntry {
            order_id: OrderId::new(line["order_id"].as_str().unwrap()).unwrap(),
            sale: Some(line["sale"].as_str().unwrap().to_owned()),
            units: vec![HistoryUnit {
                item: None,
                number: line["unit"].as_u64().unwrap() as u32,
                generation: None,
            }],
            buyer: None,
            key: None,
        }
    };
    HISTORY.lines().map(entry).collect()
}

fn phone() -> SaleId {
    SaleId::new("phone").unwrap()
}

fn keyed(buyer: &str, key: &str) -> Attempt {
    Attempt {
        buyer: Buyer::new(buyer).unwrap(),
        key: Some(IdempotencyKey::new(key).unwrap()),
        ..Attempt::anonymous(phone())
    }
}

fn schema_version(path: &Path) -> i64 {
    let conn = Connection::open(path.join(DATABASE_FILE)).unwrap();
    conn.query_row("PRAGMA user_version", (), |row| row.get(0))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_kept() {
    let (_dir, path) = old_folder();
    assert_eq!(schema_version(&path), 1);
    for _ in 0..2 {
        let engine = open(&path).unwrap();
        let report = engine.audit(history()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.violations);
        assert_eq!((report.store_rows, report.confirmations_checked), (13, 13));
        let shirt = engine.sale(&SaleId::new("shirt").unwrap()).await;
        let shirt = shirt.unwrap().unwrap();
        assert_eq!((shirt.sale.total(), shirt.free), (7, vec![5]));
        assert_eq!((shirt.sale.version, &*shirt.sale.title), (2, "Shirt 王"));
        // The key still has its claim, with the content of then.
        let repeat = engine.decide_one(keyed("b2", "key-2")).await.unwrap();
        assert!(
            matches!(&repeat, Verdict::Repeat { claim, state: OrderState::Reserved }
            if claim.units[0].unit.number == 2)
        );
        let other = Attempt {
            lines: Lines::Quantity(2),
            ..keyed("b2", "key-2")
        };
        assert_eq!(engine.decide_one(other).await, Ok(Verdict::Mismatch));
        let cancelled = engine.decide_one(keyed("b1", "key-1")).await.unwrap();
        assert!(matches!(
            cancelled,
            Verdict::Repeat {
                state: OrderState::Cancelled,
                ..
            }
        ));
        let first = &history()[0].order_id;
        let Ok(Outcome::Order(order)) = engine.order(first).await else {
            panic!("no order");
        };
        assert_eq!(order.date, "2026-11-25T01:24:26.983Z");
        let ended = order.cancelled_at.as_deref();
        assert_eq!(ended, Some("2026-11-25T01:24:38.068Z"));
        let again = engine.change_order(first, OrderChange::Cancel).await;
        assert_eq!(again, Ok(Ok(order)));
        engine.close().await;
        drop(engine);
        assert_eq!(schema_version(&path), 2);
    }
}

/// The limit counts the orders from before: b0 holds two units of three.
#[tokio::test(flavor = "multi_thread")]
async fn sales_go_on() {
    let (_dir, path) = old_folder();
    let engine = open(&path).unwrap();
    let several = |quantity| Attempt {
        lines: Lines::Quantity(quantity),
        ..keyed("b0", &format!("new-{quantity}"))
    };
    let reached = Verdict::Rejected(Rejection::LimitReached { limit: 3 });
    assert_eq!(engine.decide_one(several(2)).await, Ok(reached));
    let bought = engine.decide_one(several(1)).await.unwrap();
    let Verdict::Claimed(claim) = bought else {
        panic!("{bought:?}");
    };
    // Unit 1 has been sold again already, at generation 2.
    assert_eq!(claim.units[0].unit.number, 7);
    let report = engine.audit(history()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.violations);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_begins_with_what_happened_before() {
    let (_dir, path) = old_folder();
    let engine = open(&path).unwrap();
    for (sale, events) in [("phone", 9), ("counter", 4), ("shirt", 5)] {
        let mut replay = Replay::default();
        let id = SaleId::new(sale).unwrap();
        for event in engine.events(&id, 0).await.unwrap().unwrap() {
            replay.apply(event).unwrap();
        }
        assert_eq!(replay.sequence(), events, "{sale}");
        let stock = engine.sale(&id).await.unwrap().unwrap();
        assert_eq!(replay.sale(), Some(&stock.sale));
        assert_eq!(replay.free(&stock.sale.items[0]), stock.free[0]);
    }
}

/// A deleted row whose loss was accepted, and a state that was set by hand and not adopted yet.
#[tokio::test(flavor = "multi_thread")]
async fn gaps_and_manual_edits_are_kept() {
    let (_dir, path) = old_folder();
    let conn = Connection::open(path.join(DATABASE_FILE)).unwrap();
    conn.execute_batch(
        "DELETE FROM seckill WHERE id = 3;
         UPDATE seckill_meta SET orders = 12, deleted = 1;
         UPDATE seckill SET state = 'paid', state_checksum = 0 WHERE id = 4;",
    )
    .unwrap();
    drop(conn);
    let engine = open(&path).unwrap();
    let kept = history().into_iter().enumerate();
    let kept = kept.filter(|(index, _)| *index != 2);
    let kept: Vec<HistoryEntry> = kept.map(|(_, entry)| entry).collect();
    let report = engine.audit(kept).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.violations);
    let Ok(Outcome::Order(order)) = engine.order(&history()[3].order_id).await else {
        panic!("no order");
    };
    assert_eq!(order.state, OrderState::Paid);
    let conn = Connection::open(path.join(DATABASE_FILE)).unwrap();
    let ids: i64 = conn
        .query_row(
            "SELECT group_concat(id) = '1,2,4,5,6,7,8,9,10,11,12,13' FROM seckill",
            (),
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(ids, 1);
}

/// Events are in the order in which they happened, by the clock of then.
#[tokio::test(flavor = "multi_thread")]
async fn times_do_not_go_back() {
    let (_dir, path) = old_folder();
    let engine = open(&path).unwrap();
    for sale in ["phone", "counter", "shirt"] {
        let id = SaleId::new(sale).unwrap();
        let events = engine.events(&id, 0).await.unwrap().unwrap();
        let times: Vec<i64> = events.iter().map(|event| event.at_ms).collect();
        assert!(times.is_sorted(), "{sale}: {times:?}");
    }
}

/// A damaged file is not converted: it stays as it is, for whoever repairs it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_and_left_as_it_is() {
    let (_dir, path) = old_folder();
    let conn = Connection::open(path.join(DATABASE_FILE)).unwrap();
    conn.execute("UPDATE seckill SET buyer = 'eve' WHERE id = 3", ())
        .unwrap();
    drop(conn);
    let refused = open(&path).err().unwrap();
    assert!(refused.to_string().contains("row 3"), "{refused}");
    assert_eq!(schema_version(&path), 1);
    let conn = Connection::open(path.join(DATABASE_FILE)).unwrap();
    let rows: i64 = conn
        .query_row("SELECT count(*) FROM seckill", (), |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_file_is_backed_up_in_the_new_version() {
    let (_dir, path) = old_folder();
    let refused = audit_file(&path, &[]).unwrap_err().to_string();
    assert!(refused.contains("schema version 1"), "{refused}");
    let copy = path.join("copy.db");
    let summary = backup(&path, &copy).unwrap();
    assert_eq!(summary.report.store_rows, 13);
    assert_eq!(schema_version(&path), 1);
    let other = TempDir::new().unwrap();
    restore(
        &path.join(DATABASE_FILE),
        other.path(),
        &LockOwner::default(),
        false,
    )
    .unwrap();
    let report = audit_file(other.path(), &history()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.violations);
}
