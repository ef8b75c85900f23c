//! Every request, response and problem of the HTTP API, the control socket and `--json` output, as
//! plain types by resource. Knows only JSON: no I/O, no rules of a sale, no HTTP library.
//!
//! Readers ignore members that they do not know; only bodies that clients write are strict, so that
//! a mistyped member is not silently ignored, and they are read from JSON objects only. Times are
//! RFC 3339 in UTC with milliseconds, unless the member's name ends in `_ms`: then they are Unix
//! milliseconds.

mod attempts;
mod audit;
mod events;
mod load;
mod objects;
mod orders;
mod probes;
mod problems;
mod quantity;
mod sales;
#[cfg(test)]
mod testing;
mod units;

pub use attempts::{
    AttemptAnswer, AttemptBody, AttemptResult, Confirmation, Line, ORDER_LINES_MAX, Unconfirmed,
};
pub use audit::{
    AuditReport, AuditVerdict, Audited, CONTROL_AUDIT_PATH, HistoryEntry, HistoryUnit, Invariant,
    ItemReport, SaleReport, Violation,
};
pub use events::{
    CONTROL_EVENTS_PATH, ChangedOrder, Event, EventData, EventsQuery, ReservedOrder, SpecVersion,
};
pub use load::{DemoReport, Latency, LatencyFrom, LoadFailure, LoadOutcome, LoadReport};
pub use orders::{Order, OrderState, PendingOrder, PendingState, order_path};
pub use probes::{ComponentState, Readiness};
pub use problems::{Effect, ItemRemaining, PROBLEM_TYPE_PREFIX, Problem, ProblemKind, ProblemType};
pub use quantity::Quantity;
pub use sales::{
    CONTROL_SALES_PATH, Item, ItemChange, ItemTerms, NewItem, NewSale, Price, Sale, SaleChange,
    SaleStatus, SaleTerms, SalesQuery,
};
pub use units::{Unit, single_unit};
