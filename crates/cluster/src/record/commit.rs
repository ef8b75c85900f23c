//! The recorder's transaction: stores a batch in one round trip with guards. If one fails, it locks
//! the offset row and the sales, then writes rows, voids and the offset. What to write is decided
//! in `plan`, not here; the statements are the store's.

use std::collections::HashSet;

use seckill_cluster_codec::message::ClaimMessage;
use seckill_cluster_codec::order_id::Mac;
use seckill_engine::{Cause, Fault};
use seckill_kafka_log::Record;
use seckill_mysql_store::recording::{self, Batch, BatchEnd, Numbers, Place};
use seckill_mysql_store::{Inserted, Session, Store};
use seckill_sale::{OrderId, SaleId};

use super::plan::{self, Known, Plan};

/// Records to store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming<'a> {
    pub(crate) topic: &'a str,
    pub(crate) part: i32,
    /// The store's position.
    pub(crate) at: Place,
    pub(crate) records: &'a [Record],
}

/// The result of a stored batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) place: Place,
    /// The orders that have rows now.
    pub(crate) orders: Vec<OrderId>,
    pub(crate) voids: u64,
    pub(crate) dead: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Committed {
    Stored(Done),
    /// The store's position has moved; nothing was written.
    Moved,
}

/// A batch to store: its records, their claims, and where the next batch begins.
struct Records<'a> {
    incoming: Incoming<'a>,
    claims: Vec<&'a ClaimMessage>,
    place: Place,
    mark: String,
}

/// Stores a batch, all or nothing. After a fault, nothing is stored, unless the fault reports an
/// unknown commit; storing the batch again resolves that by the offset.
pub(crate) async fn commit(
    store: &Store,
    incoming: Incoming<'_>,
    known: &mut Known,
) -> Result<Committed, Fault> {
    let Incoming { at, records, .. } = incoming;
    let (Some(last), Some(first)) = (records.last(), records.first()) else {
        return Ok(Committed::Moved);
    };
    debug_assert!(first.offset >= at.next);
    let mut session = store.ready().await?;
    let mac = store.secret().map(Mac::new).ok_or_else(|| {
        Fault::without_effect(Cause::Store, "the store's secret has not been read yet")
    })?;
    let records = Records {
        incoming,
        claims: records.iter().filter_map(Record::claim).collect(),
        place: Place {
            log_gen: at.log_gen,
            next: last.offset + 1,
        },
        mark: plan::mark(last),
    };
    if let Some(done) = at_once(&mut session, &records, known, &mac).await? {
        return Ok(Committed::Stored(done));
    }
    under_locks(&mut session, &records, known, &mac).await
}

/// Stores a batch in one round trip, if all of its records are claims to store and the store is as
/// this recorder remembers it.
async fn at_once(
    session: &mut Session,
    batch: &Records<'_>,
    known: &mut Known,
    mac: &Mac,
) -> Result<Option<Done>, Fault> {
    if !known.has_sales_of(&batch.claims) {
        return Ok(None);
    }
    let incoming = batch.incoming;
    let plan = plan::plan(incoming.records, known, mac);
    if !plan.has_only_orders() {
        return Ok(None);
    }
    let sales: HashSet<&SaleId> = plan.orders.iter().map(|claim| &claim.sale_id).collect();
    let sales = sales.into_iter().filter_map(|id| known.sales.get(id));
    let guarded = Batch {
        topic: incoming.topic,
        part: incoming.part,
        at: incoming.at,
        place: batch.place,
        mark: &batch.mark,
        sales: sales.map(|sale| &sale.row).collect(),
        claims: &plan.orders,
    };
    if let Some(reason) = recording::record(session, &guarded).await? {
        tracing::debug!(reason, "the batch will be stored under locks");
        return Ok(None);
    }
    known.stored(&plan);
    Ok(Some(done(batch.place, plan)))
}

