//! What a recorder reads and writes: its position in each partition of the log, and the rows of a
//! batch. What each record becomes is the recorder's decision, not this file's.

mod numbers;
mod statements;

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use mysql_async::Row;
use seckill_cluster_codec::message::ClaimMessage;
use seckill_cluster_codec::order_id::ID_BYTES;
use seckill_engine::{Cause, Fault};
use seckill_sale::{ItemUnits, OrderId, SaleId};

pub use self::numbers::Numbers;
use crate::orders::item_unit;
use crate::sales::{self, SaleRow};
use crate::session::{Inserted, Session};
use crate::sql::{column, hex_into, list, order_id, order_id_list, quoted, text, text_or_null};
use crate::store::Store;

/// How many voids of a sale's present epoch a recorder knows.
const VOIDS_MAX: usize = 1_000;

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
    pub units: ItemUnits,
    pub buyer: String,
    /// The key, and the fingerprint of the attempt.
    pub key: Option<(String, u64)>,
}

impl Content {
    pub fn of(claim: &ClaimMessage) -> Self {
        let key = claim.idem_key.as_ref();
        Self {
            units: claim.units.iter().map(|unit| unit.item_unit()).collect(),
            buyer: claim.buyer.as_str().to_owned(),
            key: key.map(|key| (key.as_str().to_owned(), claim.fingerprint)),
        }
    }
}

/// What the store has of a batch's sale, read under its lock.
#[derive(Debug, Clone)]
pub struct KnownSale {
    pub row: SaleRow,
    /// The void claims of the present epoch. Those of earlier epochs cannot be stored anyway.
    pub voids: HashSet<OrderId>,
    /// Whether `voids` has all of them.
    pub has_all_voids: bool,
}

/// What the store has of a batch, read under the locks.
#[derive(Debug)]
pub struct Locked {
    pub sales: Vec<KnownSale>,
    /// The order ids of those claims that are void.
    pub voids: HashSet<OrderId>,
}

/// A record that is not a valid claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    pub offset: i64,
    pub payload: Vec<u8>,
    pub error: String,
}

