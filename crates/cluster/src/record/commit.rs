//! The recorder's transaction: locks the offset row and the sales, then writes rows, voids, events
//! and the offset. What to write is decided in `plan`, not here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

use seckill_engine::{Cause, Fault};
use seckill_sale::{OrderId, Unit};

use super::plan::{self, Content, Known, Plan};
use crate::codec::message::ClaimMessage;
use crate::codec::order_id::Mac;
use crate::log::consumer::Record;
use crate::store::{
    Inserted, Session, Store, column, list, or_null, push_row, quote_into, quoted, sales, text,
    text_or_null,
};

/// A position in a partition of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Generation of the log; grows when the log was replaced.
    pub(crate) log_gen: u32,
    /// The next record's offset.
    pub(crate) next: i64,
}

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

fn of_part(topic: &str, part: i32) -> String {
    format!("topic = {} AND part = {part}", quoted(topic.as_bytes()))
}

/// Returns where to resume a partition, and the mark of the record before. A partition that was
/// never read starts at 0.
pub(crate) async fn place(
    store: &Store,
    topic: &str,
    part: i32,
) -> Result<(Place, Option<String>), Fault> {
    let mut session = store.ready().await?;
    let select = format!(
        "SELECT log_gen, next_offset, last_order_id FROM seckill_offset WHERE {}",
        of_part(topic, part)
    );
    for _ in 0..2 {
        let found: Vec<mysql_async::Row> = session.query(&select).await?;
        if let Some(mut row) = found.into_iter().next() {
            let (Some(log_gen), Some(next)) = (column(&mut row, 0), column(&mut row, 1)) else {
                break;
            };
            return Ok((Place { log_gen, next }, text_or_null(&mut row, 2).flatten()));
        }
        // A row inserted by another recorder is just as good.
        session
            .insert(&format!(
                "INSERT INTO seckill_offset (topic, part, log_gen, next_offset) VALUES ({}, {part}, 1, 0)",
                quoted(topic.as_bytes())
            ))
            .await?;
    }
    Err(Fault::without_effect(
        Cause::Store,
        "seckill_offset has no row for the partition, and none could be inserted",
    ))
}

