//! One batch being decided: an overlay over memory, and how to undo it.
//! Nothing in here is visible to anybody until the batch has been committed.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rusqlite::Connection;
use seckill_sale::{
    Attempt, Claim, Context, IdempotencyKey, Invalid, NewSale, Order, OrderChange, OrderId,
    Rejection, Sale, SaleChange, SaleId, Slots, Stock, Taken, Verdict, decide,
};

use seckill_engine::{OrderRefused, SaleRefused};

use crate::file::clock;
use crate::file::rows::{self, InsertOrder, OrderRow};
use crate::load::{self, SaleLedger, SaleLedgers};
use crate::memory::{ByDigest, Digest, Memory, StoredClaim, verdict_or_slot};
use crate::order_id;

/// Why a step of a batch could not be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file holds what this program cannot have written.
    #[error("{0}")]
    Damaged(String),
}

enum Undo {
    Taken(SaleId, Taken),
    GivenBack(SaleId),
    Created(SaleId),
    Terms(Box<Sale>),
}

/// Decides over memory and the ledgers, and keeps what it decided apart until it is durable.
pub(crate) struct Batch<'a> {
    conn: &'a Connection,
    memory: &'a Memory,
    ledgers: &'a mut SaleLedgers,
    insert: InsertOrder<'a>,
    now_ms: i64,
    date: String,
    claims: HashMap<Digest, StoredClaim, ByDigest>,
    slots: HashMap<Digest, Slots, ByDigest>,
    undo: Vec<Undo>,
    in_transaction: bool,
}

