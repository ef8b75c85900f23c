//! The test cases. Each covers one behaviour, is named after it, and ends with the audit.

use std::collections::HashMap;
use std::sync::Arc;

use seckill_sale::{
    Attempt, Claim, HistoryEntry, Invalid, Lines, NewSale, OrderChange, OrderId, OrderState,
    Rejection, SaleChange, Verdict,
};

use super::{
    EngineFactory, TestContext, anyone, ask, audited, buy, by, cancel, change, create,
    distinct_units, history_entry, key, keyed, limited, named, sale, sale_id, stored, unit,
};
use crate::{DECIDE_MAX, Engine, OrderRefused, Outcome};

/// Far in the future: the year 2100, in Unix milliseconds.
const FAR_MS: i64 = 4_102_444_800_000;

pub(super) async fn all_at_once(engine: &Arc<dyn Engine>, attempts: Vec<Attempt>) -> Vec<Verdict> {
    let tasks: Vec<_> = attempts
        .into_iter()
        .map(|attempt| {
            let engine = Arc::clone(engine);
            tokio::spawn(async move { ask(&engine, attempt).await })
        })
        .collect();
    let mut verdicts = Vec::new();
    for task in tasks {
        match task.await {
            Ok(verdict) => verdicts.push(verdict),
            Err(error) => panic!("{error}"),
        }
    }
    verdicts
}

pub(super) fn claims(verdicts: &[Verdict]) -> Vec<Claim> {
    let claim = |verdict: &Verdict| match verdict {
        Verdict::Claimed(claim) => Some(claim.clone()),
        _ => None,
    };
    verdicts.iter().filter_map(claim).collect()
}

pub(super) fn count(verdicts: &[Verdict], wanted: &Verdict) -> usize {
    verdicts.iter().filter(|verdict| *verdict == wanted).count()
}

/// 500 parallel attempts for 100 units: 100 confirmations with different units, 400 rejections.
pub async fn sells_each_unit_once_to_parallel_buyers<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(100)).await;
    let verdicts = all_at_once(&engine, vec![anyone(); 500]).await;
    let claims = claims(&verdicts);
    assert_eq!((claims.len(), distinct_units(&claims)), (100, 100));
    assert_eq!(
        count(&verdicts, &Verdict::Rejected(Rejection::SoldOut)),
        400
    );
    assert_eq!(
        engine.answer_from_memory(&anyone()),
        Some(Verdict::Rejected(Rejection::SoldOut))
    );
    let report = audited(&engine, &claims).await;
    assert_eq!((report.store_rows, report.gate_left), (100, 0));
}

/// The same within one call, in order. A call with too many attempts has no effect.
pub async fn sells_each_unit_once_inside_one_call<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(3)).await;
    let too_many = engine.decide(vec![anyone(); DECIDE_MAX + 1]).await;
    assert!(too_many.iter().all(Result::is_err) && too_many.len() == DECIDE_MAX + 1);
    let verdicts: Vec<Verdict> = engine
        .decide(vec![anyone(); 5])
        .await
        .into_iter()
        .map(|verdict| verdict.unwrap_or_else(|fault| panic!("{fault}")))
        .collect();
    let claims = claims(&verdicts);
    let remaining: Vec<u32> = claims.iter().map(|claim| claim.remaining).collect();
    assert_eq!(remaining, [2, 1, 0]);
    assert_eq!(
        verdicts[3..],
        [
            Verdict::Rejected(Rejection::SoldOut),
            Verdict::Rejected(Rejection::SoldOut)
        ]
    );
    audited(&engine, &claims).await;
}

/// A key returns its claim with the current state of the order: when the sale is sold out, after
/// the order was cancelled, after a restart. It never does so for different content.
pub async fn repeats_the_claim_of_a_key_for_ever<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(1)).await;
    let claim = buy(&engine, keyed("ann", "k")).await;
    let repeats = |verdict: &Verdict, expected: OrderState| match verdict {
        Verdict::Repeat {
            claim: again,
            state,
        } => {
            (&again.order_id, &again.units) == (&claim.order_id, &claim.units) && *state == expected
        }
        _ => false,
    };
    let other_content = Attempt {
        lines: Lines::Quantity(2),
        ..keyed("ann", "k")
    };
    let again = ask(&engine, keyed("ann", "k")).await;
    assert!(repeats(&again, OrderState::Reserved), "{again:?}");
    assert_eq!(ask(&engine, other_content.clone()).await, Verdict::Mismatch);
    cancel(&engine, &claim.order_id).await;
    let again = ask(&engine, keyed("ann", "k")).await;
    assert!(repeats(&again, OrderState::Cancelled), "{again:?}");
    // Another buyer has the unit now; the key still returns the state of its own order.
    buy(&engine, by("bob")).await;
    let engine = context.reopen(engine).await;
    let again = ask(&engine, keyed("ann", "k")).await;
    assert!(repeats(&again, OrderState::Cancelled), "{again:?}");
    assert_eq!(ask(&engine, other_content).await, Verdict::Mismatch);
    let report = audited(&engine, &[claim]).await;
    assert_eq!((report.store_rows, report.gate_left), (2, 0));
}

