//! Encodes and decodes values of the gate's hashes and lists in the script's format. Decoding is
//! strict. No I/O.

use std::fmt::Write;

use seckill_cluster_codec::digest;
use seckill_cluster_codec::order_id::ID_BYTES;
use seckill_sale::{
    ClaimedUnit, ClaimedUnits, Digest, Holding, ItemNo, ORDER_UNITS_MAX, Slots, Unit,
};

/// A slot is stored as the character `SLOT_ZERO + slot`.
const SLOT_ZERO: u8 = b'0';
/// Stands for a unit that is held without a slot.
const NO_SLOT: u8 = b'/';
const ENDED: u8 = b'-';
/// Separates a claim's units from the buyer's digest.
const BUYER: u8 = b'|';

/// A released unit.
pub(crate) fn unit_text(unit: Unit) -> String {
    let Unit { number, generation } = unit;
    match generation {
        1 => number.to_string(),
        _ => format!("{number}:{generation}"),
    }
}

/// The units of a claim.
pub(crate) fn units_text(units: &[ClaimedUnit]) -> String {
    let mut text = String::new();
    for &ClaimedUnit { item, unit, slot } in units {
        if !text.is_empty() {
            text.push(',');
        }
        // Writing to a String cannot fail.
        if item != ItemNo::FIRST {
            let _ = write!(text, "{}/", item.get());
        }
        text.push_str(&unit_text(unit));
        if let Some(slot) = slot {
            let _ = write!(text, "@{slot}");
        }
    }
    text
}

pub(crate) fn unit_of(text: &str) -> Option<Unit> {
    let (number, generation) = match text.split_once(':') {
        Some((number, generation)) => (number, generation.parse().ok()?),
        None => (text, 1),
    };
    let number = number.parse().ok()?;
    Some(Unit { number, generation })
}

pub(crate) fn units_of(text: &str) -> Option<ClaimedUnits> {
    let units: ClaimedUnits = text.split(',').map(claimed).collect::<Option<_>>()?;
    (units.len() <= ORDER_UNITS_MAX as usize).then_some(units)
}

fn claimed(text: &str) -> Option<ClaimedUnit> {
    let (item, rest) = match text.split_once('/') {
        Some((item, rest)) => (ItemNo::new(item.parse().ok()?)?, rest),
        None => (ItemNo::FIRST, text),
    };
    let (unit, slot) = match rest.split_once('@') {
        Some((unit, slot)) => (unit, Some(slot.parse().ok()?)),
        None => (rest, None),
    };
    let unit = unit_of(unit)?;
    Some(ClaimedUnit { item, unit, slot })
}

/// A claim. `buyer` is named if the units count against a limit.
pub(crate) fn stored_claim(
    units: &[ClaimedUnit],
    buyer: Option<Digest>,
    is_active: bool,
) -> Vec<u8> {
    let mut value = Vec::new();
    if !is_active {
        value.push(ENDED);
    }
    value.extend_from_slice(units_text(units).as_bytes());
    if let Some(buyer) = buyer {
        value.push(BUYER);
        value.extend_from_slice(&digest::to_bytes(buyer));
    }
    value
}

/// The units of a stored claim.
pub(crate) fn claim_units(value: &[u8]) -> Option<ClaimedUnits> {
    let value = value.strip_prefix(&[ENDED]).unwrap_or(value);
    let units = value.split(|&byte| byte == BUYER).next()?;
    units_of(std::str::from_utf8(units).ok()?)
}

/// The claim of a key.
pub(crate) fn stored_key(id: &[u8; ID_BYTES], fingerprint: u64) -> Vec<u8> {
    [&id[..], &fingerprint.to_be_bytes()].concat()
}

/// The order id and the fingerprint of a key's claim.
pub(crate) fn key_claim(value: &[u8]) -> Option<([u8; ID_BYTES], u64)> {
    let (id, fingerprint) = value.split_first_chunk()?;
    Some((*id, u64::from_be_bytes(fingerprint.try_into().ok()?)))
}

/// What a buyer holds: one character for each unit.
pub(crate) fn stored_holding(holding: Holding) -> Vec<u8> {
    let slots = holding.slots.iter().map(|slot| SLOT_ZERO + slot);
    let without_slot = holding.held.saturating_sub(holding.slots.count());
    let others = std::iter::repeat_n(NO_SLOT, without_slot as usize);
    slots.chain(others).collect()
}

pub(crate) fn holding_of(value: &[u8]) -> Holding {
    let slots = value.iter().map(|byte| byte.wrapping_sub(SLOT_ZERO));
    let with = |slots: Slots, slot| slots.with(slot).unwrap_or(slots);
    Holding {
        held: value.len() as u32,
        slots: slots.fold(Slots::default(), with),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(item: u8, number: u32, generation: u32, slot: Option<u8>) -> ClaimedUnit {
        ClaimedUnit {
            item: ItemNo::new(item).unwrap(),
            unit: Unit { number, generation },
            slot,
        }
    }

    #[test]
    fn units_have_the_scripts_format() {
        let cases = [
            (&[claimed(1, 7, 1, None)][..], "7"),
            (&[claimed(1, 7, 3, Some(64))], "7:3@64"),
            (
                &[claimed(64, 12, 1, None), claimed(1, 3, 2, None)],
                "64/12,3:2",
            ),
        ];
        for (units, text) in cases {
            assert_eq!(units_text(units), text);
            assert_eq!(units_of(text).as_deref(), Some(units), "{text}");
        }
        let bad = [
            "", "a", "7:", "7@", "65/1", "0/1", "/1", "7,", "7:1:1", "7@256", "-7",
        ];
        for bad in bad {
            assert_eq!(units_of(bad), None, "{bad}");
        }
        assert_eq!(units_of(&["1"; 17].join(",")), None);
    }

    #[test]
    fn claims_are_compact() {
        let units = [claimed(1, 123_456, 1, None)];
        assert_eq!(stored_claim(&units, None, true), b"123456");
        let ended = stored_claim(&units, Some(1), false);
        assert_eq!(ended[..8], *b"-123456|");
        assert_eq!(ended.len(), 24);
        assert_eq!(claim_units(&ended).as_deref(), Some(&units[..]));
        // A digest may contain the separator.
        let digest = u128::from_le_bytes([BUYER; 16]);
        let value = stored_claim(&units, Some(digest), true);
        assert_eq!(claim_units(&value).as_deref(), Some(&units[..]));
        assert_eq!(claim_units(b"-"), None);
    }

    #[test]
    fn keys_hold_an_order_id_and_a_fingerprint() {
        let value = stored_key(&[7; ID_BYTES], 9);
        assert_eq!(key_claim(&value), Some(([7; ID_BYTES], 9)));
        assert_eq!(key_claim(&value[1..]), None);
        assert_eq!(key_claim(b"-"), None);
    }

    #[test]
    fn holdings_count_units_without_a_slot() {
        let slots = [1, 3, 64];
        let slots = slots
            .iter()
            .fold(Slots::default(), |slots, &slot| slots.with(slot).unwrap());
        let holding = Holding { held: 5, slots };
        assert_eq!(stored_holding(holding), b"13p//");
        assert_eq!(holding_of(b"/1p/3"), holding);
        assert_eq!(holding_of(b""), Holding::default());
    }
}
