//! Order ids that say where to ask for them: sale, epoch, moment, 48 random bits and a MAC, as 32 characters.
//! The MAC (SipHash-2-4, keyed by a secret in the store) makes an id that somebody made up cost no I/O.

use std::collections::HashMap;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use seckill_sale::OrderId;
use siphasher::sip::SipHasher24;

/// What is kept by order id. The ids are our own making, so that nobody can choose some that meet.
pub(crate) type ByOrder<T> = HashMap<OrderId, T, foldhash::fast::RandomState>;

/// Bytes of the store's secret.
pub(crate) const SECRET_BYTES: usize = 16;
const ID_BYTES: usize = 24;
const MAC_AT: usize = 20;
const RANDOM_AT: usize = 14;
/// Random bytes are fetched this many at a time.
const POOL_BYTES: usize = 4_096;

/// What an order id says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named {
    /// The sale's number in the store.
    pub(crate) sale_num: u32,
    /// The sale's epoch when the id was made.
    pub(crate) epoch: u32,
    /// When it was made, in Unix milliseconds by the clock of the server that made it.
    pub(crate) at_ms: i64,
}

/// Tells ids that were made with the store's secret from all others.
pub(crate) struct Mac(SipHasher24);

impl Mac {
    pub(crate) fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        Self(SipHasher24::new_with_key(secret))
    }

    fn of(&self, id: &[u8; ID_BYTES]) -> [u8; ID_BYTES - MAC_AT] {
        let [a, b, c, d, ..] = self.0.hash(&id[..MAC_AT]).to_be_bytes();
        [a, b, c, d]
    }

    /// What an id says; nothing where it was not made with the secret.
    pub(crate) fn read(&self, id: &OrderId) -> Option<Named> {
        let bytes = URL_SAFE_NO_PAD.decode(id.as_str()).ok()?;
        let id: [u8; ID_BYTES] = bytes.try_into().ok()?;
        if self.of(&id) != id[MAC_AT..] {
            return None;
        }
        let number = |at: usize| u32::from_be_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]);
        let mut at_ms = [0; 8];
        at_ms[2..].copy_from_slice(&id[8..RANDOM_AT]);
        Some(Named {
            sale_num: number(0),
            epoch: number(4),
            at_ms: i64::from_be_bytes(at_ms),
        })
    }
}

/// Makes and reads order ids.
pub(crate) struct OrderIds {
    mac: Mac,
    pool: Mutex<Pool>,
}

struct Pool {
    bytes: Box<[u8; POOL_BYTES]>,
    used: usize,
}

impl OrderIds {
    pub(crate) fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        let bytes = Box::new([0; POOL_BYTES]);
        let used = POOL_BYTES;
        Self {
            mac: Mac::new(secret),
            pool: Mutex::new(Pool { bytes, used }),
        }
    }

    /// A new id.
    pub(crate) fn next(&self, named: Named) -> Result<OrderId, getrandom::Error> {
        let mut id = [0; ID_BYTES];
        id[0..4].copy_from_slice(&named.sale_num.to_be_bytes());
        id[4..8].copy_from_slice(&named.epoch.to_be_bytes());
        // 48 bits of milliseconds last until the year 10889.
        id[8..RANDOM_AT].copy_from_slice(&named.at_ms.to_be_bytes()[2..]);
        self.random(&mut id[RANDOM_AT..MAC_AT])?;
        let mac = self.mac.of(&id);
        id[MAC_AT..].copy_from_slice(&mac);
        let text = URL_SAFE_NO_PAD.encode(id);
        Ok(OrderId::new(&text).unwrap_or_else(|bad| unreachable!("{bad}")))
    }

    /// [`Mac::read`].
    pub(crate) fn read(&self, id: &OrderId) -> Option<Named> {
        self.mac.read(id)
    }

    fn random(&self, into: &mut [u8]) -> Result<(), getrandom::Error> {
        let mut pool = self
            .pool
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if pool.used + into.len() > POOL_BYTES {
            getrandom::fill(&mut *pool.bytes)?;
            pool.used = 0;
        }
        let used = pool.used;
        into.copy_from_slice(&pool.bytes[used..used + into.len()]);
        pool.used += into.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_what_it_was_made_from_and_no_other_secret_reads_it() {
        let ids = OrderIds::new(&[7; SECRET_BYTES]);
        let named = Named {
            sale_num: u32::MAX,
            epoch: 3,
            at_ms: 1_795_000_000_123,
        };
        let id = ids.next(named).unwrap();
        assert_eq!(id.as_str().len(), 32);
        assert_eq!(ids.read(&id), Some(named));
        assert_ne!(ids.next(named).unwrap(), id);
        assert_eq!(OrderIds::new(&[8; SECRET_BYTES]).read(&id), None);
    }

    #[test]
    fn a_made_up_id_is_not_read() {
        let ids = OrderIds::new(&[7; SECRET_BYTES]);
        for made_up in ["x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "a-b_c"] {
            assert_eq!(ids.read(&OrderId::new(made_up).unwrap()), None);
        }
    }
}