/// A batch in which every record is a claim to store, for [`record`].
#[derive(Debug)]
pub struct Batch<'a> {
    pub topic: &'a str,
    pub part: i32,
    /// Where the batch begins.
    pub at: Place,
    /// Where the next batch begins.
    pub place: Place,
    /// The mark of the batch's last record.
    pub mark: &'a str,
    /// The sales of the claims, as the recorder knows them.
    pub sales: Vec<&'a SaleRow>,
    pub claims: &'a [&'a ClaimMessage],
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
        "SELECT log_gen, next_offset, last_order_id FROM seckill_position WHERE {}",
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
                "INSERT INTO seckill_position (topic, part, log_gen, next_offset) VALUES ({}, {part}, 1, 0)",
                quoted(topic.as_bytes())
            ))
            .await?;
    }
    Err(Fault::without_effect(
        Cause::Store,
        "seckill_position has no row for the partition, and none could be inserted",
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
        "UPDATE seckill_position SET log_gen = log_gen + 1, next_offset = {low}, last_order_id = NULL \
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

/// Stores a batch in one round trip. Guards make sure that the position and the sales are as the
/// recorder knows them. If they are not, or a unique key already has a value, nothing is stored,
/// and the result is MySQL's message.
pub async fn record(session: &mut Session, batch: &Batch<'_>) -> Result<Option<String>, Fault> {
    let sql = statements::at_once(batch)?;
    // Counts as started, whatever fails.
    session.began();
    let refused = session.guarded(&sql).await?;
    if refused.is_some() {
        session.rollback().await?;
    } else {
        session.ended();
    }
    Ok(refused)
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
        "START TRANSACTION; SELECT log_gen, next_offset FROM seckill_position WHERE {} FOR UPDATE",
        of_part(topic, part)
    );
    if !sale_ids.is_empty() {
        let _ = write!(sql, "; {}", sales::lock_statement(&list(sale_ids)));
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
    read_voids(session, sales, claims).await.map(Some)
}

/// Reads the voids. They are rare, and written only under the sales' locks, which are held now.
async fn read_voids(
    session: &mut Session,
    sales: Vec<SaleRow>,
    claims: &[&ClaimMessage],
) -> Result<Locked, Fault> {
    let mut sql = String::new();
    let ids = order_id_list(claims.iter().map(|claim| &claim.order_id));
    if sales.iter().any(|row| row.voids > 0) && !ids.is_empty() {
        let _ = write!(
            sql,
            "SELECT order_id FROM seckill_void WHERE order_id IN ({ids})"
        );
        for row in sales.iter().filter(|row| row.voids > 0) {
            // Order ids begin with the number of the sale and the epoch.
            let _ = write!(
                sql,
                "; SELECT order_id FROM seckill_void WHERE order_id BETWEEN {} AND {} LIMIT {}",
                epoch_bound(row, 0),
                epoch_bound(row, u8::MAX),
                VOIDS_MAX + 1
            );
        }
    }
    let answers = if sql.is_empty() {
        Vec::new()
    } else {
        session.query_all(&sql).await?
    };
    let mut answers = answers.into_iter().map(|rows| {
        let rows = rows.into_iter();
        rows.filter_map(|mut row| order_id(&mut row, 0))
            .collect::<HashSet<_>>()
    });
    let voids = answers.next().unwrap_or_default();
    let sales = sales.into_iter().map(|row| {
        let answer = (row.voids > 0).then(|| answers.next());
        let voids = answer.flatten().unwrap_or_default();
        KnownSale {
            has_all_voids: row.voids == 0 || (!sql.is_empty() && voids.len() <= VOIDS_MAX),
            row,
            voids,
        }
    });
    let sales = sales.collect();
    Ok(Locked { sales, voids })
}

/// The lowest or highest order id of a sale's present epoch.
fn epoch_bound(row: &SaleRow, rest: u8) -> String {
    let mut bound = [rest; ID_BYTES];
    bound[0..4].copy_from_slice(&row.num.to_be_bytes());
    bound[4..8].copy_from_slice(&row.epoch.to_be_bytes());
    let mut text = String::new();
    hex_into(&mut text, &bound);
    text
}

/// Reads the stored orders that have the claims' ids.
pub async fn contents(
    session: &mut Session,
    claims: &[&ClaimMessage],
) -> Result<HashMap<OrderId, Content>, Fault> {
    let mut contents: HashMap<OrderId, Content> = HashMap::new();
    let ids = order_id_list(claims.iter().map(|claim| &claim.order_id));
    if ids.is_empty() {
        return Ok(contents);
    }
    let sql = format!(
        "SELECT seckill.order_id, item, unit, gen, seckill.buyer, idem_key, fingerprint FROM seckill FORCE INDEX (one_order) \
         LEFT JOIN seckill_key ON seckill_key.order_id = seckill.order_id \
         WHERE seckill.order_id IN ({ids}) ORDER BY seckill.order_id, line"
    );
    for mut row in session.query::<Row>(&sql).await? {
        let row = &mut row;
        let (Some(id), Some(unit)) = (order_id(row, 0), item_unit(row, 1)) else {
            continue;
        };
        if let Some(content) = contents.get_mut(&id) {
            content.units.push(unit);
            continue;
        }
        let key = text_or_null(row, 5).flatten();
        let content = Content {
            units: [unit].into_iter().collect(),
            buyer: text(row, 4).unwrap_or_default(),
            key: key.zip(column(row, 6)),
        };
        contents.insert(id, content);
    }
    Ok(contents)
}

/// Inserts orders. After a duplicate, none is inserted.
pub async fn insert(
    session: &mut Session,
    claims: &[&ClaimMessage],
    numbers: &mut Numbers,
) -> Result<Inserted, Fault> {
    let mut numbered = numbers.clone();
    let sql = format!(
        "{SAVEPOINT}; {}",
        statements::orders(claims, &mut numbered)?
    );
    let inserted = insert_or_undo(session, &sql).await?;
    if inserted == Inserted::Done {
        *numbers = numbered;
    }
    Ok(inserted)
}

/// Inserts orders, writes the end and commits, in one round trip. After a duplicate, nothing is
/// written, and the transaction goes on.
pub async fn insert_and_finish(
    session: &mut Session,
    claims: &[&ClaimMessage],
    numbers: &Numbers,
    end: &BatchEnd<'_>,
) -> Result<Inserted, Fault> {
    let mut numbered = numbers.clone();
    let orders = statements::orders(claims, &mut numbered)?;
    let end = statements::end(end, &numbered)?;
    let sql = format!("{SAVEPOINT}; {orders}; {end}");
    let inserted = insert_or_undo(session, &sql).await?;
    if inserted == Inserted::Done {
        session.ended();
    }
    Ok(inserted)
}

/// An order can have rows in three tables.
const SAVEPOINT: &str = "SAVEPOINT orders";

async fn insert_or_undo(session: &mut Session, sql: &str) -> Result<Inserted, Fault> {
    let inserted = session.insert(sql).await?;
    if inserted != Inserted::Done {
        session.execute("ROLLBACK TO SAVEPOINT orders").await?;
    }
    Ok(inserted)
}

/// Writes the end of a batch whose orders are inserted, and commits.
pub async fn finish(
    session: &mut Session,
    numbers: &Numbers,
    end: &BatchEnd<'_>,
) -> Result<(), Fault> {
    session.execute(&statements::end(end, numbers)?).await?;
    session.ended();
    Ok(())
}
