//! The gate: decides attempts in Redis, with a script or with the tutorial's WATCH/MULTI/EXEC, and
//! maintains the outbox. Its claims are only proposals. It must not use the log or the store.

mod asked;
mod gate;
mod hints;
mod keys;
mod link;
mod load;
mod options;
mod outbox;
mod reply;
mod stored;
mod url;
mod watch;

pub use asked::Asked;
pub use gate::{CLAIM_MAX, ENTRIES_MAX, Gate, Offered};
pub use hints::{HINTS_PER_CALL_MAX, Hint, HintReader};
pub use keys::GateKeys;
pub use load::{GateLoad, LoadedItem, LoadedOrder};
pub use options::{GateOptions, Strategy};
pub use outbox::{Offer, OutboxEntry};
pub use reply::{Claims, Decided, GateReply, Head, Refusal};
pub use url::InvalidRedisUrl;
