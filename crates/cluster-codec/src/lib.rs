//! What gate, log and store write and read alike: order ids, claim messages, digests of buyers and
//! keys, and URLs without passwords. No I/O here, and nothing that only one of the three needs.

pub mod digest;
pub mod message;
pub mod order_id;
mod url;

pub use url::without_password;
