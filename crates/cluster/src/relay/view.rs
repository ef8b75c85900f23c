//! The entries that a relay tracks: which claims are sent, acknowledged, decided. Plain state
//! without I/O.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use seckill_cluster_codec::message::OutboxClaim;
use seckill_cluster_codec::order_id::ByOrder;
use seckill_kafka_log::Delivered;
use seckill_redis_gate::Offer;
use seckill_sale::{OrderId, SaleId};

/// Time after a claim was sent or last checked until the store is queried for it.
const QUIET: Duration = Duration::from_millis(500);
/// How long removing an entry from the outbox may take.
const LEAVING_MAX: Duration = Duration::from_secs(5);
/// How long to wait before a refused record is sent again.
const REFUSED_PAUSE: Duration = Duration::from_millis(200);
/// How long an acknowledged claim may stay undecided before it is sent again, since the log may
/// have lost it. Doubles each time up to a maximum, so that the log does not fill with copies while
/// the store is down.
const SEND_AGAIN_MIN: Duration = Duration::from_secs(10);
const SEND_AGAIN_MAX: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) offer: Offer,
    /// Claims that have neither row nor void yet, each at its index in the entry.
    pub(super) open: Vec<Option<OutboxClaim>>,
    pub(super) open_count: usize,
    /// The log did not accept one of the claims.
    pub(super) failed: bool,
    unacknowledged: usize,
    sent_at: Instant,
    checked_at: Instant,
    send_again_after: Duration,
}

impl Tracked {
    /// Whether all claims were acknowledged and some have stayed undecided for too long.
    fn is_late(&self) -> bool {
        self.unacknowledged == 0 && self.sent_at.elapsed() > self.send_again_after
    }

    /// Records that `count` claims were handed to the producer.
    pub(super) fn sent(&mut self, count: usize) {
        if self.is_late() {
            self.send_again_after = (self.send_again_after * 2).min(SEND_AGAIN_MAX);
        }
        self.unacknowledged += count;
        self.sent_at = Instant::now();
        self.checked_at = self.sent_at;
    }
}

/// All tracked entries.
#[derive(Debug, Default)]
pub(super) struct View {
    entries: HashMap<usize, Tracked>,
    names: HashSet<(String, String)>,
    /// The ticket of each claim's entry, and the claim's index there.
    by_order: ByOrder<(usize, usize)>,
    done: Vec<Offer>,
    /// Entries that are being removed from the outbox, where a sweep may still see them.
    leaving: HashMap<(String, String), Instant>,
    next_ticket: usize,
}

fn name(offer: &Offer) -> (String, String) {
    (offer.keys.stock().to_owned(), offer.entry.id.clone())
}

impl View {
    /// Number of undecided claims.
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

