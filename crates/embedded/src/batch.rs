//! A batch that is being decided: an overlay over memory, and the steps to undo it.
//! Nothing in it is visible to requests until it has been committed.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use fail_parallel::FailPointRegistry;
use rusqlite::Connection;
use seckill_engine::{OrderRefused, SaleRefused};
use seckill_sale::{
    Attempt, Claim, Context, Holding, IdempotencyKey, Invalid, NewSale, Order, OrderChange,
    OrderId, OrderState, Rejection, Sale, SaleChange, SaleId, Stock, Taken, Verdict, decide,
};

use crate::clock;
use crate::failpoints;
use crate::file::FileError;
use crate::file::rows::{self, InsertOrder, OrderRow, StoredOrder};
use crate::file::{meta, sales};
use crate::ledger::{Holdings, SaleLedger, SaleLedgers};
use crate::memory::{ByDigest, Digest, Memory, StoredClaim, verdict_or_slot};
use crate::order_id;

/// Why a step of a batch could not be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file contains something that this program cannot have written.
    #[error("{0}")]
    Damaged(String),
    #[error("another program wrote to the file")]
    ExternalWrite,
    /// The file at the path is not the one that was opened.
    #[error(transparent)]
    File(#[from] FileError),
}

enum Undo {
    Taken(SaleId, Taken),
    Released(SaleId),
    Held {
        sale: SaleId,
        buyer: Digest,
        before: Holding,
    },
    Created(SaleId),
    Changed(Box<(Sale, Stock)>),
}

/// When the file is checked. System calls are expensive beside a small batch, so each check asks only
/// for what the others do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckAt {
    /// After the transaction has begun: no other program can write until it ends.
    Begun,
    Committed,
    /// The batch had nothing to write.
    Unwritten,
}

/// What a batch needs from the writer, in addition to the ledgers.
pub(crate) struct Store<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) failpoints: &'a Arc<FailPointRegistry>,
    /// Checks that the file is the opened one and that no other program wrote to it.
    pub(crate) check: &'a mut dyn FnMut(&Connection, CheckAt) -> Result<(), StepError>,
}

