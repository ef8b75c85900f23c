//! What attempts ask for: fixed lines, or random ones from a seed. Knows no sale.

use std::ops::RangeInclusive;

use seckill_api::{HistoryUnit, Line};

/// What the attempts of a run ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lines {
    /// Units of the sale's only item, a random number in this range.
    Quantity(RangeInclusive<u32>),
    /// The same lines in each attempt: item ids and quantities.
    Fixed(Vec<(String, u32)>),
    /// A random number of units in this range, each of a random one of these items.
    Random {
        units: RangeInclusive<u32>,
        items: Vec<String>,
    },
}

impl Default for Lines {
    /// One unit of the only item, which an attempt without a body buys.
    fn default() -> Self {
        Self::Quantity(1..=1)
    }
}

/// What one attempt asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// Units of the only item.
    Quantity(u32),
    Lines(Vec<Line<'a>>),
}

impl Lines {
    /// Whether all attempts ask for the same.
    pub(crate) fn is_uniform(&self) -> bool {
        match self {
            Self::Fixed(_) => true,
            Self::Quantity(units) => units.start() == units.end(),
            Self::Random { units, items } => units.start() == units.end() && items.len() == 1,
        }
    }

    /// What the attempt with this number asks for. It depends on nothing else than the seed.
    pub(crate) fn wanted(&self, seed: u64, number: u64) -> Wanted<'_> {
        match self {
            Self::Fixed(lines) => {
                let lines = lines
                    .iter()
                    .map(|(item, quantity)| (item.as_str(), *quantity));
                Wanted::Lines(merged(lines))
            }
            Self::Quantity(units) => Wanted::Quantity(Random::new(seed, number).within(units)),
            Self::Random { units, items } => {
                let mut random = Random::new(seed, number);
                let mut quantities = vec![0; items.len()];
                let last = items.len().saturating_sub(1) as u32;
                for _ in 0..random.within(units) {
                    quantities[random.within(&(0..=last)) as usize] += 1;
                }
                Wanted::Lines(merged(items.iter().map(String::as_str).zip(quantities)))
            }
        }
    }
}

/// One line for each item that is asked for: an attempt with two lines of one item asks for the
/// units of both.
fn merged<'a>(quantities: impl Iterator<Item = (&'a str, u32)>) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for (item, quantity) in quantities.filter(|(_, quantity)| *quantity > 0) {
        match lines.iter_mut().find(|line| line.item == item) {
            Some(line) => line.quantity += quantity,
            None => lines.push(Line {
                item: item.into(),
                quantity,
            }),
        }
    }
    lines
}

impl Wanted<'_> {
    /// Whether these are the units that the attempt asked for, no more and no fewer.
    pub(crate) fn is_met_by(&self, units: &[HistoryUnit]) -> bool {
        let of_item = |item: &str| {
            let matching = units
                .iter()
                .filter(|unit| unit.item.as_deref() == Some(item));
            matching.count() as u32
        };
        match self {
            Self::Quantity(quantity) => units.len() as u32 == *quantity,
            Self::Lines(lines) => {
                let all: u32 = lines.iter().map(|line| line.quantity).sum();
                let is_met = |line: &Line<'_>| of_item(&line.item) == line.quantity;
                units.len() as u32 == all && lines.iter().all(is_met)
            }
        }
    }
}

/// SplitMix64 (Steele et al. 2014): numbers need to vary and to be repeatable, not to be
/// unpredictable.
struct Random(u64);

impl Random {
    fn new(seed: u64, number: u64) -> Self {
        // Two rounds of mixing, so that neighbouring seeds and numbers share nothing.
        let start = Self(seed).next();
        Self(start ^ Self(number).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn within(&mut self, range: &RangeInclusive<u32>) -> u32 {
        let width = u64::from(range.end().saturating_sub(*range.start())) + 1;
        range.start() + (self.next() % width) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shirts(units: RangeInclusive<u32>) -> Lines {
        let items = ["S", "M", "L"].map(str::to_owned).to_vec();
        Lines::Random { units, items }
    }

    fn total(wanted: &Wanted<'_>) -> u32 {
        match wanted {
            Wanted::Quantity(quantity) => *quantity,
            Wanted::Lines(lines) => lines.iter().map(|line| line.quantity).sum(),
        }
    }

    #[test]
    fn random_lines_stay_in_their_range_and_can_be_repeated() {
        for lines in [shirts(1..=3), Lines::Quantity(1..=3)] {
            let run = |seed| (0..1_000).map(move |number| (seed, number));
            let all = run(7).map(|(seed, number)| lines.wanted(seed, number));
            let all: Vec<_> = all.collect();
            let mut totals = [0_u32; 4];
            for wanted in &all {
                totals[total(wanted) as usize] += 1;
            }
            assert_eq!(totals[0], 0);
            assert!(totals[1..].iter().all(|count| *count > 250), "{totals:?}");
            let again: Vec<_> = run(7).map(|(seed, n)| lines.wanted(seed, n)).collect();
            assert_eq!(all, again);
            let other: Vec<_> = run(8).map(|(seed, n)| lines.wanted(seed, n)).collect();
            assert_ne!(all, other);
        }
    }

    #[test]
    fn every_item_is_asked_for() {
        let lines = shirts(2..=2);
        let mut found = std::collections::BTreeSet::new();
        for number in 0..100 {
            let Wanted::Lines(wanted) = lines.wanted(1, number) else {
                panic!("not lines");
            };
            assert!(wanted.len() <= 2);
            found.extend(wanted.into_iter().map(|line| line.item));
        }
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn an_order_must_have_all_units_that_were_asked_for() {
        let unit = |item: &str| HistoryUnit {
            item: Some(item.into()),
            unit: 1,
            generation: Some(1),
        };
        let lines = Lines::Fixed(vec![("S".into(), 1), ("M".into(), 2)]);
        let wanted = lines.wanted(1, 0);
        assert!(wanted.is_met_by(&[unit("M"), unit("S"), unit("M")]));
        for wrong in [
            vec![unit("M"), unit("S")],
            vec![unit("S"), unit("S"), unit("M")],
            vec![unit("S"), unit("M"), unit("M"), unit("L")],
        ] {
            assert!(!wanted.is_met_by(&wrong), "{wrong:?}");
        }
        let two = Lines::Quantity(2..=2);
        assert!(
            two.wanted(1, 0)
                .is_met_by(&[unit("default"), unit("default")])
        );
        assert!(!two.wanted(1, 0).is_met_by(&[unit("default")]));
    }

    #[test]
    fn equal_items_are_one_line() {
        let twice = Lines::Fixed(vec![("S".into(), 1), ("M".into(), 1), ("S".into(), 2)]);
        let random = Lines::Random {
            units: 3..=3,
            items: vec!["S".into(), "S".into()],
        };
        for (lines, expected) in [(twice, &[("S", 3), ("M", 1)][..]), (random, &[("S", 3)])] {
            let Wanted::Lines(wanted) = lines.wanted(1, 0) else {
                panic!("not lines");
            };
            let wanted: Vec<_> = wanted
                .iter()
                .map(|line| (&*line.item, line.quantity))
                .collect();
            assert_eq!(wanted, expected);
        }
    }

    #[test]
    fn only_attempts_without_a_choice_are_uniform() {
        assert!(Lines::default().is_uniform() && Lines::Quantity(3..=3).is_uniform());
        assert!(Lines::Fixed(vec![("S".into(), 1)]).is_uniform());
        assert!(!Lines::Quantity(1..=2).is_uniform() && !shirts(1..=1).is_uniform());
    }
}
