//! One request to buy, and every verdict that the gate can return for it.
//! Nothing here decides an attempt; `rules` does.

use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::{Buyer, IdempotencyKey, OrderId, OrderState, SaleId, Unit};

/// One request to buy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub sale: SaleId,
    pub buyer: Buyer,
    /// The client's identifier for this attempt. A repeat with the same key returns the same claim.
    pub key: Option<IdempotencyKey>,
    /// Only 1 is supported for now. It is part of the content that a repeated key must match.
    pub quantity: u32,
}

impl Attempt {
    /// An attempt to buy one unit, without a buyer or a key, as the tutorial sends it.
    pub fn anonymous(sale: SaleId) -> Self {
        Self {
            sale,
            buyer: Buyer::anonymous(),
            key: None,
            quantity: 1,
        }
    }

    /// A digest of the content (everything except sale, buyer and key), which a repeated key must
    /// match. It is SipHash-1-3 with a zero key over a versioned encoding. It is stored, so the
    /// algorithm must never change.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = SipHasher13::new();
        hasher.write(b"v1 quantity ");
        hasher.write(&self.quantity.to_le_bytes());
        hasher.finish()
    }
}

/// The result of an attempt that received a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub order_id: OrderId,
    pub unit: Unit,
    /// Free units right after the claim; for a repeat, at the time of the repeat.
    pub remaining: u32,
}

/// A definite negative answer. It is not stored, so the same key can be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    SoldOut,
    /// The buyer already holds as many units as the sale allows.
    LimitReached {
        limit: u32,
    },
    NotOpen {
        /// Unix milliseconds.
        opens_at_ms: i64,
    },
    Closed {
        /// Unix milliseconds.
        closed_at_ms: i64,
    },
}

/// Why an attempt cannot be decided, regardless of the stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invalid {
    NoSuchSale,
    /// The sale has a limit per buyer, but the attempt names no buyer.
    BuyerRequired,
    /// One order cannot have this quantity.
    Quantity {
        max: u32,
    },
}

/// The gate's answer to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The confirmation: the order is stored durably.
    Claimed(Claim),
    /// The key already has a claim with this content. `state` is the current state of its
    /// order; an order that has ended no longer holds its unit.
    Repeat {
        claim: Claim,
        state: OrderState,
    },
    /// The key already has a claim with different content. Nothing was done.
    Mismatch,
    Rejected(Rejection),
    Invalid(Invalid),
    /// The outcome is not known yet. Query the order by its id.
    Pending(OrderId),
    /// The gate made a claim, and the service does not wait for the store. The claim may still
    /// fail to become an order.
    Accepted(OrderId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_depends_on_the_content_and_is_stable() {
        let one = Attempt::anonymous(SaleId::new("counter").unwrap());
        let two = Attempt {
            quantity: 2,
            ..one.clone()
        };
        assert_ne!(one.fingerprint(), two.fingerprint());
        // Fingerprints are stored in files: if they changed, repeats would become mismatches.
        assert_eq!(one.fingerprint(), 12_353_984_810_082_321_686);
    }
}
