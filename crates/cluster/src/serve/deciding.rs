//! Attempts on their way through the gate: those that come while a sale's call is out wait and go together in the next.
//! A reply that was lost is asked for again with the same ids; giving up is never a no.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use seckill_engine::{Cause, Effect, Fault};
use seckill_sale::{Attempt, Claim, Invalid, Rejection, SaleId, Verdict};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Core;
use super::confirming::Waiter;
use super::sale_cache::CachedSale;
use crate::codec::message::{Line, OutboxClaim};
use crate::codec::order_id::Named;
use crate::gate::Offer;
use crate::gate::reply::{Claims, Decided, Head, Refusal};
use crate::gate::{Asked, CLAIM_MAX, OutboxEntry};
use crate::options::Confirm;

pub(crate) type Reply = oneshot::Sender<Result<Verdict, Fault>>;

const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// An attempt whose answer somebody waits for.
pub(crate) struct Waiting {
    pub(crate) attempt: Attempt,
    pub(crate) reply: Reply,
}

/// An attempt in line for the gate. It has its name where its sale is known: while a call is out there is time for that.
struct InLine {
    attempt: Name,
    reply: Reply,
}

enum Name {
    /// Named for this number and epoch of its sale.
    Named((u32, u32), Asked),
    Unnamed(Attempt),
}

/// Counts of the gate's work since the start.
#[derive(Debug, Default)]
pub(crate) struct DecidingCounts {
    pub(crate) waiting: AtomicUsize,
    pub(crate) calls: AtomicU64,
    pub(crate) attempts: AtomicU64,
    pub(crate) call_us: AtomicU64,
    pub(crate) failed_calls: AtomicU64,
}

/// Takes attempts until their channel closes, and then begins the calls of what was taken.
pub(crate) async fn run(core: Arc<Core>, mut attempts: mpsc::Receiver<Waiting>) {
    let (done, mut ended) = mpsc::unbounded_channel();
    let mut lines = Lines {
        core: Arc::clone(&core),
        queues: HashMap::new(),
        calls: JoinSet::new(),
        done,
    };
    let mut taken = Vec::with_capacity(CLAIM_MAX);
    let mut is_open = true;
    while is_open || !lines.queues.is_empty() {
        tokio::select! {
            biased;
            Some(sale) = ended.recv() => lines.next_call(&sale),
            count = attempts.recv_many(&mut taken, CLAIM_MAX), if is_open => {
                is_open = count > 0;
                for waiting in taken.drain(..) {
                    lines.join(waiting);
                }
            }
        }
    }
}

/// The sales with a call out, each with those who wait for the next one.
struct Lines {
    core: Arc<Core>,
    queues: HashMap<SaleId, VecDeque<InLine>>,
    /// The calls that are out, and those whose answers are being given. They end with the engine.
    calls: JoinSet<()>,
    done: mpsc::UnboundedSender<SaleId>,
}

/// A sale's turn at the gate: the next call begins when it is over, however it ends.
struct Turn {
    sale: SaleId,
    done: mpsc::UnboundedSender<SaleId>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Nobody takes turns any more when the process ends.
        let _ = self.done.send(self.sale.clone());
    }
}

impl Lines {
    fn turn(&self, sale: SaleId) -> Turn {
        let done = self.done.clone();
        Turn { sale, done }
    }

    fn join(&mut self, waiting: Waiting) {
        let sale = waiting.attempt.sale.clone();
        let in_line = in_line(&self.core, waiting);
        match self.queues.get_mut(&sale) {
            Some(queue) => queue.push_back(in_line),
            None => {
                self.queues.insert(sale.clone(), VecDeque::from([in_line]));
                // Whatever else was taken with it goes along.
                drop(self.turn(sale));
            }
        }
    }

