//! Orders and voids in the store: queries, state changes, and voiding lost claims. It must not
//! store claims: the recorder does that.

use std::collections::HashMap;

use mysql_async::Row;
use seckill_cluster_codec::order_id::Named;
use seckill_engine::Fault;
use seckill_sale::{Buyer, IdempotencyKey, Order, OrderChange, OrderId, OrderState, SaleId, Unit};

use crate::sales;
use crate::session::{Inserted, Session};
use crate::sql::{column, list, quoted, text, text_or_null};

const COLUMNS: &str = "order_id, sale_id, unit, gen, buyer, idem_key, state, date, ended_at";

/// The store's final decision on a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// With the present state.
    Order(Unit, OrderState),
    Void(String),
}

/// Returns the decisions on those of these claims that have one, in one round trip.
pub async fn settled<'a>(
    session: &mut Session,
    ids: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<(OrderId, Settled)>, Fault> {
    let ids = list(ids);
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT order_id, unit, gen, state FROM seckill WHERE order_id IN ({ids}); \
         SELECT order_id, reason FROM seckill_void WHERE order_id IN ({ids})"
    );
    let mut answers = session.query_all(&sql).await?.into_iter();
    let mut known = Vec::new();
    for mut row in answers.next().unwrap_or_default() {
        let row = &mut row;
        let state = text(row, 3).and_then(|name| OrderState::from_name(&name));
        if let (Some(id), Some(number), Some(generation), Some(state)) =
            (order_id(row), column(row, 1), column(row, 2), state)
        {
            let unit = Unit { number, generation };
            known.push((id, Settled::Order(unit, state)));
        }
    }
    for mut row in answers.next().unwrap_or_default() {
        if let (Some(id), Some(reason)) = (order_id(&mut row), text(&mut row, 1)) {
            known.push((id, Settled::Void(reason)));
        }
    }
    Ok(known)
}

fn order_id(row: &mut Row) -> Option<OrderId> {
    OrderId::new(&text(row, 0)?).ok()
}

pub async fn order(session: &mut Session, id: &OrderId) -> Result<Option<Order>, Fault> {
    first(
        session,
        &format!("order_id = {}", quoted(id.as_str().as_bytes())),
    )
    .await
}

pub async fn of_key(
    session: &mut Session,
    sale: &SaleId,
    buyer: &Buyer,
    key: &IdempotencyKey,
) -> Result<Option<Order>, Fault> {
    let which = format!(
        "sale_id = {} AND buyer = {} AND idem_key = {}",
        quoted(sale.as_str().as_bytes()),
        quoted(buyer.as_str().as_bytes()),
        quoted(key.as_str().as_bytes())
    );
    first(session, &which).await
}

async fn first(session: &mut Session, which: &str) -> Result<Option<Order>, Fault> {
    let rows: Vec<Row> = session
        .query(&format!(
            "SELECT {COLUMNS} FROM seckill WHERE {which} LIMIT 1"
        ))
        .await?;
    Ok(rows.into_iter().next().and_then(read))
}

fn read(mut row: Row) -> Option<Order> {
    let row = &mut row;
    let buyer = text(row, 4)?;
    let key = text_or_null(row, 5)?;
    Some(Order {
        order_id: OrderId::new(&text(row, 0)?).ok()?,
        sale: SaleId::new(&text(row, 1)?).ok()?,
        unit: Unit {
            number: column(row, 2)?,
            generation: column(row, 3)?,
        },
        buyer: if buyer.is_empty() {
            Buyer::anonymous()
        } else {
            Buyer::new(&buyer).ok()?
        },
        idempotency_key: key.map(|key| IdempotencyKey::new(&key)).transpose().ok()?,
        state: OrderState::from_name(&text(row, 6)?)?,
        date: rfc3339(&text(row, 7)?),
        cancelled_at: text_or_null(row, 8)?.map(|at| rfc3339(&at)),
    })
}

/// A UTC time as MySQL prints it, as RFC 3339.
fn rfc3339(time: &str) -> String {
    format!("{}Z", time.replacen(' ', "T", 1))
}

