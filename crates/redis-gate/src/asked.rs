//! An attempt as it is sent to the gate. No I/O.

use seckill_cluster_codec::digest::Digester;
use seckill_cluster_codec::message;
use seckill_sale::{Attempt, OrderId};

/// An attempt with its order id and digests. Sending it again is idempotent.
#[derive(Debug, Clone)]
pub struct Asked {
    pub order_id: OrderId,
    pub attempt: Attempt,
    pub(crate) buyer_digest: String,
    pub(crate) key_digest: String,
    /// The attempt's part of the claim message.
    pub part: String,
}

impl Asked {
    pub fn new(order_id: OrderId, attempt: Attempt, digester: &Digester) -> Self {
        let key = attempt.key.as_ref();
        Self {
            buyer_digest: digester.buyer(&attempt.buyer),
            key_digest: key.map_or_else(String::new, |key| digester.key(&attempt.buyer, key)),
            part: message::attempt_part(&order_id, &attempt),
            order_id,
            attempt,
        }
    }
}