    fn next_call(&mut self, sale: &SaleId) {
        let Some(queue) = self.queues.get_mut(sale) else {
            return;
        };
        if queue.is_empty() {
            self.queues.remove(sale);
            return;
        }
        let mut batch: Vec<InLine> = queue.drain(..queue.len().min(CLAIM_MAX)).collect();
        self.core
            .deciding
            .waiting
            .fetch_sub(batch.len(), Ordering::AcqRel);
        // Nothing was done for these yet, and nobody would learn of it.
        batch.retain(|in_line| !in_line.reply.is_closed());
        let (core, turn) = (Arc::clone(&self.core), self.turn(sale.clone()));
        while let Some(ended) = self.calls.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a call to the gate ended badly");
            }
        }
        self.calls
            .spawn(async move { decide(&core, turn, batch).await });
    }
}

/// Decides a batch on one sale and answers each, or hands it to those who wait for the store.
async fn decide(core: &Core, turn: Turn, batch: Vec<InLine>) {
    let (sale, mut batch) = (&turn.sale.clone(), batch);
    // A second try is for an epoch that this server had not heard of.
    for _ in 0..2 {
        let cached = match core.cached(sale).await {
            Ok(Some(cached)) => cached,
            Ok(None) => {
                return answer_all(batch, || Ok(Verdict::Invalid(Invalid::NoSuchSale)));
            }
            Err(fault) => return answer_all(batch, || Err(fault.clone())),
        };
        if !cached.row.is_open {
            core.rebuild(sale);
            return answer_all(batch, || Err(rebuilding()));
        }
        let (asked, replies) = match prepare(core, &cached, batch) {
            Ok(prepared) => prepared,
            Err(Some((batch, fault))) => return answer_all(batch, || Err(fault.clone())),
            Err(None) => return,
        };
        match call(core, &cached, &asked).await {
            Called::Decided(claims, is_sure) => {
                let noes = if !is_sure {
                    Noes::Unsure
                } else if core.sale_cache.is_fresh_for(&cached) || is_still(core, &cached).await {
                    Noes::Final
                } else {
                    Noes::Stale
                };
                // The gate can take the next batch while this one is answered.
                drop(turn);
                return dispatch(core, &cached, asked, replies, claims, noes);
            }
            Called::Unknown => {
                for (asked, reply) in asked.into_iter().zip(replies) {
                    // Whoever asked may have gone; the order's address tells.
                    let _ = reply.send(Ok(Verdict::Pending(asked.order_id)));
                }
                return;
            }
            Called::Nothing(fault) => {
                replies.into_iter().for_each(|reply| {
                    let _ = reply.send(Err(fault.clone()));
                });
                return;
            }
            Called::OtherEpoch => {
                if let Err(fault) = core.read_sale(sale).await {
                    replies.into_iter().for_each(|reply| {
                        let _ = reply.send(Err(fault.clone()));
                    });
                    return;
                }
                let again = asked.into_iter().zip(replies);
                batch = again
                    .map(|(asked, reply)| InLine {
                        attempt: Name::Unnamed(asked.attempt),
                        reply,
                    })
                    .collect();
            }
        }
    }
    core.rebuild(sale);
    answer_all(batch, || Err(rebuilding()));
}

/// Whether the store still has the sale in the epoch that the gate decided in; asked where the last look is too old.
async fn is_still(core: &Core, cached: &CachedSale) -> bool {
    let read = core.read_sale(&cached.row.sale.id).await;
    matches!(read, Ok(Some(now)) if now.row.epoch == cached.row.epoch && now.row.is_open)
}

/// Names an attempt where that can be done at once.
fn in_line(core: &Core, waiting: Waiting) -> InLine {
    let Waiting { attempt, reply } = waiting;
    let named_for = core
        .sale_cache
        .with(&attempt.sale, |cached| (cached.row.num, cached.row.epoch));
    let named = named_for.zip(core.names()).and_then(|(of, names)| {
        let order_id = names.ids.next(from_now(of)).ok()?;
        Some((of, order_id, &names.digester))
    });
    let attempt = match named {
        Some((of, order_id, digester)) => Name::Named(of, Asked::new(order_id, attempt, digester)),
        None => Name::Unnamed(attempt),
    };
    InLine { attempt, reply }
}

