//! Faults at failpoints: an attempt that may have succeeded is never rejected, and sales continue.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::sync::Arc;
use std::time::Duration;

use fail_parallel::FailPointRegistry;
use seckill_embedded::{EmbeddedEngine, EmbeddedOptions};
use seckill_engine::{Cause, Effect, Engine, OrderRefused, Outcome};
use seckill_sale::{
    Attempt, Buyer, HistoryEntry, HistoryUnit, IdempotencyKey, NewSale, NotAllowed, OrderChange,
    OrderState, Rejection, SaleChange, SaleId, Verdict,
};
use tempfile::TempDir;

struct TestContext {
    dir: TempDir,
    engine: EmbeddedEngine,
    failpoints: Arc<FailPointRegistry>,
}

fn sale() -> SaleId {
    SaleId::new("s").unwrap()
}

fn keyed(key: &str) -> Attempt {
    Attempt {
        buyer: Buyer::new("ann").unwrap(),
        key: Some(IdempotencyKey::new(key).unwrap()),
        ..Attempt::anonymous(sale())
    }
}

async fn context(units: u32) -> TestContext {
    let dir = TempDir::new().unwrap();
    let failpoints = Arc::new(FailPointRegistry::new());
    let engine = EmbeddedEngine::open(EmbeddedOptions {
        failpoints: Arc::clone(&failpoints),
        ..EmbeddedOptions::new(dir.path())
    });
    let engine = engine.unwrap();
    engine
        .create_sale(NewSale::units(sale(), units))
        .await
        .unwrap()
        .unwrap();
    TestContext {
        dir,
        engine,
        failpoints,
    }
}

impl TestContext {
    async fn decide(&self, attempt: Attempt) -> Result<Verdict, seckill_engine::Fault> {
        self.engine.decide(vec![attempt]).await.pop().unwrap()
    }

    fn fail_once(&self, failpoint: &str) {
        let registry = Arc::clone(&self.failpoints);
        fail_parallel::cfg(registry, failpoint, "1*return").unwrap();
    }

    async fn wait_until_ready(&self) {
        while !self
            .engine
            .components()
            .iter()
            .all(|component| component.ready)
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn audited(&self, history: Vec<HistoryEntry>, rows: u64) {
        let report = self.engine.audit(history).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.violations);
        assert_eq!(report.store_rows, rows);
    }
}

/// The commit never reached the file: the claim is pending, then it is known not to exist, and the
/// unit is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_failed_before_it_was_stored() {
    let context = context(1).await;
    context.fail_once("before-commit");
    let verdict = context.decide(keyed("k")).await;
    let Ok(Verdict::Pending(order_id)) = verdict else {
        panic!("{verdict:?}");
    };
    context.wait_until_ready().await;
    assert_eq!(context.engine.order(&order_id).await, Ok(Outcome::None));
    let again = context.decide(keyed("k")).await;
    assert!(matches!(again, Ok(Verdict::Claimed(_))), "{again:?}");
    context.audited(Vec::new(), 1).await;
}

/// The commit was stored and only its result failed: the claim is pending, then it is an order, and
/// the key returns it.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_failed_after_it_was_stored() {
    let context = context(1).await;
    context.fail_once("after-commit");
    let verdict = context.decide(keyed("k")).await;
    let Ok(Verdict::Pending(order_id)) = verdict else {
        panic!("{verdict:?}");
    };
    context.wait_until_ready().await;
    let Ok(Outcome::Order(order)) = context.engine.order(&order_id).await else {
        panic!("no order");
    };
    let again = context.decide(keyed("k")).await;
    assert!(matches!(again, Ok(Verdict::Repeat { claim, .. }) if claim.order_id == order_id));
    let sold_out = context.decide(Attempt::anonymous(sale())).await;
    assert_eq!(sold_out, Ok(Verdict::Rejected(Rejection::SoldOut)));
    let confirmation = HistoryEntry {
        order_id,
        sale: Some("s".into()),
        units: vec![HistoryUnit {
            item: Some("default".into()),
            number: order.units[0].unit.number,
            generation: None,
        }],
        buyer: None,
        key: Some("k".into()),
    };
    context.audited(vec![confirmation], 1).await;
}

