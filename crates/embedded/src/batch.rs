//! A batch that is being decided and stored: the ledger decides, and its writes go into one
//! transaction. Nothing of it is visible to requests until it has been committed.

use std::sync::Arc;

use fail_parallel::FailPointRegistry;
use rusqlite::Connection;
use seckill_engine::OrderRefused;
use seckill_sale::{
    Attempt, Attempted, Claim, HeldOrder, ItemUnits, Ledger, Names, NewClaim, NewSale, Order,
    OrderChange, OrderId, OrderState, Sale, SaleChange, SaleId, SaleNo, SaleRefused, SaleWrite,
    Verdict,
};

use crate::clock;
use crate::failpoints;
use crate::file::FileError;
use crate::file::events::{self, EventRow, Kind, POINTER_ROWS};
use crate::file::insert::{InsertLines, NewLine};
use crate::file::rows::{self, StoredOrder};
use crate::file::{meta, sales};
use crate::load::FileCounts;
use crate::memory::Memory;
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

/// What a batch needs from the writer, in addition to the ledger.
pub(crate) struct Store<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) failpoints: &'a Arc<FailPointRegistry>,
    /// Checks that the file is the opened one and that no other program wrote to it.
    pub(crate) check: &'a mut dyn FnMut(&Connection, CheckAt) -> Result<(), StepError>,
    /// The file's counts before the batch.
    pub(crate) counts: FileCounts,
    /// The row that the latest entry of each sale's feed points to, by sale.
    pub(crate) pointers: &'a mut Vec<i64>,
}