/// The same key of another buyer, or in another sale, is for another attempt.
pub async fn counts_a_key_within_its_sale_and_buyer<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(3)).await;
    create(&engine, NewSale::units(sale_id("other"), 1)).await;
    let ann = buy(&engine, keyed("ann", "k")).await;
    let bob = buy(&engine, keyed("bob", "k")).await;
    let upper = buy(&engine, keyed("Ann", "k")).await;
    let in_other_sale = Attempt {
        sale: sale_id("other"),
        ..keyed("ann", "k")
    };
    let other = buy(&engine, in_other_sale).await;
    let ids = [&ann, &bob, &upper, &other].map(|claim| claim.order_id.as_str());
    assert_eq!(
        ids.iter().collect::<std::collections::HashSet<_>>().len(),
        4
    );
    audited(&engine, &[ann, bob, upper]).await;
}

/// 200 parallel attempts with 20 keys: one claim per key, which every answer to the key returns.
pub async fn gives_one_claim_to_a_key_that_is_tried_in_parallel<F: EngineFactory>(
    context: TestContext<F>,
) {
    let engine = context.open().await;
    create(&engine, sale(200)).await;
    let attempts: Vec<Attempt> = (0..200)
        .map(|i| keyed("ann", &format!("k{}", i % 20)))
        .collect();
    let keys: Vec<_> = attempts.iter().map(|attempt| attempt.key.clone()).collect();
    let verdicts = all_at_once(&engine, attempts).await;
    let mut order_of_key: HashMap<_, OrderId> = HashMap::new();
    for (key, verdict) in keys.into_iter().zip(&verdicts) {
        let (Verdict::Claimed(claim) | Verdict::Repeat { claim, .. }) = verdict else {
            panic!("neither a claim nor a repeat: {verdict:?}");
        };
        let first = order_of_key
            .entry(key)
            .or_insert_with(|| claim.order_id.clone());
        assert_eq!(*first, claim.order_id);
    }
    let claims = claims(&verdicts);
    assert_eq!(claims.len(), 20);
    let report = audited(&engine, &claims).await;
    assert_eq!((report.store_rows, report.gate_left), (20, 180));
}

/// 10 buyers with 20 parallel attempts each, at a limit of 2.
pub async fn holds_the_limit_against_parallel_attempts<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, limited(100, 2)).await;
    let attempts = (0..200).map(|i| by(&format!("b{}", i % 10))).collect();
    let verdicts = all_at_once(&engine, attempts).await;
    let claims = claims(&verdicts);
    assert_eq!(claims.len(), 20);
    let limit_reached = Verdict::Rejected(Rejection::LimitReached { limit: 2 });
    assert_eq!(count(&verdicts, &limit_reached), 180);
    let remembered = context
        .factory
        .remembers_limits()
        .then(|| limit_reached.clone());
    assert_eq!(engine.answer_from_memory(&by("b0")), remembered);
    assert_eq!(ask(&engine, by("b0")).await, limit_reached);
    audited(&engine, &claims).await;
}

/// Before, in and after the window. A key that has a claim still returns it after closing.
pub async fn answers_by_the_window<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    let not_open = NewSale {
        opens_at_ms: Some(FAR_MS),
        ..sale(2)
    };
    create(&engine, not_open).await;
    let early = ask(&engine, anyone()).await;
    assert_eq!(
        early,
        Verdict::Rejected(Rejection::NotOpen {
            opens_at_ms: FAR_MS
        })
    );
    let open = SaleChange {
        opens_at_ms: Some(None),
        closes_at_ms: Some(Some(FAR_MS)),
        ..SaleChange::default()
    };
    change(&engine, open).await;
    let claim = buy(&engine, keyed("ann", "k")).await;
    let close = SaleChange {
        closes_at_ms: Some(Some(1)),
        ..SaleChange::default()
    };
    change(&engine, close).await;
    let late = ask(&engine, anyone()).await;
    assert_eq!(
        late,
        Verdict::Rejected(Rejection::Closed { closed_at_ms: 1 })
    );
    let again = ask(&engine, keyed("ann", "k")).await;
    assert!(matches!(again, Verdict::Repeat { .. }), "{again:?}");
    let engine = context.reopen(engine).await;
    assert_eq!(ask(&engine, anyone()).await, late);
    audited(&engine, &[claim]).await;
}

