//! The implementation of the port: answers rejections from memory, and sends everything else to the
//! writer's queue. No decision is made here.

use std::sync::atomic::{AtomicU64, Ordering};

use seckill_engine::{
    BoxFuture, Cause, Component, DECIDE_MAX, Engine, Fault, Mailbox, OrderRefused, Outcome,
    SALES_PAGE_MAX, SaleStock, Sample, Submitted, WithoutReply,
};
use seckill_sale::{
    Attempt, AuditReport, Buyer, Event, HistoryEntry, IdempotencyKey, NewSale, Order, OrderChange,
    OrderId, Sale, SaleChange, SaleId, SaleRefused, Verdict,
};

use super::EmbeddedEngine;
use crate::audit::audit_view;
use crate::memory::SaleMemory;
use crate::operations::Op;
use crate::order_id;
use crate::shared::Condition;

impl Engine for EmbeddedEngine {
    fn answer_from_memory(&self, attempt: &Attempt) -> Option<Verdict> {
        if !self.shared.is_ready() {
            return None;
        }
        self.shared
            .memory
            .load()
            .answer(attempt, self.shared.clock.now_ms())
    }

    fn decide(&self, attempts: Vec<Attempt>) -> BoxFuture<'_, Vec<Result<Verdict, Fault>>> {
        Box::pin(async move {
            let count = attempts.len();
            let fail_all = |fault: &Fault| vec![Err(fault.clone()); count];
            if count > DECIDE_MAX {
                let detail = format!("{count} attempts in one call; the maximum is {DECIDE_MAX}");
                return fail_all(&Fault::without_effect(Cause::Overloaded, detail));
            }
            let now_ms = self.shared.clock.now_ms();
            let named: Result<Vec<_>, _> = attempts
                .into_iter()
                .map(|attempt| Ok::<_, getrandom::Error>((self.ids.next(now_ms)?, attempt)))
                .collect();
            let named = match named {
                Ok(named) => named,
                Err(error) => return fail_all(&no_random_bytes(&error)),
            };
            let orders: Vec<u128> = named.iter().map(|(order, _)| *order).collect();
            let pending = |&order: &u128| Ok(Verdict::Pending(order_id::to_text(order)));
            let asked = self
                .ask(
                    |to| Op::Decide(named, to),
                    |_| orders.iter().map(pending).collect(),
                )
                .await;
            asked.unwrap_or_else(|fault| fail_all(&fault))
        })
    }

    fn submit(&self, attempt: Attempt, mailbox: &Mailbox) -> Submitted {
        let now_ms = self.shared.clock.now_ms();
        let number = match self.ids.next(now_ms) {
            Ok(number) => number,
            Err(error) => return Submitted::Now(Err(no_random_bytes(&error))),
        };
        let without_reply = WithoutReply {
            number,
            result: |number, _| Ok(Verdict::Pending(order_id::to_text(number))),
        };
        let (reply, ticket) = mailbox.ticket(self.answer_wait, without_reply);
        match self.enqueue(Op::Submit(number, attempt, reply)) {
            Ok(()) => Submitted::Later(ticket),
            Err(fault) => Submitted::Now(Err(fault)),
        }
    }

    fn order<'a>(&'a self, order_id: &'a OrderId) -> BoxFuture<'a, Result<Outcome, Fault>> {
        Box::pin(self.outcome(order_id))
    }

    fn order_of_key<'a>(
        &'a self,
        sale: &'a SaleId,
        buyer: &'a Buyer,
        key: &'a IdempotencyKey,
    ) -> BoxFuture<'a, Result<Outcome, Fault>> {
        Box::pin(async move {
            self.ask(Op::Barrier, Err).await??;
            let claim = self.shared.memory.load().claim_of_key(sale, buyer, key);
            match claim {
                Some(claim) => self.outcome(&order_id::to_text(claim.order_id)).await,
                None => Ok(Outcome::None),
            }
        })
    }

    fn change_order<'a>(
        &'a self,
        order_id: &'a OrderId,
        change: OrderChange,
    ) -> BoxFuture<'a, Result<Result<Order, OrderRefused>, Fault>> {
        Box::pin(self.change(order_id, change))
    }

    fn create_sale(&self, new: NewSale) -> BoxFuture<'_, Result<Result<Sale, SaleRefused>, Fault>> {
        Box::pin(async move { self.ask(|to| Op::CreateSale(new, to), Err).await? })
    }

    fn change_sale<'a>(
        &'a self,
        id: &'a SaleId,
        change: SaleChange,
    ) -> BoxFuture<'a, Result<Result<Sale, SaleRefused>, Fault>> {
        Box::pin(async move {
            self.ask(|to| Op::ChangeSale(id.clone(), change, to), Err)
                .await?
        })
    }

    fn sale<'a>(&'a self, id: &'a SaleId) -> BoxFuture<'a, Result<Option<SaleStock>, Fault>> {
        Box::pin(async move {
            if !self.shared.is_ready() {
                return Err(self.unavailable());
            }
            let found = self.shared.memory.load().sale(id);
            Ok(found.map(|memory| stock(&memory)))
        })
    }

    fn sales(&self, after: Option<SaleId>) -> BoxFuture<'_, Result<Vec<SaleStock>, Fault>> {
        Box::pin(async move {
            if !self.shared.is_ready() {
                return Err(self.unavailable());
            }
            let memory = self.shared.memory.load();
            let sales = memory.sales.pin();
            let is_after = |id: &SaleId| after.as_ref().is_none_or(|after| id > after);
            let mut page: Vec<SaleStock> = sales
                .iter()
                .filter(|(id, _)| is_after(id))
                .map(|(_, memory)| stock(memory))
                .collect();
            page.sort_unstable_by(|a, b| a.sale.id.cmp(&b.sale.id));
            page.truncate(SALES_PAGE_MAX);
            Ok(page)
        })
    }

    fn events<'a>(
        &'a self,
        sale: &'a SaleId,
        after: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<Event>>, Fault>> {
        Box::pin(self.read_events(sale, after))
    }

    fn audit(&self, history: Vec<HistoryEntry>) -> BoxFuture<'_, Result<AuditReport, Fault>> {
        Box::pin(async move {
            if let Condition::Unavailable(_, reason) = &*self.shared.condition() {
                return self.audit_file_alone(reason.clone(), history).await;
            }
            let view = self.ask(Op::View, Err).await??;
            let audit = move || audit_view(&view.conn, &view.free, &history);
            let audited = tokio::task::spawn_blocking(audit).await;
            let store = |detail: String| Fault::without_effect(Cause::Store, detail);
            audited
                .map_err(|error| store(error.to_string()))?
                .map_err(|error| store(error.to_string()))
        })
    }

    fn components(&self) -> Vec<Component> {
        let detail = match &*self.shared.condition() {
            Condition::Ready => String::new(),
            Condition::Unavailable(_, reason) | Condition::Dead(reason) => reason.clone(),
            Condition::Stopping => "stopping".into(),
        };
        vec![Component {
            name: "store",
            ready: detail.is_empty(),
            detail,
        }]
    }

    fn liveness(&self) -> Result<(), String> {
        match &*self.shared.condition() {
            Condition::Dead(reason) => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    fn samples(&self) -> Vec<Sample> {
        let counts = &self.shared.counts;
        let queued = self.weak_queue.upgrade().map_or(0, |queue| {
            queue.max_capacity().saturating_sub(queue.capacity())
        });
        let counter = |name, help, value| Sample {
            name,
            help,
            is_counter: true,
            value,
        };
        let gauge = |name, help, value| Sample {
            name,
            help,
            is_counter: false,
            value,
        };
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        vec![
            counter(
                "writer_batches",
                "Batches that the writer completed",
                load(&counts.batches),
            ),
            counter(
                "writer_batch_seconds",
                "Time that the writer spent on these batches",
                load(&counts.batch_nanos) / 1e9,
            ),
            counter(
                "writer_failed_batches",
                "Batches that could not be stored",
                load(&counts.failed_batches),
            ),
            counter(
                "rebuilds",
                "Rebuilds of memory from the file",
                load(&counts.rebuilds),
            ),
            gauge(
                "writer_queue_length",
                "Calls waiting for the writer",
                queued as f64,
            ),
            gauge(
                "orders_stored",
                "Orders in the file, in any state",
                load(&counts.orders),
            ),
            gauge(
                "clock_lag_seconds",
                "How far the engine's clock is ahead of the system clock",
                self.shared.clock.lag_ms() as f64 / 1e3,
            ),
        ]
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.stop();
            // What is already queued is still answered. Waiting for that blocks this thread.
            tokio::task::block_in_place(|| self.join());
        })
    }
}

fn stock(memory: &SaleMemory) -> SaleStock {
    let state = memory.state.load();
    SaleStock {
        sale: Sale::clone(&state.terms),
        free: state.free.to_vec(),
    }
}

fn no_random_bytes(error: &getrandom::Error) -> Fault {
    let detail = format!("the system returned no random bytes: {error}");
    Fault::without_effect(Cause::Store, detail)
}