/// A rejection that depends on a claim of a failed batch is not sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_that_depends_on_a_pending_claim_is_not_sent() {
    for failpoint in ["before-commit", "after-commit"] {
        let context = context(1).await;
        context.fail_once(failpoint);
        let verdicts = context
            .engine
            .decide(vec![keyed("a"), keyed("b"), keyed("a")])
            .await;
        assert!(
            matches!(verdicts[0], Ok(Verdict::Pending(_))),
            "{verdicts:?}"
        );
        let fault = verdicts[1].as_ref().unwrap_err();
        assert_eq!((fault.effect, fault.cause), (Effect::None, Cause::Store));
        // A repeat of a pending claim is pending as well.
        assert_eq!(verdicts[2], verdicts[0]);
        context.wait_until_ready().await;
    }
}

/// A change whose commit failed reports an unknown effect, and succeeds when it is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_commit_failed_is_unknown() {
    for failpoint in ["before-commit", "after-commit"] {
        let context = context(1).await;
        let Ok(Verdict::Claimed(claim)) = context.decide(keyed("k")).await else {
            panic!("no claim");
        };
        context.fail_once(failpoint);
        let cancelled = context
            .engine
            .change_order(&claim.order_id, OrderChange::Cancel)
            .await;
        assert_eq!(cancelled.unwrap_err().effect, Effect::Unknown);
        context.wait_until_ready().await;
        let more = SaleChange {
            total: Some(2),
            ..SaleChange::default()
        };
        context.fail_once(failpoint);
        let changed = context.engine.change_sale(&sale(), more).await;
        assert_eq!(changed.unwrap_err().effect, Effect::Unknown);
        context.wait_until_ready().await;
        let cancelled = context
            .engine
            .change_order(&claim.order_id, OrderChange::Cancel)
            .await;
        assert!(matches!(cancelled, Ok(Ok(_))), "{cancelled:?}");
        context.audited(Vec::new(), 1).await;
    }
}

/// While another program has the file locked, attempts get a fault without effect. Afterwards,
/// sales continue.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_file_fails_attempts_without_effect() {
    let context = context(5).await;
    let path = context.dir.path().join(seckill_embedded::DATABASE_FILE);
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let fault = context.decide(keyed("k")).await.unwrap_err();
    assert_eq!((fault.effect, fault.cause), (Effect::None, Cause::Store));
    assert!(fault.detail.contains("locked"), "{fault}");
    other.execute_batch("ROLLBACK").unwrap();
    let again = context.decide(keyed("k")).await;
    assert!(matches!(again, Ok(Verdict::Claimed(_))), "{again:?}");
    context.audited(Vec::new(), 1).await;
}