/// What an order id that is made now says.
fn from_now((sale_num, epoch): (u32, u32)) -> Named {
    Named {
        sale_num,
        epoch,
        at_ms: now_ms(),
    }
}

type Prepared = (Vec<Asked>, Vec<Reply>);

/// Sees to it that each attempt has an order id of this epoch, and answers those that cannot have one.
fn prepare(
    core: &Core,
    cached: &CachedSale,
    batch: Vec<InLine>,
) -> Result<Prepared, Option<(Vec<InLine>, Fault)>> {
    let Some(names) = core.names() else {
        let fault = Fault::without_effect(Cause::Rebuilding, "the store has not been reached yet");
        return Err(Some((batch, fault)));
    };
    let of = (cached.row.num, cached.row.epoch);
    let (mut asked, mut replies) = (
        Vec::with_capacity(batch.len()),
        Vec::with_capacity(batch.len()),
    );
    for InLine { attempt, reply } in batch {
        let attempt = match attempt {
            Name::Named(named_for, named) if named_for == of => {
                asked.push(named);
                replies.push(reply);
                continue;
            }
            Name::Named(_, named) => named.attempt,
            Name::Unnamed(attempt) => attempt,
        };
        match names.ids.next(from_now(of)) {
            Ok(order_id) => {
                asked.push(Asked::new(order_id, attempt, &names.digester));
                replies.push(reply);
            }
            Err(error) => {
                let detail = format!("the system gave no random bytes: {error}");
                let _ = reply.send(Err(Fault::without_effect(Cause::Store, detail)));
            }
        }
    }
    if asked.is_empty() {
        Err(None)
    } else {
        Ok((asked, replies))
    }
}

/// What a no of the gate is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noes {
    Final,
    /// A call before this one had no reply, and may still come to be done.
    Unsure,
    /// The gate's epoch may be over.
    Stale,
}

enum Called {
    /// With whether it was the only call.
    Decided(Claims, bool),
    /// Nothing is known of the batch.
    Unknown,
    /// Nothing was done.
    Nothing(Fault),
    /// Nothing was done; the sale has gone on to another epoch.
    OtherEpoch,
}

