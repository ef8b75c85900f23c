//! The state that requests read: terms, free units, and the claims and holdings that are durable.
//! Only the writer changes it, and only after a commit. Readers never wait for the writer.

use std::hash::Hasher;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use seckill_sale::{
    Attempt, Buyer, ByDigest, Change, Claim, ClaimIndex, Context, Decision, Digest, Holding,
    IdempotencyKey, Invalid, KeyedClaim, Ledger, Names, Sale, SaleId, SaleLedger, Verdict, decide,
};
use siphasher::sip128::{Hasher128, SipHasher13};
use smallvec::SmallVec;

use crate::file::feed;
use crate::order_id;

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

/// A sale at one point in time, as requests see it.
#[derive(Debug)]
pub(crate) struct SaleState {
    pub(crate) terms: Arc<Sale>,
    /// The free units of each item.
    pub(crate) free: SmallVec<[u32; 1]>,
    /// The number of the latest event.
    pub(crate) sequence: u64,
}

impl SaleState {
    pub(crate) fn remaining(&self) -> u32 {
        self.free.iter().sum()
    }
}

/// A sale, as requests see it. A reader that sees a state also sees the claims that led to it.
#[derive(Debug)]
pub(crate) struct SaleMemory {
    pub(crate) number: u32,
    pub(crate) state: ArcSwap<SaleState>,
    /// Where the latest page of the feed ended.
    pub(crate) feed_end: Mutex<Option<feed::Position>>,
}

impl SaleMemory {
    fn new(number: u32, ledger: &SaleLedger) -> Self {
        let state = SaleState {
            terms: Arc::new(ledger.sale.clone()),
            free: ledger.free().into(),
            sequence: ledger.sequence(),
        };
        Self {
            number,
            state: ArcSwap::from_pointee(state),
            feed_end: Mutex::default(),
        }
    }
}

/// All durable state that a decision needs, for all sales.
pub(crate) struct Memory {
    pub(crate) digester: Digester,
    pub(crate) sales: papaya::HashMap<SaleId, Arc<SaleMemory>>,
    pub(crate) claims: papaya::HashMap<Digest, KeyedClaim<u128>, ByDigest>,
    holdings: papaya::HashMap<Digest, Holding, ByDigest>,
}

impl ClaimIndex<u128> for Memory {
    fn find(&self, key: Digest) -> Option<KeyedClaim<u128>> {
        self.claims.pin().get(&key).cloned()
    }
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

    /// Publishes everything that a rebuilt ledger has. The claims with keys are already here.
    pub(crate) fn fill(&self, ledger: &Ledger<u128>) {
        let (sales, holdings) = (self.sales.pin(), self.holdings.pin());
        for (sale, number) in ledger.sales().iter().zip(1..) {
            if sale.sale.buyer_limit.is_some() {
                for (buyer, holding) in sale.holdings() {
                    holdings.insert(*buyer, *holding);
                }
            }
            let memory = Arc::new(SaleMemory::new(number, sale));
            sales.insert(sale.sale.id.clone(), memory);
        }
    }

    pub(crate) fn sale(&self, id: &SaleId) -> Option<Arc<SaleMemory>> {
        self.sales.pin().get(id).cloned()
    }

    fn holding(&self, digest: Digest) -> Holding {
        let found = self.holdings.pin().get(&digest).copied();
        found.unwrap_or_default()
    }

    /// Makes a change visible that is durable now.
    pub(crate) fn publish(&self, change: &Change<'_, u128>) {
        match change {
            Change::Claim(key, claim) => {
                self.claims.pin().insert(*key, (*claim).clone());
            }
            Change::Holding {
                sale,
                buyer,
                holding,
            } => self.publish_holding(sale, *buyer, *holding),
            Change::Sale {
                number,
                ledger,
                has_new_terms,
            } => self.publish_sale(number.get(), ledger, *has_new_terms),
        }
    }

