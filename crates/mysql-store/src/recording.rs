//! What a recorder reads and writes: its position in each partition of the log, and the rows of a
//! batch. What each record becomes is the recorder's decision, not this file's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

use mysql_async::Row;
use seckill_cluster_codec::message::ClaimMessage;
use seckill_engine::{Cause, Fault};
use seckill_sale::SaleId;

use crate::sales::{self, SaleRow};
use crate::session::{Inserted, Session};
use crate::sql::{column, list, or_null, push_row, quote_into, quoted, text, text_or_null};
use crate::store::Store;

/// A position in a partition of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Generation of the log; grows when the log was replaced.
    pub log_gen: u32,
    /// The next record's offset.
    pub next: i64,
}

/// The content of a stored order, which a claim that is sent again must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub unit: u32,
    pub generation: u32,
    pub buyer: String,
    pub key: Option<String>,
    pub fingerprint: u64,
}

impl Content {
    pub fn of(claim: &ClaimMessage) -> Self {
        let line = claim.line;
        Self {
            unit: line.unit,
            generation: line.generation,
            buyer: claim.buyer.as_str().to_owned(),
            key: claim.idem_key.as_ref().map(|key| key.as_str().to_owned()),
            fingerprint: claim.fingerprint,
        }
    }
}

/// What the store has of a batch, read under the locks.
#[derive(Debug)]
pub struct Locked {
    pub sales: Vec<SaleRow>,
    /// The order ids of those claims that are void.
    pub voids: HashSet<String>,
}

/// A record that is not a valid claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    pub offset: i64,
    pub payload: Vec<u8>,
    pub error: String,
}

/// What ends a batch's transaction.
#[derive(Debug)]
pub struct BatchEnd<'a> {
    pub topic: &'a str,
    pub part: i32,
    /// Where the next batch begins.
    pub place: Place,
    /// The mark of the batch's last record.
    pub mark: &'a str,
    /// With the reason.
    pub voids: &'a [(&'a ClaimMessage, &'static str)],
    pub dead: &'a [Dead],
    /// Sales whose gates are suspect, with their epochs.
    pub suspects: Vec<(&'a SaleId, u32)>,
}

fn of_part(topic: &str, part: i32) -> String {
    format!("topic = {} AND part = {part}", quoted(topic.as_bytes()))
}

/// Returns where to resume a partition, and the mark of the record before. A partition that was
/// never read starts at 0.
pub async fn place(
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
        let found: Vec<Row> = session.query(&select).await?;
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
pub async fn begin_generation(
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

/// Starts the transaction and takes the locks. Returns `None` if the store's position has moved.
/// Reads voids, but not orders.
pub async fn lock(
    session: &mut Session,
    topic: &str,
    part: i32,
    at: Place,
    claims: &[&ClaimMessage],
) -> Result<Option<Locked>, Fault> {
    let sale_ids: HashSet<&str> = claims.iter().map(|claim| claim.sale_id.as_str()).collect();
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
    let sales = sales::rows(next());
    let mut voids = HashSet::new();
    // Voids are rare, and written only under the sales' locks, which are held now.
    if !next().is_empty() {
        let sql = format!(
            "SELECT order_id FROM seckill_void WHERE order_id IN ({})",
            order_ids(claims)
        );
        let rows: Vec<Row> = session.query(&sql).await?;
        voids = rows
            .into_iter()
            .filter_map(|mut row| text(&mut row, 0))
            .collect();
    }
    Ok(Some(Locked { sales, voids }))
}

/// Reads the stored orders that have the claims' ids.
pub async fn contents(
    session: &mut Session,
    claims: &[&ClaimMessage],
) -> Result<HashMap<String, Content>, Fault> {
    let sql = format!(
        "SELECT order_id, unit, gen, buyer, idem_key, fingerprint FROM seckill WHERE order_id IN ({})",
        order_ids(claims)
    );
    let orders: Vec<Row> = session.query(&sql).await?;
    Ok(orders.into_iter().filter_map(content).collect())
}

fn order_ids(claims: &[&ClaimMessage]) -> String {
    list(claims.iter().map(|claim| claim.order_id.as_str()))
}

fn content(mut row: Row) -> Option<(String, Content)> {
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

/// Inserts orders. After a duplicate, none is inserted.
pub async fn insert(session: &mut Session, claims: &[&ClaimMessage]) -> Result<Inserted, Fault> {
    session.insert(&insert_statement(claims)).await
}

/// Inserts orders with their events, writes the end and commits, in one round trip. After a
/// duplicate, nothing is written, and the transaction goes on.
pub async fn insert_and_finish(
    session: &mut Session,
    claims: &[&ClaimMessage],
    end: &BatchEnd<'_>,
) -> Result<Inserted, Fault> {
    let at_once = format!(
        "{}; {}; {}",
        insert_statement(claims),
        events_statement(claims),
        end_statement(end)
    );
    let inserted = session.insert(&at_once).await?;
    if inserted == Inserted::Done {
        session.ended();
    }
    Ok(inserted)
}

/// Writes the events of the inserted orders and the end, and commits.
pub async fn finish(
    session: &mut Session,
    inserted: &[&ClaimMessage],
    end: &BatchEnd<'_>,
) -> Result<(), Fault> {
    let mut sql = end_statement(end);
    if !inserted.is_empty() {
        sql = format!("{}; {sql}", events_statement(inserted));
    }
    session.execute(&sql).await?;
    session.ended();
    Ok(())
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
fn end_statement(end: &BatchEnd<'_>) -> String {
    let BatchEnd {
        topic, part, place, ..
    } = *end;
    let mut sql = String::new();
    for (index, (claim, reason)) in end.voids.iter().enumerate() {
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
    if !end.voids.is_empty() {
        sql.push_str("; ");
    }
    for (index, dead) in end.dead.iter().enumerate() {
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
    if !end.dead.is_empty() {
        sql.push_str("; ");
    }
    for (sale, epoch) in &end.suspects {
        let _ = write!(
            sql,
            "UPDATE seckill_sale SET suspect_epoch = {epoch} WHERE id = {}; ",
            quoted(sale.as_str().as_bytes())
        );
    }
    let _ = write!(
        sql,
        "UPDATE seckill_offset SET next_offset = {}, last_order_id = {} WHERE {}; COMMIT",
        place.next,
        quoted(end.mark.as_bytes()),
        of_part(topic, part)
    );
    sql
}
