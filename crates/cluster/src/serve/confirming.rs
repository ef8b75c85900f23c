//! Claims that wait for the store: the recorder of this process reports its commits, and one SELECT
//! per tick checks all others. Only a committed row is confirmed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use seckill_cluster_codec::order_id::ByOrder;
use seckill_engine::{Cause, Fault, Replies, Reply};
use seckill_mysql_store::orders::{self, Settled};
use seckill_sale::{OrderId, Verdict};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::record::StoredOrders;
use crate::shared::{Core, Waiter, Waiters};

/// Claims in one SELECT.
const ASK_MAX: usize = 1_000;
/// The pause between two queries if no recorder of this process reports its commits.
const TICK: Duration = Duration::from_millis(3);
/// The same if one does.
const HINTED_TICK: Duration = Duration::from_millis(50);
/// After this many queries, a claim moves to the end of the queue.
const QUERIES_MAX: u32 = 16;
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(100);

/// The requests that wait for one claim: usually one, more if its key was repeated.
struct Together {
    first: Option<(Waiter, Reply)>,
    others: Waiters,
}

impl Together {
    fn has_waiters(&self) -> bool {
        let all = self.first.iter().chain(&self.others);
        all.into_iter().any(|(_, reply)| !reply.is_closed())
    }

    /// Removes those that have waited since before `since`.
    fn take_since(&mut self, since: Instant) -> Waiters {
        let is_over = |(waiter, _): &mut (Waiter, Reply)| waiter.since <= since;
        let mut over: Waiters = self.others.extract_if(.., is_over).collect();
        over.extend(self.first.take_if(is_over));
        over
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.others.is_empty()
    }
}

#[derive(Default)]
struct WaitingClaims {
    /// In order of arrival, with the queries so far; each id once.
    queue: VecDeque<(OrderId, u32)>,
    waiters: ByOrder<Together>,
}

impl WaitingClaims {
    fn enter(&mut self, waiting: (Waiter, Reply)) {
        let id = &waiting.0.claim.order_id;
        match self.waiters.get_mut(id) {
            Some(together) => together.others.push(waiting),
            None => {
                self.queue.push_back((id.clone(), 0));
                let (id, others) = (id.clone(), Vec::new());
                let first = Some(waiting);
                self.waiters.insert(id, Together { first, others });
            }
        }
    }

    fn enter_all(&mut self, waiters: Waiters) {
        waiters.into_iter().for_each(|waiter| self.enter(waiter));
    }

    /// The first claims in the queue, without those that no request waits for any more.
    fn first(&mut self) -> Vec<(OrderId, u32)> {
        let mut first = Vec::new();
        while first.len() < ASK_MAX
            && let Some((id, queries)) = self.queue.pop_front()
        {
            let has_waiters = self.waiters.get(&id).is_some_and(Together::has_waiters);
            if has_waiters {
                first.push((id, queries + 1));
            } else {
                self.waiters.remove(&id);
            }
        }
        first
    }

    /// Answers those that have waited since before `since` with the order's address.
    fn give_up_waiting(&mut self, since: Instant) {
        let mut replies = Replies::default();
        self.waiters.retain(|_, together| {
            for (waiter, reply) in together.take_since(since) {
                replies.push(reply, Ok(Verdict::Pending(waiter.claim.order_id)));
            }
            !together.is_empty()
        });
    }

    /// Confirms a claim that the recorder of this process has committed. Repeats stay, and are
    /// returned to the store: since the commit, the order may have been cancelled.
    fn confirm(&mut self, id: &OrderId, replies: &mut Replies) -> bool {
        let Some(Together { first, others }) = self.waiters.remove(id) else {
            return false;
        };
        let all = first.into_iter().chain(others);
        let (mut repeats, claims): (Waiters, Waiters) =
            all.partition(|(waiter, _)| waiter.is_repeat);
        for (waiter, reply) in claims {
            replies.push(reply, Ok(Verdict::Claimed(waiter.claim)));
        }
        let first = repeats.pop();
        let has_repeats = first.is_some();
        if has_repeats {
            let others = repeats;
            self.waiters.insert(id.clone(), Together { first, others });
        }
        if self.waiters.is_empty() {
            self.queue.clear();
        }
        has_repeats
    }

