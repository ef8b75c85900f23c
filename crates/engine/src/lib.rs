//! The port: the interface through which the service, the command line and the tests use an engine.
//! Nothing here is specific to one engine, and nothing here does I/O.

#[cfg(feature = "conformance")]
pub mod conformance;
mod fault;
mod reply;

use std::future::Future;
use std::pin::Pin;

use seckill_sale::{
    Attempt, AuditReport, Buyer, Event, HistoryEntry, IdempotencyKey, NewSale, NotAllowed, Order,
    OrderChange, OrderId, Sale, SaleChange, SaleId, SaleRefused, Verdict,
};

pub use fault::{Cause, Effect, Fault};
pub use reply::{Deliveries, Mailbox, NoReply, Replies, Reply, Submitted, Ticket, WithoutReply};

/// The maximum number of attempts in one call of [`Engine::decide`].
pub const DECIDE_MAX: usize = 256;
/// The maximum number of sales that one call of [`Engine::sales`] returns.
pub const SALES_PAGE_MAX: usize = 1_000;
/// The maximum number of events that one call of [`Engine::events`] returns.
pub const EVENTS_PAGE_MAX: usize = 1_000;

/// A boxed future, so that [`Engine`] is dyn-compatible.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the engine knows about an order id or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The order is stored.
    Order(Order),
    /// Not decided yet; query again later.
    Pending,
    /// There is no order. No order will ever have this id; the key can still be used.
    None,
}

/// Why an order was not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderRefused {
    NoSuchOrder,
    /// The claim is not decided yet; retry later.
    Pending,
    /// The state of the order does not allow it.
    NotAllowed(NotAllowed),
}

/// A sale and its remaining stock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleStock {
    pub sale: Sale,
    /// Free units of each item, according to the gate.
    pub free: Vec<u32>,
}

impl SaleStock {
    /// Free units of all items.
    pub fn remaining(&self) -> u32 {
        self.free.iter().sum()
    }
}

/// A component of the engine, and whether it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// For example, `store`.
    pub name: &'static str,
    pub ready: bool,
    /// What is wrong and what happens next; empty when ready.
    pub detail: String,
}

/// The value of one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Ends with the unit, and does not include the product's prefix.
    pub name: &'static str,
    pub help: &'static str,
    /// Whether the value never decreases.
    pub is_counter: bool,
    pub value: f64,
}

/// A flash-sale engine. ARCHITECTURE.md lists the invariants that every engine must hold; the
/// conformance suite checks them.
pub trait Engine: Send + Sync {
    /// Answers an attempt from memory alone: no I/O, no waiting, no lock that a claim can hold.
    /// `None` means that the attempt has to be passed to [`Engine::decide`]. A rejection depends
    /// only on durable claims, and a repeat is answered only if its claim is durable.
    fn answer_from_memory(&self, attempt: &Attempt) -> Option<Verdict>;

    /// Decides up to [`DECIDE_MAX`] attempts in order, and returns once the resulting claims are
    /// durable. Each attempt has its own result. A fault states whether the attempt took effect; if
    /// a claim may have been made, the result is [`Verdict::Pending`] instead. The engine's own
    /// deadline bounds the call.
    fn decide(&self, attempts: Vec<Attempt>) -> BoxFuture<'_, Vec<Result<Verdict, Fault>>>;

    /// Submits a single attempt, as [`Engine::decide`] does, without a boxed future. The verdict is
    /// posted to the mailbox of the event loop that waits for it. Must be called within a Tokio
    /// runtime.
    fn submit(&self, attempt: Attempt, mailbox: &Mailbox) -> Submitted;

    /// Submits a single attempt and waits for its verdict.
    fn decide_one(&self, attempt: Attempt) -> BoxFuture<'_, Result<Verdict, Fault>> {
        Box::pin(async move { self.submit(attempt, &Mailbox::direct()).verdict().await })
    }

    /// The outcome of a claim.
    fn order<'a>(&'a self, order_id: &'a OrderId) -> BoxFuture<'a, Result<Outcome, Fault>>;

    /// The outcome of the attempts with a key.
    fn order_of_key<'a>(
        &'a self,
        sale: &'a SaleId,
        buyer: &'a Buyer,
        key: &'a IdempotencyKey,
    ) -> BoxFuture<'a, Result<Outcome, Fault>>;

    /// Changes the state of an order, and returns the changed order once it is durable. Idempotent.
    fn change_order<'a>(
        &'a self,
        order_id: &'a OrderId,
        change: OrderChange,
    ) -> BoxFuture<'a, Result<Result<Order, OrderRefused>, Fault>>;

    fn create_sale(&self, new: NewSale) -> BoxFuture<'_, Result<Result<Sale, SaleRefused>, Fault>>;

    /// Changes a sale's terms, all or nothing. Attempts that start after it has returned see the
    /// new terms.
    fn change_sale<'a>(
        &'a self,
        id: &'a SaleId,
        change: SaleChange,
    ) -> BoxFuture<'a, Result<Result<Sale, SaleRefused>, Fault>>;

    fn sale<'a>(&'a self, id: &'a SaleId) -> BoxFuture<'a, Result<Option<SaleStock>, Fault>>;

    /// Up to [`SALES_PAGE_MAX`] sales in id order, starting after `after`.
    fn sales(&self, after: Option<SaleId>) -> BoxFuture<'_, Result<Vec<SaleStock>, Fault>>;

    /// Up to [`EVENTS_PAGE_MAX`] events of a sale by ascending number, starting after number
    /// `after`; `None` if there is no such sale. Only durable events are returned, and none is
    /// missing between two of them.
    fn events<'a>(
        &'a self,
        sale: &'a SaleId,
        after: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<Event>>, Fault>>;

    /// Checks the invariants on one consistent view of gate and store, and against the
    /// confirmations that clients recorded.
    fn audit(&self, history: Vec<HistoryEntry>) -> BoxFuture<'_, Result<AuditReport, Fault>>;

    fn components(&self) -> Vec<Component>;

    /// Fails with the reason if only restarting the process helps.
    fn liveness(&self) -> Result<(), String> {
        Ok(())
    }

    fn samples(&self) -> Vec<Sample>;

    /// Stops accepting attempts, completes the accepted ones, and releases the engine's resources.
    fn close(&self) -> BoxFuture<'_, ()>;
}
