//! The suite that every engine passes, written against the port alone.
//! It never looks behind the port: what it cannot see there, a user cannot rely on.

mod cases;
mod history;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use seckill_sale::{
    Attempt, AuditReport, Buyer, Claim, HistoryEntry, IdempotencyKey, NewSale, Order, OrderId,
    Rejection, Sale, SaleChange, SaleId, Verdict,
};

use crate::{BoxFuture, Engine, Outcome};

pub use cases::*;
pub use history::random_histories_match_the_model;

/// Where one engine can be opened, and opened again over what it left behind.
pub trait EngineFactory: Send + Sync {
    /// Opens the engine. The one before has been dropped.
    fn open(&self) -> BoxFuture<'_, Arc<dyn Engine>>;

    /// Forgets everything that was stored. No engine is open.
    fn clear(&self);

    /// Whether the engine knows from memory who has reached a limit. Sold out is known from memory by every engine.
    fn remembers_limits(&self) -> bool {
        true
    }
}

/// Makes a test of each case of the suite. `$factory` is called once a test, for a factory of its own.
#[macro_export]
macro_rules! conformance_suite {
    ($factory:expr) => {
        $crate::conformance_suite!(@cases $factory;
            sells_each_unit_once_to_parallel_buyers,
            sells_each_unit_once_inside_one_call,
            repeats_the_claim_of_a_key_for_ever,
            counts_a_key_within_its_sale_and_buyer,
            gives_one_claim_to_a_key_that_is_tried_in_parallel,
            holds_the_limit_against_parallel_attempts,
            answers_by_the_window,
            gives_a_cancelled_unit_back_at_its_next_generation,
            frees_the_limit_when_an_order_is_cancelled,
            sells_again_after_units_are_added,
            takes_unsold_units_off_sale,
            changes_a_sale_only_in_the_version_that_was_read,
            refuses_sales_and_changes_that_cannot_be,
            changes_the_limit_of_a_running_sale,
            answers_what_cannot_be_decided,
            tells_what_became_of_an_order,
            survives_a_restart_with_everything,
            keeps_sales_apart,
            random_histories_match_the_model,
        );
    };
    (@cases $factory:expr; $($case:ident),* $(,)?) => {$(
        #[test]
        fn $case() {
            $crate::conformance::run(|| $factory, $crate::conformance::$case);
        }
    )*};
}

/// Runs one case in a runtime of its own, with a deadline: an engine that never answers fails instead of hanging.
pub fn run<F: EngineFactory, T>(factory: impl Fn() -> F, case: impl Fn(TestContext<F>) -> T)
where
    T: Future<Output = ()>,
{
    const DEADLINE: Duration = Duration::from_secs(120);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    runtime.block_on(async {
        let context = TestContext { factory: factory() };
        if tokio::time::timeout(DEADLINE, case(context)).await.is_err() {
            panic!("the case did not end within {DEADLINE:?}");
        }
    });
}

/// A factory with the shorthands of the cases.
pub struct TestContext<F> {
    factory: F,
}

impl<F: EngineFactory> TestContext<F> {
    /// Opens the engine.
    pub async fn open(&self) -> Arc<dyn Engine> {
        self.factory.open().await
    }

    /// Lets go of the engine without a farewell and opens it again.
    pub async fn reopen(&self, engine: Arc<dyn Engine>) -> Arc<dyn Engine> {
        assert_eq!(
            Arc::strong_count(&engine),
            1,
            "a task still holds the engine"
        );
        drop(engine);
        self.factory.open().await
    }
}

fn sale_id(name: &str) -> SaleId {
    SaleId::new(name).unwrap_or_else(|error| panic!("{error}"))
}

fn sale(total: u32) -> NewSale {
    NewSale::units(sale_id("s"), total)
}

fn limited(total: u32, limit: u32) -> NewSale {
    NewSale {
        buyer_limit: Some(limit),
        ..sale(total)
    }
}

