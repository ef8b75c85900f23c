//! The port: everything that the service, the command line and the tests know of an engine.
//! Nothing here belongs to one engine alone, and nothing here does I/O.

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

/// The result of a call that takes I/O.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What is known of an order id or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The order is stored.
    Order(Order),
    /// Not decided yet; ask again.
    Pending,
    /// No order has this name, and none will.
    None,
}

/// Why an order was not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderRefused {
    NoSuchOrder,
    /// The claim is not decided yet; ask again.
    Pending,
    /// The state of the order does not allow it.
    NotAllowed(NotAllowed),
}

/// Why a sale was not made or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaleRefused {
    #[error("sale {} exists already, with {} units", .0.id, .0.total)]
    Exists(Box<Sale>),
    #[error("there is no sale {0}; `seckill sale list` shows those there are")]
    NoSuchSale(SaleId),
    #[error(transparent)]
    InvalidSale(#[from] InvalidSale),
    #[error(transparent)]
    Change(#[from] ChangeRefused),
}

/// A sale, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleStock {
    pub sale: Sale,
    /// Free units, according to the gate.
    pub free: u32,
}

/// A component of the engine, and whether it can do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Such as `store`.
    pub name: &'static str,
    pub ready: bool,
    /// What is wrong and what happens next; empty when ready.
    pub detail: String,
}

/// One value of the engine for the metrics page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Unit last, without the product's prefix.
    pub name: &'static str,
    pub help: &'static str,
    /// Whether it only ever grows.
    pub is_counter: bool,
    pub value: f64,
}

/// A flash-sale engine. See the invariants in ARCHITECTURE.md; the conformance suite holds every engine to them.
pub trait Engine: Send + Sync {
    /// Answers an attempt from memory alone: no I/O, no waiting, no lock that a claim can hold.
    /// `None` means that the attempt has to be decided. A rejection rests on durable claims alone,
    /// and a repeat is answered only if its claim is durable.
    fn answer_from_memory(&self, attempt: &Attempt) -> Option<Verdict>;

    /// Decides up to [`DECIDE_MAX`] attempts in their order, and returns when the claims among them
    /// are durable. Each attempt has its own result. A fault tells whether it had an effect; if that
    /// is unknown, the result is [`Verdict::Pending`]. Bounded by the engine's own deadline.
    fn decide(&self, attempts: Vec<Attempt>) -> BoxFuture<'_, Vec<Result<Verdict, Fault>>>;

    /// [`Engine::decide`] for a single attempt, which is what an HTTP request brings.
    fn decide_one(&self, attempt: Attempt) -> BoxFuture<'_, Result<Verdict, Fault>> {
        Box::pin(async move {
            let verdict = self.decide(vec![attempt]).await.pop();
            verdict
                .unwrap_or_else(|| Err(Fault::unknown(Cause::Store, "the engine gave no verdict")))
        })
    }

    /// The outcome of a claim.
    fn order<'a>(&'a self, order_id: &'a OrderId) -> BoxFuture<'a, Result<Outcome, Fault>>;

    /// The outcome of the attempts under a key.
    fn order_of_key<'a>(
        &'a self,
        sale: &'a SaleId,
        buyer: &'a Buyer,
        key: &'a IdempotencyKey,
    ) -> BoxFuture<'a, Result<Outcome, Fault>>;

    /// Changes the state of an order, and returns the changed order when it is durable. Idempotent.
    fn change_order<'a>(
        &'a self,
        order_id: &'a OrderId,
        change: OrderChange,
    ) -> BoxFuture<'a, Result<Result<Order, OrderRefused>, Fault>>;

    fn create_sale(&self, new: NewSale) -> BoxFuture<'_, Result<Result<Sale, SaleRefused>, Fault>>;

    /// Changes a sale's terms, all or nothing. Attempts that begin after it has returned see the new
    /// terms.
    fn change_sale<'a>(
        &'a self,
        id: &'a SaleId,
        change: SaleChange,
    ) -> BoxFuture<'a, Result<Result<Sale, SaleRefused>, Fault>>;

    fn sale<'a>(&'a self, id: &'a SaleId) -> BoxFuture<'a, Result<Option<SaleStock>, Fault>>;

    /// Up to [`SALES_PAGE_MAX`] sales in the order of their ids, starting after `after`.
    fn sales(&self, after: Option<SaleId>) -> BoxFuture<'_, Result<Vec<SaleStock>, Fault>>;

    /// Checks the invariants on one consistent view of gate and store, and against the confirmations
    /// that clients recorded.
    fn audit(&self, history: Vec<HistoryEntry>) -> BoxFuture<'_, Result<AuditReport, Fault>>;

    fn components(&self) -> Vec<Component>;

    /// Fails with the reason if only a restart of the process helps.
    fn liveness(&self) -> Result<(), String> {
        Ok(())
    }

    fn samples(&self) -> Vec<Sample>;

    /// Stops taking attempts, finishes those it has taken, and releases its resources.
    fn close(&self) -> BoxFuture<'_, ()>;
}
