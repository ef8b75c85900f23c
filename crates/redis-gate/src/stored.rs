//! Encodes and decodes values of the gate's hashes and free list in the script's format. No I/O.

use seckill_sale::{Slots, Unit};

/// A slot is stored as the character `SLOT_ZERO + slot`.
const SLOT_ZERO: u8 = b'0';

/// A claim as the gate stores it under its order id.
pub fn stored_claim(
    unit: Unit,
    slot: Option<u8>,
    fingerprint: &str,
    buyer_digest: &str,
    is_live: bool,
) -> String {
    format!(
        "{}:{}:{}:{fingerprint}:{buyer_digest}:{}",
        unit.number,
        unit.generation,
        slot.unwrap_or(0),
        if is_live { "live" } else { "ended" }
    )
}

/// Parses the unit from a stored claim or from an item of the free list.
pub(crate) fn unit_of(text: &str) -> Option<Unit> {
    let mut parts = text.split(':');
    Some(Unit {
        number: parts.next()?.parse().ok()?,
        generation: parts.next()?.parse().ok()?,
    })
}

pub(crate) fn slots_of(text: &str) -> Slots {
    let slots = text.bytes().map(|byte| byte.wrapping_sub(SLOT_ZERO));
    slots.fold(Slots::default(), |slots, slot| {
        slots.with(slot).unwrap_or(slots)
    })
}

/// The slots in use, one character each.
pub fn slots_text(slots: Slots) -> String {
    let all = (1..=64).filter(|slot| slots.with(*slot).is_none());
    all.map(|slot| char::from(SLOT_ZERO + slot)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_round_trip_in_the_scripts_format() {
        let slots = Slots::default()
            .with(1)
            .unwrap()
            .with(3)
            .unwrap()
            .with(64)
            .unwrap();
        assert_eq!(slots_text(slots), "13p");
        assert_eq!(slots_of("13p"), slots);
        assert_eq!(slots_of(""), Slots::default());
    }
}
