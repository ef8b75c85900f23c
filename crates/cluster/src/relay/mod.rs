//! The relay: forwards the outbox to the order log, and removes entries whose claims are all
//! decided. Any number may run. Sending twice is harmless, so it keeps no durable state.

mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use seckill_cluster_codec::message::whole;
use seckill_kafka_log::{Delivered, LogCondition, LogProducer};
use seckill_mysql_store::orders;
use seckill_redis_gate::{ENTRIES_MAX, GateKeys, Offer};
use seckill_sale::{OrderId, SaleId};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::MissedTickBehavior;

use self::view::{Tracked, View};
use crate::shared::Core;
use crate::stop::stopped;

const TICK: Duration = Duration::from_millis(50);
/// Maximum number of claims in one query to the store.
const CHECK_MAX: usize = 1_000;
/// Outbox entries per page of a sweep.
const SWEEP_PAGE: usize = 64;
/// Maximum number of sales in one sweep; the next sweep continues after them.
const SWEEP_SALES_MAX: usize = 1_000;
const FLUSH_WAIT: Duration = Duration::from_secs(2);
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// A relay's counters since its start, and its condition.
#[derive(Debug)]
pub(crate) struct RelayState {
    pub(crate) entries: AtomicU64,
    pub(crate) produced: AtomicU64,
    pub(crate) produced_again: AtomicU64,
    pub(crate) trimmed: AtomicU64,
    pub(crate) in_view: AtomicU64,
    pub(crate) condition: LogCondition,
    /// One permit: only one query to the store runs at a time.
    checking: Arc<Semaphore>,
}

