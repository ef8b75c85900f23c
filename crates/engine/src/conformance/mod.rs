//! The conformance suite, which every engine must pass.
//! It uses only the port: users cannot rely on anything that the port does not show.

mod cases;
mod changes;
mod feed;
mod history;
mod lines;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use seckill_sale::{
    Attempt, AuditReport, Buyer, Claim, HistoryEntry, HistoryUnit, IdempotencyKey, ItemId, Lines,
    NewItem, NewSale, Order, OrderChange, OrderId, Rejection, Sale, SaleChange, SaleId, Unit,
    Verdict,
};

use crate::{BoxFuture, Engine, Outcome};

pub use cases::*;
pub use changes::*;
pub use feed::*;
pub use history::random_histories_match_the_model;
pub use lines::*;

/// Opens one engine, any number of times on the same stored data.
pub trait EngineFactory: Send + Sync {
    /// Called after the previous engine was dropped.
    fn open(&self) -> BoxFuture<'_, Arc<dyn Engine>>;

    /// Deletes all stored data. Called while no engine is open.
    fn clear(&self);

    /// Whether `answer_from_memory` rejects a buyer who has reached the limit. Every engine rejects
    /// attempts on a sold-out sale there.
    fn remembers_limits(&self) -> bool {
        true
    }
}

/// Defines one test for each case of the suite. `$factory` is evaluated for each test, so that each
/// has its own factory.
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
            keys_keep_claims_above_a_lowered_maximum,
            tells_what_became_of_an_order,
            survives_a_restart_with_everything,
            keeps_sales_apart,
            sells_all_lines_or_none,
            sells_lines_all_or_nothing_to_parallel_buyers,
            counts_units_towards_the_limit,
            releases_all_units_of_a_cancelled_order,
            changes_the_total_of_one_item,
            tells_everything_in_the_feed,
            pages_through_the_feed,
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

/// Runs one case in its own runtime, with a deadline, so that an engine that never answers fails
/// the test instead of hanging it.
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
            panic!("the case did not finish within {DEADLINE:?}");
        }
    });
}

/// A factory with helper functions for the cases.
pub struct TestContext<F> {
    factory: F,
}

impl<F: EngineFactory> TestContext<F> {
    pub async fn open(&self) -> Arc<dyn Engine> {
        self.factory.open().await
    }

    /// Drops the engine without closing it, and opens it again.
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

/// A sale of several items.
fn items(totals: &[(&str, u32)]) -> NewSale {
    let item = |&(id, total): &(&str, u32)| NewItem {
        id: item_id(id),
        title: String::new(),
        total,
        price: None,
    };
    NewSale {
        items: totals.iter().map(item).collect(),
        ..sale(0)
    }
}

fn item_id(id: &str) -> ItemId {
    ItemId::new(id).unwrap_or_else(|error| panic!("{error}"))
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

/// An attempt for several units of the sale's only item.
fn several(quantity: u32) -> Attempt {
    Attempt {
        lines: Lines::Quantity(quantity),
        ..anyone()
    }
}

/// The unit of a claim that has only one.
fn unit(claim: &Claim) -> Unit {
    match &claim.units[..] {
        [unit] => unit.unit,
        units => panic!("not one unit: {units:?}"),
    }
}

async fn cancel(engine: &Arc<dyn Engine>, order_id: &OrderId) -> Order {
    match engine.change_order(order_id, OrderChange::Cancel).await {
        Ok(Ok(order)) => order,
        other => panic!("not cancelled: {other:?}"),
    }
}

async fn create(engine: &Arc<dyn Engine>, new: NewSale) -> Sale {
    match engine.create_sale(new).await {
        Ok(Ok(sale)) => sale,
        other => panic!("the sale was not created: {other:?}"),
    }
}

async fn change(engine: &Arc<dyn Engine>, change: SaleChange) -> Sale {
    match engine.change_sale(&sale_id("s"), change).await {
        Ok(Ok(sale)) => sale,
        other => panic!("the sale was not changed: {other:?}"),
    }
}

/// Asks as the service does: memory first, then the decision. Waits for the final verdict.
async fn ask(engine: &Arc<dyn Engine>, attempt: Attempt) -> Verdict {
    if let Some(verdict) = engine.answer_from_memory(&attempt) {
        return verdict;
    }
    let mut verdicts = engine.decide(vec![attempt]).await;
    match (verdicts.pop(), verdicts.is_empty()) {
        (Some(Ok(Verdict::Pending(order_id))), true) => final_verdict(engine, order_id).await,
        (Some(Ok(verdict)), true) => verdict,
        other => panic!("one attempt must have one verdict, not {other:?}"),
    }
}

/// The final verdict of a pending attempt. If there is no order, it counts as sold out, the only
/// rejection that the cases expect of a pending attempt.
async fn final_verdict(engine: &Arc<dyn Engine>, order_id: OrderId) -> Verdict {
    loop {
        match engine.order(&order_id).await {
            Ok(Outcome::Order(order)) => {
                return Verdict::Claimed(Claim {
                    order_id: order.order_id,
                    units: order.units,
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
        other => panic!("not a claim: {other:?}"),
    }
}

async fn stored(engine: &Arc<dyn Engine>, order_id: &OrderId) -> Order {
    match engine.order(order_id).await {
        Ok(Outcome::Order(order)) => order,
        other => panic!("not an order: {other:?}"),
    }
}

fn history_entry(claim: &Claim) -> HistoryEntry {
    HistoryEntry {
        order_id: claim.order_id.clone(),
        sale: Some("s".into()),
        units: claim
            .units
            .iter()
            .map(|unit| HistoryUnit {
                item: Some(unit.item.to_string()),
                number: unit.unit.number,
                generation: Some(unit.unit.generation),
            })
            .collect(),
        buyer: None,
        key: None,
    }
}

/// Ends every case: the invariants hold, and every confirmation has its order.
async fn audited(engine: &Arc<dyn Engine>, claims: &[Claim]) -> AuditReport {
    let history: Vec<HistoryEntry> = claims.iter().map(history_entry).collect();
    let confirmations = history.len() as u64;
    let report = match engine.audit(history).await {
        Ok(report) => report,
        Err(fault) => panic!("{fault}"),
    };
    assert!(report.is_clean(), "{:#?}", report.violations);
    assert_eq!(report.confirmations_checked, confirmations);
    report
}

fn distinct_units(claims: &[Claim]) -> usize {
    claims
        .iter()
        .flat_map(|claim| &claim.units)
        .collect::<HashSet<_>>()
        .len()
}