/// An engine whose file another connection has locked for longer than calls wait for their answer.
async fn locked_engine() -> (TempDir, EmbeddedEngine, rusqlite::Connection) {
    let dir = TempDir::new().unwrap();
    let engine = EmbeddedEngine::open(EmbeddedOptions {
        answer_wait_ms: 100,
        busy_wait_ms: 60_000,
        ..EmbeddedOptions::new(dir.path())
    });
    let engine = engine.unwrap();
    engine
        .create_sale(NewSale::units(sale(), 5))
        .await
        .unwrap()
        .unwrap();
    let other =
        rusqlite::Connection::open(dir.path().join(seckill_embedded::DATABASE_FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    (dir, engine, other)
}

/// While the writer is blocked, an order that may still be stored is not reported as missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_writer_leaves_orders_pending() {
    let (_dir, engine, other) = locked_engine().await;
    let verdict = engine.decide_one(keyed("k")).await;
    let Ok(Verdict::Pending(order_id)) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(engine.order(&order_id).await, Ok(Outcome::Pending));
    other.execute_batch("ROLLBACK").unwrap();
    loop {
        match engine.order(&order_id).await {
            Ok(Outcome::Pending) => tokio::time::sleep(Duration::from_millis(5)).await,
            // The writer took the attempt before the client stopped waiting, so it was stored.
            Ok(Outcome::Order(order)) => break assert_eq!(order.order_id, order_id),
            other => panic!("{other:?}"),
        }
    }
}

/// Calls beyond the capacity of the queue are refused without effect; the others are answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_calls_without_effect() {
    let dir = TempDir::new().unwrap();
    let engine = EmbeddedEngine::open(EmbeddedOptions {
        queue_max: 2,
        ..EmbeddedOptions::new(dir.path())
    });
    let engine: Arc<dyn Engine> = Arc::new(engine.unwrap());
    engine
        .create_sale(NewSale::units(sale(), 1_000))
        .await
        .unwrap()
        .unwrap();
    let tasks: Vec<_> = (0..500)
        .map(|_| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move { engine.decide(vec![Attempt::anonymous(sale())]).await })
        })
        .collect();
    let (mut claims, mut refused) = (0, 0);
    for task in tasks {
        match task.await.unwrap().pop().unwrap() {
            Ok(Verdict::Claimed(_)) => claims += 1,
            Err(fault) => {
                assert_eq!(
                    (fault.effect, fault.cause),
                    (Effect::None, Cause::Overloaded)
                );
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(claims + refused, 500);
    let report = engine.audit(Vec::new()).await.unwrap();
    assert_eq!((report.store_rows, report.is_clean()), (claims, true));
}

/// Attempts before `close` are answered, later ones are refused, and the folder is unlocked.
#[tokio::test(flavor = "multi_thread")]
async fn closing_refuses_later_attempts_and_unlocks_the_folder() {
    let context = context(5).await;
    let claimed = context.decide(keyed("k")).await;
    assert!(matches!(claimed, Ok(Verdict::Claimed(_))));
    context.engine.close().await;
    let fault = context.decide(keyed("l")).await.unwrap_err();
    assert_eq!((fault.effect, fault.cause), (Effect::None, Cause::Stopping));
    assert_eq!(context.engine.answer_from_memory(&keyed("k")), None);
    let TestContext { dir, engine, .. } = context;
    drop(engine);
    assert_eq!(seckill_embedded::lock_owner(dir.path()), None);
}

/// Each write before the commit fails once: nothing was done, the engine reads its file again, and
/// the same request then succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn every_write_before_the_commit_can_fail_without_effect() {
    for failpoint in ["batch", "begin", "insert", "count-rows"] {
        let context = context(1).await;
        context.fail_once(failpoint);
        let fault = context.decide(keyed("k")).await.unwrap_err();
        assert_eq!(
            (fault.effect, fault.cause),
            (Effect::None, Cause::Store),
            "{failpoint}"
        );
        context.wait_until_ready().await;
        let again = context.decide(keyed("k")).await;
        assert!(
            matches!(again, Ok(Verdict::Claimed(_))),
            "{failpoint}: {again:?}"
        );
        context.audited(Vec::new(), 1).await;
    }
    for failpoint in ["begin", "set-state"] {
        let context = context(1).await;
        let Ok(Verdict::Claimed(claim)) = context.decide(keyed("k")).await else {
            panic!("no claim");
        };
        context.fail_once(failpoint);
        let change = || {
            context
                .engine
                .change_order(&claim.order_id, OrderChange::Cancel)
        };
        assert_eq!(
            change().await.unwrap_err().effect,
            Effect::None,
            "{failpoint}"
        );
        context.wait_until_ready().await;
        let cancelled = change().await.unwrap().unwrap();
        assert_eq!(cancelled.state, OrderState::Cancelled);
        assert!(cancelled.cancelled_at.is_some());
        context.audited(Vec::new(), 1).await;
    }
    for failpoint in ["begin", "put-sale"] {
        let context = context(1).await;
        let more = SaleChange {
            total: Some(2),
            ..SaleChange::default()
        };
        context.fail_once(failpoint);
        let fault = context.engine.change_sale(&sale(), more.clone()).await;
        assert_eq!(fault.unwrap_err().effect, Effect::None, "{failpoint}");
        context.wait_until_ready().await;
        let changed = context.engine.change_sale(&sale(), more).await;
        assert_eq!(changed.unwrap().unwrap().version, 2);
        context.audited(Vec::new(), 0).await;
    }
}

/// The engine retries until the file can be opened and written again.
#[tokio::test(flavor = "multi_thread")]
async fn reading_the_file_again_is_retried_until_it_succeeds() {
    for failpoint in ["reopen", "probe"] {
        let context = context(1).await;
        let registry = Arc::clone(&context.failpoints);
        fail_parallel::cfg(registry, failpoint, "2*return").unwrap();
        context.fail_once("after-commit");
        let verdict = context.decide(keyed("k")).await;
        assert!(matches!(verdict, Ok(Verdict::Pending(_))), "{verdict:?}");
        // Meanwhile nothing is answered, not even from memory.
        let fault = context.decide(keyed("l")).await.unwrap_err();
        assert_eq!((fault.effect, fault.cause), (Effect::None, Cause::Store));
        assert_eq!(context.engine.answer_from_memory(&keyed("k")), None);
        context.wait_until_ready().await;
        let again = context.decide(keyed("k")).await;
        assert!(matches!(again, Ok(Verdict::Repeat { .. })), "{again:?}");
        context.audited(Vec::new(), 1).await;
    }
}

/// If the checkpoint at shutdown fails, the next start recovers the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_checkpoint_at_shutdown_loses_nothing() {
    let context = context(2).await;
    let claimed = context.decide(keyed("k")).await;
    assert!(matches!(claimed, Ok(Verdict::Claimed(_))), "{claimed:?}");
    context.fail_once("checkpoint");
    context.engine.close().await;
    let TestContext { dir, engine, .. } = context;
    drop(engine);
    let engine = EmbeddedEngine::open(EmbeddedOptions::new(dir.path())).unwrap();
    let again = engine.decide_one(keyed("k")).await;
    assert!(matches!(again, Ok(Verdict::Repeat { .. })), "{again:?}");
    engine.close().await;
}