/// Decides from memory and the ledgers. Its decisions stay out of memory until they are durable.
pub(crate) struct Batch<'a> {
    store: Store<'a>,
    memory: &'a Memory,
    ledgers: &'a mut SaleLedgers,
    insert: InsertOrder<'a>,
    now_ms: i64,
    date: String,
    claims: HashMap<Digest, StoredClaim, ByDigest>,
    undo: Vec<Undo>,
    inserted: u64,
    in_transaction: bool,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        store: Store<'a>,
        memory: &'a Memory,
        ledgers: &'a mut SaleLedgers,
        now_ms: i64,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            insert: InsertOrder::prepare(store.conn)?,
            store,
            memory,
            ledgers,
            now_ms,
            date: clock::to_text(now_ms),
            claims: HashMap::default(),
            undo: Vec::new(),
            inserted: 0,
            in_transaction: false,
        })
    }

    /// Whether there is anything to commit.
    pub(crate) fn has_writes(&self) -> bool {
        self.in_transaction
    }

    /// The number of orders that the batch has inserted.
    pub(crate) fn inserted(&self) -> u64 {
        self.inserted
    }

    /// Begins the batch's only transaction, at its first write: a batch of rejections needs none.
    /// After this, no other program can write.
    fn begin(&mut self) -> Result<(), StepError> {
        if self.in_transaction {
            return Ok(());
        }
        failpoints::check(self.store.failpoints, failpoints::BEGIN)?;
        self.store
            .conn
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute(())?;
        self.in_transaction = true;
        self.check(CheckAt::Begun)
    }

    /// Whether the file is still the opened one, and no other program wrote to it.
    pub(crate) fn check(&mut self, at: CheckAt) -> Result<(), StepError> {
        (self.store.check)(self.store.conn, at)
    }

    /// The last step before the commit. `orders` is the number of orders to record, if any.
    pub(crate) fn finish(&mut self, orders: Option<u64>) -> Result<(), StepError> {
        if !self.in_transaction {
            // The decisions rest on memory alone, which must still match the file.
            return self.check(CheckAt::Unwritten);
        }
        if let Some(orders) = orders {
            failpoints::check(self.store.failpoints, failpoints::COUNT_ORDERS)?;
            meta::set_orders(self.store.conn, orders)?;
        }
        Ok(())
    }

    pub(crate) fn attempt(&mut self, order: u128, attempt: &Attempt) -> Result<Verdict, StepError> {
        let Some(ledger) = self.ledgers.get(&attempt.sale) else {
            return Ok(Verdict::Invalid(Invalid::NoSuchSale));
        };
        let buyer = attempt.buyer.as_str();
        let digester = &self.memory.digester;
        let key = attempt.key.as_ref();
        let key_digest = key.map(|key| digester.key(&attempt.sale, buyer, key.as_str()));
        let keyed = key_digest.and_then(|digest| {
            let in_batch = self.claims.get(&digest).copied();
            in_batch.or_else(|| self.memory.claim(digest))
        });
        let buyer_digest =
            (!attempt.buyer.is_anonymous()).then(|| digester.buyer(&attempt.sale, buyer));
        let holding = buyer_digest.map_or_else(Holding::default, |digest| ledger.holding(digest));
        let free = ledger.stock.free();
        let context = Context {
            keyed: keyed.map(StoredClaim::keyed),
            holding,
            free,
        };
        let decision = decide(&ledger.sale, attempt, &context, self.now_ms);
        let slot = match verdict_or_slot(decision, free) {
            ControlFlow::Break(verdict) => return Ok(verdict),
            ControlFlow::Continue(slot) => slot,
        };
        self.begin()?;
        let Some((taken, remaining)) = self.take(&attempt.sale) else {
            return Ok(Verdict::Rejected(Rejection::SoldOut));
        };
        let (unit, order_id) = (taken.unit, order_id::to_text(order));
        let fingerprint = key.map(|_| attempt.fingerprint());
        failpoints::check(self.store.failpoints, failpoints::INSERT)?;
        self.insert.insert(&OrderRow {
            date: &self.date,
            order_id: order_id.as_str(),
            sale: attempt.sale.as_str(),
            unit,
            buyer,
            slot,
            key: key.map(IdempotencyKey::as_str),
            fingerprint,
        })?;
        self.inserted += 1;
        if let (Some(digest), Some(fingerprint)) = (key_digest, fingerprint) {
            let claim = StoredClaim {
                order,
                unit,
                fingerprint,
                state: OrderState::Reserved,
            };
            self.claims.insert(digest, claim);
        }
        if let Some(digest) = buyer_digest {
            let slots = slot.and_then(|slot| holding.slots.with(slot));
            let next = Holding {
                held: holding.held + 1,
                slots: slots.unwrap_or(holding.slots),
            };
            self.hold(&attempt.sale, digest, next);
        }
        Ok(Verdict::Claimed(Claim {
            order_id,
            unit,
            remaining,
        }))
    }

    fn take(&mut self, sale: &SaleId) -> Option<(Taken, u32)> {
        let stock = &mut self.ledgers.get_mut(sale)?.stock;
        let taken = stock.take()?;
        self.undo.push(Undo::Taken(sale.clone(), taken));
        Some((taken, stock.free()))
    }

    fn hold(&mut self, sale: &SaleId, buyer: Digest, next: Holding) {
        if let Some(ledger) = self.ledgers.get_mut(sale) {
            let before = ledger.set_holding(buyer, next);
            self.undo.push(Undo::Held {
                sale: sale.clone(),
                buyer,
                before,
            });
        }
    }

    pub(crate) fn change_order(
        &mut self,
        order_id: &OrderId,
        change: OrderChange,
    ) -> Result<Result<Order, OrderRefused>, StepError> {
        // Before reading the row, so that no other program can change it before it is written.
        self.begin()?;
        let Some(found) = rows::order_by_id(self.store.conn, order_id.as_str())? else {
            return Ok(Err(OrderRefused::NoSuchOrder));
        };
        let stored = found.map_err(StepError::Damaged)?;
        let next = match change.apply(stored.order.state) {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(Ok(stored.order)),
            Err(refused) => return Ok(Err(OrderRefused::NotAllowed(refused))),
        };
        failpoints::check(self.store.failpoints, failpoints::SET_STATE)?;
        if !rows::set_state(self.store.conn, &stored, next, &self.date)? {
            let detail = format!("order {order_id}: its row changed within the transaction");
            return Err(StepError::Damaged(detail));
        }
        if stored.order.state.is_active() && !next.is_active() {
            self.release(&stored)?;
        }
        self.set_claim_state(&stored, next);
        let cancelled_at = (next == OrderState::Cancelled).then(|| self.date.clone());
        Ok(Ok(Order {
            state: next,
            cancelled_at,
            ..stored.order
        }))
    }

    /// Records the state with the claim, so that a repeat of the order's key returns it.
    fn set_claim_state(&mut self, stored: &StoredOrder, state: OrderState) {
        let order = &stored.order;
        if let (Some(key), Some(number)) = (
            &order.idempotency_key,
            order_id::from_text(order.order_id.as_str()),
        ) {
            let digester = &self.memory.digester;
            let digest = digester.key(&order.sale, order.buyer.as_str(), key.as_str());
            let claim = StoredClaim {
                order: number,
                unit: order.unit,
                fingerprint: stored.fingerprint,
                state,
            };
            self.claims.insert(digest, claim);
        }
    }

    fn release(&mut self, stored: &StoredOrder) -> Result<(), StepError> {
        let order = &stored.order;
        let missing =
            || StepError::Damaged(format!("order {}: its sale is missing", order.order_id));
        let ledger = self.ledgers.get_mut(&order.sale).ok_or_else(missing)?;
        ledger.stock.release(order.unit);
        self.undo.push(Undo::Released(order.sale.clone()));
        if order.buyer.is_anonymous() {
            return Ok(());
        }
        let digester = &self.memory.digester;
        let digest = digester.buyer(&order.sale, order.buyer.as_str());
        let holding = ledger.holding(digest);
        let Some(held) = holding.held.checked_sub(1) else {
            let detail = format!("order {}: its buyer holds no order", order.order_id);
            return Err(StepError::Damaged(detail));
        };
        let slots = stored
            .slot
            .map_or(holding.slots, |slot| holding.slots.without(slot));
        self.hold(&order.sale, digest, Holding { held, slots });
        Ok(())
    }

    pub(crate) fn create_sale(
        &mut self,
        new: NewSale,
    ) -> Result<Result<Sale, SaleRefused>, StepError> {
        if let Some(ledger) = self.ledgers.get(&new.id) {
            return Ok(Err(SaleRefused::Exists(Box::new(ledger.sale.clone()))));
        }
        let sale = match new.validate() {
            Ok(sale) => sale,
            Err(invalid) => return Ok(Err(invalid.into())),
        };
        self.put_sale(&sale)?;
        let stock = Stock::new(sale.total);
        self.undo.push(Undo::Created(sale.id.clone()));
        self.ledgers.insert(
            sale.id.clone(),
            SaleLedger::new(sale.clone(), stock, Holdings::default()),
        );
        Ok(Ok(sale))
    }

    pub(crate) fn change_sale(
        &mut self,
        id: &SaleId,
        change: &SaleChange,
    ) -> Result<Result<Sale, SaleRefused>, StepError> {
        let Some(ledger) = self.ledgers.get(id) else {
            return Ok(Err(SaleRefused::NoSuchSale(id.clone())));
        };
        let changed = match change.apply(&ledger.sale, ledger.usage(change)) {
            Ok(changed) => changed,
            Err(refused) => return Ok(Err(refused.into())),
        };
        self.put_sale(&changed)?;
        if let Some(ledger) = self.ledgers.get_mut(id) {
            let before = std::mem::replace(&mut ledger.sale, changed.clone());
            let stock = ledger.stock.clone();
            self.undo.push(Undo::Changed(Box::new((before, stock))));
            ledger.stock.set_total(changed.total);
        }
        Ok(Ok(changed))
    }

    fn put_sale(&mut self, sale: &Sale) -> Result<(), StepError> {
        self.begin()?;
        failpoints::check(self.store.failpoints, failpoints::PUT_SALE)?;
        Ok(sales::put(self.store.conn, sale)?)
    }

    /// Restores the ledgers to their state before the batch.
    pub(crate) fn undo(self) {
        for step in self.undo.into_iter().rev() {
            match step {
                Undo::Taken(sale, taken) => {
                    if let Some(ledger) = self.ledgers.get_mut(&sale) {
                        ledger.stock.undo_take(taken);
                    }
                }
                Undo::Released(sale) => {
                    if let Some(ledger) = self.ledgers.get_mut(&sale) {
                        ledger.stock.undo_release();
                    }
                }
                Undo::Held {
                    sale,
                    buyer,
                    before,
                } => {
                    if let Some(ledger) = self.ledgers.get_mut(&sale) {
                        ledger.set_holding(buyer, before);
                    }
                }
                Undo::Created(sale) => {
                    self.ledgers.remove(&sale);
                }
                Undo::Changed(before) => {
                    if let Some(ledger) = self.ledgers.get_mut(&before.0.id) {
                        (ledger.sale, ledger.stock) = *before;
                    }
                }
            }
        }
    }

    /// Makes a committed batch visible: claims and holdings first, free units last, so that a
    /// request that sees a sold-out sale also sees the claims that sold it out.
    pub(crate) fn publish(self) {
        let claims = self.memory.claims.pin();
        for (digest, claim) in self.claims {
            claims.insert(digest, claim);
        }
        let held = self.undo.iter().filter_map(|step| match step {
            Undo::Held { sale, buyer, .. } => {
                let ledger = self.ledgers.get(sale)?;
                let is_limited = ledger.sale.buyer_limit.is_some();
                Some((*buyer, ledger.holding(*buyer), is_limited))
            }
            _ => None,
        });
        self.memory.publish_holdings(held);
        let mut published: Option<SaleId> = None;
        for step in self.undo {
            let (id, has_new_terms) = match step {
                Undo::Held { .. } => continue,
                Undo::Taken(sale, _) | Undo::Released(sale) => (sale, false),
                Undo::Created(sale) => (sale, true),
                Undo::Changed(before) => (before.0.id, true),
            };
            // A batch mostly touches one sale; publishing its latest state once is enough.
            if !has_new_terms && published.as_ref() == Some(&id) {
                continue;
            }
            if let Some(ledger) = self.ledgers.get(&id) {
                if has_new_terms {
                    ledger.memory.terms.store(Arc::new(ledger.sale.clone()));
                    self.memory
                        .sales
                        .pin()
                        .insert(id.clone(), Arc::clone(&ledger.memory));
                }
                ledger.memory.set_free(ledger.stock.free());
            }
            published = Some(id);
        }
    }
}