/// Decides with the ledger, and stores what it decides. Its decisions stay out of memory until they
/// are durable.
pub(crate) struct Batch<'a> {
    store: Store<'a>,
    memory: &'a Memory,
    ledger: &'a mut Ledger<u128>,
    insert: InsertLines<'a>,
    now_ms: i64,
    /// The pointers that this batch has moved, with their earlier values.
    moved_pointers: Vec<(SaleNo, i64)>,
    in_transaction: bool,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        store: Store<'a>,
        memory: &'a Memory,
        ledger: &'a mut Ledger<u128>,
        now_ms: i64,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            insert: InsertLines::prepare(store.conn)?,
            store,
            memory,
            ledger,
            now_ms,
            moved_pointers: Vec::new(),
            in_transaction: false,
        })
    }

    /// Whether there is anything to commit.
    pub(crate) fn has_writes(&self) -> bool {
        self.in_transaction
    }

    /// The file's counts once the batch is committed.
    pub(crate) fn counts(&self) -> FileCounts {
        self.store.counts
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

    /// The last step before the commit. `rows` is the number of rows to record, if any.
    pub(crate) fn finish(&mut self, rows: Option<u64>) -> Result<(), StepError> {
        if !self.in_transaction {
            // The decisions rest on memory alone, which must still match the file.
            return self.check(CheckAt::Unwritten);
        }
        self.insert.flush()?;
        if let Some(rows) = rows {
            failpoints::check(self.store.failpoints, failpoints::COUNT_ROWS)?;
            meta::set_row_count(self.store.conn, rows)?;
        }
        Ok(())
    }

    pub(crate) fn attempt(&mut self, order: u128, attempt: &Attempt) -> Result<Verdict, StepError> {
        let names = self.memory.names(attempt);
        let decided = self
            .ledger
            .attempt(&order, attempt, names, self.memory, self.now_ms);
        Ok(match decided {
            Attempted::Claimed(claim) => {
                self.store_claim(order, attempt, &claim)?;
                Verdict::Claimed(Claim {
                    order_id: order_id::to_text(order),
                    units: claim.order_units,
                    remaining: claim.remaining,
                })
            }
            Attempted::Repeat {
                claim,
                units,
                remaining,
            } => Verdict::Repeat {
                claim: Claim {
                    order_id: order_id::to_text(claim.order_id),
                    units,
                    remaining,
                },
                state: claim.state,
            },
            Attempted::Mismatch => Verdict::Mismatch,
            Attempted::Rejected(rejection) => Verdict::Rejected(rejection),
            Attempted::Invalid(invalid) => Verdict::Invalid(invalid),
        })
    }

    fn store_claim(
        &mut self,
        order: u128,
        attempt: &Attempt,
        claim: &NewClaim,
    ) -> Result<(), StepError> {
        self.begin()?;
        failpoints::check(self.store.failpoints, failpoints::INSERT)?;
        let lines = claim.units.len() as u32;
        let first_row = self.store.counts.latest_row + 1;
        for (&claimed, line) in claim.units.iter().zip(1..) {
            let is_first = line == 1;
            self.insert.add(NewLine {
                id: first_row + i64::from(line) - 1,
                date_ms: self.now_ms,
                order_id: order,
                line,
                lines,
                sale: claim.sale.get(),
                claimed,
                sequence: is_first.then_some(claim.sequence),
                buyer: attempt.buyer.clone(),
                key: attempt.key.clone().filter(|_| is_first),
                fingerprint: claim.fingerprint.filter(|_| is_first),
            })?;
        }
        let counts = &mut self.store.counts;
        counts.latest_row += i64::from(lines);
        counts.rows += u64::from(lines);
        counts.orders += 1;
        let pointer = self.store.pointers.get(claim.sale.index());
        if pointer.is_some_and(|pointer| first_row - pointer > POINTER_ROWS) {
            let kind = Kind::Pointer;
            self.store_event(claim.sale, claim.sequence, first_row, kind)?;
        }
        Ok(())
    }

    fn store_event(
        &mut self,
        sale: SaleNo,
        sequence: u64,
        row_id: i64,
        kind: Kind<'_>,
    ) -> Result<(), StepError> {
        failpoints::check(self.store.failpoints, failpoints::INSERT_EVENT)?;
        let event = EventRow {
            sale: sale.get(),
            sequence,
            row_id,
            date_ms: self.now_ms,
            kind,
        };
        events::insert(self.store.conn, &event)?;
        let pointers = &mut *self.store.pointers;
        if sale.index() >= pointers.len() {
            pointers.resize(sale.index() + 1, 0);
        }
        let before = std::mem::replace(&mut pointers[sale.index()], row_id);
        self.moved_pointers.push((sale, before));
        Ok(())
    }

    pub(crate) fn change_order(
        &mut self,
        order_id: &OrderId,
        change: OrderChange,
    ) -> Result<Result<Order, OrderRefused>, StepError> {
        let Some(number) = order_id::from_text(order_id.as_str()) else {
            return Ok(Err(OrderRefused::NoSuchOrder));
        };
        // Before reading the rows, so that no other program can change them before they are written.
        self.begin()?;
        self.insert.flush()?;
        let Some(found) = rows::order_by_id(self.store.conn, number)? else {
            return Ok(Err(OrderRefused::NoSuchOrder));
        };
        let stored = found.map_err(StepError::Damaged)?;
        let damaged = |detail: &dyn std::fmt::Display| {
            StepError::Damaged(format!("order {order_id}: {detail}"))
        };
        let held = held_order(&stored, self.memory);
        let write = match self.ledger.change_order(&held, change) {
            Ok(Ok(Some(write))) => write,
            Ok(Ok(None)) => return Ok(Ok(stored.order)),
            Ok(Err(refused)) => return Ok(Err(OrderRefused::NotAllowed(refused))),
            Err(inconsistent) => return Err(damaged(&inconsistent)),
        };
        failpoints::check(self.store.failpoints, failpoints::SET_STATE)?;
        if !rows::set_state(self.store.conn, &stored, write.state, self.now_ms)? {
            return Err(damaged(&"its rows changed within the transaction"));
        }
        let units: ItemUnits = stored.units.iter().map(|unit| unit.item_unit()).collect();
        let row_id = self.store.counts.latest_row;
        let kind = Kind::Order(number, write.state, &units);
        self.store_event(write.sale, write.sequence, row_id, kind)?;
        let is_cancelled = write.state == OrderState::Cancelled;
        Ok(Ok(Order {
            state: write.state,
            cancelled_at: is_cancelled.then(|| clock::to_text(self.now_ms)),
            ..stored.order
        }))
    }

    pub(crate) fn create_sale(
        &mut self,
        new: NewSale,
    ) -> Result<Result<Sale, SaleRefused>, StepError> {
        match self.ledger.create_sale(new) {
            Ok(write) => {
                self.store_sale(&write, Kind::Created(&write.sale))?;
                Ok(Ok(write.sale))
            }
            Err(refused) => Ok(Err(refused)),
        }
    }

    pub(crate) fn change_sale(
        &mut self,
        id: &SaleId,
        change: &SaleChange,
    ) -> Result<Result<Sale, SaleRefused>, StepError> {
        match self.ledger.change_sale(id, change) {
            Ok(write) => {
                self.store_sale(&write, Kind::Changed(&write.sale))?;
                Ok(Ok(write.sale))
            }
            Err(refused) => Ok(Err(refused)),
        }
    }

    fn store_sale(&mut self, write: &SaleWrite, kind: Kind<'_>) -> Result<(), StepError> {
        self.begin()?;
        failpoints::check(self.store.failpoints, failpoints::PUT_SALE)?;
        sales::put(self.store.conn, write.number.get(), &write.sale)?;
        let row_id = self.store.counts.latest_row;
        self.store_event(write.number, write.sequence, row_id, kind)
    }

    /// Restores the state before the batch.
    pub(crate) fn undo(self) {
        self.ledger.undo();
        for (sale, before) in self.moved_pointers.into_iter().rev() {
            self.store.pointers[sale.index()] = before;
        }
    }

    /// Makes a committed batch visible.
    pub(crate) fn publish(self) {
        self.ledger.commit(|change| self.memory.publish(&change));
    }
}

/// A stored order as the ledger takes it.
fn held_order<'a>(stored: &'a StoredOrder, memory: &Memory) -> HeldOrder<'a, u128> {
    let order = &stored.order;
    let (digester, buyer) = (&memory.digester, order.buyer.as_str());
    let key = order.idempotency_key.as_ref();
    HeldOrder {
        order_id: &stored.number,
        sale: &order.sale,
        units: &stored.units,
        names: Names {
            buyer: (!buyer.is_empty()).then(|| digester.buyer(&order.sale, buyer)),
            key: key.map(|key| digester.key(&order.sale, buyer, key.as_str())),
        },
        fingerprint: stored.fingerprint,
        state: order.state,
    }
}