/// Starts a new generation, for another log under the same topic name.
pub(crate) async fn begin_generation(
    store: &Store,
    topic: &str,
    part: i32,
    from: Place,
    low: i64,
) -> Result<Place, Fault> {
    let mut session = store.ready().await?;
    let sql = format!(
        "UPDATE seckill_offset SET log_gen = log_gen + 1, next_offset = {low}, last_order_id = NULL \
         WHERE {} AND log_gen = {} AND next_offset = {}",
        of_part(topic, part),
        from.log_gen,
        from.next
    );
    session.execute(&sql).await?;
    drop(session);
    // If another recorder was first, its row is used.
    Ok(self::place(store, topic, part).await?.0)
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
    let Some(mut known) = lock(&mut session, topic, part, at, records).await? else {
        session.rollback().await?;
        return Ok(Committed::Moved);
    };
    // Most claims are new, so existing orders are read only after a unique key reports a conflict.
    let mut plan = plan::plan(records, &known, &mac);
    if !plan.voids.is_empty() || plan.halt.is_some() {
        // A claim that already has a row must not become a void, whatever its epoch.
        look_up(&mut session, records, &mut known).await?;
        plan = plan::plan(records, &known, &mac);
    }
    let plan = sound(&mut session, plan).await?;
    let end = end_statement(topic, part, place, &mark, &plan, &known);
    if plan.orders.is_empty() {
        finish(&mut session, &end).await?;
        return Ok(Committed::Stored(done(place, plan)));
    }
    let at_once = format!(
        "{}; {}; {end}",
        insert_statement(&plan.orders),
        events_statement(&plan.orders)
    );
    if session.insert(&at_once).await? == Inserted::Done {
        session.ended();
        return Ok(Committed::Stored(done(place, plan)));
    }
    look_up(&mut session, records, &mut known).await?;
    let plan = sound(&mut session, plan::plan(records, &known, &mac)).await?;
    let plan = insert_what_fits(&mut session, plan).await?;
    let mut end = end_statement(topic, part, place, &mark, &plan, &known);
    if !plan.orders.is_empty() {
        end = format!("{}; {end}", events_statement(&plan.orders));
    }
    finish(&mut session, &end).await?;
    Ok(Committed::Stored(done(place, plan)))
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

async fn finish(session: &mut Session, end: &str) -> Result<(), Fault> {
    session.execute(end).await?;
    session.ended();
    Ok(())
}

/// Starts the transaction and takes the locks. Returns `None` if the store's position has moved.
/// Reads voids, but not orders.
async fn lock(
    session: &mut Session,
    topic: &str,
    part: i32,
    at: Place,
    records: &[Record],
) -> Result<Option<Known>, Fault> {
    let sale_ids: HashSet<&str> = claims(records)
        .map(|claim| claim.sale_id.as_str())
        .collect();
    let mut sql = format!(
        "START TRANSACTION; SELECT log_gen, next_offset FROM seckill_offset WHERE {} FOR UPDATE",
        of_part(topic, part)
    );
    if !sale_ids.is_empty() {
        let _ = write!(
            sql,
            "; {}; SELECT order_id FROM seckill_void LIMIT 1",
            sales::lock_statement(&list(sale_ids.iter().copied()))
        );
    }
    // Counts as started, whatever fails below.
    session.began();
    let mut answers = session.query_all(&sql).await?.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let offset = next().into_iter().next();
    let is_here = offset.is_some_and(|mut row| {
        (column(&mut row, 0), column(&mut row, 1)) == (Some(at.log_gen), Some(at.next))
    });
    if !is_here {
        return Ok(None);
    }
    let rows = sales::rows(next());
    let mut known = Known {
        sales: rows
            .into_iter()
            .map(|row| (row.sale.id.clone(), row))
            .collect(),
        ..Known::default()
    };
    // Voids are rare, and written only under the sales' locks, which are held now.
    if !next().is_empty() {
        let sql = format!(
            "SELECT order_id FROM seckill_void WHERE order_id IN ({})",
            order_ids(records)
        );
        let voids: Vec<mysql_async::Row> = session.query(&sql).await?;
        known.voids = voids
            .into_iter()
            .filter_map(|mut row| text(&mut row, 0))
            .collect();
    }
    Ok(Some(known))
}

/// Reads the stored orders that have the claims' ids.
async fn look_up(
    session: &mut Session,
    records: &[Record],
    known: &mut Known,
) -> Result<(), Fault> {
    let sql = format!(
        "SELECT order_id, unit, gen, buyer, idem_key, fingerprint FROM seckill WHERE order_id IN ({})",
        order_ids(records)
    );
    let orders: Vec<mysql_async::Row> = session.query(&sql).await?;
    known.orders = orders
        .into_iter()
        .filter_map(content)
        .collect::<HashMap<_, _>>();
    Ok(())
}

fn claims(records: &[Record]) -> impl Iterator<Item = &ClaimMessage> {
    records.iter().filter_map(Record::claim)
}

fn order_ids(records: &[Record]) -> String {
    list(claims(records).map(|claim| claim.order_id.as_str()))
}

fn content(mut row: mysql_async::Row) -> Option<(String, Content)> {
    let row = &mut row;
    let content = Content {
        unit: column(row, 1)?,
        generation: column(row, 2)?,
        buyer: text(row, 3)?,
        key: text_or_null(row, 4)?,
        fingerprint: column(row, 5)?,
    };
    Some((text(row, 0)?, content))
}

fn insert_statement(claims: &[&ClaimMessage]) -> String {
    let mut sql = String::with_capacity(64 + claims.len() * 220);
    sql.push_str("INSERT INTO seckill (order_id, sale_id, unit, gen, buyer, slot, idem_key, fingerprint, epoch) VALUES ");
    for (index, claim) in claims.iter().enumerate() {
        let line = claim.line;
        sql.push_str(if index == 0 { "(" } else { ",(" });
        quote_into(&mut sql, claim.order_id.as_str().as_bytes());
        sql.push(',');
        quote_into(&mut sql, claim.sale_id.as_str().as_bytes());
        let _ = write!(sql, ",{},{},", line.unit, line.generation);
        quote_into(&mut sql, claim.buyer.as_str().as_bytes());
        let _ = write!(sql, ",{},", or_null(line.slot));
        match &claim.idem_key {
            Some(key) => quote_into(&mut sql, key.as_str().as_bytes()),
            None => sql.push_str("NULL"),
        }
        let _ = write!(sql, ",{},{})", claim.fingerprint, claim.epoch);
    }
    sql
}

/// One event per sale for all its orders in the batch, with their ids separated by commas.
fn events_statement(claims: &[&ClaimMessage]) -> String {
    let mut by_sale: BTreeMap<&str, String> = BTreeMap::new();
    for claim in claims {
        let ids = by_sale.entry(claim.sale_id.as_str()).or_default();
        if !ids.is_empty() {
            ids.push(',');
        }
        ids.push_str(claim.order_id.as_str());
    }
    let mut sql = "INSERT INTO seckill_event (sale_id, type, body) VALUES ".to_owned();
    for (index, (sale, ids)) in by_sale.into_iter().enumerate() {
        // Order ids contain no quotes, backslashes or commas.
        push_row(
            &mut sql,
            index == 0,
            format_args!("({},'orders.reserved','{ids}')", quoted(sale.as_bytes())),
        );
    }
    sql
}

/// Writes voids, dead records, suspicions and the offset, then commits.
fn end_statement(
    topic: &str,
    part: i32,
    place: Place,
    mark: &str,
    plan: &Plan<'_>,
    known: &Known,
) -> String {
    let mut sql = String::new();
    for (index, (claim, reason)) in plan.voids.iter().enumerate() {
        if index == 0 {
            sql.push_str("INSERT INTO seckill_void (order_id, sale_id, epoch, reason) VALUES ");
        }
        push_row(
            &mut sql,
            index == 0,
            format_args!(
                "({},{},{},'{reason}')",
                quoted(claim.order_id.as_str().as_bytes()),
                quoted(claim.sale_id.as_str().as_bytes()),
                claim.epoch
            ),
        );
    }
    if !plan.voids.is_empty() {
        sql.push_str("; ");
    }
    for (index, dead) in plan.dead.iter().enumerate() {
        const PAYLOAD_MAX_BYTES: usize = 4_096;
        const ERROR_MAX_CHARS: usize = 500;
        if index == 0 {
            sql.push_str("INSERT INTO seckill_dead (topic, log_gen, part, at_offset, payload, error) VALUES ");
        }
        let payload = &dead.payload[..dead.payload.len().min(PAYLOAD_MAX_BYTES)];
        let error: String = dead.error.chars().take(ERROR_MAX_CHARS).collect();
        push_row(
            &mut sql,
            index == 0,
            format_args!(
                "({},{},{part},{},{},CONVERT({} USING utf8mb4))",
                quoted(topic.as_bytes()),
                place.log_gen,
                dead.offset,
                quoted(payload),
                quoted(error.as_bytes())
            ),
        );
    }
    if !plan.dead.is_empty() {
        sql.push_str("; ");
    }
    for sale in &plan.suspects {
        if let Some(row) = known.sales.get(sale) {
            let _ = write!(
                sql,
                "UPDATE seckill_sale SET suspect_epoch = {} WHERE id = {}; ",
                row.epoch,
                quoted(sale.as_str().as_bytes())
            );
        }
    }
    let _ = write!(
        sql,
        "UPDATE seckill_offset SET next_offset = {}, last_order_id = {} WHERE {}; COMMIT",
        place.next,
        quoted(mark.as_bytes()),
        of_part(topic, part)
    );
    sql
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
        match session.insert(&insert_statement(piece)).await? {
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
