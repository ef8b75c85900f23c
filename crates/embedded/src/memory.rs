//! The state that requests read: terms, free units, and the claims and holdings that are durable.
//! Only the writer changes it, and only after a commit. Readers never wait for the writer.

use std::hash::{BuildHasherDefault, Hasher};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use seckill_sale::{
    Attempt, Buyer, Claim, Context, Decision, Holding, IdempotencyKey, Invalid, KeyedClaim,
    OrderState, Sale, SaleId, Unit, Verdict, decide,
};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::order_id;

/// A digest of (sale, buyer) or (sale, buyer, key).
pub(crate) type Digest = u128;

/// Uses a digest as its own hash: digests are already uniformly distributed.
#[derive(Default)]
pub(crate) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        // Only u128 is ever hashed; this satisfies the trait for anything else.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }
}

pub(crate) type ByDigest = BuildHasherDefault<DigestHasher>;

/// Computes digests with a random key of this process, so that clients cannot cause collisions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digester {
    key: (u64, u64),
}

impl Digester {
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
        Ok(Self {
            key: (getrandom::u64()?, getrandom::u64()?),
        })
    }

    pub(crate) fn buyer(&self, sale: &SaleId, buyer: &str) -> Digest {
        self.digest(&[sale.as_str(), buyer])
    }

    pub(crate) fn key(&self, sale: &SaleId, buyer: &str, key: &str) -> Digest {
        self.digest(&[sale.as_str(), buyer, key])
    }

    fn digest(&self, texts: &[&str]) -> Digest {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        for text in texts {
            hasher.write(&(text.len() as u32).to_le_bytes());
            hasher.write(text.as_bytes());
        }
        hasher.finish128().as_u128()
    }
}

/// A claim that was made with a key. Memory contains all of them, so it is small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredClaim {
    pub(crate) order: u128,
    pub(crate) unit: Unit,
    pub(crate) fingerprint: u64,
    pub(crate) state: OrderState,
}

impl StoredClaim {
    pub(crate) fn keyed(self) -> KeyedClaim {
        KeyedClaim {
            order_id: order_id::to_text(self.order),
            unit: self.unit,
            fingerprint: self.fingerprint,
            state: self.state,
        }
    }
}

/// A sale, as requests see it.
#[derive(Debug)]
pub(crate) struct SaleMemory {
    pub(crate) terms: ArcSwap<Sale>,
    free: AtomicU32,
}

impl SaleMemory {
    pub(crate) fn new(sale: Sale, free: u32) -> Self {
        Self {
            terms: ArcSwap::from_pointee(sale),
            free: AtomicU32::new(free),
        }
    }

    /// A reader that sees a value here also sees the claims that led to it.
    pub(crate) fn free(&self) -> u32 {
        self.free.load(Ordering::Acquire)
    }

    pub(crate) fn set_free(&self, free: u32) {
        self.free.store(free, Ordering::Release);
    }
}

/// All durable state that a decision needs, for all sales.
/// Whether a sale has a limit per buyer.
pub(crate) type IsLimited = bool;

pub(crate) struct Memory {
    pub(crate) digester: Digester,
    pub(crate) sales: papaya::HashMap<SaleId, Arc<SaleMemory>>,
    pub(crate) claims: papaya::HashMap<Digest, StoredClaim, ByDigest>,
    pub(crate) holdings: papaya::HashMap<Digest, Holding, ByDigest>,
}

impl Memory {
    pub(crate) fn new(digester: Digester) -> Self {
        Self {
            digester,
            sales: papaya::HashMap::new(),
            claims: papaya::HashMap::default(),
            holdings: papaya::HashMap::default(),
        }
    }

    pub(crate) fn sale(&self, id: &SaleId) -> Option<Arc<SaleMemory>> {
        self.sales.pin().get(id).cloned()
    }

    pub(crate) fn claim(&self, digest: Digest) -> Option<StoredClaim> {
        self.claims.pin().get(&digest).copied()
    }

    pub(crate) fn holding(&self, digest: Digest) -> Holding {
        self.holdings
            .pin()
            .get(&digest)
            .copied()
            .unwrap_or_default()
    }

    /// Makes holdings visible. Only sales with a limit need it here; an entry of an earlier limit
    /// must not become stale, since a later limit would reject by it. A buyer without an entry is
    /// left to the writer.
    pub(crate) fn publish_holdings(
        &self,
        changed: impl IntoIterator<Item = (Digest, Holding, IsLimited)>,
    ) {
        let holdings = self.holdings.pin();
        for (buyer, holding, is_limited) in changed {
            if holding.held == 0 {
                holdings.remove(&buyer);
            } else if is_limited || holdings.contains_key(&buyer) {
                holdings.insert(buyer, holding);
            }
        }
    }

    pub(crate) fn claim_of_key(
        &self,
        sale: &SaleId,
        buyer: &Buyer,
        key: &IdempotencyKey,
    ) -> Option<StoredClaim> {
        self.claim(self.digester.key(sale, buyer.as_str(), key.as_str()))
    }

    /// The verdict on an attempt, or `None` if it may take a unit.
    pub(crate) fn answer(&self, attempt: &Attempt, now_ms: i64) -> Option<Verdict> {
        let sales = self.sales.pin();
        let Some(sale) = sales.get(&attempt.sale) else {
            return Some(Verdict::Invalid(Invalid::NoSuchSale));
        };
        // The free units are read before the key: if this key got the last unit of a sold-out sale,
        // its claim must be visible.
        let free = sale.free();
        let terms = sale.terms.load();
        let buyer = &attempt.buyer;
        let keyed = attempt
            .key
            .as_ref()
            .and_then(|key| self.claim_of_key(&attempt.sale, buyer, key));
        let holding = if terms.buyer_limit.is_some() && !buyer.is_anonymous() {
            self.holding(self.digester.buyer(&attempt.sale, buyer.as_str()))
        } else {
            Holding::default()
        };
        let context = Context {
            keyed: keyed.map(StoredClaim::keyed),
            holding,
            free,
        };
        verdict_or_slot(decide(&terms, attempt, &context, now_ms), free).break_value()
    }
}

/// The verdict of a decision, or the slot for the unit to take.
pub(crate) fn verdict_or_slot(decision: Decision, free: u32) -> ControlFlow<Verdict, Option<u8>> {
    ControlFlow::Break(match decision {
        Decision::Take { slot } => return ControlFlow::Continue(slot),
        Decision::Repeat(keyed) => Verdict::Repeat {
            claim: Claim {
                order_id: keyed.order_id,
                unit: keyed.unit,
                remaining: free,
            },
            state: keyed.state,
        },
        Decision::Mismatch => Verdict::Mismatch,
        Decision::Rejected(rejection) => Verdict::Rejected(rejection),
        Decision::Invalid(invalid) => Verdict::Invalid(invalid),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_depend_on_where_names_end() {
        let digester = Digester::new().unwrap();
        let sale = SaleId::new("s").unwrap();
        assert_ne!(
            digester.key(&sale, "ab", "c"),
            digester.key(&sale, "a", "bc")
        );
        assert_ne!(digester.key(&sale, "a", ""), digester.buyer(&sale, "a"));
        assert_eq!(digester.buyer(&sale, "a"), digester.buyer(&sale, "a"));
    }
}
