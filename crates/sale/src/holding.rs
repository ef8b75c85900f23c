//! What one buyer holds in a sale, which the limit per buyer counts. It does not know who the buyer
//! is.

use crate::BUYER_LIMIT_MAX;

/// What one buyer holds in a sale: the units of active orders, and the slots of those that were
/// claimed while the sale had a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holding {
    pub held: u32,
    pub slots: Slots,
}

impl Holding {
    /// The holding of a buyer whose units all have slots.
    pub fn of_slots(slots: Slots) -> Self {
        Self {
            held: slots.count(),
            slots,
        }
    }
}

/// Slots 1..=64 of one buyer in a sale, one bit each. While the sale has a limit, each unit that the
/// buyer holds occupies one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Slots(u64);

impl Slots {
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// 1..=64, or `None` if every slot is taken.
    pub fn lowest_free(self) -> Option<u8> {
        let slot = self.0.trailing_ones();
        (slot < BUYER_LIMIT_MAX).then_some(slot as u8 + 1)
    }

    /// The lowest `count` slots that are free, or `None` if there are fewer.
    pub fn lowest_free_of(self, count: u32) -> Option<Self> {
        let mut all = self;
        for _ in 0..count {
            all = all.with(all.lowest_free()?)?;
        }
        Some(Self(all.0 ^ self.0))
    }

    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The slots in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (1..=BUYER_LIMIT_MAX as u8).filter(move |&slot| self.0 & (1 << (slot - 1)) != 0)
    }

    /// With this slot taken, or `None` if it is already taken or not in 1..=64.
    pub fn with(self, slot: u8) -> Option<Self> {
        let bit = Self::bit(slot)?;
        (self.0 & bit == 0).then_some(Self(self.0 | bit))
    }

    fn bit(slot: u8) -> Option<u64> {
        (1..=64).contains(&slot).then(|| 1 << (slot - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fill_from_the_lowest() {
        let slots = Slots::default().with(1).unwrap().with(3).unwrap();
        assert_eq!(slots.lowest_free(), Some(2));
        assert_eq!(slots.with(3), None);
        let three = slots.lowest_free_of(3).unwrap();
        assert_eq!(three.iter().collect::<Vec<_>>(), [2, 4, 5]);
        assert_eq!(slots.union(three).count(), 5);
        assert_eq!(slots.union(three).difference(slots), three);
        assert_eq!(slots.lowest_free_of(63), None);
        let full = (1..=64).fold(Slots::default(), |s, slot| s.with(slot).unwrap());
        assert_eq!(full.lowest_free(), None);
        assert_eq!(full.lowest_free_of(0), Some(Slots::default()));
        assert_eq!(full.with(65), None);
        assert_eq!(full.iter().last(), Some(64));
    }
}