fn key(name: &str) -> IdempotencyKey {
    IdempotencyKey::new(name).unwrap_or_else(|error| panic!("{error}"))
}

fn named(name: &str) -> Buyer {
    Buyer::new(name).unwrap_or_else(|error| panic!("{error}"))
}

fn anyone() -> Attempt {
    Attempt::anonymous(sale_id("s"))
}

fn by(buyer: &str) -> Attempt {
    Attempt {
        buyer: named(buyer),
        ..anyone()
    }
}

fn keyed(buyer: &str, name: &str) -> Attempt {
    Attempt {
        key: Some(key(name)),
        ..by(buyer)
    }
}

async fn create(engine: &Arc<dyn Engine>, new: NewSale) -> Sale {
    match engine.create_sale(new).await {
        Ok(Ok(sale)) => sale,
        other => panic!("the sale was not made: {other:?}"),
    }
}

async fn change(engine: &Arc<dyn Engine>, change: SaleChange) -> Sale {
    match engine.change_sale(&sale_id("s"), change).await {
        Ok(Ok(sale)) => sale,
        other => panic!("the sale was not changed: {other:?}"),
    }
}

/// Asks as the service does: memory first, then the decision; and waits out what is pending.
async fn ask(engine: &Arc<dyn Engine>, attempt: Attempt) -> Verdict {
    if let Some(verdict) = engine.answer_from_memory(&attempt) {
        return verdict;
    }
    let mut verdicts = engine.decide(vec![attempt]).await;
    match (verdicts.pop(), verdicts.is_empty()) {
        (Some(Ok(Verdict::Pending(order_id))), true) => settled(engine, order_id).await,
        (Some(Ok(verdict)), true) => verdict,
        other => panic!("one attempt must have one verdict, not {other:?}"),
    }
}

/// What a pending answer became. A pending attempt that came to nothing counts as sold out here: no case leaves units.
async fn settled(engine: &Arc<dyn Engine>, order_id: OrderId) -> Verdict {
    loop {
        match engine.order(&order_id).await {
            Ok(Outcome::Order(order)) => {
                return Verdict::Claimed(Claim {
                    order_id: order.order_id,
                    unit: order.unit,
                    remaining: 0,
                });
            }
            Ok(Outcome::None) => return Verdict::Rejected(Rejection::SoldOut),
            Ok(Outcome::Pending) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(fault) => panic!("{fault}"),
        }
    }
}

async fn buy(engine: &Arc<dyn Engine>, attempt: Attempt) -> Claim {
    match ask(engine, attempt).await {
        Verdict::Claimed(claim) => claim,
        other => panic!("no claim but {other:?}"),
    }
}

async fn stored(engine: &Arc<dyn Engine>, order_id: &OrderId) -> Order {
    match engine.order(order_id).await {
        Ok(Outcome::Order(order)) => order,
        other => panic!("no order but {other:?}"),
    }
}

fn promise(claim: &Claim) -> HistoryEntry {
    HistoryEntry {
        order_id: claim.order_id.clone(),
        sale: Some("s".into()),
        unit: claim.unit.number,
    }
}

/// Every case ends here: the invariants hold, and every yes that was given has its order.
async fn audited(engine: &Arc<dyn Engine>, claims: &[Claim]) -> AuditReport {
    let history: Vec<HistoryEntry> = claims.iter().map(promise).collect();
    let promised = history.len() as u64;
    let report = match engine.audit(history).await {
        Ok(report) => report,
        Err(fault) => panic!("{fault}"),
    };
    assert!(report.is_clean(), "{:#?}", report.violations);
    assert_eq!(report.confirmations_checked, promised);
    report
}

fn distinct_units(claims: &[Claim]) -> usize {
    claims
        .iter()
        .map(|claim| claim.unit)
        .collect::<HashSet<_>>()
        .len()
}
