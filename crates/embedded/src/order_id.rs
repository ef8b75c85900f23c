//! Order ids: UUIDv7 (RFC 9562) without hyphens. They sort by time, and 74 random bits make them
//! unguessable. In memory, an id is only the 128-bit number.

use std::sync::Mutex;

use seckill_sale::OrderId;

/// Random bytes are fetched this many at a time: one system call for about 400 ids.
const POOL_BYTES: usize = 4_096;
const RANDOM_BYTES: usize = 10;

/// Generates ids with random bytes from the operating system.
#[derive(Debug)]
pub(crate) struct OrderIds {
    pool: Mutex<Pool>,
}

#[derive(Debug)]
struct Pool {
    bytes: Box<[u8; POOL_BYTES]>,
    used: usize,
}

impl OrderIds {
    pub(crate) fn new() -> Self {
        let bytes = Box::new([0; POOL_BYTES]);
        let used = POOL_BYTES;
        Self {
            pool: Mutex::new(Pool { bytes, used }),
        }
    }

    /// A new id for a claim made at `now_ms`.
    pub(crate) fn next(&self, now_ms: i64) -> Result<u128, getrandom::Error> {
        let mut random = [0; 16];
        {
            let mut pool = self
                .pool
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if pool.used + RANDOM_BYTES > POOL_BYTES {
                getrandom::fill(&mut *pool.bytes)?;
                pool.used = 0;
            }
            let used = pool.used;
            random[6..].copy_from_slice(&pool.bytes[used..used + RANDOM_BYTES]);
            // Random bytes are used once, and do not stay in memory where they could be read later.
            pool.bytes[used..used + RANDOM_BYTES].fill(0);
            pool.used += RANDOM_BYTES;
        }
        let mut id = u128::from_be_bytes(random);
        id &= !((0xf << 76) | (0b11 << 62));
        Ok(id | (now_ms as u128) << 80 | 0x7 << 76 | 0b10 << 62)
    }
}

/// The time at which the id was generated, in Unix milliseconds.
pub(crate) fn made_at_ms(id: u128) -> i64 {
    (id >> 80) as i64
}

/// The id as clients see it: 32 lower-case hexadecimal digits.
pub(crate) fn to_text(id: u128) -> OrderId {
    OrderId::from_number(id)
}

/// The number of an id in the format of [`to_text`].
pub(crate) fn from_text(text: &str) -> Option<u128> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 32 || !text.bytes().all(lower_hex) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_7_that_never_repeat() {
        let ids = OrderIds::new();
        let mut seen = std::collections::HashSet::new();
        for now_ms in 1_800_000_000_000..1_800_000_001_000 {
            let id = ids.next(now_ms).unwrap();
            assert_eq!(made_at_ms(id), now_ms);
            assert_eq!((id >> 76) & 0xf, 7);
            assert_eq!((id >> 62) & 0b11, 0b10);
            assert!(seen.insert(id));
            assert_eq!(from_text(to_text(id).as_str()), Some(id));
        }
    }

    #[test]
    fn only_the_format_of_to_text_is_accepted() {
        assert_eq!(from_text(&"A".repeat(32)), None);
        assert_eq!(from_text(&"a".repeat(31)), None);
        assert_eq!(from_text(&format!("+{}", "a".repeat(31))), None);
    }
}
