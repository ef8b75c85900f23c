//! Formats shared by gate, log and store: order ids, claim messages, and digests of buyers and
//! keys. No I/O here.

pub(crate) mod digest;
pub(crate) mod message;
pub(crate) mod order_id;
