//! Sends attempts to the gate: those that arrive while a call for their sale is in flight form the
//! next batch. A call without a reply is retried with the same ids; a timeout is never a rejection.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use seckill_cluster_codec::message::OutboxClaim;
use seckill_cluster_codec::order_id::Named;
use seckill_engine::{Cause, Effect, Fault, Replies, Reply};
use seckill_redis_gate::{Asked, CLAIM_MAX, Claims, Decided, Offer, OutboxEntry, Refusal};
use seckill_sale::{Attempt, Claim, Invalid, ItemUnit, OrderId, SaleId, Verdict};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::clock::now_ms;
use crate::options::Confirm;
use crate::shared::{CachedSale, Core, Names, Waiter};

const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// An attempt and the reply to it.
pub(crate) struct Waiting {
    pub(crate) attempt: Attempt,
    pub(crate) reply: Reply,
}

/// An attempt that waits for the next call. If its sale is cached, it gets its order id when it is
/// queued, so that the work is done while another call is in flight.
struct Queued {
    attempt: QueuedAttempt,
    reply: Reply,
}

enum QueuedAttempt {
    /// With an order id for this number and epoch of its sale.
    WithId((u32, u32), Asked),
    WithoutId(Attempt),
}

/// Accepts attempts until their channel closes, then starts the calls for those still queued.
pub(crate) async fn run(core: Arc<Core>, mut attempts: mpsc::UnboundedReceiver<Waiting>) {
    let (done, mut ended) = mpsc::unbounded_channel();
    let mut queues = Queues {
        core: Arc::clone(&core),
        by_sale: HashMap::new(),
        calls: JoinSet::new(),
        done,
    };
    let mut taken = Vec::with_capacity(CLAIM_MAX);
    let mut is_open = true;
    while is_open || !queues.by_sale.is_empty() {
        tokio::select! {
            biased;
            Some(sale) = ended.recv() => queues.next_call(&sale),
            count = attempts.recv_many(&mut taken, CLAIM_MAX), if is_open => {
                is_open = count > 0;
                for waiting in taken.drain(..) {
                    queues.push(waiting);
                }
            }
        }
    }
}

/// The sales with a call in flight, each with the attempts for its next call.
struct Queues {
    core: Arc<Core>,
    by_sale: HashMap<SaleId, VecDeque<Queued>>,
    /// Tasks that call the gate or send the answers. They are aborted at shutdown.
    calls: JoinSet<()>,
    done: mpsc::UnboundedSender<SaleId>,
}

/// Starts the sale's next call when dropped, even if its task panicked.
struct Turn {
    sale: SaleId,
    done: mpsc::UnboundedSender<SaleId>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The receiver is dropped only at shutdown.
        let _ = self.done.send(self.sale.clone());
    }
}

impl Queues {
    fn turn(&self, sale: SaleId) -> Turn {
        let done = self.done.clone();
        Turn { sale, done }
    }

    fn push(&mut self, waiting: Waiting) {
        let sale = waiting.attempt.sale.clone();
        let queued = queued(&self.core, waiting);
        match self.by_sale.get_mut(&sale) {
            Some(queue) => queue.push_back(queued),
            None => {
                self.by_sale.insert(sale.clone(), VecDeque::from([queued]));
                // Not a direct call: attempts received together must share the first batch.
                drop(self.turn(sale));
            }
        }
    }

    fn next_call(&mut self, sale: &SaleId) {
        let Some(queue) = self.by_sale.get_mut(sale) else {
            return;
        };
        if queue.is_empty() {
            self.by_sale.remove(sale);
            return;
        }
        let mut batch: Vec<Queued> = queue.drain(..queue.len().min(CLAIM_MAX)).collect();
        self.core
            .deciding
            .waiting
            .fetch_sub(batch.len(), Ordering::AcqRel);
        // These clients have disconnected, and their attempts had no effect yet.
        batch.retain(|queued| !queued.reply.is_closed());
        let (core, turn) = (Arc::clone(&self.core), self.turn(sale.clone()));
        while let Some(ended) = self.calls.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a task that calls the gate panicked");
            }
        }
        self.calls
            .spawn(async move { decide(&core, turn, batch).await });
    }
}

