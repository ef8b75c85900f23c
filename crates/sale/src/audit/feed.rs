//! What the audit knows of a sale's feed: that its numbers have no gaps, and that its events lead to
//! the stored terms.

use std::collections::HashMap;

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
    Created(&'a Sale),
    Changed(&'a Sale),
    /// The order has another state.
    Order {
        order_id: &'a str,
        state: OrderState,
    },
}

/// The maximum number of numbers that a violation lists.
const LISTED_MAX: usize = 20;

#[derive(Debug, Default)]
pub(super) struct FeedAudit {
    /// One bit for each number, in words of 64: a damaged number takes no more than one of them.
    seen: HashMap<u64, u64>,
    latest: u64,
    count: u64,
    twice: Vec<u64>,
    /// The number of the event that created the sale, as far as there is one.
    created: Option<u64>,
    terms: Option<(u64, Sale)>,
}

impl FeedAudit {
    pub(super) fn see(&mut self, sequence: u64) {
        self.latest = self.latest.max(sequence);
        let word = self.seen.entry(sequence / 64).or_default();
        let bit = 1 << (sequence % 64);
        if *word & bit == 0 {
            self.count += 1;
        } else if self.twice.len() < LISTED_MAX {
            self.twice.push(sequence);
        }
        *word |= bit;
    }

    pub(super) fn created(&mut self, sequence: u64, sale: &Sale) {
        self.created = Some(self.created.unwrap_or(0).max(sequence));
        self.terms(sequence, sale);
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
        let missing = self.latest.saturating_sub(self.count);
        if missing > *accepted {
            let has = |sequence: u64| {
                let word = self.seen.get(&(sequence / 64)).copied().unwrap_or(0);
                word & (1 << (sequence % 64)) != 0
            };
            let gaps = (1..=self.latest).filter(|&sequence| !has(sequence));
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
        if self.terms.is_some() && self.created != Some(1) {
            broken.push("not event 1, and no other, tells that the sale was created".to_owned());
        }
        broken
    }
}

fn list(numbers: &[u64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    numbers.join(", ")
}
