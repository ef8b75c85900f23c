//! Implements the engine port for the cluster: starts this process's components and delegates to
//! them. Their own logic does not belong here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seckill_engine::{
    BoxFuture, Cause, Component, DECIDE_MAX, EVENTS_PAGE_MAX, Engine, Fault, Mailbox, NoReply,
    OrderRefused, Outcome, SALES_PAGE_MAX, SaleStock, Sample, Submitted, Ticket, WithoutReply,
};
use seckill_mysql_store::{events, orders, sales};
use seckill_sale::{
    Attempt, AuditReport, Buyer, Event, HistoryEntry, IdempotencyKey, Invalid, NewSale, Order,
    OrderChange, OrderId, Rejection, Sale, SaleChange, SaleId, SaleRefused, Verdict, WindowState,
    resolve_lines,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::clock::now_ms;
use crate::components::{Components, Role, start};
use crate::options::{ClusterOptions, InvalidOptions};
use crate::serve::deciding::Waiting;
use crate::serve::refresh::give_back;
use crate::serve::{addresses, terms};
use crate::shared::Core;
use crate::{audit, servers};

/// How long `close` waits for each task.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How many times an order change is tried while concurrent changes conflict with it.
const CHANGE_TRIES: u32 = 8;

/// The attempt may be on its way to the gate, which gives it the order's id.
const WITHOUT_REPLY: WithoutReply = WithoutReply {
    number: 0,
    result: |_, missing| {
        Err(match missing {
            NoReply::Stopped => {
                Fault::unknown(Cause::Stopping, "the engine stopped before it answered")
            }
            NoReply::Deadline => {
                Fault::unknown(Cause::Deadline, "the engine did not answer in time")
            }
        })
    },
};

/// The cluster engine of one process.
pub struct ClusterEngine {
    core: Arc<Core>,
    parts: Components,
    attempts: mpsc::UnboundedSender<Waiting>,
    stop: watch::Sender<bool>,
    is_stopping: AtomicBool,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl ClusterEngine {
    /// Starts the components of a server. Redis, Kafka and MySQL may be down: each component
    /// becomes ready when the servers that it needs are.
    pub fn start(options: ClusterOptions) -> Result<Self, InvalidOptions> {
        Self::start_as(options, Role::Serve)
    }

    /// Starts only a relay, which finds its work through hints and sweeps.
    pub fn start_relay(options: ClusterOptions) -> Result<Self, InvalidOptions> {
        Self::start_as(
            ClusterOptions {
                relays: true,
                records: false,
                ..options
            },
            Role::Relay,
        )
    }

    fn start_as(options: ClusterOptions, role: Role) -> Result<Self, InvalidOptions> {
        let (stop, stopped) = watch::channel(false);
        let started = start(options, role, &stopped)?;
        Ok(Self {
            core: started.core,
            parts: started.parts,
            attempts: started.attempts,
            stop,
            is_stopping: AtomicBool::new(false),
            tasks: Mutex::new(started.tasks),
        })
    }

    /// Describes the server settings that are too weak for the product's guarantees.
    pub async fn weaker_settings(&self) -> Result<Vec<String>, Fault> {
        let mut weaker =
            seckill_kafka_log::weaker_settings(&servers::log(&self.core.options)).await?;
        let mut session = self.core.store.ready().await?;
        weaker.extend(seckill_mysql_store::weaker_settings(&mut session).await?);
        Ok(weaker)
    }

    async fn decide_all(&self, attempts: Vec<Attempt>) -> Vec<Result<Verdict, Fault>> {
        if attempts.len() > DECIDE_MAX {
            let detail = format!(
                "{} attempts in one call; the maximum is {DECIDE_MAX}",
                attempts.len()
            );
            let refused = || Err(Fault::without_effect(Cause::Overloaded, detail.clone()));
            return attempts.iter().map(|_| refused()).collect();
        }
        let attempts = attempts.into_iter();
        let submitted: Vec<_> = attempts
            .map(|attempt| self.submit(attempt, &Mailbox::direct()))
            .collect();
        let mut verdicts = Vec::with_capacity(submitted.len());
        for submitted in submitted {
            verdicts.push(submitted.verdict().await);
        }
        verdicts
    }

    /// Queues an attempt for the gate.
    fn enqueue(&self, attempt: Attempt, mailbox: &Mailbox) -> Result<Ticket, Fault> {
        let stopping = || Fault::without_effect(Cause::Stopping, "the engine is stopping");
        if self.is_stopping.load(Ordering::Acquire) {
            return Err(stopping());
        }
        let waiting = &self.core.deciding.waiting;
        if waiting.fetch_add(1, Ordering::AcqRel) >= self.core.options.queue_max {
            waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(Fault::without_effect(
                Cause::Overloaded,
                "too many attempts are waiting for the gate; try again shortly",
            ));
        }
        let (reply, ticket) = mailbox.ticket(self.longest_wait(), WITHOUT_REPLY);
        if self.attempts.send(Waiting { attempt, reply }).is_err() {
            waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(stopping());
        }
        Ok(ticket)
    }

    /// The time within which every component has answered. The components bound their own waits;
    /// this covers one that has died.
    fn longest_wait(&self) -> Duration {
        let options = &self.core.options;
        let wait_ms = options.gate_retry_ms + options.confirm_wait_ms + 2 * options.store_wait_ms;
        Duration::from_millis(wait_ms)
    }

    async fn cancel(
        &self,
        order_id: &OrderId,
        change: OrderChange,
    ) -> Result<Result<Order, OrderRefused>, Fault> {
        for _ in 0..CHANGE_TRIES {
            let mut session = self.core.store.ready().await?;
            let Some(order) = orders::order(&mut session, order_id).await? else {
                drop(session);
                return Ok(Err(
                    match addresses::outcome(&self.core, order_id).await? {
                        Outcome::None => OrderRefused::NoSuchOrder,
                        Outcome::Pending | Outcome::Order(_) => OrderRefused::Pending,
                    },
                ));
            };
            let next = match change.apply(order.state) {
                Err(refused) => return Ok(Err(OrderRefused::NotAllowed(refused))),
                Ok(None) => return Ok(Ok(order)),
                Ok(Some(next)) => next,
            };
            if orders::change(&mut session, &order, change).await? {
                let changed = orders::order(&mut session, order_id).await?;
                drop(session);
                self.back_on_sale(&order).await;
                return Ok(Ok(changed.unwrap_or(Order {
                    state: next,
                    ..order
                })));
            }
            // A concurrent change came first; read the order again.
        }
        Err(Fault::without_effect(
            Cause::Store,
            "concurrent changes to the order came first every time; try again",
        ))
    }

    /// Tries to put the units back on sale at once. If that fails, a later release round does it.
    async fn back_on_sale(&self, order: &Order) {
        if let Err(fault) = give_back(&self.core, &order.order_id, &order.sale).await {
            tracing::debug!(%fault, "the units will go back on sale later");
        }
    }

    async fn stock(&self, row: sales::SaleRow) -> Result<SaleStock, Fault> {
        let cached = self.core.sale_cache.take(row);
        if let Ok(Ok(head)) = self.core.gate.peek(&cached.keys, cached.row.epoch).await {
            cached.heard(&head);
            return Ok(SaleStock {
                sale: cached.row.sale.clone(),
                free: head.free.to_vec(),
            });
        }
        // The gate is unavailable. Once rebuilt, it offers what is free in the store.
        let mut session = self.core.store.ready().await?;
        let held = orders::active(&mut session, &cached.row).await?;
        let items = cached.row.sale.items.iter().zip(held);
        Ok(SaleStock {
            sale: cached.row.sale.clone(),
            free: items
                .map(|(item, held)| item.total.saturating_sub(held))
                .collect(),
        })
    }
}

impl Engine for ClusterEngine {
    fn answer_from_memory(&self, attempt: &Attempt) -> Option<Verdict> {
        // A key may already have a claim, which only the gate knows.
        if attempt.key.is_some() || !self.core.sale_cache.is_fresh() {
            return None;
        }
        self.core.sale_cache.with(&attempt.sale, |cached| {
            let row = &cached.row;
            let lines = match resolve_lines(&row.sale, attempt) {
                Ok(lines) => lines,
                Err(invalid) => return Some(Verdict::Invalid(invalid)),
            };
            if row.sale.buyer_limit.is_some() && attempt.buyer.is_anonymous() {
                return Some(Verdict::Invalid(Invalid::BuyerRequired));
            }
            let is_open = row.is_open && row.sale.window(now_ms()) == WindowState::Open;
            (is_open && cached.is_sold_out(&lines)).then_some(Verdict::Rejected(Rejection::SoldOut))
        })?
    }

    fn decide(&self, attempts: Vec<Attempt>) -> BoxFuture<'_, Vec<Result<Verdict, Fault>>> {
        Box::pin(self.decide_all(attempts))
    }

    fn submit(&self, attempt: Attempt, mailbox: &Mailbox) -> Submitted {
        match self.enqueue(attempt, mailbox) {
            Ok(ticket) => Submitted::Later(ticket),
            Err(fault) => Submitted::Now(Err(fault)),
        }
    }

    fn order<'a>(&'a self, order_id: &'a OrderId) -> BoxFuture<'a, Result<Outcome, Fault>> {
        Box::pin(addresses::outcome(&self.core, order_id))
    }

    fn order_of_key<'a>(
        &'a self,
        sale: &'a SaleId,
        buyer: &'a Buyer,
        key: &'a IdempotencyKey,
    ) -> BoxFuture<'a, Result<Outcome, Fault>> {
        Box::pin(addresses::of_key(&self.core, sale, buyer, key))
    }

    fn change_order<'a>(
        &'a self,
        order_id: &'a OrderId,
        change: OrderChange,
    ) -> BoxFuture<'a, Result<Result<Order, OrderRefused>, Fault>> {
        Box::pin(self.cancel(order_id, change))
    }

    fn create_sale(&self, new: NewSale) -> BoxFuture<'_, Result<Result<Sale, SaleRefused>, Fault>> {
        Box::pin(terms::create(&self.core, new))
    }

    fn change_sale<'a>(
        &'a self,
        id: &'a SaleId,
        change: SaleChange,
    ) -> BoxFuture<'a, Result<Result<Sale, SaleRefused>, Fault>> {
        Box::pin(terms::change(&self.core, id, change))
    }

    fn sale<'a>(&'a self, id: &'a SaleId) -> BoxFuture<'a, Result<Option<SaleStock>, Fault>> {
        Box::pin(async move {
            let row = {
                let mut session = self.core.store.ready().await?;
                sales::one(&mut session, id).await?
            };
            match row {
                Some(row) => Ok(Some(self.stock(row).await?)),
                None => Ok(None),
            }
        })
    }

    fn sales(&self, after: Option<SaleId>) -> BoxFuture<'_, Result<Vec<SaleStock>, Fault>> {
        Box::pin(async move {
            let rows = {
                let mut session = self.core.store.ready().await?;
                sales::page(&mut session, after.as_ref(), SALES_PAGE_MAX).await?
            };
            let mut stocks = Vec::with_capacity(rows.len());
            for row in rows {
                stocks.push(self.stock(row).await?);
            }
            Ok(stocks)
        })
    }

    fn events<'a>(
        &'a self,
        sale: &'a SaleId,
        after: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<Event>>, Fault>> {
        Box::pin(async move {
            let mut session = self.core.store.ready().await?;
            events::events(&mut session, sale, after, EVENTS_PAGE_MAX).await
        })
    }

    fn audit(&self, history: Vec<HistoryEntry>) -> BoxFuture<'_, Result<AuditReport, Fault>> {
        Box::pin(async move { audit::audit(&self.core, &history).await })
    }

    fn components(&self) -> Vec<Component> {
        self.parts
            .all(&self.core, self.is_stopping.load(Ordering::Acquire))
    }

    fn samples(&self) -> Vec<Sample> {
        self.parts.samples(&self.core)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.is_stopping.store(true, Ordering::Release);
            self.stop.send_replace(true);
            let tasks = std::mem::take(
                &mut *self
                    .tasks
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner),
            );
            for task in tasks {
                let abort = task.abort_handle();
                if tokio::time::timeout(CLOSE_WAIT, task).await.is_err() {
                    abort.abort();
                }
            }
            self.core.store.close().await;
        })
    }
}

impl Drop for ClusterEngine {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(
            &mut *self
                .tasks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        tasks.iter().for_each(JoinHandle::abort);
    }
}
