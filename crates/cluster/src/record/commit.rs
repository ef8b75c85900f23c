//! The recorder's transaction: locks the offset row and the sales, then writes rows, voids, events
//! and the offset. What to write is decided in `plan`, not here; the statements are the store's.

use std::collections::HashSet;

use seckill_cluster_codec::message::ClaimMessage;
use seckill_cluster_codec::order_id::Mac;
use seckill_engine::{Cause, Fault};
use seckill_kafka_log::Record;
use seckill_mysql_store::recording::{self, BatchEnd, Place};
use seckill_mysql_store::{Inserted, Session, Store};
use seckill_sale::{OrderId, SaleId, Unit};

use super::plan::{self, Known, Plan};

/// The result of a stored batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) place: Place,
    /// The orders that have rows now.
    pub(crate) orders: Vec<(Unit, OrderId)>,
    pub(crate) voids: u64,
    pub(crate) dead: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Committed {
    Stored(Done),
    /// The store's position has moved; nothing was written.
    Moved,
}

/// Stores a batch, all or nothing. After a fault, nothing is stored, unless the fault reports an
/// unknown commit; storing the batch again resolves that by the offset.
pub(crate) async fn commit(
    store: &Store,
    topic: &str,
    part: i32,
    at: Place,
    records: &[Record],
) -> Result<Committed, Fault> {
    let (Some(last), Some(first)) = (records.last(), records.first()) else {
        return Ok(Committed::Moved);
    };
    debug_assert!(first.offset >= at.next);
    let mut session = store.ready().await?;
    let mac = store.secret().map(Mac::new).ok_or_else(|| {
        Fault::without_effect(Cause::Store, "the store's secret has not been read yet")
    })?;
    let place = Place {
        log_gen: at.log_gen,
        next: last.offset + 1,
    };
    let mark = plan::mark(last);
    let claims: Vec<&ClaimMessage> = records.iter().filter_map(Record::claim).collect();
    let Some(locked) = recording::lock(&mut session, topic, part, at, &claims).await? else {
        session.rollback().await?;
        return Ok(Committed::Moved);
    };
    let sales = locked.sales.into_iter();
    let mut known = Known {
        sales: sales.map(|row| (row.sale.id.clone(), row)).collect(),
        voids: locked.voids,
        ..Known::default()
    };
    // Most claims are new, so existing orders are read only after a unique key reports a conflict.
    let mut plan = plan::plan(records, &known, &mac);
    if !plan.voids.is_empty() || plan.halt.is_some() {
        // A claim that already has a row must not become a void, whatever its epoch.
        known.orders = recording::contents(&mut session, &claims).await?;
        plan = plan::plan(records, &known, &mac);
    }
    let plan = sound(&mut session, plan).await?;
    let end = BatchEnd {
        topic,
        part,
        place,
        mark: &mark,
        voids: &plan.voids,
        dead: &plan.dead,
        suspects: suspects(&plan, &known),
    };
    if plan.orders.is_empty() {
        recording::finish(&mut session, &[], &end).await?;
        return Ok(Committed::Stored(done(place, plan)));
    }
    if recording::insert_and_finish(&mut session, &plan.orders, &end).await? == Inserted::Done {
        return Ok(Committed::Stored(done(place, plan)));
    }
    known.orders = recording::contents(&mut session, &claims).await?;
    let plan = sound(&mut session, plan::plan(records, &known, &mac)).await?;
    let plan = insert_what_fits(&mut session, plan).await?;
    let end = BatchEnd {
        voids: &plan.voids,
        dead: &plan.dead,
        suspects: suspects(&plan, &known),
        ..end
    };
    recording::finish(&mut session, &plan.orders, &end).await?;
    Ok(Committed::Stored(done(place, plan)))
}

/// The suspect sales of a plan, with their epochs.
fn suspects<'a>(plan: &'a Plan<'_>, known: &Known) -> Vec<(&'a SaleId, u32)> {
    let suspects = plan.suspects.iter();
    suspects
        .filter_map(|sale| Some((sale, known.sales.get(sale)?.epoch)))
        .collect()
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
) -> Result<Plan<'a>, Fault> {
    let claims = std::mem::take(&mut plan.orders);
    for (claim, reason) in refused(session, &claims).await? {
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
    let stored = |claim: &ClaimMessage| (claim.line.unit(), claim.order_id.clone());
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
) -> Result<Vec<(&'a ClaimMessage, String)>, Fault> {
    let mut refused = Vec::new();
    let mut pieces = vec![claims];
    while let Some(piece) = pieces.pop() {
        if piece.is_empty() {
            continue;
        }
        match recording::insert(session, piece).await? {
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
