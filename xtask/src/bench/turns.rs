//! Turns of the two sides of a comparison in one run. Measures nothing itself.

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Before,
    Now,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        self.of("before", "now")
    }

    pub(crate) fn of<T>(self, before: T, now: T) -> T {
        match self {
            Self::Before => before,
            Self::Now => now,
        }
    }
}

/// What one round measured of both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair<T> {
    pub(crate) before: T,
    pub(crate) now: T,
}

/// Measures both sides in each round. Which goes first alternates, so that neither profits from a
/// warm cache.
pub(crate) fn in_turns<T>(
    rounds: u32,
    mut measure: impl FnMut(Side, u32) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<Pair<T>>> {
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let pair = if round.is_multiple_of(2) {
            let before = measure(Side::Before, round)?;
            let now = measure(Side::Now, round)?;
            Pair { before, now }
        } else {
            let now = measure(Side::Now, round)?;
            let before = measure(Side::Before, round)?;
            Pair { before, now }
        };
        pairs.push(pair);
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_turn_alternates_and_results_go_to_their_side() {
        let mut turns = Vec::new();
        let pairs = in_turns(2, |side, round| {
            turns.push((side, round));
            Ok((side, turns.len()))
        });
        use Side::{Before, Now};
        assert_eq!(turns, [(Before, 0), (Now, 0), (Now, 1), (Before, 1)]);
        let pair = |before, now| Pair {
            before: (Before, before),
            now: (Now, now),
        };
        assert_eq!(pairs.unwrap(), [pair(1, 2), pair(4, 3)]);
    }
}