/// Counts the orders of a sale that hold a unit.
pub async fn active(session: &mut Session, sale: &SaleId) -> Result<u32, Fault> {
    let sql = format!(
        "SELECT COUNT(active_unit) FROM seckill WHERE sale_id = {}",
        quoted(sale.as_str().as_bytes())
    );
    Ok(session.query::<u32>(&sql).await?.pop().unwrap_or(0))
}

/// Whether the store has any order, of any sale.
pub async fn any(session: &mut Session) -> Result<bool, Fault> {
    Ok(!session
        .query::<u8>("SELECT 1 FROM seckill LIMIT 1")
        .await?
        .is_empty())
}

/// Changes an order's state in one transaction, with the event and, if the order ends, the release
/// of its unit. Returns false if the state does not allow the change or another change came first.
pub async fn change(
    session: &mut Session,
    order: &Order,
    change: OrderChange,
) -> Result<bool, Fault> {
    let Ok(Some(next)) = change.apply(order.state) else {
        return Ok(false);
    };
    let id = quoted(order.order_id.as_str().as_bytes());
    let sale = quoted(order.sale.as_str().as_bytes());
    session.begin().await?;
    let ended_at = if next.is_active() {
        "NULL"
    } else {
        "UTC_TIMESTAMP(3)"
    };
    let update = format!(
        "UPDATE seckill SET state = '{}', version = version + 1, ended_at = {ended_at} \
         WHERE order_id = {id} AND state = '{}'",
        next.as_str(),
        order.state.as_str()
    );
    if session.execute(&update).await? == 0 {
        session.rollback().await?;
        return Ok(false);
    }
    let event = format!(
        "INSERT INTO seckill_event (sale_id, order_id, type) VALUES ({sale}, {id}, 'order.{}')",
        next.as_str()
    );
    session.execute(&event).await?;
    if !next.is_active() {
        session
            .execute(&format!(
                "INSERT INTO seckill_give_back (order_id, sale_id) VALUES ({id}, {sale})"
            ))
            .await?;
    }
    session.commit().await?;
    Ok(true)
}

/// Returns up to `max` ended orders after `after` whose units are not yet released in the gate.
pub async fn to_give_back(
    session: &mut Session,
    after: Option<&OrderId>,
    max: usize,
) -> Result<Vec<(OrderId, SaleId)>, Fault> {
    let after = after.map_or_else(String::new, |id| {
        format!("WHERE order_id > {}", quoted(id.as_str().as_bytes()))
    });
    let sql = format!(
        "SELECT order_id, sale_id FROM seckill_give_back {after} ORDER BY order_id LIMIT {max}"
    );
    let rows: Vec<(String, String)> = session.query(&sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|(order, sale)| Some((OrderId::new(&order).ok()?, SaleId::new(&sale).ok()?)))
        .collect())
}

/// Records that the gate of this epoch has released the unit. Does nothing if another epoch has
/// started since: its gate may not have seen the release, which is then sent again.
pub async fn released(session: &mut Session, id: &OrderId, epoch: u32) -> Result<(), Fault> {
    let sql = format!(
        "DELETE told FROM seckill_give_back AS told JOIN seckill_sale AS sale ON sale.id = told.sale_id \
         WHERE told.order_id = {} AND sale.epoch = {epoch}",
        quoted(id.as_str().as_bytes())
    );
    session.execute(&sql).await.map(|_| ())
}

/// Voids a claim that neither gate nor store knows, unless it was stored after all. Locks the sale,
/// so no recorder can store the claim at the same time.
pub async fn give_up(
    session: &mut Session,
    sale: &SaleId,
    id: &OrderId,
    named: Named,
) -> Result<Option<Settled>, Fault> {
    session.begin().await?;
    if sales::locked(session, sale).await?.is_none() {
        session.rollback().await?;
        return Ok(None);
    }
    let known = settled(session, [id.as_str()]).await?.pop();
    if let Some((_, known)) = known {
        session.rollback().await?;
        return Ok(Some(known));
    }
    let sql = format!(
        "INSERT INTO seckill_void (order_id, sale_id, epoch, reason) VALUES ({}, {}, {}, 'lost')",
        quoted(id.as_str().as_bytes()),
        quoted(sale.as_str().as_bytes()),
        named.epoch
    );
    if session.insert(&sql).await? != Inserted::Done {
        session.rollback().await?;
        return Ok(None);
    }
    session.commit().await?;
    Ok(Some(Settled::Void("lost".into())))
}

