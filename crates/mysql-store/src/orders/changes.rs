//! Changes of orders, with their events and the release of their units, voiding lost claims, and
//! removing what manual edits have left behind.

use std::time::Duration;

use mysql_async::Row;
use seckill_cluster_codec::order_id::Named;
use seckill_engine::{Cause, Fault};
use seckill_sale::{Order, OrderChange, OrderId, SaleId};

use super::{Settled, settled};
use crate::events::ORDER_PREFIX;
use crate::sales::{self, named};
use crate::session::{Inserted, Session};
use crate::sql::{column, order_id, order_id_literal, quoted, text};

/// Timeout for reading all keys or slots of a sale.
const LEFTOVERS_WAIT: Duration = Duration::from_secs(60);

/// Changes the state of an order in one transaction, with the event and, if the order ends, the
/// release of its units. Returns false if the state does not allow the change or another change
/// came first.
pub async fn change(
    session: &mut Session,
    order: &Order,
    change: OrderChange,
) -> Result<bool, Fault> {
    let Ok(Some(next)) = change.apply(order.state) else {
        return Ok(false);
    };
    let id = order_id_literal(&order.order_id);
    let ended_at = if next.is_active() {
        "NULL"
    } else {
        "UTC_TIMESTAMP(3)"
    };
    // The sale's lock comes first, as in the recorder, and gives the number of the event.
    let update = format!(
        "START TRANSACTION; SELECT num, last_sequence FROM seckill_sale WHERE id = {} FOR UPDATE; \
         UPDATE seckill SET state = '{}', version = version + 1, ended_at = {ended_at} \
         WHERE order_id = {id} AND state = '{}'; SELECT ROW_COUNT()",
        named(&order.sale),
        next.as_str(),
        order.state.as_str()
    );
    session.began();
    let mut answers = session.query_all(&update).await?.into_iter();
    let mut first = || answers.next()?.into_iter().next();
    let (sale, changed) = (first(), first());
    let sale = sale.and_then(|mut row| Some((column(&mut row, 0)?, column(&mut row, 1)?)));
    let changed = changed.and_then(|mut row| column(&mut row, 0)).unwrap_or(0);
    let Some((num, latest)): Option<(u32, u64)> = sale.filter(|_| changed != 0) else {
        session.rollback().await?;
        return Ok(false);
    };
    if changed != order.units.len() {
        session.rollback().await?;
        let detail = format!(
            "order {} has {} units, but {changed} of them are {}; run `seckill audit`",
            order.order_id,
            order.units.len(),
            order.state.as_str()
        );
        return Err(Fault::without_effect(Cause::Store, detail));
    }
    let sequence = latest + 1;
    let mut rest = format!(
        "UPDATE seckill_sale SET last_sequence = {sequence} WHERE num = {num}; \
         INSERT INTO seckill_event (sale_num, sequence, row_id, type, order_id) \
         SELECT {num}, {sequence}, COALESCE(MAX(id), 0), '{ORDER_PREFIX}{}', {id} FROM seckill",
        next.as_str()
    );
    if !next.is_active() {
        rest.push_str(&format!(
            "; DELETE FROM seckill_slot WHERE sale_num = {num} AND buyer = {} AND order_id = {id}; \
             INSERT INTO seckill_give_back (order_id, sale_num) VALUES ({id}, {num})",
            quoted(order.buyer.as_str().as_bytes())
        ));
    }
    session.execute(&rest).await?;
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
        format!("WHERE told.order_id > {}", order_id_literal(id))
    });
    let sql = format!(
        "SELECT told.order_id, sale.id FROM seckill_give_back AS told JOIN seckill_sale AS sale ON sale.num = told.sale_num \
         {after} ORDER BY told.order_id LIMIT {max}"
    );
    let rows: Vec<Row> = session.query(&sql).await?;
    let read = |mut row: Row| {
        Some((
            order_id(&mut row, 0)?,
            SaleId::new(&text(&mut row, 1)?).ok()?,
        ))
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Records that the gate of this epoch has released the units. Does nothing if another epoch has
/// started since: its gate may not have seen the release, which is then sent again.
pub async fn released(session: &mut Session, id: &OrderId, epoch: u32) -> Result<(), Fault> {
    let sql = format!(
        "DELETE told FROM seckill_give_back AS told JOIN seckill_sale AS sale ON sale.num = told.sale_num \
         WHERE told.order_id = {} AND sale.epoch = {epoch}",
        order_id_literal(id)
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
    let Some(row) = sales::locked(session, sale).await? else {
        session.rollback().await?;
        return Ok(None);
    };
    let known = settled(session, [id]).await?.pop();
    if let Some((_, known)) = known {
        session.rollback().await?;
        return Ok(Some(known));
    }
    // The recorders that know the sale notice the void by the counter.
    let sql = format!(
        "INSERT INTO seckill_void (order_id, sale_num, epoch, reason) VALUES ({}, {num}, {}, 'lost'); \
         UPDATE seckill_sale SET voids = voids + 1 WHERE num = {num}",
        order_id_literal(id),
        named.epoch,
        num = row.num
    );
    if session.insert(&sql).await? != Inserted::Done {
        session.rollback().await?;
        return Ok(None);
    }
    session.commit().await?;
    Ok(Some(Settled::Void("lost".into())))
}

/// Deletes the keys of orders that have no rows, and the slots of units that no active order holds.
/// Only manual edits leave them behind, and no claim with such a key or slot could be stored.
pub async fn remove_leftovers(session: &mut Session, sale: &SaleId) -> Result<u64, Fault> {
    session.wait_longer(LEFTOVERS_WAIT);
    session.begin().await?;
    let Some(row) = sales::locked(session, sale).await? else {
        session.rollback().await?;
        return Ok(0);
    };
    let num = row.num;
    let keys = format!(
        "DELETE claimed FROM seckill_key AS claimed \
         LEFT JOIN seckill ON seckill.order_id = claimed.order_id AND seckill.line = 1 \
         WHERE claimed.sale_num = {num} AND seckill.id IS NULL"
    );
    let slots = format!(
        "DELETE slot FROM seckill_slot AS slot LEFT JOIN seckill ON seckill.order_id = slot.order_id \
         AND seckill.line = slot.line AND seckill.state IN ('reserved','paid') \
         WHERE slot.sale_num = {num} AND seckill.id IS NULL"
    );
    let removed = session.execute(&keys).await? + session.execute(&slots).await?;
    session.commit().await?;
    Ok(removed)
}