/// Calls the gate until it replies or the time is up.
async fn call(core: &Core, cached: &CachedSale, asked: &[Asked]) -> Called {
    let (row, counts) = (&cached.row, &core.deciding);
    let until = Instant::now() + Duration::from_millis(core.options.gate_retry_ms);
    let mut is_unknown = false;
    loop {
        let began = Instant::now();
        let called = core.gate.claim(&row.keys, row.epoch, asked).await;
        counts.calls.fetch_add(1, Ordering::Relaxed);
        counts
            .call_us
            .fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        let fault = match called {
            Ok(Ok(claims)) => {
                counts
                    .attempts
                    .fetch_add(asked.len() as u64, Ordering::Relaxed);
                core.gate_condition.is_well();
                return Called::Decided(claims, !is_unknown);
            }
            Ok(Err(refusal)) => {
                cached.doubt();
                let is_other_epoch = matches!(refusal, Refusal::Epoch(_));
                core.refused(&row.sale.id, &refusal);
                // A call before this one may have had its effect in an epoch that is over.
                return match (is_unknown, is_other_epoch) {
                    (true, _) => Called::Unknown,
                    (false, true) => Called::OtherEpoch,
                    (false, false) => Called::Nothing(rebuilding()),
                };
            }
            Err(fault) => fault,
        };
        cached.doubt();
        counts.failed_calls.fetch_add(1, Ordering::Relaxed);
        core.gate_condition.fails(fault.detail.clone());
        is_unknown |= fault.effect != Effect::None;
        if !is_unknown {
            return Called::Nothing(fault);
        }
        if Instant::now() > until {
            return Called::Unknown;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn dispatch(
    core: &Core,
    cached: &Arc<CachedSale>,
    asked: Vec<Asked>,
    replies: Vec<Reply>,
    claims: Claims,
    noes: Noes,
) {
    cached.heard(&claims.head);
    let new_claims = claims
        .decided
        .iter()
        .filter(|decided| matches!(decided, Decided::Claimed { .. }))
        .count();
    let mut n = claims.head.n - new_claims as u64;
    let mut remaining = claims.head.free + new_claims as u32;
    let mut outbox = Vec::with_capacity(new_claims);
    let mut waiters = Vec::new();
    let since = tokio::time::Instant::now();
    for ((asked, reply), decided) in asked.into_iter().zip(replies).zip(claims.decided) {
        if matches!(decided, Decided::Claimed { .. }) {
            n += 1;
            remaining -= 1;
        }
        let wait = |order_id, unit, is_repeat| Waiter {
            claim: Claim {
                order_id,
                unit,
                remaining,
            },
            is_repeat,
            since,
        };
        let waiter = match decided {
            Decided::Claimed { unit, slot } => {
                let line = Line {
                    unit: unit.number,
                    generation: unit.generation,
                    slot,
                };
                outbox.push(OutboxClaim {
                    order_id: asked.order_id.clone(),
                    part: asked.part,
                    n,
                    line,
                });
                wait(asked.order_id, unit, false)
            }
            Decided::ClaimedBefore { unit } => wait(asked.order_id, unit, false),
            Decided::Repeat { order_id, unit } => wait(order_id, unit, true),
            refused => {
                let verdict = no(&refused, &claims.head);
                let is_no = matches!(verdict, Verdict::Rejected(_));
                let answer = match noes {
                    Noes::Unsure if is_no => Ok(Verdict::Pending(asked.order_id)),
                    Noes::Stale if is_no => Err(stale()),
                    Noes::Final | Noes::Unsure | Noes::Stale => Ok(verdict),
                };
                let _ = reply.send(answer);
                continue;
            }
        };
        if core.options.confirm == Confirm::Gate && !waiter.is_repeat {
            let _ = reply.send(Ok(Verdict::Accepted(waiter.claim.order_id)));
        } else {
            waiters.push((waiter, reply));
        }
    }
    if !outbox.is_empty() {
        let entry = OutboxEntry {
            id: claims.entry,
            at_ms: claims.head.now_ms,
            claims: outbox,
        };
        core.offer(Offer {
            sale: cached.row.sale.id.clone(),
            keys: cached.row.keys.clone(),
            epoch: cached.row.epoch,
            entry,
        });
    }
    core.wait_for_store(waiters);
}

fn no(decided: &Decided, head: &Head) -> Verdict {
    match decided {
        Decided::Mismatch => Verdict::Mismatch,
        Decided::Quantity => Verdict::Invalid(Invalid::Quantity { max: 1 }),
        Decided::BuyerRequired => Verdict::Invalid(Invalid::BuyerRequired),
        Decided::NotOpen => Verdict::Rejected(Rejection::NotOpen {
            opens_at_ms: head.opens_at_ms.unwrap_or(0),
        }),
        Decided::Closed => Verdict::Rejected(Rejection::Closed {
            closed_at_ms: head.closes_at_ms.unwrap_or(0),
        }),
        Decided::Limit => Verdict::Rejected(Rejection::LimitReached {
            limit: head.limit.unwrap_or(0),
        }),
        // The claims were taken out before.
        Decided::SoldOut
        | Decided::Claimed { .. }
        | Decided::ClaimedBefore { .. }
        | Decided::Repeat { .. } => Verdict::Rejected(Rejection::SoldOut),
    }
}

fn answer_all(batch: Vec<InLine>, answer: impl Fn() -> Result<Verdict, Fault>) {
    for in_line in batch {
        // Whoever asked may have gone.
        let _ = in_line.reply.send(answer());
    }
}

pub(crate) fn rebuilding() -> Fault {
    Fault::without_effect(
        Cause::Rebuilding,
        "the sale's gate is being rebuilt from the order store; try again shortly",
    )
}

fn stale() -> Fault {
    Fault::without_effect(
        Cause::Rebuilding,
        "this server has not reached the order store for too long to say a no; try again shortly",
    )
}

pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
