//! The entries that a relay carries now: which claims are sent, acknowledged, decided. Plain state without I/O.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::Offer;
use crate::log::producer::Delivered;
use crate::words::message::{OutboxClaim, order_id_of};

/// How long after its acknowledgement a claim may go without news before the store is asked.
const QUIET: Duration = Duration::from_millis(500);
/// How long taking an entry out of the outbox may take.
const LEAVING_MAX: Duration = Duration::from_secs(5);
/// The pause before a record that was refused is sent again.
const REFUSED_PAUSE: Duration = Duration::from_millis(200);
/// How long an acknowledged claim may stay undecided before it is sent again: the log may have lost it.
const SEND_AGAIN: Duration = Duration::from_secs(10);

/// An entry in view.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) offer: Offer,
    /// Claims that have no row and no void yet.
    pub(super) open: HashMap<String, OutboxClaim>,
    /// Something was not taken by the log.
    pub(super) failed: bool,
    unacknowledged: usize,
    sent_at: Instant,
    checked_at: Instant,
}

impl Tracked {
    /// Takes note of records handed over.
    pub(super) fn sent(&mut self, count: usize) {
        self.unacknowledged += count;
        self.sent_at = Instant::now();
        self.checked_at = self.sent_at;
    }
}

/// All entries in view.
#[derive(Debug, Default)]
pub(super) struct View {
    entries: HashMap<usize, Tracked>,
    names: HashSet<(String, String)>,
    by_order: HashMap<String, usize>,
    done: Vec<Offer>,
    /// Entries that are being taken out of the outbox, where a sweep may still see them.
    leaving: HashMap<(String, String), Instant>,
    next_ticket: usize,
}

fn name(offer: &Offer) -> (String, String) {
    (offer.keys.stock().to_owned(), offer.entry.id.clone())
}

impl View {
    /// Undecided claims in view.
    pub(super) fn claims(&self) -> usize {
        self.by_order.len()
    }

    pub(super) fn has(&self, offer: &Offer) -> bool {
        let name = name(offer);
        self.names.contains(&name) || self.leaving.contains_key(&name)
    }

    pub(super) fn get_mut(&mut self, ticket: usize) -> Option<&mut Tracked> {
        self.entries.get_mut(&ticket)
    }

    /// Takes an entry in; the ticket names it from then on.
    pub(super) fn track(&mut self, mut offer: Offer) -> usize {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.names.insert(name(&offer));
        let claims = std::mem::take(&mut offer.entry.claims).into_iter();
        let open: HashMap<String, OutboxClaim> = claims
            .filter_map(|claim| Some((order_id_of(&claim.part)?.to_owned(), claim)))
            .collect();
        self.by_order
            .extend(open.keys().map(|id| (id.clone(), ticket)));
        let now = Instant::now();
        let tracked = Tracked {
            offer,
            open,
            failed: false,
            unacknowledged: 0,
            sent_at: now,
            checked_at: now,
        };
        self.entries.insert(ticket, tracked);
        self.finish_if_done(ticket);
        ticket
    }

    pub(super) fn delivered(&mut self, delivered: &Delivered) {
        if let Some(tracked) = self.entries.get_mut(&delivered.ticket) {
            tracked.unacknowledged = tracked.unacknowledged.saturating_sub(1);
            tracked.failed |= delivered.place.is_err();
        }
    }

    /// Takes note of claims that have a row or a void.
    pub(super) fn settled(&mut self, ids: &[String]) {
        for id in ids {
            let Some(ticket) = self.by_order.remove(id) else {
                continue;
            };
            if let Some(tracked) = self.entries.get_mut(&ticket) {
                tracked.open.remove(id);
            }
            self.finish_if_done(ticket);
        }
    }

    fn finish_if_done(&mut self, ticket: usize) {
        if self
            .entries
            .get(&ticket)
            .is_some_and(|tracked| tracked.open.is_empty())
            && let Some(tracked) = self.entries.remove(&ticket)
        {
            let name = name(&tracked.offer);
            self.names.remove(&name);
            self.leaving.insert(name, Instant::now());
            self.done.push(tracked.offer);
        }
    }

    pub(super) fn done_count(&self) -> usize {
        self.done.len()
    }

    /// Entries that can leave the outbox.
    pub(super) fn take_done(&mut self) -> Vec<Offer> {
        // One that is still there after this long was not taken out: it is carried again, and then taken out.
        self.leaving
            .retain(|_, since| since.elapsed() < LEAVING_MAX);
        std::mem::take(&mut self.done)
    }

    /// Claims that the store is to be asked for, up to `max`.
    pub(super) fn take_quiet(&mut self, max: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for tracked in self.entries.values_mut() {
            if tracked.checked_at.elapsed() < QUIET {
                continue;
            }
            if ids.len() + tracked.open.len() > max && !ids.is_empty() {
                break;
            }
            tracked.checked_at = Instant::now();
            ids.extend(tracked.open.keys().cloned());
        }
        ids
    }

    /// Entries to be sent once more: refused by the log, or undecided for so long that the log may have lost them.
    pub(super) fn to_send_again(&self) -> Vec<usize> {
        let again = |tracked: &Tracked| {
            let age = tracked.sent_at.elapsed();
            (tracked.failed && age > REFUSED_PAUSE)
                || (tracked.unacknowledged == 0 && age > SEND_AGAIN)
        };
        self.entries
            .iter()
            .filter(|(_, tracked)| again(tracked))
            .map(|(ticket, _)| *ticket)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::OutboxEntry;
    use crate::gate::keys::GateKeys;
    use crate::words::message::{Line, attempt_part};
    use seckill_sale::{Attempt, OrderId, SaleId};

    fn offer(ids: &[&str]) -> Offer {
        let sale = SaleId::new("s").unwrap();
        let claim = |id: &&str| OutboxClaim {
            part: attempt_part(
                &OrderId::new(id).unwrap(),
                &Attempt::anonymous(sale.clone()),
            ),
            n: 1,
            line: Line {
                unit: 1,
                generation: 1,
                slot: None,
            },
        };
        let claims = ids.iter().map(claim).collect();
        let entry = OutboxEntry {
            id: "1-1".into(),
            at_ms: 1,
            claims,
        };
        Offer {
            sale: sale.clone(),
            keys: GateKeys::new("s"),
            epoch: 1,
            entry,
        }
    }

    #[test]
    fn an_entry_leaves_when_its_last_claim_is_decided() {
        let mut view = View::default();
        view.track(offer(&["a", "b"]));
        assert!(view.has(&offer(&[])) && view.claims() == 2);
        view.settled(&["a".into(), "unknown".into()]);
        assert!(view.take_done().is_empty());
        view.settled(&["b".into()]);
        assert_eq!(view.take_done().len(), 1);
        assert_eq!(view.claims(), 0);
        // A sweep that sees it before it is taken out must not carry it again.
        assert!(view.has(&offer(&[])));
    }

    #[test]
    fn what_the_log_refused_is_marked() {
        let mut view = View::default();
        let ticket = view.track(offer(&["a"]));
        view.get_mut(ticket).unwrap().sent(1);
        view.delivered(&Delivered {
            ticket,
            place: Err("no leader".into()),
        });
        assert!(view.get_mut(ticket).unwrap().failed);
        view.delivered(&Delivered {
            ticket: 99,
            place: Ok((0, 0)),
        });
    }
}
