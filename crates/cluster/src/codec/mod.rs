//! The words that travel between gate, log and store: order ids, the claim's message, digests of names.
//! No I/O here.

pub(crate) mod digest;
pub(crate) mod message;
pub(crate) mod order_id;
