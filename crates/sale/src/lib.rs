//! The vocabulary and the rules of a sale, as plain values and functions.
//! Nothing here does I/O, reads a clock, blocks or locks. Engines do that, so that a simulator can
//! drive the same rules.

mod attempt;
mod audit;
mod change;
mod feed;
mod holding;
mod ids;
mod item;
mod ledger;
mod order;
mod rules;
mod sale;
mod stock;
mod units;

pub use attempt::{
    Attempt, Claim, Invalid, ItemRemaining, Line, Lines, NamedLines, Rejection, Verdict,
};
pub use audit::{
    AuditReport, AuditedEvent, Auditor, EventFacts, HistoryEntry, HistoryUnit, Invariant,
    ItemReport, RowFacts, RowIntegrity, SaleReport, Violation,
};
pub use change::{ChangeRefused, ItemChange, SaleChange, SaleRefused, SaleUsage};
pub use feed::{Event, EventKind, Replay, ReplayFault, ReplayedOrder};
pub use holding::{Holding, Slots};
pub use ids::{Buyer, IdempotencyKey, InvalidName, ItemId, OrderId, SaleId};
pub use item::{
    Currency, ITEM_TITLE_MAX_BYTES, InvalidCurrency, Item, ItemNo, NewItem, Price, SALE_ITEMS_MAX,
};
pub use ledger::{
    Attempted, ByDigest, Change, ClaimIndex, Digest, HeldOrder, Holdings, Inconsistent, Ledger,
    Names, NewClaim, OrderWrite, RebuildFault, SaleLedger, SaleNo, SaleRebuild, SaleWrite,
};
pub use order::{NotAllowed, Order, OrderChange, OrderState};
pub use rules::{Context, Decision, KeyedClaim, TakenLines, decide, resolve_lines};
pub use sale::{
    BUYER_LIMIT_MAX, InvalidSale, NewSale, SALE_TITLE_MAX_BYTES, SALE_TOTAL_MAX, Sale, WindowState,
};
pub use stock::{Stock, StockRebuild, Taken, Unit, UnitFault};
pub use units::{
    ClaimedUnit, ClaimedUnits, ItemUnit, ItemUnits, ORDER_UNITS_MAX, OrderUnit, OrderUnits,
};

/// The sale that `POST /seckill` sells from, named after the tutorial's Redis key.
pub const DEFAULT_SALE_ID: &str = "counter";