    /// Only sales with a limit need holdings here. An entry of an earlier limit must not become
    /// stale, since a later limit would reject by it. A buyer without an entry is left to the
    /// writer.
    fn publish_holding(&self, sale: &SaleLedger, buyer: Digest, holding: Holding) {
        let holdings = self.holdings.pin();
        if holding.held == 0 {
            holdings.remove(&buyer);
        } else if sale.sale.buyer_limit.is_some() || holdings.contains_key(&buyer) {
            holdings.insert(buyer, holding);
        }
    }

    fn publish_sale(&self, number: u32, ledger: &SaleLedger, has_new_terms: bool) {
        let sales = self.sales.pin();
        match sales.get(&ledger.sale.id) {
            Some(memory) => {
                let terms = if has_new_terms {
                    Arc::new(ledger.sale.clone())
                } else {
                    Arc::clone(&memory.state.load().terms)
                };
                memory.state.store(Arc::new(SaleState {
                    terms,
                    free: ledger.free().into(),
                    sequence: ledger.sequence(),
                }));
            }
            None => {
                let memory = Arc::new(SaleMemory::new(number, ledger));
                sales.insert(ledger.sale.id.clone(), memory);
            }
        }
    }

    pub(crate) fn claim_of_key(
        &self,
        sale: &SaleId,
        buyer: &Buyer,
        key: &IdempotencyKey,
    ) -> Option<KeyedClaim<u128>> {
        self.find(self.digester.key(sale, buyer.as_str(), key.as_str()))
    }

    pub(crate) fn names(&self, attempt: &Attempt) -> Names {
        let (sale, buyer) = (&attempt.sale, attempt.buyer.as_str());
        let digester = &self.digester;
        Names {
            buyer: (!buyer.is_empty()).then(|| digester.buyer(sale, buyer)),
            key: attempt
                .key
                .as_ref()
                .map(|key| digester.key(sale, buyer, key.as_str())),
        }
    }

    /// The verdict on an attempt, or `None` if it may take units.
    pub(crate) fn answer(&self, attempt: &Attempt, now_ms: i64) -> Option<Verdict> {
        let sales = self.sales.pin();
        let Some(sale) = sales.get(&attempt.sale) else {
            return Some(Verdict::Invalid(Invalid::NoSuchSale));
        };
        // The free units are read before the key: if this key got the last unit of a sold-out sale,
        // its claim must be visible.
        let mut state = sale.state.load();
        let buyer = &attempt.buyer;
        let keyed = attempt
            .key
            .as_ref()
            .and_then(|key| self.claim_of_key(&attempt.sale, buyer, key));
        let mut holding = Holding::default();
        while state.terms.buyer_limit.is_some() && !buyer.is_anonymous() {
            holding = self.holding(self.digester.buyer(&attempt.sale, buyer.as_str()));
            // A new limit may have come first, with claims that it allowed.
            let now = sale.state.load();
            if Arc::ptr_eq(&now.terms, &state.terms) {
                break;
            }
            state = now;
        }
        let terms = &*state.terms;
        let context = Context {
            keyed,
            holding,
            free: &state.free,
        };
        match decide(terms, attempt, context, now_ms) {
            Decision::Take { .. } => None,
            Decision::Repeat(claim) => repeat(terms, &claim, state.remaining()),
            Decision::Mismatch => Some(Verdict::Mismatch),
            Decision::Rejected(rejection) => Some(Verdict::Rejected(rejection)),
            Decision::Invalid(invalid) => Some(Verdict::Invalid(invalid)),
        }
    }
}

fn repeat(terms: &Sale, claim: &KeyedClaim<u128>, remaining: u32) -> Option<Verdict> {
    let units = terms.order_units(claim.units.iter().copied())?;
    Some(Verdict::Repeat {
        claim: Claim {
            order_id: order_id::to_text(claim.order_id),
            units,
            remaining,
        },
        state: claim.state,
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
