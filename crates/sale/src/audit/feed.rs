//! What the audit knows of a sale's feed: that its numbers have no gaps, and that its events lead to
//! the stored terms.

use crate::{OrderState, Sale};

/// The data of an event that has no row of its own.
#[derive(Debug, Clone, Copy)]
pub struct EventFacts<'a> {
    pub sale: &'a str,
    pub sequence: u64,
    pub event: AuditedEvent<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum AuditedEvent<'a> {
    /// The sale was created or changed.
    Terms(&'a Sale),
    /// The order has ended.
    Order {
        order_id: &'a str,
        state: OrderState,
    },
}

#[derive(Debug, Default)]
pub(super) struct FeedAudit {
    /// One bit for each number.
    seen: Vec<u64>,
    latest: u64,
    count: u64,
    twice: Vec<u64>,
    terms: Option<(u64, Sale)>,
}

/// So that a damaged number cannot make the audit allocate without bound.
const SEQUENCE_MAX: u64 = 1 << 36;
/// The maximum number of numbers that a violation lists.
const LISTED_MAX: usize = 20;

impl FeedAudit {
    pub(super) fn see(&mut self, sequence: u64) {
        self.latest = self.latest.max(sequence);
        self.count += 1;
        if sequence > SEQUENCE_MAX {
            return;
        }
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 && self.twice.len() < LISTED_MAX {
            self.twice.push(sequence);
        }
        self.seen[word] |= bit;
    }

    pub(super) fn terms(&mut self, sequence: u64, sale: &Sale) {
        if self
            .terms
            .as_ref()
            .is_none_or(|(latest, _)| *latest < sequence)
        {
            self.terms = Some((sequence, sale.clone()));
        }
    }

    /// What is wrong with the feed. `accepted` is the number of missing events to tolerate, which
    /// this uses up.
    pub(super) fn finish(&self, sale: &Sale, accepted: &mut u64) -> Vec<String> {
        let mut broken = Vec::new();
        if !self.twice.is_empty() {
            broken.push(format!("two events have the number {}", list(&self.twice)));
        }
        let missing = (self.latest + 1).saturating_sub(self.count + 1);
        if missing > *accepted {
            let has = |sequence: u64| {
                let word = self.seen.get((sequence / 64) as usize).copied();
                word.unwrap_or(0) & (1 << (sequence % 64)) != 0
            };
            let last = self.latest.min(SEQUENCE_MAX);
            let gaps = (1..=last).filter(|&sequence| !has(sequence));
            let gaps: Vec<u64> = gaps.take(LISTED_MAX).collect();
            broken.push(format!(
                "{missing} events are missing, such as {}",
                list(&gaps)
            ));
        }
        *accepted = accepted.saturating_sub(missing);
        match &self.terms {
            Some((_, terms)) if terms == sale => {}
            Some((sequence, _)) => broken.push(format!(
                "the terms differ from those of event {sequence}, the last that changed them"
            )),
            None => broken.push("no event tells that the sale was created".to_owned()),
        }
        broken
    }
}

fn list(numbers: &[u64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    numbers.join(", ")
}