/// Locks the offset row and the sales, and stores what can be stored.
async fn under_locks(
    session: &mut Session,
    batch: &Records<'_>,
    known: &mut Known,
    mac: &Mac,
) -> Result<Committed, Fault> {
    let Records {
        incoming,
        claims,
        place,
        ..
    } = batch;
    let Incoming {
        topic,
        part,
        at,
        records,
    } = *incoming;
    let Some(locked) = recording::lock(session, topic, part, at, claims).await? else {
        session.rollback().await?;
        return Ok(Committed::Moved);
    };
    let mut numbers = Numbers::after(locked.sales.iter().map(|sale| &sale.row));
    known.read(claims, locked);
    // Most claims are new, so existing orders are read only after a unique key reports a conflict.
    let mut plan = plan::plan(records, known, mac);
    if !plan.voids.is_empty() || plan.halt.is_some() {
        // A claim that already has a row must not become a void, whatever its epoch.
        known.orders = recording::contents(session, claims).await?;
        plan = plan::plan(records, known, mac);
    }
    let plan = sound(session, plan).await?;
    let end = batch_end(batch, &plan, known);
    let is_stored = if plan.orders.is_empty() {
        recording::finish(session, &numbers, &end).await?;
        true
    } else {
        let inserted = recording::insert_and_finish(session, &plan.orders, &numbers, &end);
        inserted.await? == Inserted::Done
    };
    if is_stored {
        known.stored(&plan);
        return Ok(Committed::Stored(done(*place, plan)));
    }
    known.orders = recording::contents(session, claims).await?;
    let plan = sound(session, plan::plan(records, known, mac)).await?;
    let plan = insert_what_fits(session, plan, &mut numbers).await?;
    let end = batch_end(batch, &plan, known);
    recording::finish(session, &numbers, &end).await?;
    known.stored(&plan);
    Ok(Committed::Stored(done(*place, plan)))
}

fn batch_end<'a>(batch: &'a Records<'_>, plan: &'a Plan<'_>, known: &Known) -> BatchEnd<'a> {
    let suspects = plan.suspects.iter();
    let suspects = suspects.filter_map(|sale| Some((sale, known.sales.get(sale)?.row.epoch)));
    BatchEnd {
        topic: batch.incoming.topic,
        part: batch.incoming.part,
        place: batch.place,
        mark: &batch.mark,
        voids: &plan.voids,
        dead: &plan.dead,
        suspects: suspects.collect(),
    }
}

/// Returns the plan unless it must not be executed. In that case, rolls the transaction back.
async fn sound<'a>(session: &mut Session, plan: Plan<'a>) -> Result<Plan<'a>, Fault> {
    match plan.halt {
        None => Ok(plan),
        Some(halt) => {
            session.rollback().await?;
            Err(Fault::without_effect(Cause::Store, halt))
        }
    }
}

/// Inserts the orders of a plan piece by piece. Claims whose unit, key or slot belongs to another
/// order become voids.
async fn insert_what_fits<'a>(
    session: &mut Session,
    mut plan: Plan<'a>,
    numbers: &mut Numbers,
) -> Result<Plan<'a>, Fault> {
    let claims = std::mem::take(&mut plan.orders);
    for (claim, reason) in refused(session, &claims, numbers).await? {
        tracing::error!(order_id = %claim.order_id, sale = %claim.sale_id, reason, "a claim could not be stored");
        plan.suspects.insert(claim.sale_id.clone());
        plan.voids
            .push((claim, "another order has its unit, key or slot"));
    }
    let voided: HashSet<&str> = plan
        .voids
        .iter()
        .map(|(claim, _)| claim.order_id.as_str())
        .collect();
    let fits = |claim: &&ClaimMessage| !voided.contains(claim.order_id.as_str());
    plan.orders = claims.into_iter().filter(fits).collect();
    Ok(plan)
}

fn done(place: Place, plan: Plan<'_>) -> Done {
    let stored = |claim: &ClaimMessage| claim.order_id.clone();
    Done {
        place,
        voids: plan.voids.len() as u64,
        dead: plan.dead.len() as u64,
        orders: plan.orders.into_iter().map(stored).collect(),
    }
}

/// Inserts all claims that can be inserted, in ever smaller pieces, and returns those whose unit,
/// key or slot belongs to another order. A statement that violates a unique key inserts nothing.
async fn refused<'a>(
    session: &mut Session,
    claims: &[&'a ClaimMessage],
    numbers: &mut Numbers,
) -> Result<Vec<(&'a ClaimMessage, String)>, Fault> {
    let mut refused = Vec::new();
    let mut pieces = vec![claims];
    while let Some(piece) = pieces.pop() {
        if piece.is_empty() {
            continue;
        }
        match recording::insert(session, piece, numbers).await? {
            Inserted::Done => {}
            Inserted::Duplicate(reason) if piece.len() == 1 => {
                refused.push((piece[0], reason));
            }
            Inserted::Duplicate(_) => {
                let (first, second) = piece.split_at(piece.len() / 2);
                // The piece pushed last is next: the log's order decides who keeps the unit.
                pieces.push(second);
                pieces.push(first);
            }
        }
    }
    Ok(refused)
}