    fn settle(&mut self, id: &OrderId, settled: &Settled, replies: &mut Replies) {
        let Some(Together { first, others }) = self.waiters.remove(id) else {
            return;
        };
        for (waiter, reply) in first.into_iter().chain(others) {
            let answer = match settled {
                Settled::Order(_, state) => {
                    let claim = waiter.claim;
                    Ok(if waiter.is_repeat {
                        let state = *state;
                        Verdict::Repeat { claim, state }
                    } else {
                        Verdict::Claimed(claim)
                    })
                }
                Settled::Void(reason) => Err(voided(reason)),
            };
            replies.push(reply, answer);
        }
        if self.waiters.is_empty() {
            self.queue.clear();
        }
    }

    /// Puts back the claims that are not settled: in front, or at the end after many queries.
    fn put_back(&mut self, first: Vec<(OrderId, u32)>) {
        for (id, queries) in first.into_iter().rev() {
            if !self.waiters.contains_key(&id) {
                continue;
            }
            if queries < QUERIES_MAX {
                self.queue.push_front((id, queries));
            } else {
                self.queue.push_back((id, 0));
            }
        }
    }
}

/// The answer for a void claim: the attempt had no effect, and may be repeated.
fn voided(reason: &str) -> Fault {
    let detail = format!("the claim was not stored ({reason}), so nothing was bought; try again");
    Fault::without_effect(Cause::Rebuilding, detail)
}

/// The inputs from this process.
pub(crate) struct Inputs {
    pub(crate) waiters: mpsc::UnboundedReceiver<Waiters>,
    /// What the recorder of this process has committed.
    pub(crate) stored: mpsc::UnboundedReceiver<StoredOrders>,
}

/// Settles claims until their channel closes.
pub(crate) async fn run(core: Arc<Core>, mut inputs: Inputs) {
    let mut claims = WaitingClaims::default();
    let tick = if core.options.records {
        HINTED_TICK
    } else {
        TICK
    };
    let mut next_query = Instant::now();
    let confirm_wait = Duration::from_millis(core.options.confirm_wait_ms);
    let mut expiries = tokio::time::interval(
        (confirm_wait / 10).clamp(Duration::from_millis(1), Duration::from_millis(100)),
    );
    expiries.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            Some(stored) = inputs.stored.recv() => {
                // A claim's waiter may still be in the channel although its row is here.
                while let Ok(waiters) = inputs.waiters.try_recv() {
                    claims.enter_all(waiters);
                }
                let mut replies = Replies::default();
                for id in &stored {
                    if claims.confirm(id, &mut replies) {
                        next_query = Instant::now();
                    }
                }
                drop(replies);
                core.settled(stored);
            }
            waiters = inputs.waiters.recv() => {
                let Some(waiters) = waiters else { return };
                // A repeated claim may be stored already; a new one cannot be yet.
                let has_repeat = waiters.iter().any(|(waiter, _)| waiter.is_repeat);
                let query_at = Instant::now() + if has_repeat { Duration::ZERO } else { tick };
                next_query = if claims.waiters.is_empty() {
                    query_at
                } else {
                    next_query.min(query_at)
                };
                claims.enter_all(waiters);
            }
            now = expiries.tick() => {
                if let Some(since) = now.checked_sub(confirm_wait) {
                    claims.give_up_waiting(since);
                }
            }
            () = tokio::time::sleep_until(next_query), if !claims.waiters.is_empty() => {
                let all_settled = query(&core, &mut claims).await;
                // The next claims in the queue may be stored, too.
                next_query = Instant::now() + if all_settled { Duration::ZERO } else { tick };
            }
        }
        core.confirming
            .waiting
            .store(claims.waiters.len(), Ordering::Relaxed);
    }
}

/// Queries the store for the first claims in the queue. Returns whether all of them were settled.
async fn query(core: &Core, claims: &mut WaitingClaims) -> bool {
    let first = claims.first();
    if first.is_empty() {
        return false;
    }
    core.confirming.queries.fetch_add(1, Ordering::Relaxed);
    let asked = async {
        let mut session = core.store.ready().await?;
        orders::settled(&mut session, first.iter().map(|(id, _)| id)).await
    };
    let settled = match asked.await {
        Ok(settled) => settled,
        Err(fault) => {
            core.store_condition.fails(fault.detail);
            tokio::time::sleep(PAUSE_AFTER_FAULT).await;
            Vec::new()
        }
    };
    let mut replies = Replies::default();
    for (id, settled) in &settled {
        claims.settle(id, settled, &mut replies);
    }
    drop(replies);
    core.confirming
        .settled
        .fetch_add(settled.len() as u64, Ordering::Relaxed);
    let all_settled = settled.len() == first.len();
    core.settled(settled.into_iter().map(|(id, _)| id).collect());
    claims.put_back(first);
    all_settled
}
