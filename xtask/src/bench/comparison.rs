//! What the parts of the case `model` share: the two builds, the loads, and the lines that compare
//! them.

use std::path::Path;

use super::report::Line;
use super::rig::Harness;
use super::turns::{Pair, Side};

pub(crate) const PLAIN: [&str; 2] = ["--connections", "512"];
pub(crate) const NAMED: [&str; 6] = [
    "--connections",
    "512",
    "--buyers",
    "unique",
    "--keys",
    "unique",
];

/// The two builds of the product.
pub(crate) struct Builds<'a> {
    pub(crate) rig: &'a Harness,
    pub(crate) before: &'a Path,
}

impl Builds<'_> {
    pub(crate) fn of(&self, side: Side) -> &Path {
        side.of(self.before, &self.rig.binary)
    }
}

/// Adds a target to a line.
pub(crate) type Target = fn(Line) -> Line;

pub(crate) fn no_target(line: Line) -> Line {
    line
}

/// A metric of both sides: its ratio now ÷ before, which gets the target, and both figures.
pub(crate) fn compared<T>(
    what: &str,
    unit: &'static str,
    target: Target,
    pairs: &[Pair<T>],
    value: fn(&T) -> f64,
) -> [Line; 3] {
    let of = |figure: &dyn Fn(&Pair<T>) -> f64| pairs.iter().map(figure).collect::<Vec<_>>();
    let ratios = of(&|pair| value(&pair.now) / value(&pair.before));
    let before = of(&|pair| value(&pair.before));
    let now = of(&|pair| value(&pair.now));
    [
        target(Line::of(format!("{what}, now ÷ before"), "", &ratios)),
        Line::of(format!("{what}, before"), unit, &before),
        Line::of(format!("{what}, now"), unit, &now),
    ]
}