/// Without its writer, the engine can never sell again: it reports that, and answers nothing from
/// memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_writer_fails_the_liveness_check() {
    let context = context(1).await;
    assert_eq!(context.engine.liveness(), Ok(()));
    let registry = Arc::clone(&context.failpoints);
    fail_parallel::cfg(registry, "batch", "1*panic").unwrap();
    // The attempt may or may not have reached the writer.
    let _ = context.decide(keyed("k")).await;
    while context.engine.liveness().is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!context.engine.components()[0].ready);
    assert_eq!(context.engine.answer_from_memory(&keyed("k")), None);
    let fault = context.decide(keyed("k")).await.unwrap_err();
    assert_eq!((fault.effect, fault.cause), (Effect::None, Cause::Store));
}

/// Another program sets a state after the request has read the order, and before its transaction
/// begins: the state is not overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn a_concurrent_change_of_a_state_is_not_overwritten() {
    let context = context(1).await;
    let Ok(Verdict::Claimed(claim)) = context.decide(keyed("k")).await else {
        panic!("no claim");
    };
    let path = context.dir.path().join(seckill_embedded::DATABASE_FILE);
    let registry = Arc::clone(&context.failpoints);
    let set_paid = move || {
        let other = rusqlite::Connection::open(&path).unwrap();
        let paid = "UPDATE seckill SET state = 1, state_checksum = 0";
        assert_eq!(other.execute(paid, ()).unwrap(), 1);
    };
    fail_parallel::cfg_callback(Arc::clone(&registry), "begin", set_paid).unwrap();
    let cancel = || {
        let order_id = &claim.order_id;
        context.engine.change_order(order_id, OrderChange::Cancel)
    };
    let fault = cancel().await.unwrap_err();
    assert_eq!(fault.effect, Effect::None, "{fault}");
    fail_parallel::cfg(registry, "begin", "off").unwrap();
    context.wait_until_ready().await;
    let expected = NotAllowed {
        state: OrderState::Paid,
    };
    assert_eq!(cancel().await, Ok(Err(OrderRefused::NotAllowed(expected))));
    context.audited(Vec::new(), 1).await;
}