/// Opens the batch's one transaction at its first write: a batch of noes touches no disk.
fn begin(conn: &Connection, in_transaction: &mut bool) -> rusqlite::Result<()> {
    if !*in_transaction {
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        *in_transaction = true;
    }
    Ok(())
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        conn: &'a Connection,
        memory: &'a Memory,
        ledgers: &'a mut SaleLedgers,
        now_ms: i64,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            conn,
            memory,
            ledgers,
            insert: InsertOrder::prepare(conn)?,
            now_ms,
            date: clock::to_text(now_ms),
            claims: HashMap::default(),
            slots: HashMap::default(),
            undo: Vec::new(),
            in_transaction: false,
        })
    }

    /// Whether there is anything to commit.
    pub(crate) fn has_writes(&self) -> bool {
        self.in_transaction
    }

    pub(crate) fn attempt(&mut self, order: u128, attempt: &Attempt) -> Result<Verdict, StepError> {
        let Some(ledger) = self.ledgers.get_mut(&attempt.sale) else {
            return Ok(Verdict::Invalid(Invalid::NoSuchSale));
        };
        let buyer = attempt.buyer.as_str();
        let digester = &self.memory.digester;
        let key = attempt.key.as_ref();
        let key_digest = key.map(|key| digester.key(&attempt.sale, buyer, key.as_str()));
        let keyed = key_digest.and_then(|digest| {
            let here = self.claims.get(&digest).copied();
            here.or_else(|| self.memory.claim(digest))
        });
        let limited = ledger.sale.buyer_limit.is_some() && !attempt.buyer.is_anonymous();
        let buyer_digest = limited.then(|| digester.buyer(&attempt.sale, buyer));
        let slots = buyer_digest.map_or_else(Slots::default, |digest| {
            let here = self.slots.get(&digest).copied();
            here.unwrap_or_else(|| self.memory.slots_of(digest))
        });
        let free = ledger.stock.free();
        let context = Context {
            keyed: keyed.map(StoredClaim::keyed),
            slots,
            free,
        };
        let decision = decide(&ledger.sale, attempt, &context, self.now_ms);
        let slot = match verdict_or_slot(decision, free) {
            ControlFlow::Break(verdict) => return Ok(verdict),
            ControlFlow::Continue(slot) => slot,
        };
        let Some(taken) = ledger.stock.take() else {
            return Ok(Verdict::Rejected(Rejection::SoldOut));
        };
        self.undo.push(Undo::Taken(attempt.sale.clone(), taken));
        begin(self.conn, &mut self.in_transaction)?;
        let (unit, order_id) = (taken.unit, order_id::to_text(order));
        let fingerprint = key.map(|_| attempt.fingerprint());
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
        if let (Some(digest), Some(fingerprint)) = (key_digest, fingerprint) {
            let claim = StoredClaim {
                order,
                unit,
                fingerprint,
            };
            self.claims.insert(digest, claim);
        }
        if let (Some(digest), Some(slots)) = (buyer_digest, slot.and_then(|slot| slots.with(slot)))
        {
            self.slots.insert(digest, slots);
        }
        Ok(Verdict::Claimed(Claim {
            order_id,
            unit,
            remaining: ledger.stock.free(),
        }))
    }

    pub(crate) fn change_order(
        &mut self,
        order_id: &OrderId,
        change: OrderChange,
    ) -> Result<Result<Order, OrderRefused>, StepError> {
        let Some(found) = rows::order_by_id(self.conn, order_id.as_str())? else {
            return Ok(Err(OrderRefused::NoSuchOrder));
        };
        let (mut order, slot) = found.map_err(StepError::Damaged)?;
        let next = match change.apply(order.state) {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(Ok(order)),
            Err(refused) => return Ok(Err(OrderRefused::NotAllowed(refused))),
        };
        begin(self.conn, &mut self.in_transaction)?;
        rows::set_state(self.conn, order_id, next)?;
        if order.state.is_active() && !next.is_active() {
            self.give_back(&order, slot)?;
        }
        order.state = next;
        Ok(Ok(order))
    }

    fn give_back(&mut self, order: &Order, slot: Option<u8>) -> Result<(), StepError> {
        let missing = || StepError::Damaged(format!("order {}: its sale is gone", order.order_id));
        let ledger = self.ledgers.get_mut(&order.sale).ok_or_else(missing)?;
        ledger.stock.give_back(order.unit);
        self.undo.push(Undo::GivenBack(order.sale.clone()));
        if let Some(slot) = slot {
            let digest = self
                .memory
                .digester
                .buyer(&order.sale, order.buyer.as_str());
            let here = self.slots.get(&digest).copied();
            let slots = here.unwrap_or_else(|| self.memory.slots_of(digest));
            self.slots.insert(digest, slots.without(slot));
        }
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
            Err(bad) => return Ok(Err(bad.into())),
        };
        begin(self.conn, &mut self.in_transaction)?;
        rows::put_sale(self.conn, &sale)?;
        let stock = Stock::new(sale.total);
        self.undo.push(Undo::Created(sale.id.clone()));
        self.ledgers
            .insert(sale.id.clone(), SaleLedger::new(sale.clone(), stock));
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
        let before = ledger.sale.clone();
        // Counting reads every order of the sale, so not where a limit is only raised.
        let most_held = match (before.buyer_limit, change.buyer_limit) {
            (Some(old), Some(Some(new))) if new >= old => 0,
            (_, Some(Some(_))) => rows::most_held(self.conn, id)?,
            _ => 0,
        };
        let changed = match change.apply(&before, most_held) {
            Ok(changed) => changed,
            Err(refused) => return Ok(Err(refused.into())),
        };
        begin(self.conn, &mut self.in_transaction)?;
        rows::put_sale(self.conn, &changed)?;
        if changed.buyer_limit.is_some() != before.buyer_limit.is_some() {
            rows::renumber_slots(self.conn, id, changed.buyer_limit.is_some())?;
            let renumbered = load::slots_of_sale(self.conn, self.memory.digester, id)?;
            self.slots.extend(renumbered);
        }
        self.undo.push(Undo::Terms(Box::new(before)));
        if let Some(ledger) = self.ledgers.get_mut(id) {
            ledger.stock.set_total(changed.total);
            ledger.sale = changed.clone();
        }
        Ok(Ok(changed))
    }

    /// Forgets everything: the ledgers are as they were before the batch.
    pub(crate) fn undo(self) {
        for step in self.undo.into_iter().rev() {
            match step {
                Undo::Taken(sale, taken) => {
                    if let Some(ledger) = self.ledgers.get_mut(&sale) {
                        ledger.stock.undo_take(taken);
                    }
                }
                Undo::GivenBack(sale) => {
                    if let Some(ledger) = self.ledgers.get_mut(&sale) {
                        ledger.stock.undo_give_back();
                    }
                }
                Undo::Created(sale) => {
                    self.ledgers.remove(&sale);
                }
                Undo::Terms(before) => {
                    if let Some(ledger) = self.ledgers.get_mut(&before.id) {
                        ledger.stock.set_total(before.total);
                        ledger.sale = *before;
                    }
                }
            }
        }
    }

    /// Makes a committed batch visible: claims and slots first, free units last, so that whoever sees a sale sold out
    /// also sees to whom.
    pub(crate) fn publish(self) {
        let claims = self.memory.claims.pin();
        for (digest, claim) in self.claims {
            claims.insert(digest, claim);
        }
        let all_slots = self.memory.slots.pin();
        for (digest, slots) in self.slots {
            if slots.is_empty() {
                all_slots.remove(&digest);
            } else {
                all_slots.insert(digest, slots);
            }
        }
        let mut published: Option<SaleId> = None;
        for step in self.undo {
            let (id, has_new_terms) = match step {
                Undo::Taken(sale, _) | Undo::GivenBack(sale) => (sale, false),
                Undo::Created(sale) => (sale, true),
                Undo::Terms(before) => (before.id, true),
            };
            // A batch mostly touches one sale; publishing its last state once is enough.
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
