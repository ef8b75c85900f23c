//! Digests of buyers and idempotency keys, which identify them in the gate: 128 bits of
//! SipHash-1-3, keyed with the store's secret so that no one can construct a collision. No I/O.

use std::hash::Hasher;

use seckill_sale::{Attempt, Buyer, Digest, IdempotencyKey, Names};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::order_id::SECRET_BYTES;

pub const DIGEST_BYTES: usize = 16;

#[derive(Debug, Clone, Copy)]
pub struct Digester(SipHasher13);

impl Digester {
    pub fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }

    /// `None` for the anonymous buyer, who has no limit.
    pub fn buyer(&self, buyer: &Buyer) -> Option<Digest> {
        (!buyer.is_anonymous()).then(|| self.digest(&[buyer.as_str()]))
    }

    pub fn key(&self, buyer: &Buyer, key: &IdempotencyKey) -> Digest {
        self.digest(&[buyer.as_str(), key.as_str()])
    }

    /// The digests of an attempt's names.
    pub fn names(&self, attempt: &Attempt) -> Names {
        let key = attempt.key.as_ref();
        Names {
            buyer: self.buyer(&attempt.buyer),
            key: key.map(|key| self.key(&attempt.buyer, key)),
        }
    }

    fn digest(&self, parts: &[&str]) -> Digest {
        let mut hasher = self.0;
        for part in parts {
            // The length distinguishes ("ab", "c") from ("a", "bc").
            hasher.write(&(part.len() as u32).to_le_bytes());
            hasher.write(part.as_bytes());
        }
        hasher.finish128().as_u128()
    }
}

/// A digest as the gate stores it.
pub fn to_bytes(digest: Digest) -> [u8; DIGEST_BYTES] {
    digest.to_le_bytes()
}

/// The inverse of [`to_bytes`]. `None` unless there are [`DIGEST_BYTES`] bytes.
pub fn from_bytes(bytes: &[u8]) -> Option<Digest> {
    bytes.try_into().ok().map(Digest::from_le_bytes)
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
        assert_eq!(digester.buyer(&Buyer::anonymous()), None);
        let ann = digester.buyer(&Buyer::new("ann").unwrap()).unwrap();
        assert_eq!(from_bytes(&to_bytes(ann)), Some(ann));
        assert_eq!(from_bytes(b"short"), None);
    }
}