/// A cancelled unit is sold again at its next generation. Cancelling twice has the effect of once.
pub async fn gives_a_cancelled_unit_back_at_its_next_generation<F: EngineFactory>(
    context: TestContext<F>,
) {
    let engine = context.open().await;
    create(&engine, sale(1)).await;
    let first = buy(&engine, anyone()).await;
    for _ in 0..2 {
        let order = cancel(&engine, &first.order_id).await;
        assert_eq!(order.state, OrderState::Cancelled);
    }
    let second = buy(&engine, anyone()).await;
    assert_eq!(unit(&second), unit(&first).next_generation());
    assert_eq!(
        ask(&engine, anyone()).await,
        Verdict::Rejected(Rejection::SoldOut)
    );
    let racing: Vec<_> = (0..20)
        .map(|_| {
            let (engine, order_id) = (Arc::clone(&engine), second.order_id.clone());
            tokio::spawn(async move { engine.change_order(&order_id, OrderChange::Cancel).await })
        })
        .collect();
    for task in racing {
        assert!(matches!(task.await, Ok(Ok(Ok(_)))));
    }
    let third = buy(&engine, anyone()).await;
    assert_eq!(unit(&third), unit(&second).next_generation());
    assert_eq!(
        ask(&engine, anyone()).await,
        Verdict::Rejected(Rejection::SoldOut)
    );
    let unknown = OrderId::new("0").unwrap_or_else(|error| panic!("{error}"));
    let refused = engine.change_order(&unknown, OrderChange::Cancel).await;
    assert_eq!(refused, Ok(Err(OrderRefused::NoSuchOrder)));
    let report = audited(&engine, &[first, second, third]).await;
    assert_eq!(report.store_rows, 3);
}

/// A buyer at the limit may buy again after cancelling an order.
pub async fn frees_the_limit_when_an_order_is_cancelled<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, limited(5, 1)).await;
    let first = buy(&engine, by("ann")).await;
    let limit_reached = Verdict::Rejected(Rejection::LimitReached { limit: 1 });
    assert_eq!(ask(&engine, by("ann")).await, limit_reached);
    cancel(&engine, &first.order_id).await;
    let second = buy(&engine, by("ann")).await;
    assert_eq!(ask(&engine, by("ann")).await, limit_reached);
    let engine = context.reopen(engine).await;
    assert_eq!(ask(&engine, by("ann")).await, limit_reached);
    audited(&engine, &[first, second]).await;
}

/// A missing sale, no buyer where a limit requires one, and a quantity that no order can have.
pub async fn answers_what_cannot_be_decided<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, limited(1, 1)).await;
    let missing = Attempt::anonymous(sale_id("missing"));
    let many = Attempt {
        lines: Lines::Quantity(17),
        ..by("ann")
    };
    let expected = [
        (missing, Invalid::NoSuchSale),
        (anyone(), Invalid::BuyerRequired),
        (many, Invalid::Quantity { max: 16 }),
        (above(2, by("ann")), Invalid::Quantity { max: 1 }),
    ];
    for (attempt, invalid) in expected {
        assert_eq!(ask(&engine, attempt).await, Verdict::Invalid(invalid));
    }
    let report = audited(&engine, &[]).await;
    assert_eq!((report.store_rows, report.gate_left), (0, 1));
}

/// An attempt at a time when an order may have one unit less.
fn above(quantity: u32, attempt: Attempt) -> Attempt {
    Attempt {
        lines: Lines::Quantity(quantity),
        units_max: quantity - 1,
        ..attempt
    }
}

/// A key keeps its claim when orders of so many units are no longer sold.
pub async fn keys_keep_claims_above_a_lowered_maximum<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(9)).await;
    let attempt = |key| Attempt {
        lines: Lines::Quantity(3),
        ..keyed("ann", key)
    };
    let claim = buy(&engine, attempt("k")).await;
    let again = ask(&engine, above(3, attempt("k"))).await;
    assert!(
        matches!(&again, Verdict::Repeat { claim: found, .. } if found.order_id == claim.order_id),
        "{again:?}"
    );
    let other_content = ask(&engine, above(4, keyed("ann", "k"))).await;
    assert_eq!(other_content, Verdict::Mismatch);
    let new_key = ask(&engine, above(3, attempt("new"))).await;
    assert_eq!(new_key, Verdict::Invalid(Invalid::Quantity { max: 2 }));
    audited(&engine, &[claim]).await;
}