/// Decides a batch for one sale. Each attempt is answered, or waits for the store.
async fn decide(core: &Core, turn: Turn, batch: Vec<Queued>) {
    let (sale, mut batch) = (&turn.sale.clone(), batch);
    // The second try is for a new epoch that this server did not know yet.
    for _ in 0..2 {
        let cached = match core.cached(sale).await {
            Ok(Some(cached)) => cached,
            Ok(None) => {
                return answer_all(replies_of(batch), || {
                    Ok(Verdict::Invalid(Invalid::NoSuchSale))
                });
            }
            Err(fault) => return answer_all(replies_of(batch), || Err(fault.clone())),
        };
        if !cached.row.is_open {
            core.rebuild(sale);
            return answer_all(replies_of(batch), || Err(rebuilding()));
        }
        let (asked, replies) = match prepare(core, &cached, batch) {
            Ok(prepared) => prepared,
            Err(Some((batch, fault))) => {
                return answer_all(replies_of(batch), || Err(fault.clone()));
            }
            Err(None) => return,
        };
        match call(core, &cached, &asked).await {
            Called::Decided(claims, is_sure) => {
                let validity = if !is_sure {
                    RejectionValidity::Unsure
                } else if core.sale_cache.is_fresh_for(&cached) || is_current(core, &cached).await {
                    RejectionValidity::Final
                } else {
                    RejectionValidity::Stale
                };
                // The next call can start while this batch is answered.
                drop(turn);
                return dispatch(core, &cached, asked, replies, claims, validity);
            }
            Called::Unknown => {
                let mut posted = Replies::default();
                for (asked, reply) in asked.into_iter().zip(replies) {
                    posted.push(reply, Ok(Verdict::Pending(asked.order_id)));
                }
                return;
            }
            Called::NoEffect(fault) => return answer_all(replies, || Err(fault.clone())),
            Called::OtherEpoch => {
                if let Err(fault) = core.read_sale(sale).await {
                    return answer_all(replies, || Err(fault.clone()));
                }
                let again = asked.into_iter().zip(replies);
                batch = again
                    .map(|(asked, reply)| Queued {
                        attempt: QueuedAttempt::WithoutId(asked.attempt),
                        reply,
                    })
                    .collect();
            }
        }
    }
    core.rebuild(sale);
    answer_all(replies_of(batch), || Err(rebuilding()));
}

/// Reads the store again, and returns whether the epoch in which the gate decided is still current.
async fn is_current(core: &Core, cached: &CachedSale) -> bool {
    let read = core.read_sale(&cached.row.sale.id).await;
    matches!(read, Ok(Some(now)) if now.row.epoch == cached.row.epoch && now.row.is_open)
}

/// Gives an attempt an order id if its sale is cached.
fn queued(core: &Core, waiting: Waiting) -> Queued {
    let Waiting { attempt, reply } = waiting;
    let known = core.names().zip(core.sale_cache.get(&attempt.sale));
    let attempt = match known {
        Some((names, cached)) => match asked(names, &cached, attempt) {
            Ok(asked) => QueuedAttempt::WithId((cached.row.num, cached.row.epoch), asked),
            Err((attempt, _)) => QueuedAttempt::WithoutId(attempt),
        },
        None => QueuedAttempt::WithoutId(attempt),
    };
    Queued { attempt, reply }
}

/// Gives an attempt an order id that is created now.
fn asked(
    names: &Names,
    cached: &CachedSale,
    attempt: Attempt,
) -> Result<Asked, (Attempt, getrandom::Error)> {
    let content = Named {
        sale_num: cached.row.num,
        epoch: cached.row.epoch,
        at_ms: now_ms(),
    };
    let order_id = match names.ids.next(content) {
        Ok(order_id) => order_id,
        Err(error) => return Err((attempt, error)),
    };
    match Asked::new(order_id, attempt, &names.digester, &cached.row.sale) {
        Some(asked) => Ok(asked),
        None => unreachable!("a new order id has the format of one"),
    }
}

type Prepared = (Vec<Asked>, Vec<Reply>);

/// Gives each attempt an order id of this epoch, and answers those for which that fails.
fn prepare(
    core: &Core,
    cached: &CachedSale,
    batch: Vec<Queued>,
) -> Result<Prepared, Option<(Vec<Queued>, Fault)>> {
    let Some(names) = core.names() else {
        let fault = Fault::without_effect(Cause::Rebuilding, "the store has not been reached yet");
        return Err(Some((batch, fault)));
    };
    let of = (cached.row.num, cached.row.epoch);
    let (mut asked, mut replies) = (
        Vec::with_capacity(batch.len()),
        Vec::with_capacity(batch.len()),
    );
    let mut failed = Replies::default();
    for Queued { attempt, reply } in batch {
        let attempt = match attempt {
            QueuedAttempt::WithId(id_of, with_id) if id_of == of => {
                asked.push(with_id);
                replies.push(reply);
                continue;
            }
            QueuedAttempt::WithId(_, other_epoch) => other_epoch.attempt,
            QueuedAttempt::WithoutId(attempt) => attempt,
        };
        match self::asked(names, cached, attempt) {
            Ok(with_id) => {
                asked.push(with_id);
                replies.push(reply);
            }
            Err((_, error)) => {
                let detail = format!("the operating system returned no random bytes: {error}");
                failed.push(reply, Err(Fault::without_effect(Cause::Store, detail)));
            }
        }
    }
    if asked.is_empty() {
        Err(None)
    } else {
        Ok((asked, replies))
    }
}

/// Whether a rejection by the gate may be returned to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RejectionValidity {
    Final,
    /// An earlier call for the batch got no reply, and may still take effect.
    Unsure,
    /// The epoch in which the gate decided may have ended.
    Stale,
}

enum Called {
    /// The flag is true if no earlier call for the batch may have had an effect.
    Decided(Claims, bool),
    /// The outcome of the batch is unknown.
    Unknown,
    /// The batch had no effect.
    NoEffect(Fault),
    /// The batch had no effect, because the sale is in another epoch.
    OtherEpoch,
}

