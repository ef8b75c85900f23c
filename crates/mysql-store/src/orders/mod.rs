//! Orders and voids in the store: queries. It must not store claims: the recorder does that.
//! Changes of orders are in `changes`, and reading everything is in `pages`.

mod changes;
mod pages;

use std::collections::HashMap;

use mysql_async::Row;
use seckill_engine::Fault;
use seckill_sale::{
    Buyer, IdempotencyKey, ItemId, ItemNo, ItemUnit, ItemUnits, Order, OrderId, OrderState,
    OrderUnit, SaleId, Unit,
};

pub use self::changes::{change, give_up, released, remove_leftovers, to_give_back};
pub use self::pages::{Stored, any, begin_at, begin_snapshot, of_no_sale, offsets, page, voids};
use crate::sales::{SaleRow, named};
use crate::session::Session;
use crate::sql::{column, order_id, order_id_list, order_id_literal, quoted, text, text_or_null};

/// The store's final decision on a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// With the present state.
    Order(ItemUnits, OrderState),
    Void(String),
}

/// Returns the decisions on those of these claims that have one, in one round trip.
pub async fn settled<'a>(
    session: &mut Session,
    ids: impl IntoIterator<Item = &'a OrderId>,
) -> Result<Vec<(OrderId, Settled)>, Fault> {
    let ids = order_id_list(ids);
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // While a table grows fast, its statistics are old, and the whole table may be read instead.
    let sql = format!(
        "SELECT order_id, item, unit, gen, state FROM seckill FORCE INDEX (one_order) WHERE order_id IN ({ids}) ORDER BY order_id, line; \
         SELECT order_id, reason FROM seckill_void WHERE order_id IN ({ids})"
    );
    let mut answers = session.query_all(&sql).await?.into_iter();
    let mut known: Vec<(OrderId, Settled)> = Vec::new();
    for mut row in answers.next().unwrap_or_default() {
        let row = &mut row;
        let state = text(row, 4).and_then(|name| OrderState::from_name(&name));
        let (Some(id), Some(unit), Some(state)) = (order_id(row, 0), item_unit(row, 1), state)
        else {
            continue;
        };
        match known.last_mut() {
            Some((last, Settled::Order(units, _))) if *last == id => units.push(unit),
            _ => known.push((id, Settled::Order([unit].into_iter().collect(), state))),
        }
    }
    for mut row in answers.next().unwrap_or_default() {
        if let (Some(id), Some(reason)) = (order_id(&mut row, 0), text(&mut row, 1)) {
            known.push((id, Settled::Void(reason)));
        }
    }
    Ok(known)
}

/// Takes the columns `item, unit, gen`.
pub(crate) fn item_unit(row: &mut Row, at: usize) -> Option<ItemUnit> {
    Some(ItemUnit {
        item: ItemNo::new(column(row, at)?)?,
        unit: Unit {
            number: column(row, at + 1)?,
            generation: column(row, at + 2)?,
        },
    })
}

/// Reads the units of orders, each in the order of its lines.
pub(crate) async fn units_of(
    session: &mut Session,
    ids: impl IntoIterator<Item = &OrderId>,
) -> Result<HashMap<OrderId, ItemUnits>, Fault> {
    let ids = order_id_list(ids);
    let mut units: HashMap<OrderId, ItemUnits> = HashMap::new();
    if ids.is_empty() {
        return Ok(units);
    }
    let sql = format!(
        "SELECT order_id, item, unit, gen FROM seckill FORCE INDEX (one_order) WHERE order_id IN ({ids}) ORDER BY order_id, line"
    );
    for mut row in session.query::<Row>(&sql).await? {
        if let (Some(id), Some(unit)) = (order_id(&mut row, 0), item_unit(&mut row, 1)) {
            units.entry(id).or_default().push(unit);
        }
    }
    Ok(units)
}

pub async fn order(session: &mut Session, id: &OrderId) -> Result<Option<Order>, Fault> {
    read_order(session, &order_id_literal(id)).await
}

pub async fn of_key(
    session: &mut Session,
    sale: &SaleId,
    buyer: &Buyer,
    key: &IdempotencyKey,
) -> Result<Option<Order>, Fault> {
    let id = format!(
        "(SELECT order_id FROM seckill_key WHERE sale_num = (SELECT num FROM seckill_sale WHERE id = {}) \
         AND buyer = {} AND idem_key = {})",
        named(sale),
        quoted(buyer.as_str().as_bytes()),
        quoted(key.as_str().as_bytes())
    );
    read_order(session, &id).await
}

/// Reads an order by the SQL expression of its id.
async fn read_order(session: &mut Session, id: &str) -> Result<Option<Order>, Fault> {
    let sql = format!(
        "SELECT seckill.order_id, sale.id, item.id, seckill.unit, seckill.gen, seckill.buyer, claimed.idem_key, \
         seckill.state, seckill.date, seckill.ended_at FROM seckill \
         JOIN seckill_sale AS sale ON sale.num = seckill.sale_num \
         JOIN seckill_item AS item ON item.sale_num = seckill.sale_num AND item.item = seckill.item \
         LEFT JOIN seckill_key AS claimed ON claimed.order_id = seckill.order_id \
         WHERE seckill.order_id = {id} ORDER BY seckill.line"
    );
    let mut rows: Vec<Row> = session.query(&sql).await?;
    let units = rows.iter_mut().map(order_unit).collect::<Option<_>>();
    let Some((units, mut row)) = units.zip(rows.into_iter().next()) else {
        return Ok(None);
    };
    let row = &mut row;
    let read = || {
        let buyer = text(row, 5)?;
        let key = text_or_null(row, 6)?;
        Some(Order {
            order_id: order_id(row, 0)?,
            sale: SaleId::new(&text(row, 1)?).ok()?,
            units,
            buyer: if buyer.is_empty() {
                Buyer::anonymous()
            } else {
                Buyer::new(&buyer).ok()?
            },
            idempotency_key: key.map(|key| IdempotencyKey::new(&key)).transpose().ok()?,
            state: OrderState::from_name(&text(row, 7)?)?,
            date: rfc3339(&text(row, 8)?),
            cancelled_at: text_or_null(row, 9)?.map(|at| rfc3339(&at)),
        })
    };
    Ok(read())
}

fn order_unit(row: &mut Row) -> Option<OrderUnit> {
    Some(OrderUnit {
        item: ItemId::new(&text(row, 2)?).ok()?,
        unit: Unit {
            number: column(row, 3)?,
            generation: column(row, 4)?,
        },
    })
}

/// A UTC time as MySQL prints it, as RFC 3339.
fn rfc3339(time: &str) -> String {
    format!("{}Z", time.replacen(' ', "T", 1))
}

/// Counts the units of each item of a sale that orders hold.
pub async fn active(session: &mut Session, row: &SaleRow) -> Result<Vec<u32>, Fault> {
    let sql = format!(
        "SELECT item, COUNT(active_unit) FROM seckill WHERE sale_num = {} GROUP BY item",
        row.num
    );
    let mut held = vec![0; row.sale.items.len()];
    for (item, count) in session.query::<(u8, u32)>(&sql).await? {
        let index = ItemNo::new(item).map(ItemNo::index);
        if let Some(held) = index.and_then(|index| held.get_mut(index)) {
            *held = count;
        }
    }
    Ok(held)
}
