//! The report: medians with their spread, as a table, as JSON, and as documents. Measures nothing.

use serde::Serialize;

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    case: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    /// The lowest and highest value over the rounds.
    spread: Option<(f64, f64)>,
    /// The target, and whether it was met.
    target: Option<(String, bool)>,
}

impl Line {
    /// The median over the rounds.
    pub(crate) fn of(what: impl Into<String>, unit: &'static str, rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let spread = sorted.first().copied().zip(sorted.last().copied());
        Self {
            case: "",
            what: what.into(),
            value: sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN),
            unit,
            spread: spread.filter(|_| sorted.len() > 1),
            target: None,
        }
    }

    /// A single value without a spread.
    pub(crate) fn one(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self::of(what, unit, &[value])
    }

    pub(crate) fn at_least(mut self, target: f64) -> Self {
        self.target = Some((format!("≥ {target}"), self.value >= target));
        self
    }

    pub(crate) fn at_most(mut self, target: f64) -> Self {
        self.target = Some((format!("≤ {target}"), self.value <= target));
        self
    }

    pub(crate) fn within(mut self, low: f64, high: f64) -> Self {
        let met = (low..=high).contains(&self.value);
        self.target = Some((format!("{low} to {high}"), met));
        self
    }

    fn cells(&self) -> [String; 6] {
        let spread = self
            .spread
            .map(|(low, high)| format!("{} … {}", shown(low), shown(high)));
        let (target, met) = match &self.target {
            Some((target, met)) => (target.clone(), if *met { "met" } else { "missed" }),
            None => (String::new(), ""),
        };
        [
            self.case.to_owned(),
            self.what.clone(),
            format!("{} {}", shown(self.value), self.unit),
            spread.unwrap_or_default(),
            target,
            met.to_owned(),
        ]
    }
}

fn shown(value: f64) -> String {
    match value.abs() {
        large if large >= 1_000.0 => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        medium if medium >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

const HEADS: [&str; 6] = ["case", "metric", "median", "lowest … highest", "target", ""];

pub(crate) struct Report {
    lines: Vec<Line>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { lines: Vec::new() }
    }

    pub(crate) fn add(&mut self, case: &'static str, lines: Vec<Line>) {
        self.lines
            .extend(lines.into_iter().map(|line| Line { case, ..line }));
    }

    pub(crate) fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.lines)?)
    }

    pub(crate) fn to_table(&self) -> String {
        let rows: Vec<[String; 6]> = self.lines.iter().map(Line::cells).collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([HEADS[column].len()]).max().unwrap_or(0)
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        let line = |cells: &[String; 6]| {
            let padded = cells
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let head = line(&HEADS.map(str::to_owned));
        std::iter::once(head)
            .chain(rows.iter().map(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The path and text of each document that this run has figures for.
    pub(crate) fn documents(&self) -> Vec<(&'static str, String)> {
        let of = |document: &Document| {
            let lines: Vec<&Line> = self
                .lines
                .iter()
                .filter(|line| Document::of(line.case).path == document.path)
                .collect();
            Some((document.path, document.text(&lines)?))
        };
        DOCUMENTS.iter().filter_map(of).collect()
    }
}

/// A document with the figures of the cases whose names start with a prefix.
struct Document {
    path: &'static str,
    prefix: &'static str,
    head: &'static str,
    tail: &'static str,
}

/// The last one has the cases that no other has.
const DOCUMENTS: [Document; 3] = [
    Document {
        path: "docs/PERFORMANCE-CLUSTER.md",
        prefix: "cluster",
        head: include_str!("performance-cluster-head.md"),
        tail: include_str!("performance-cluster-tail.md"),
    },
    Document {
        path: "docs/PERFORMANCE-MODEL.md",
        prefix: "model",
        head: include_str!("performance-model-head.md"),
        tail: include_str!("performance-model-tail.md"),
    },
    Document {
        path: "docs/PERFORMANCE.md",
        prefix: "",
        head: include_str!("performance-head.md"),
        tail: include_str!("performance-tail.md"),
    },
];

impl Document {
    fn of(case: &str) -> &'static Document {
        let [others @ .., last] = &DOCUMENTS;
        let named = others
            .iter()
            .find(|document| case.starts_with(document.prefix));
        named.unwrap_or(last)
    }

    /// Head, table and tail; `None` if there are no lines.
    fn text(&self, lines: &[&Line]) -> Option<String> {
        if lines.is_empty() {
            return None;
        }
        let mut text = self.head.to_owned();
        text.push_str(&format!(
            "\n| {} |\n|{}\n",
            HEADS.join(" | "),
            "---|".repeat(HEADS.len())
        ));
        for line in lines {
            text.push_str(&format!("| {} |\n", line.cells().join(" | ")));
        }
        text.push_str(self.tail);
        Some(text)
    }
}