impl RelayState {
    pub(crate) fn new(condition: LogCondition) -> Self {
        Self {
            entries: AtomicU64::default(),
            produced: AtomicU64::default(),
            produced_again: AtomicU64::default(),
            trimmed: AtomicU64::default(),
            in_view: AtomicU64::default(),
            condition,
            checking: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The channels through which a relay gets its input.
pub(crate) struct Inputs {
    pub(crate) offers: mpsc::Receiver<Offer>,
    pub(crate) settled: mpsc::Receiver<Vec<OrderId>>,
    pub(crate) deliveries: mpsc::UnboundedReceiver<Delivered>,
}

pub(crate) struct Relay {
    pub(crate) core: Arc<Core>,
    pub(crate) state: Arc<RelayState>,
    pub(crate) producer: Arc<LogProducer>,
    /// Sends claims that a query to the store found settled back to this relay.
    pub(crate) checked: mpsc::Sender<Vec<OrderId>>,
}

impl Relay {
    /// Relays until `stop` is set.
    pub(crate) async fn run(self, mut inputs: Inputs, mut stop: watch::Receiver<bool>) {
        let mut view = View::default();
        let mut swept = Swept::default();
        let mut probed = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sweep = Duration::from_millis(self.core.options.relay_sweep_ms);
        let mut sweeps = tokio::time::interval(sweep);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(offer) = inputs.offers.recv() => self.carry(&mut view, offer),
                Some(delivered) = inputs.deliveries.recv() => view.delivered(&delivered),
                Some(ids) = inputs.settled.recv() => {
                    view.settled(&ids);
                    if view.done_count() >= ENTRIES_MAX {
                        self.trim(&mut view);
                    }
                }
                _ = ticks.tick() => {
                    self.trim(&mut view);
                    self.check(&mut view);
                    self.probe(&mut probed);
                    self.produce_again(&mut view);
                    self.state.in_view.store(view.claims() as u64, Ordering::Relaxed);
                }
                _ = sweeps.tick() => {
                    let sale_cache = &self.core.sale_cache;
                    if sale_cache.is_fresh() {
                        view.keep_only(|sale| sale_cache.with(sale, |_| ()).is_some());
                    }
                    self.sweep(&mut view, &mut swept).await;
                }
                () = stopped(&mut stop) => break,
            }
        }
        // Claims not acknowledged by the end of the flush stay in the outbox.
        let producer = self.producer;
        let flushed = tokio::task::spawn_blocking(move || producer.flush(FLUSH_WAIT)).await;
        if flushed.is_err() {
            tracing::error!("the log producer task failed");
        }
    }

    /// After a failure, checks whether the broker is reachable again. While nothing is sold, no
    /// delivery would show it.
    fn probe(&self, probed: &mut Instant) {
        if self.producer.condition.trouble().is_none() || probed.elapsed() < PROBE_PAUSE {
            return;
        }
        *probed = Instant::now();
        let producer = Arc::clone(&self.producer);
        // The probe blocks until the broker replies.
        tokio::task::spawn_blocking(move || producer.probe(PROBE_PAUSE));
    }

    /// Starts tracking an entry and sends its claims.
    fn carry(&self, view: &mut View, offer: Offer) {
        if view.claims() >= self.core.options.relay_claims_max || view.has(&offer) {
            return;
        }
        self.state.entries.fetch_add(1, Ordering::Relaxed);
        let ticket = view.track(offer);
        if let Some(tracked) = view.get_mut(ticket) {
            // An entry that is not accepted now is marked, and sent by a later tick.
            let _ = self.produce(ticket, tracked);
        }
    }

    /// Sends the entry's claims that are not settled. Returns false if the producer's queue is
    /// full; a later tick sends the rest.
    fn produce(&self, ticket: usize, tracked: &mut Tracked) -> bool {
        let offer = &tracked.offer;
        let source = format!("/seckill/{}", offer.sale);
        let mut sent = 0;
        for claim in tracked.open.iter().flatten() {
            let payload = whole(&offer.sale, offer.epoch, offer.entry.at_ms, claim);
            let order_id = claim.order_id.as_str();
            if !self
                .producer
                .produce(ticket, offer.keys.stock(), order_id, &source, &payload)
            {
                tracked.failed = true;
                break;
            }
            sent += 1;
        }
        tracked.sent(sent);
        self.state
            .produced
            .fetch_add(sent as u64, Ordering::Relaxed);
        !tracked.failed
    }

    fn produce_again(&self, view: &mut View) {
        for ticket in view.overdue() {
            if let Some(tracked) = view.get_mut(ticket) {
                let before = tracked.open_count as u64;
                tracked.failed = false;
                self.state
                    .produced_again
                    .fetch_add(before, Ordering::Relaxed);
                if !self.produce(ticket, tracked) {
                    // The queue is full, so the other entries would be refused as well.
                    return;
                }
            }
        }
    }

    /// Removes entries whose claims are all decided from the outbox. If that fails, a sweep finds
    /// them again.
    fn trim(&self, view: &mut View) {
        let mut by_gate: HashMap<(String, u32), (GateKeys, Vec<String>)> = HashMap::new();
        for offer in view.take_done() {
            let gate = by_gate.entry((offer.keys.stock().to_owned(), offer.epoch));
            gate.or_insert_with(|| (offer.keys.clone(), Vec::new()))
                .1
                .push(offer.entry.id);
        }
        for ((_, epoch), (keys, entries)) in by_gate {
            let (core, state) = (Arc::clone(&self.core), Arc::clone(&self.state));
            tokio::spawn(async move {
                for entries in entries.chunks(ENTRIES_MAX) {
                    match core.gate.trim(&keys, epoch, entries).await {
                        Ok(Ok(())) => {
                            state
                                .trimmed
                                .fetch_add(entries.len() as u64, Ordering::Relaxed);
                        }
                        // The outbox of a past epoch is already gone.
                        Ok(Err(refusal)) => tracing::debug!(%refusal, "outbox entries not trimmed"),
                        Err(fault) => tracing::debug!(%fault, "outbox entries not trimmed yet"),
                    }
                }
            });
        }
    }

    /// Queries the store for claims that were sent a while ago and not reported as settled.
    fn check(&self, view: &mut View) {
        // One query at a time, so that a slow store gets no additional load.
        let Ok(turn) = Arc::clone(&self.state.checking).try_acquire_owned() else {
            return;
        };
        let ids = view.take_quiet(CHECK_MAX);
        if ids.is_empty() {
            return;
        }
        let (core, checked) = (Arc::clone(&self.core), self.checked.clone());
        tokio::spawn(async move {
            let _turn = turn;
            let asked = async {
                let mut session = core.store.ready().await?;
                orders::settled(&mut session, &ids).await
            };
            match asked.await {
                // The receiver is dropped only at shutdown.
                Ok(settled) => {
                    drop(checked.try_send(settled.into_iter().map(|(id, _)| id).collect()));
                }
                Err(fault) => tracing::debug!(%fault, "the store could not be queried"),
            }
        });
    }

    /// Looks for entries that no relay is forwarding: those that the previous sweep saw as well and
    /// that are not tracked here.
    async fn sweep(&self, view: &mut View, swept: &mut Swept) {
        let mut sale_cache = self.core.sale_cache.all();
        sale_cache.sort_by(|a, b| a.row.sale.id.cmp(&b.row.sale.id));
        let behind = swept.after.take();
        let first = sale_cache
            .iter()
            .position(|cached| behind.as_ref().is_some_and(|id| cached.row.sale.id > *id))
            .unwrap_or(0);
        let mut seen = std::collections::HashSet::new();
        for cached in sale_cache.iter().skip(first).take(SWEEP_SALES_MAX) {
            let mut after: Option<String> = None;
            loop {
                let entries = match self
                    .core
                    .gate
                    .outbox(&cached.keys, after.as_deref(), SWEEP_PAGE)
                    .await
                {
                    Ok(entries) => entries,
                    Err(fault) => {
                        tracing::debug!(%fault, sale = %cached.row.sale.id, "the outbox could not be read");
                        // The next sweep continues after it: one failure must not hold up the rest.
                        swept.after = Some(cached.row.sale.id.clone());
                        swept.seen.extend(seen);
                        return;
                    }
                };
                let is_last = entries.len() < SWEEP_PAGE;
                after = entries.last().map(|entry| entry.id.clone());
                for entry in entries {
                    let name = (cached.row.sale.id.clone(), entry.id.clone());
                    // The entry's epoch is the gate's, which may differ from the cached sale's.
                    let epoch = entry
                        .id
                        .split_once('-')
                        .and_then(|(epoch, _)| epoch.parse().ok());
                    if swept.seen.contains(&name)
                        && let Some(epoch) = epoch
                    {
                        let sale = cached.row.sale.id.clone();
                        self.carry(
                            view,
                            Offer {
                                sale,
                                keys: cached.keys.clone(),
                                epoch,
                                entry,
                            },
                        );
                    }
                    seen.insert(name);
                }
                if is_last {
                    break;
                }
            }
        }
        let last = sale_cache
            .iter()
            .skip(first)
            .take(SWEEP_SALES_MAX)
            .next_back();
        let is_whole = first + SWEEP_SALES_MAX >= sale_cache.len();
        swept.after = last
            .filter(|_| !is_whole)
            .map(|cached| cached.row.sale.id.clone());
        if is_whole && first == 0 {
            swept.seen = seen;
        } else {
            swept.seen.extend(seen);
            if swept.seen.len() > self.core.options.relay_claims_max {
                swept.seen.clear();
            }
        }
    }
}

#[derive(Default)]
struct Swept {
    seen: std::collections::HashSet<(SaleId, String)>,
    after: Option<SaleId>,
}