/// Calls the gate until it replies or the retry time is over.
async fn call(core: &Core, cached: &CachedSale, asked: &[Asked]) -> Called {
    let (row, counts) = (&cached.row, &core.deciding);
    let until = Instant::now() + Duration::from_millis(core.options.gate_retry_ms);
    let mut is_unknown = false;
    loop {
        let began = Instant::now();
        let called = core.gate.claim(&cached.keys, row.epoch, &row.sale, asked);
        let called = called.await;
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
                // An earlier call may have taken effect in an epoch that has ended.
                return match (is_unknown, is_other_epoch) {
                    (true, _) => Called::Unknown,
                    (false, true) => Called::OtherEpoch,
                    (false, false) => Called::NoEffect(rebuilding()),
                };
            }
            Err(fault) => fault,
        };
        cached.doubt();
        counts.failed_calls.fetch_add(1, Ordering::Relaxed);
        core.gate_condition.fails(fault.detail.clone());
        is_unknown |= fault.effect != Effect::None;
        if !is_unknown {
            return Called::NoEffect(fault);
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
    validity: RejectionValidity,
) {
    cached.heard(&claims.head);
    let new_units = |decided: &Decided| match decided {
        Decided::Claimed { units } => units.len() as u32,
        _ => 0,
    };
    let is_new = |decided: &&Decided| matches!(decided, Decided::Claimed { .. });
    let new_claims = claims.decided.iter().filter(is_new).count();
    let mut n = claims.head.n - new_claims as u64;
    let mut remaining = claims.head.remaining() + claims.decided.iter().map(new_units).sum::<u32>();
    let mut outbox = Vec::with_capacity(new_claims);
    let (mut waiters, mut posted) = (Vec::new(), Replies::default());
    let since = tokio::time::Instant::now();
    for ((asked, reply), decided) in asked.into_iter().zip(replies).zip(claims.decided) {
        remaining -= new_units(&decided);
        let wait = |order_id: &OrderId, units: Vec<ItemUnit>, is_repeat| {
            let claim = Claim {
                order_id: order_id.clone(),
                units: cached.row.sale.order_units(units)?,
                remaining,
            };
            Some(Waiter {
                claim,
                is_repeat,
                since,
            })
        };
        let (order_id, waiter) = match decided {
            Decided::Claimed { units } => {
                n += 1;
                let of_items = units.iter().map(|unit| unit.item_unit()).collect();
                outbox.push(OutboxClaim {
                    order_id: asked.order_id.clone(),
                    part: asked.part,
                    n,
                    units,
                });
                let waiter = wait(&asked.order_id, of_items, false);
                (asked.order_id, waiter)
            }
            Decided::ClaimedBefore { units } => {
                let waiter = wait(&asked.order_id, units.to_vec(), false);
                (asked.order_id, waiter)
            }
            Decided::Repeat { order_id, units } => {
                let waiter = wait(&order_id, units.to_vec(), true);
                (order_id, waiter)
            }
            refused @ (Decided::Mismatch | Decided::Rejected(_) | Decided::Invalid(_)) => {
                let verdict = rejection(refused);
                let is_rejection = matches!(verdict, Verdict::Rejected(_));
                let answer = match validity {
                    RejectionValidity::Unsure if is_rejection => {
                        Ok(Verdict::Pending(asked.order_id))
                    }
                    RejectionValidity::Stale if is_rejection => Err(stale()),
                    RejectionValidity::Final
                    | RejectionValidity::Unsure
                    | RejectionValidity::Stale => Ok(verdict),
                };
                posted.push(reply, answer);
                continue;
            }
        };
        let Some(waiter) = waiter else {
            // The gate names an item that the sale does not have. The store decides.
            posted.push(reply, Ok(Verdict::Pending(order_id)));
            continue;
        };
        if core.options.confirm == Confirm::Gate && !waiter.is_repeat {
            posted.push(reply, Ok(Verdict::Accepted(waiter.claim.order_id)));
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
            keys: cached.keys.clone(),
            epoch: cached.row.epoch,
            entry,
        });
    }
    core.wait_for_store(waiters);
}

fn rejection(decided: Decided) -> Verdict {
    match decided {
        Decided::Mismatch => Verdict::Mismatch,
        Decided::Rejected(rejection) => Verdict::Rejected(rejection),
        Decided::Invalid(invalid) => Verdict::Invalid(invalid),
        Decided::Claimed { .. } | Decided::ClaimedBefore { .. } | Decided::Repeat { .. } => {
            unreachable!("the caller handles claims and repeats")
        }
    }
}

fn replies_of(batch: Vec<Queued>) -> impl Iterator<Item = Reply> {
    batch.into_iter().map(|queued| queued.reply)
}

fn answer_all(
    replies: impl IntoIterator<Item = Reply>,
    answer: impl Fn() -> Result<Verdict, Fault>,
) {
    let mut posted = Replies::default();
    for reply in replies {
        posted.push(reply, answer());
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
        "this server cannot confirm a rejection, because it has not reached the order store \
         recently; try again shortly",
    )
}
