//! The vocabulary and the rules of a sale, as plain values and functions.
//! Nothing here does I/O, reads a clock, blocks or locks. Engines do that, so that a simulator can
//! drive the same rules.

mod attempt;
mod audit;
mod ids;
mod order;
mod rules;
mod sale;
mod stock;

pub use attempt::{Attempt, Claim, Invalid, Rejection, Verdict};
pub use audit::{
    AuditReport, Auditor, HistoryEntry, Invariant, OrderFacts, RowIntegrity, SaleReport, Violation,
};
pub use ids::{Buyer, IdempotencyKey, InvalidName, OrderId, SaleId};
pub use order::{NotAllowed, Order, OrderChange, OrderState};
pub use rules::{Context, Decision, KeyedClaim, decide};
pub use sale::{
    BUYER_LIMIT_MAX, ChangeRefused, InvalidSale, NewSale, SALE_TITLE_MAX_BYTES, SALE_TOTAL_MAX,
    Sale, SaleChange, SaleUsage, WindowState,
};
pub use stock::{Holding, Slots, Stock, StockRebuild, Taken, Unit, UnitFault};

/// The sale that `POST /seckill` sells from, named after the tutorial's Redis key.
pub const DEFAULT_SALE_ID: &str = "counter";