/// An order id with a future time has no order, and the writer is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_id_with_a_future_time_has_no_order() {
    let (_dir, engine, other) = locked_engine().await;
    // This attempt blocks the writer, which cannot answer anything else meanwhile.
    let verdict = engine.decide_one(keyed("k")).await;
    assert!(matches!(verdict, Ok(Verdict::Pending(_))), "{verdict:?}");
    let future = seckill_sale::OrderId::new("ffffffffffff7000b000000000000000").unwrap();
    assert_eq!(engine.order(&future).await, Ok(Outcome::None));
    let cancelled = engine.change_order(&future, OrderChange::Cancel).await;
    assert_eq!(cancelled, Ok(Err(OrderRefused::NoSuchOrder)));
    other.execute_batch("ROLLBACK").unwrap();
}

/// A limit that is set on a running sale counts existing orders, even after a restart, but does not
/// change their rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_changes_without_changing_orders() {
    let context = context(10).await;
    for key in ["a", "b", "c"] {
        let claimed = context.decide(keyed(key)).await;
        assert!(matches!(claimed, Ok(Verdict::Claimed(_))), "{claimed:?}");
    }
    let limit = |limit| SaleChange {
        buyer_limit: Some(limit),
        ..SaleChange::default()
    };
    let limited = context.engine.change_sale(&sale(), limit(Some(3))).await;
    assert!(matches!(limited, Ok(Ok(_))), "{limited:?}");
    let path = context.dir.path().join(seckill_embedded::DATABASE_FILE);
    let file = rusqlite::Connection::open(path).unwrap();
    let query = "SELECT count(*) FROM seckill WHERE slot IS NOT NULL OR version > 1";
    let changed: u32 = file.query_row(query, (), |row| row.get(0)).unwrap();
    assert_eq!(changed, 0);
    drop(file);
    let rejected = context.decide(keyed("d")).await;
    let reached = Rejection::LimitReached { limit: 3 };
    assert_eq!(rejected, Ok(Verdict::Rejected(reached)));
    let below = context.engine.change_sale(&sale(), limit(Some(2))).await;
    assert!(matches!(below, Ok(Err(_))), "{below:?}");
    let lifted = context.engine.change_sale(&sale(), limit(None)).await;
    assert!(matches!(lifted, Ok(Ok(_))), "{lifted:?}");
    let claimed = context.decide(keyed("d")).await;
    assert!(matches!(claimed, Ok(Verdict::Claimed(_))), "{claimed:?}");
    context.audited(Vec::new(), 4).await;
    let limited = context.engine.change_sale(&sale(), limit(Some(4))).await;
    assert!(matches!(limited, Ok(Ok(_))), "{limited:?}");
    context.engine.close().await;
    let TestContext { dir, engine, .. } = context;
    drop(engine);
    let engine = EmbeddedEngine::open(EmbeddedOptions::new(dir.path())).unwrap();
    let rejected = engine.decide_one(keyed("e")).await;
    let reached = Rejection::LimitReached { limit: 4 };
    assert_eq!(rejected, Ok(Verdict::Rejected(reached)));
    engine.close().await;
}
