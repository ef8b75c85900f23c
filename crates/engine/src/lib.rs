//! The port: everything that the service, the command line, the load tool and the tests know of an engine.
//! No engine's own words belong here, and nothing here does I/O.

#[cfg(feature = "conformance")]
pub mod conformance;
mod fault;

use std::future::Future;
use std::pin::Pin;

use seckill_sale::{
    Attempt, AuditReport, Buyer, ChangeRefused, HistoryEntry, IdempotencyKey, InvalidSale, NewSale,
    NotAllowed, Order, OrderChange, OrderId, Sale, SaleChange, SaleId, Verdict,
};

pub use fault::{Cause, Effect, Fault};

/// The most attempts in one call of [`Engine::decide`].
pub const DECIDE_MAX: usize = 256;
/// The most sales in one answer of [`Engine::sales`].
pub const SALES_PAGE_MAX: usize = 1_000;

/// An answer that takes I/O.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What is known of an order id or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The claim stands in the order store.
    Order(Order),
    /// Not decided yet; ask again.
    Pending,
    /// No order has this name, and none will.
    None,
}

/// Why an order was not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderRefused {
    /// No order has this name.
    NoSuchOrder,
    /// The claim is not decided yet; ask again.
    Pending,
    /// Its state does not allow it.
    NotAllowed(NotAllowed),
}

/// Why a sale was not made or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaleRefused {
    /// The id is taken, by a sale of these terms.
    #[error("sale {} exists already, with {} units", .0.id, .0.total)]
    Exists(Box<Sale>),
    /// No sale has this id.
    #[error("there is no sale {0}")]
    NoSuchSale(SaleId),
    /// The terms are not valid.
    #[error(transparent)]
    InvalidSale(#[from] InvalidSale),
    /// The change is not possible.
    #[error(transparent)]
    Change(#[from] ChangeRefused),
}

/// A sale and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleStock {
    /// Its terms.
    pub sale: Sale,
    /// Units free now, by the gate.
    pub free: u32,
}

/// A part of the engine, and whether it can do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name, such as `store`.
    pub name: &'static str,
    /// Whether it can.
    pub ready: bool,
    /// What is wrong and what happens next, in words; empty when ready.
    pub detail: String,
}

/// One of the engine's own figures, for the metrics page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Its name, unit last, without the product's prefix.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Whether it only ever grows.
    pub is_counter: bool,
    /// Its value now.
    pub value: f64,
}

/// A flash-sale engine. See the invariants in ARCHITECTURE.md; the conformance suite holds every engine to them.
pub trait Engine: Send + Sync {
    /// Answers an attempt from memory alone: no I/O, no waiting, no lock that a claim can hold. `None` means that it has to
    /// be decided. A no is only given if it rests on durable claims; a repeat only if its claim is durable.
    fn answer_from_memory(&self, attempt: &Attempt) -> Option<Verdict>;

    /// Decides up to [`DECIDE_MAX`] attempts, in their order, and answers when the claims among them are durable. Each
    /// attempt has its own answer; a fault tells whether it had an effect, and [`Verdict::Pending`] is what is said
    /// when that is unknown. Bounded by the engine's own deadline.
    fn decide(&self, attempts: Vec<Attempt>) -> BoxFuture<'_, Vec<Result<Verdict, Fault>>>;

    /// [`Engine::decide`] of a single attempt, as each HTTP request brings one.
    fn decide_one(&self, attempt: Attempt) -> BoxFuture<'_, Result<Verdict, Fault>> {
        Box::pin(async move {
            let verdict = self.decide(vec![attempt]).await.pop();
            verdict
                .unwrap_or_else(|| Err(Fault::unknown(Cause::Store, "the engine gave no verdict")))
        })
    }

    /// What became of a claim.
    fn order<'a>(&'a self, order_id: &'a OrderId) -> BoxFuture<'a, Result<Outcome, Fault>>;

    /// What became of the attempts under a key.
    fn order_of_key<'a>(
        &'a self,
        sale: &'a SaleId,
        buyer: &'a Buyer,
        key: &'a IdempotencyKey,
    ) -> BoxFuture<'a, Result<Outcome, Fault>>;

    /// Changes the state of an order, and answers when that is durable, with the order as it is then. A change that
    /// was made before is not made again and is no error.
    fn change_order<'a>(
        &'a self,
        order_id: &'a OrderId,
        change: OrderChange,
    ) -> BoxFuture<'a, Result<Result<Order, OrderRefused>, Fault>>;

    /// Makes a sale.
    fn create_sale(&self, new: NewSale) -> BoxFuture<'_, Result<Result<Sale, SaleRefused>, Fault>>;

    /// Changes a sale's terms, all or nothing. Attempts that begin after the answer see the new terms.
    fn change_sale<'a>(
        &'a self,
        id: &'a SaleId,
        change: SaleChange,
    ) -> BoxFuture<'a, Result<Result<Sale, SaleRefused>, Fault>>;

    /// A sale's terms and what is left.
    fn sale<'a>(&'a self, id: &'a SaleId) -> BoxFuture<'a, Result<Option<SaleStock>, Fault>>;

    /// Up to [`SALES_PAGE_MAX`] sales in the order of their ids, beginning behind `after`.
    fn sales(&self, after: Option<SaleId>) -> BoxFuture<'_, Result<Vec<SaleStock>, Fault>>;

    /// Checks the invariants on one consistent view of gate and store, with the confirmations that clients read.
    fn audit(&self, history: Vec<HistoryEntry>) -> BoxFuture<'_, Result<AuditReport, Fault>>;

    /// The engine's parts and whether they are ready.
    fn components(&self) -> Vec<Component>;

    /// The engine's own figures.
    fn samples(&self) -> Vec<Sample>;

    /// Stops taking attempts, finishes what was taken, and lets go of what it holds.
    fn close(&self) -> BoxFuture<'_, ()>;
}
