//! Claims that wait for the store's word: one SELECT over all of them a tick. A yes comes only from a row; a hint that
//! something was stored only brings the next tick forward.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use seckill_engine::{Cause, Fault};
use seckill_sale::{Claim, Verdict};
use tokio::sync::mpsc;

use super::Core;
use super::deciding::Reply;
use crate::store::orders::{self, Settled};

/// Claims in one SELECT.
const ASK_MAX: usize = 1_000;
/// The pause between two looks where no recorder in this process gives hints.
const TICK: Duration = Duration::from_millis(3);
/// The same where one does.
const HINTED_TICK: Duration = Duration::from_millis(50);
/// Looks after which a claim makes room for younger ones.
const LOOKS_MAX: u32 = 16;
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(100);

/// A claim that somebody waits for.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) claim: Claim,
    pub(crate) is_repeat: bool,
}

#[derive(Debug, Default)]
pub(crate) struct ConfirmingCounts {
    pub(crate) waiting: AtomicUsize,
    pub(crate) looks: AtomicU64,
    pub(crate) settled: AtomicU64,
}

pub(crate) type Waiters = Vec<(Waiter, Reply)>;

#[derive(Default)]
struct Room {
    /// In the order they came; each id once.
    line: VecDeque<(String, u32)>,
    waiters: HashMap<String, Waiters>,
}

impl Room {
    fn enter(&mut self, (waiter, reply): (Waiter, Reply)) {
        let id = waiter.claim.order_id.as_str();
        match self.waiters.get_mut(id) {
            Some(others) => others.push((waiter, reply)),
            None => {
                self.line.push_back((id.to_owned(), 0));
                self.waiters.insert(id.to_owned(), vec![(waiter, reply)]);
            }
        }
    }

    /// Those first in line, without those whose askers have gone.
    fn first(&mut self) -> Vec<(String, u32)> {
        let mut first = Vec::new();
        while first.len() < ASK_MAX
            && let Some((id, looks)) = self.line.pop_front()
        {
            let somebody_waits = self
                .waiters
                .get(&id)
                .is_some_and(|waiters| waiters.iter().any(|(_, reply)| !reply.is_closed()));
            if somebody_waits {
                first.push((id, looks + 1));
            } else {
                self.waiters.remove(&id);
            }
        }
        first
    }

    fn settle(&mut self, id: &str, settled: &Settled) {
        for (waiter, reply) in self.waiters.remove(id).into_iter().flatten() {
            let answer = match settled {
                Settled::Order(unit) => {
                    let claim = Claim {
                        unit: *unit,
                        ..waiter.claim
                    };
                    Ok(if waiter.is_repeat {
                        Verdict::Repeat(claim)
                    } else {
                        Verdict::Claimed(claim)
                    })
                }
                Settled::Void(reason) => Err(voided(reason)),
            };
            // Whoever asked may have gone; the order's address tells.
            let _ = reply.send(answer);
        }
    }

    /// Puts back who has to wait on: in front, or behind all others after many looks.
    fn put_back(&mut self, first: Vec<(String, u32)>) {
        for (id, looks) in first.into_iter().rev() {
            if !self.waiters.contains_key(&id) {
                continue;
            }
            if looks < LOOKS_MAX {
                self.line.push_front((id, looks));
            } else {
                self.line.push_back((id, 0));
            }
        }
    }
}

/// What is said of a claim that came to nothing: the attempt had no effect, and it may be tried again.
pub(crate) fn voided(reason: &str) -> Fault {
    let detail = format!("the claim was not stored ({reason}), so nothing was bought; try again");
    Fault::without_effect(Cause::Rebuilding, detail)
}

/// Settles claims until their channel closes and nobody waits any more.
pub(crate) async fn run(core: Arc<Core>, mut incoming: mpsc::UnboundedReceiver<Waiters>) {
    let mut room = Room::default();
    let tick = if core.options.records {
        HINTED_TICK
    } else {
        TICK
    };
    let mut is_open = true;
    loop {
        // Before looking, so that what is stored from here on wakes the next look.
        let stored = core.stored.notified();
        tokio::pin!(stored);
        stored.as_mut().enable();
        while let Ok(waiters) = incoming.try_recv() {
            waiters.into_iter().for_each(|waiter| room.enter(waiter));
        }
        let first = room.first();
        core.confirming
            .waiting
            .store(first.len() + room.line.len(), Ordering::Relaxed);
        if first.is_empty() {
            if !is_open {
                return;
            }
            match incoming.recv().await {
                Some(waiters) => waiters.into_iter().for_each(|waiter| room.enter(waiter)),
                None => is_open = false,
            }
            // What has only just been given cannot be stored yet.
            wait(&mut stored, tick).await;
            continue;
        }
        core.confirming.looks.fetch_add(1, Ordering::Relaxed);
        let asked = first.len();
        let settled = look(&core, &first).await;
        let answered = match settled {
            Ok(settled) => {
                settled
                    .iter()
                    .for_each(|(id, settled)| room.settle(id, settled));
                let count = settled.len();
                core.confirming
                    .settled
                    .fetch_add(count as u64, Ordering::Relaxed);
                core.settled(settled.into_iter().map(|(id, _)| id).collect());
                count
            }
            Err(fault) => {
                core.store_condition.fails(fault.detail);
                tokio::time::sleep(PAUSE_AFTER_FAULT).await;
                0
            }
        };
        room.put_back(first);
        // All were stored, so that those behind them may be, too.
        if answered < asked || room.line.is_empty() {
            wait(&mut stored, tick).await;
        }
    }
}

async fn wait(stored: &mut std::pin::Pin<&mut tokio::sync::futures::Notified<'_>>, tick: Duration) {
    // Either is as good: a hint, or the time for a look without one.
    let _ = tokio::time::timeout(tick, stored.as_mut()).await;
}

async fn look(core: &Core, first: &[(String, u32)]) -> Result<Vec<(String, Settled)>, Fault> {
    let mut session = core.store.ready().await?;
    orders::settled(&mut session, first.iter().map(|(id, _)| id.as_str())).await
}
