//! Order ids that encode sale, epoch, time, 48 random bits and a MAC in 32 characters. The MAC
//! (SipHash-2-4, keyed with a secret in the store) rejects forged ids without I/O.

use std::collections::HashMap;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use seckill_sale::OrderId;
use siphasher::sip::SipHasher24;

/// A map by order id. A fast hash is safe because clients cannot choose ids that collide.
pub type ByOrder<T> = HashMap<OrderId, T, foldhash::fast::RandomState>;

pub const SECRET_BYTES: usize = 16;
/// The length of an order id as gate and store hold it.
pub const ID_BYTES: usize = 24;
const MAC_AT: usize = 20;
const RANDOM_AT: usize = 14;
/// Number of random bytes fetched from the system at a time.
const POOL_BYTES: usize = 4_096;

/// The decoded content of an order id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// `num` of the sale in the store.
    pub sale_num: u32,
    /// Epoch of the sale when the id was created.
    pub epoch: u32,
    /// Creation time in Unix milliseconds, by the clock of the server that created the id.
    pub at_ms: i64,
}

/// The bytes of an order id, which gate and store hold. `None` if no cluster made the id.
pub fn to_bytes(id: &OrderId) -> Option<[u8; ID_BYTES]> {
    let mut bytes = [0; ID_BYTES];
    let decoded = URL_SAFE_NO_PAD.decode_slice(id.as_str(), &mut bytes);
    (decoded == Ok(ID_BYTES)).then_some(bytes)
}

/// The inverse of [`to_bytes`].
pub fn from_bytes(bytes: &[u8; ID_BYTES]) -> OrderId {
    let mut text = [0; ID_BYTES / 3 * 4];
    // The encoding of these bytes has exactly this length, and only characters of order ids.
    let written = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
    let text = written.ok().and_then(|_| std::str::from_utf8(&text).ok());
    OrderId::new(text.unwrap_or_default()).unwrap_or_else(|bad| unreachable!("{bad}"))
}

/// Verifies that an id was created with the store's secret.
pub struct Mac(SipHasher24);

impl Mac {
    pub fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        Self(SipHasher24::new_with_key(secret))
    }

    fn of(&self, id: &[u8; ID_BYTES]) -> [u8; ID_BYTES - MAC_AT] {
        let [a, b, c, d, ..] = self.0.hash(&id[..MAC_AT]).to_be_bytes();
        [a, b, c, d]
    }

    /// Decodes an id. Returns `None` if it was not created with the secret.
    pub fn read(&self, id: &OrderId) -> Option<Named> {
        let id = to_bytes(id)?;
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

pub struct OrderIds {
    mac: Mac,
    pool: Mutex<Pool>,
}

struct Pool {
    bytes: Box<[u8; POOL_BYTES]>,
    used: usize,
}

impl OrderIds {
    pub fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        let bytes = Box::new([0; POOL_BYTES]);
        let used = POOL_BYTES;
        Self {
            mac: Mac::new(secret),
            pool: Mutex::new(Pool { bytes, used }),
        }
    }

    pub fn next(&self, named: Named) -> Result<OrderId, getrandom::Error> {
        let mut id = [0; ID_BYTES];
        id[0..4].copy_from_slice(&named.sale_num.to_be_bytes());
        id[4..8].copy_from_slice(&named.epoch.to_be_bytes());
        // 48 bits of milliseconds last until the year 10889.
        id[8..RANDOM_AT].copy_from_slice(&named.at_ms.to_be_bytes()[2..]);
        self.random(&mut id[RANDOM_AT..MAC_AT])?;
        let mac = self.mac.of(&id);
        id[MAC_AT..].copy_from_slice(&mac);
        Ok(from_bytes(&id))
    }

    /// See [`Mac::read`].
    pub fn read(&self, id: &OrderId) -> Option<Named> {
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
    fn an_id_is_decoded_only_with_its_own_secret() {
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
    fn a_forged_id_is_rejected() {
        let ids = OrderIds::new(&[7; SECRET_BYTES]);
        for made_up in ["x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "a-b_c"] {
            assert_eq!(ids.read(&OrderId::new(made_up).unwrap()), None);
        }
    }

    #[test]
    fn an_id_has_24_bytes() {
        let text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRb-";
        let id = OrderId::new(text).unwrap();
        let bytes = to_bytes(&id).unwrap();
        assert_eq!((bytes[1], bytes[23]), (1, 0xfe));
        assert_eq!(from_bytes(&bytes), id);
        let made_up = [
            "x",
            &text[..31],
            &text[..28],
            &"A".repeat(33),
            &"A".repeat(64),
        ];
        for made_up in made_up {
            assert_eq!(to_bytes(&OrderId::new(made_up).unwrap()), None, "{made_up}");
        }
    }
}