/// An order row with the columns that a rebuild and the audit need.
#[derive(Debug, Clone)]
pub struct Stored {
    pub order_id: String,
    pub unit: Unit,
    pub buyer: String,
    pub slot: Option<u8>,
    pub key: Option<String>,
    pub fingerprint: u64,
    pub state: Option<OrderState>,
    pub epoch: u32,
}

/// Returns up to `max` orders of a sale after `after`, ordered by unit and generation.
pub async fn page(
    session: &mut Session,
    sale: &SaleId,
    after: Option<Unit>,
    max: usize,
) -> Result<Vec<Stored>, Fault> {
    let after = after.map_or_else(String::new, |unit| {
        format!(
            "AND unit >= {0} AND (unit > {0} OR gen > {1})",
            unit.number, unit.generation
        )
    });
    let sql = format!(
        "SELECT order_id, unit, gen, buyer, slot, idem_key, fingerprint, state, epoch FROM seckill \
         WHERE sale_id = {} {after} ORDER BY unit, gen LIMIT {max}",
        quoted(sale.as_str().as_bytes())
    );
    let rows: Vec<Row> = session.query(&sql).await?;
    Ok(rows.into_iter().filter_map(stored).collect())
}

fn stored(mut row: Row) -> Option<Stored> {
    let row = &mut row;
    Some(Stored {
        order_id: text(row, 0)?,
        unit: Unit {
            number: column(row, 1)?,
            generation: column(row, 2)?,
        },
        buyer: text(row, 3)?,
        slot: column(row, 4)?,
        key: text_or_null(row, 5)?,
        fingerprint: column(row, 6)?,
        state: OrderState::from_name(&text(row, 7)?),
        epoch: column(row, 8)?,
    })
}

/// Returns the orders whose sale does not exist, with the id of that sale.
pub async fn of_no_sale(session: &mut Session) -> Result<Vec<(String, Stored)>, Fault> {
    let sql = "SELECT order_id, unit, gen, buyer, slot, idem_key, fingerprint, seckill.state, seckill.epoch, sale_id \
               FROM seckill LEFT JOIN seckill_sale ON seckill_sale.id = sale_id WHERE seckill_sale.id IS NULL";
    let rows: Vec<Row> = session.query(sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|mut row| Some((text(&mut row, 9)?, stored(row)?)))
        .collect())
}

/// Returns the order ids of all void claims.
pub async fn voids(session: &mut Session) -> Result<Vec<String>, Fault> {
    let rows: Vec<Row> = session.query("SELECT order_id FROM seckill_void").await?;
    Ok(rows
        .into_iter()
        .filter_map(|mut row| text(&mut row, 0))
        .collect())
}

/// Returns the recorders' position in each partition: the generation of the log and the next
/// offset.
pub async fn offsets(
    session: &mut Session,
    topic: &str,
) -> Result<HashMap<i32, (u32, i64)>, Fault> {
    let sql = format!(
        "SELECT part, log_gen, next_offset FROM seckill_offset WHERE topic = {}",
        quoted(topic.as_bytes())
    );
    let rows: Vec<(i32, u32, i64)> = session.query(&sql).await?;
    Ok(rows
        .into_iter()
        .map(|(part, log_gen, next)| (part, (log_gen, next)))
        .collect())
}

/// Sets the recorders' positions to these offsets and discards all earlier ones.
pub async fn begin_at(
    session: &mut Session,
    topic: &str,
    ends: &[(i32, i64)],
) -> Result<(), Fault> {
    let topic = quoted(topic.as_bytes());
    session.begin().await?;
    session
        .execute(&format!("DELETE FROM seckill_offset WHERE topic = {topic}"))
        .await?;
    for (part, next) in ends {
        let sql = format!(
            "INSERT INTO seckill_offset (topic, part, log_gen, next_offset) VALUES ({topic}, {part}, 1, {next})"
        );
        session.execute(&sql).await?;
    }
    session.commit().await
}

/// Starts a transaction in which all reads see the same snapshot.
pub async fn begin_snapshot(session: &mut Session) -> Result<(), Fault> {
    session
        .execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        .await?;
    session
        .execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        .await?;
    session.began();
    Ok(())
}