/// An order is found by its id and by its key. An id that was never issued has no order.
pub async fn tells_what_became_of_an_order<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(2)).await;
    let claim = buy(&engine, keyed("ann", "k")).await;
    let order = stored(&engine, &claim.order_id).await;
    assert_eq!((&order.units, &order.buyer), (&claim.units, &named("ann")));
    assert_eq!(
        (order.state, order.idempotency_key.clone()),
        (OrderState::Reserved, Some(key("k")))
    );
    let order_of_key = engine
        .order_of_key(&sale_id("s"), &named("ann"), &key("k"))
        .await;
    assert_eq!(order_of_key, Ok(Outcome::Order(order)));
    let other_key = engine
        .order_of_key(&sale_id("s"), &named("ann"), &key("x"))
        .await;
    assert_eq!(other_key, Ok(Outcome::None));
    let mut made_up = claim.order_id.to_string().into_bytes();
    let last = made_up.len() - 1;
    made_up[last] = if made_up[last] == b'0' { b'1' } else { b'0' };
    let made_up = String::from_utf8_lossy(&made_up).into_owned();
    let made_up = OrderId::new(&made_up).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(engine.order(&made_up).await, Ok(Outcome::None));
    for (buyer, key, is_clean) in [("ann", "k", true), ("bob", "k", false), ("ann", "x", false)] {
        let confirmation = HistoryEntry {
            buyer: Some(buyer.into()),
            key: Some(key.into()),
            ..history_entry(&claim)
        };
        let report = engine.audit(vec![confirmation]).await;
        let report = report.unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(report.is_clean(), is_clean, "{:#?}", report.violations);
    }
    audited(&engine, &[claim]).await;
}

/// Orders, generations, limits, keys, terms and free units are the same after a restart.
pub async fn survives_a_restart_with_everything<F: EngineFactory>(context: TestContext<F>) {
    let mut engine = context.open().await;
    create(&engine, limited(10, 3)).await;
    let mut claims = Vec::new();
    for i in 0..6 {
        claims.push(buy(&engine, keyed(&format!("b{}", i % 2), &format!("k{i}"))).await);
    }
    cancel(&engine, &claims[0].order_id).await;
    let before = engine.sale(&sale_id("s")).await;
    for _ in 0..3 {
        engine = context.reopen(engine).await;
        assert_eq!(engine.sale(&sale_id("s")).await, before);
        let limit_reached = Verdict::Rejected(Rejection::LimitReached { limit: 3 });
        assert_eq!(ask(&engine, by("b1")).await, limit_reached);
    }
    assert_eq!(
        stored(&engine, &claims[0].order_id).await.state,
        OrderState::Cancelled
    );
    for i in 0..5 {
        claims.push(buy(&engine, by(&format!("late{i}"))).await);
    }
    assert_eq!(distinct_units(&claims), 11);
    assert_eq!(
        ask(&engine, by("last")).await,
        Verdict::Rejected(Rejection::SoldOut)
    );
    let report = audited(&engine, &claims).await;
    assert_eq!((report.store_rows, report.gate_left), (11, 0));
}

/// Many sales sell at the same time, each only its own units.
pub async fn keeps_sales_apart<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    let names: Vec<_> = (0..20).map(|i| sale_id(&format!("sale-{i}"))).collect();
    // At once, so that an engine may create several in one step.
    let created: Vec<_> = names
        .iter()
        .map(|name| {
            let (engine, new) = (Arc::clone(&engine), NewSale::units(name.clone(), 3));
            tokio::spawn(async move { create(&engine, new).await })
        })
        .collect();
    for created in created {
        assert!(created.await.is_ok());
    }
    let attempts = (0..200)
        .map(|i| Attempt::anonymous(names[i % 20].clone()))
        .collect();
    let verdicts = all_at_once(&engine, attempts).await;
    assert_eq!(claims(&verdicts).len(), 60);
    let report = audited(&engine, &[]).await;
    assert_eq!(
        (report.store_rows, report.gate_left, report.sales.len()),
        (60, 0, 20)
    );
    assert!(report.sales.iter().all(|sale| sale.active == 3));
}
