//! Random numbers that are reproducible from a seed. Not for secrets.

/// xorshift64* (Vigna 2016).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Any seed is valid, including 0.
    pub fn new(seed: u64) -> Self {
        // The finalizer of SplitMix64, so that adjacent seeds do not give similar sequences.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // From 0, the generator would return 0 for ever.
        Self(if mixed == 0 { 1 } else { mixed })
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number in `0..bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True with a probability of 1 in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_reproduces_its_numbers_and_they_stay_in_bounds() {
        let mut first = Rng::new(0);
        let mut second = Rng::new(0);
        let mut seen = [false; 5];
        for _ in 0..100 {
            let number = first.between(3, 7);
            assert_eq!(number, second.between(3, 7));
            seen[number as usize - 3] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_ne!(Rng::new(1).next_u64(), Rng::new(2).next_u64());
    }
}
