//! Reads all orders, for a rebuild and for the audit, and the recorders' positions. It changes no
//! order.

use std::collections::HashMap;

use mysql_async::Row;
use seckill_engine::Fault;
use seckill_sale::{ClaimedUnit, ItemNo, ItemUnit, OrderId, OrderState, Unit};

use crate::session::Session;
use crate::sql::{column, order_id, quoted, text, text_or_null};

/// Of a row of `seckill`, with its slot and the key of its order.
const COLUMNS: &str = "seckill.order_id, seckill.line, seckill.line_count, seckill.item, seckill.unit, seckill.gen, \
     slot.slot, seckill.buyer, claimed.idem_key, claimed.fingerprint, seckill.state, seckill.epoch, seckill.sequence, \
     seckill.sale_num";
const JOINS: &str = "LEFT JOIN seckill_key AS claimed ON claimed.order_id = seckill.order_id \
     LEFT JOIN seckill_slot AS slot ON slot.sale_num = seckill.sale_num AND slot.buyer = seckill.buyer \
     AND slot.order_id = seckill.order_id AND slot.line = seckill.line";

/// A row, which is one unit of an order, with what a rebuild and the audit need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub order_id: OrderId,
    /// From 1.
    pub line: u32,
    pub line_count: u32,
    /// With the slot, which only active orders have.
    pub claimed: ClaimedUnit,
    /// Empty for the anonymous buyer.
    pub buyer: String,
    pub key: Option<String>,
    /// Of an order with a key.
    pub fingerprint: Option<u64>,
    /// `None` if the stored text is not a state.
    pub state: Option<OrderState>,
    pub epoch: u32,
    /// The number of the event that the order was reserved. Only the first line has it.
    pub sequence: Option<u64>,
}

/// Returns up to `max` rows of a sale after `after`, ordered by item, unit and generation. The
/// lines of an order need not be on one page.
pub async fn page(
    session: &mut Session,
    sale_num: u32,
    after: Option<ItemUnit>,
    max: usize,
) -> Result<Vec<Stored>, Fault> {
    let after = after.map_or_else(String::new, |ItemUnit { item, unit }| {
        let (item, number, generation) = (item.get(), unit.number, unit.generation);
        format!(
            "AND seckill.item >= {item} AND (seckill.item > {item} OR (seckill.unit >= {number} \
             AND (seckill.unit > {number} OR seckill.gen > {generation})))"
        )
    });
    let sql = format!(
        "SELECT {COLUMNS} FROM seckill {JOINS} WHERE seckill.sale_num = {sale_num} {after} \
         ORDER BY seckill.item, seckill.unit, seckill.gen LIMIT {max}"
    );
    let rows: Vec<Row> = session.query(&sql).await?;
    Ok(rows.into_iter().filter_map(stored).collect())
}

fn stored(mut row: Row) -> Option<Stored> {
    let row = &mut row;
    Some(Stored {
        order_id: order_id(row, 0)?,
        line: column(row, 1)?,
        line_count: column(row, 2)?,
        claimed: ClaimedUnit {
            item: ItemNo::new(column(row, 3)?)?,
            unit: Unit {
                number: column(row, 4)?,
                generation: column(row, 5)?,
            },
            slot: column(row, 6)?,
        },
        buyer: text(row, 7)?,
        key: text_or_null(row, 8)?,
        fingerprint: column(row, 9)?,
        state: OrderState::from_name(&text(row, 10)?),
        epoch: column(row, 11)?,
        sequence: column(row, 12)?,
    })
}

/// Returns the rows whose sale does not exist, with the number of that sale.
pub async fn of_no_sale(session: &mut Session) -> Result<Vec<(u32, Stored)>, Fault> {
    let sql = format!(
        "SELECT {COLUMNS} FROM seckill {JOINS} LEFT JOIN seckill_sale AS sale ON sale.num = seckill.sale_num \
         WHERE sale.num IS NULL"
    );
    let rows: Vec<Row> = session.query(&sql).await?;
    let read = |mut row: Row| Some((column(&mut row, 13)?, stored(row)?));
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Returns the order ids of all void claims.
pub async fn voids(session: &mut Session) -> Result<Vec<OrderId>, Fault> {
    let rows: Vec<Row> = session.query("SELECT order_id FROM seckill_void").await?;
    let read = |mut row: Row| order_id(&mut row, 0);
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Whether the store has any order, of any sale.
pub async fn any(session: &mut Session) -> Result<bool, Fault> {
    Ok(!session
        .query::<u8>("SELECT 1 FROM seckill LIMIT 1")
        .await?
        .is_empty())
}

/// Returns the recorders' position in each partition: the generation of the log and the next
/// offset.
pub async fn offsets(
    session: &mut Session,
    topic: &str,
) -> Result<HashMap<i32, (u32, i64)>, Fault> {
    let sql = format!(
        "SELECT part, log_gen, next_offset FROM seckill_position WHERE topic = {}",
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
        .execute(&format!(
            "DELETE FROM seckill_position WHERE topic = {topic}"
        ))
        .await?;
    for (part, next) in ends {
        let sql = format!(
            "INSERT INTO seckill_position (topic, part, log_gen, next_offset) VALUES ({topic}, {part}, 1, {next})"
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