    /// Starts tracking an entry. The returned ticket identifies it.
    pub(super) fn track(&mut self, mut offer: Offer) -> usize {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.names.insert(name(&offer));
        let claims = std::mem::take(&mut offer.entry.claims);
        let places = claims.iter().enumerate();
        self.by_order
            .extend(places.map(|(place, claim)| (claim.order_id.clone(), (ticket, place))));
        let now = Instant::now();
        let tracked = Tracked {
            offer,
            open_count: claims.len(),
            open: claims.into_iter().map(Some).collect(),
            failed: false,
            unacknowledged: 0,
            sent_at: now,
            checked_at: now,
            send_again_after: SEND_AGAIN_MIN,
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

    /// Marks claims that have a row or a void as settled.
    pub(super) fn settled(&mut self, ids: &[OrderId]) {
        for id in ids {
            let Some((ticket, place)) = self.by_order.remove(id) else {
                continue;
            };
            if let Some(tracked) = self.entries.get_mut(&ticket)
                && let Some(claim) = tracked.open.get_mut(place)
                && claim.take().is_some()
            {
                tracked.open_count -= 1;
                self.finish_if_done(ticket);
            }
        }
    }

    fn finish_if_done(&mut self, ticket: usize) {
        if self
            .entries
            .get(&ticket)
            .is_some_and(|tracked| tracked.open_count == 0)
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

    /// Takes the entries that can be removed from the outbox.
    pub(super) fn take_done(&mut self) -> Vec<Offer> {
        // An entry that is still there after this long was not removed. A sweep picks it up again.
        self.leaving
            .retain(|_, since| since.elapsed() < LEAVING_MAX);
        std::mem::take(&mut self.done)
    }

    /// Takes the claims to query the store for, up to `max` unless a single entry has more.
    pub(super) fn take_quiet(&mut self, max: usize) -> Vec<OrderId> {
        let quiet = self.entries.values_mut();
        let mut quiet: Vec<&mut Tracked> = quiet
            .filter(|tracked| tracked.checked_at.elapsed() >= QUIET)
            .collect();
        // Those checked longest ago come first, so that claims that stay undecided do not keep the
        // others from being checked.
        quiet.sort_unstable_by_key(|tracked| tracked.checked_at);
        let mut ids = Vec::new();
        for tracked in quiet {
            if ids.len() + tracked.open_count > max && !ids.is_empty() {
                break;
            }
            tracked.checked_at = Instant::now();
            let open = tracked.open.iter().flatten();
            ids.extend(open.map(|claim| claim.order_id.clone()));
        }
        ids
    }

    /// Tickets of entries to send again: those refused by the log, or undecided for so long that
    /// the log may have lost them.
    pub(super) fn overdue(&self) -> Vec<usize> {
        let overdue = |tracked: &Tracked| {
            tracked.is_late() || (tracked.failed && tracked.sent_at.elapsed() > REFUSED_PAUSE)
        };
        let all = self.entries.iter();
        all.filter(|(_, tracked)| overdue(tracked))
            .map(|(ticket, _)| *ticket)
            .collect()
    }

    /// Drops the entries of deleted sales, whose claims will never be decided.
    pub(super) fn keep_only(&mut self, is_there: impl Fn(&SaleId) -> bool) {
        let gone = self.entries.iter();
        let gone: Vec<usize> = gone
            .filter(|(_, tracked)| !is_there(&tracked.offer.sale))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in gone {
            if let Some(tracked) = self.entries.remove(&ticket) {
                self.names.remove(&name(&tracked.offer));
                for claim in tracked.open.iter().flatten() {
                    self.by_order.remove(&claim.order_id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_cluster_codec::message::attempt_part;
    use seckill_redis_gate::{GateKeys, OutboxEntry};
    use seckill_sale::{Attempt, ClaimedUnits};

    fn order_id(id: &str) -> OrderId {
        OrderId::new(id).unwrap()
    }

    fn offer(ids: &[&str]) -> Offer {
        let sale = SaleId::new("s").unwrap();
        let claim = |id: &&str| OutboxClaim {
            order_id: order_id(id),
            part: attempt_part(&order_id(id), &Attempt::anonymous(sale.clone())),
            n: 1,
            units: ClaimedUnits::new(),
        };
        let claims = ids.iter().map(claim).collect();
        let entry = OutboxEntry {
            id: "1-1".into(),
            at_ms: 1,
            claims,
        };
        Offer {
            sale: sale.clone(),
            keys: GateKeys::new("s", 1),
            epoch: 1,
            entry,
        }
    }

    #[test]
    fn an_entry_leaves_when_its_last_claim_is_decided() {
        let mut view = View::default();
        view.track(offer(&["a", "b"]));
        assert!(view.has(&offer(&[])) && view.claims() == 2);
        view.settled(&[order_id("a"), order_id("unknown")]);
        assert!(view.take_done().is_empty());
        view.settled(&[order_id("b")]);
        assert_eq!(view.take_done().len(), 1);
        assert_eq!(view.claims(), 0);
        // A sweep that sees it before it is removed must not pick it up again.
        assert!(view.has(&offer(&[])));
    }

    #[test]
    fn entries_of_a_deleted_sale_are_dropped() {
        let mut view = View::default();
        view.track(offer(&["a", "b"]));
        view.keep_only(|sale| sale.as_str() == "s");
        assert_eq!(view.claims(), 2);
        view.keep_only(|_| false);
        assert!(view.claims() == 0 && !view.has(&offer(&[])));
        assert!(view.take_done().is_empty());
    }

    #[test]
    fn undecided_claims_are_sent_again_with_growing_delays() {
        let mut view = View::default();
        let ticket = view.track(offer(&["a"]));
        view.get_mut(ticket).unwrap().sent(1);
        let ago = |view: &mut View, wait: Duration| {
            let tracked = view.get_mut(ticket).unwrap();
            tracked.sent_at = Instant::now().checked_sub(wait).unwrap();
        };
        let bit = Duration::from_millis(1);
        ago(&mut view, SEND_AGAIN_MIN + bit);
        // Not before it is acknowledged: the library is still retrying.
        assert!(view.overdue().is_empty());
        let place = Ok((0, 0));
        view.delivered(&Delivered { ticket, place });
        assert_eq!(view.overdue(), [ticket]);
        view.get_mut(ticket).unwrap().sent(0);
        ago(&mut view, SEND_AGAIN_MIN + bit);
        assert!(view.overdue().is_empty());
        ago(&mut view, SEND_AGAIN_MIN * 2 + bit);
        assert_eq!(view.overdue(), [ticket]);
    }

    #[test]
    fn claims_checked_longest_ago_are_checked_first() {
        let mut view = View::default();
        let tickets: Vec<usize> = ["a", "b", "c"].map(|id| view.track(offer(&[id]))).into();
        for (ticket, s) in tickets.iter().zip([1, 3, 2]) {
            let before = Instant::now().checked_sub(Duration::from_secs(s));
            view.get_mut(*ticket).unwrap().checked_at = before.unwrap();
        }
        assert_eq!(view.take_quiet(2), [order_id("b"), order_id("c")]);
        assert_eq!(view.take_quiet(2), [order_id("a")]);
    }

    #[test]
    fn an_entry_that_the_log_refused_is_marked() {
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
