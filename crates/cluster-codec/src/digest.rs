//! Digests of buyers and idempotency keys, which identify them in the gate: 128 bits of
//! SipHash-1-3, keyed with the store's secret so that no one can construct a collision. No I/O.

use std::hash::Hasher;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use seckill_sale::{Buyer, IdempotencyKey};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::order_id::SECRET_BYTES;

#[derive(Debug, Clone, Copy)]
pub struct Digester(SipHasher13);

impl Digester {
    pub fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }

    /// Empty for the anonymous buyer, who has no limit.
    pub fn buyer(&self, buyer: &Buyer) -> String {
        if buyer.is_anonymous() {
            return String::new();
        }
        self.text(&[buyer.as_str()])
    }

    pub fn key(&self, buyer: &Buyer, key: &IdempotencyKey) -> String {
        self.text(&[buyer.as_str(), key.as_str()])
    }

    fn text(&self, parts: &[&str]) -> String {
        let mut hasher = self.0;
        for part in parts {
            // The length distinguishes ("ab", "c") from ("a", "bc").
            hasher.write(&(part.len() as u32).to_le_bytes());
            hasher.write(part.as_bytes());
        }
        STANDARD_NO_PAD.encode(hasher.finish128().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_depend_on_the_boundary_between_parts() {
        let digester = Digester::new(&[1; SECRET_BYTES]);
        let key = |buyer, key| {
            let key = IdempotencyKey::new(key).unwrap();
            digester.key(&Buyer::new(buyer).unwrap(), &key)
        };
        assert_ne!(key("ab", "c"), key("a", "bc"));
        assert_eq!(key("ab", "c"), key("ab", "c"));
        assert_eq!(digester.buyer(&Buyer::anonymous()), "");
        assert_eq!(digester.buyer(&Buyer::new("ann").unwrap()).len(), 22);
    }
}
