//! One request to buy and everything the gate can answer to it.
//! How an attempt is decided stands in `rules`; nothing here decides.

use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::{Buyer, IdempotencyKey, OrderId, SaleId, Unit};

/// One request to buy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The sale to buy from.
    pub sale: SaleId,
    /// Who buys.
    pub buyer: Buyer,
    /// The client's name for this attempt; a repeat with the same key gets the same claim.
    pub key: Option<IdempotencyKey>,
    /// How many units. Only 1 is sold today; it is part of the content that a repeated key must match.
    pub quantity: u32,
}

impl Attempt {
    /// An attempt at one unit without a name and a key, as the tutorial sends it.
    pub fn anonymous(sale: SaleId) -> Self {
        Self {
            sale,
            buyer: Buyer::anonymous(),
            key: None,
            quantity: 1,
        }
    }

    /// The digest of the content beside sale, buyer and key: what a repeated key must match.
    /// SipHash-1-3 with a zero key over a versioned text: stored, so it must stay the same for ever.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = SipHasher13::new();
        hasher.write(b"v1 quantity ");
        hasher.write(&self.quantity.to_le_bytes());
        hasher.finish()
    }
}

/// An attempt that was given a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its name from the first moment on.
    pub order_id: OrderId,
    /// The unit it holds.
    pub unit: Unit,
    /// Units still free just after the claim; for a repeat, when the repeat was answered.
    pub remaining: u32,
}

/// A definite no. It is not stored: the same key may try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// No unit is free.
    SoldOut,
    /// The buyer holds as many units as the sale allows.
    LimitReached {
        /// The sale's limit per buyer.
        limit: u32,
    },
    /// The sale has not opened.
    NotOpen {
        /// When it opens, in Unix milliseconds.
        opens_at_ms: i64,
    },
    /// The sale has closed.
    Closed {
        /// When it closed, in Unix milliseconds.
        closed_at_ms: i64,
    },
}

/// An attempt that no state of the stock could satisfy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invalid {
    /// There is no such sale.
    NoSuchSale,
    /// The sale has a limit per buyer, so the buyer must have a name.
    BuyerRequired,
    /// Not a quantity that can be sold in one order.
    Quantity {
        /// The most that can be.
        max: u32,
    },
}

/// What the gate answers to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Yes: the unit is the buyer's, durably.
    Claimed(Claim),
    /// The key has a claim with this content: here it is again.
    Repeat(Claim),
    /// The key has a claim with other content; nothing was done.
    Mismatch,
    /// A definite no.
    Rejected(Rejection),
    /// Not an attempt that can be decided.
    Invalid(Invalid),
    /// Not known yet; the order's address will tell.
    Pending(OrderId),
    /// The gate gave a claim, and the answer was not to wait for more: it may still come to nothing.
    Accepted(OrderId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_of_the_content_and_stays_what_it_was() {
        let one = Attempt::anonymous(SaleId::new("counter").unwrap());
        let two = Attempt {
            quantity: 2,
            ..one.clone()
        };
        assert_ne!(one.fingerprint(), two.fingerprint());
        // Stored in files: a change here would turn repeats into mismatches.
        assert_eq!(one.fingerprint(), 12_353_984_810_082_321_686);
    }
}
