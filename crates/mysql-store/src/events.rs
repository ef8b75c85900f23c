//! The feed of a sale: rows of `seckill` are the events that orders were reserved, and
//! `seckill_event` has all others. It writes nothing.

use std::collections::HashMap;

use mysql_async::Row;
use seckill_engine::{Cause, Fault};
use seckill_sale::{
    Buyer, Event, EventKind, IdempotencyKey, ItemUnits, OrderId, OrderState, OrderUnits, Sale,
    SaleId,
};

use crate::orders::{item_unit, units_of};
use crate::sales;
use crate::session::Session;
use crate::sql::{column, order_id, text, text_or_null};

pub(crate) const SALE_CREATED: &str = "sale.created";
pub(crate) const SALE_CHANGED: &str = "sale.changed";
/// Before the name of the order's new state.
pub(crate) const ORDER_PREFIX: &str = "order.";
/// In `seckill_event`, this type only says where the event is: the row of a claim.
pub(crate) const POINTER: &str = "order.reserved";

/// Unix milliseconds of a TIMESTAMP(3) column.
const AT_MS: &str = "CAST(UNIX_TIMESTAMP(date) * 1000 AS SIGNED)";

/// An event of `seckill_event`, for the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    pub sale_num: u32,
    pub sequence: u64,
    /// `None` if a manual edit has made it unreadable.
    pub change: Option<StoredChange>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredChange {
    Created(Box<Sale>),
    Changed(Box<Sale>),
    Order(OrderId, OrderState),
}

/// Returns up to `max` events of a sale after number `after`; `None` if there is no such sale.
pub async fn events(
    session: &mut Session,
    sale: &SaleId,
    after: u64,
    max: usize,
) -> Result<Option<Vec<Event>>, Fault> {
    // The row comes first: every event up to its latest is committed.
    let Some(row) = sales::one(session, sale).await? else {
        return Ok(None);
    };
    let last = row.last_sequence.min(after.saturating_add(max as u64));
    if last <= after {
        return Ok(Some(Vec::new()));
    }
    let range = Range {
        num: row.num,
        after,
        last,
    };
    let (entries, from_row) = entries(session, &range).await?;
    let claims = claims(session, &range, from_row, entries.len()).await?;
    let of_several = claims.iter().filter(|claim| claim.line_count > 1);
    let of_several = of_several.map(|claim| &claim.order_id);
    let changed = entries.iter().filter_map(|(entry, _)| match &entry.change {
        Some(StoredChange::Order(order_id, _)) => Some(order_id),
        _ => None,
    });
    let units = units_of(session, of_several.chain(changed)).await?;
    let read = Reader {
        sale: &row.sale,
        units,
    };
    let claims = claims.into_iter().map(|claim| read.claim(claim));
    let entries = entries
        .into_iter()
        .map(|(entry, at_ms)| read.entry(entry, at_ms));
    let mut events: Vec<Event> = claims.chain(entries).flatten().collect();
    events.sort_unstable_by_key(|event| event.sequence);
    let in_order = events.iter().zip(after + 1..);
    let whole = in_order.take_while(|(event, sequence)| event.sequence == *sequence);
    let whole = whole.count();
    if whole == 0 {
        let detail = format!(
            "event {} of sale {sale} is missing or unreadable; run `seckill audit`",
            after + 1
        );
        return Err(Fault::without_effect(Cause::Store, detail));
    }
    events.truncate(whole);
    Ok(Some(events))
}

/// The events of a sale to read: numbers above `after`, up to `last`.
struct Range {
    num: u32,
    after: u64,
    last: u64,
}

/// Reads the entries in the range that are not pointers, with their times, and the row from which
/// on the claims in the range are.
async fn entries(
    session: &mut Session,
    range: &Range,
) -> Result<(Vec<(StoredEvent, i64)>, u64), Fault> {
    let Range { num, after, last } = range;
    let sql = format!(
        "SELECT row_id FROM seckill_event WHERE sale_num = {num} AND sequence <= {after} + 1 \
         ORDER BY sequence DESC LIMIT 1; \
         SELECT sale_num, sequence, type, order_id, body, {AT_MS} FROM seckill_event \
         WHERE sale_num = {num} AND sequence > {after} AND sequence <= {last} AND type <> '{POINTER}'"
    );
    let mut answers = session.query_all(&sql).await?.into_iter();
    let mut from_row = answers.next().unwrap_or_default();
    let from_row = from_row.first_mut().and_then(|row| column(row, 0));
    let entries = answers.next().unwrap_or_default().into_iter();
    let entries = entries.filter_map(|mut row| Some((stored(&mut row)?, column(&mut row, 5)?)));
    Ok((entries.collect(), from_row.unwrap_or(0)))
}

/// The first row of an order.
struct ClaimRow {
    sequence: u64,
    at_ms: i64,
    order_id: OrderId,
    line_count: u32,
    units: ItemUnits,
    buyer: String,
    key: Option<String>,
}

async fn claims(
    session: &mut Session,
    range: &Range,
    from_row: u64,
    entries: usize,
) -> Result<Vec<ClaimRow>, Fault> {
    let Range { num, after, last } = range;
    // All other numbers are claims. Reading ends with the last of them, however many rows of other
    // sales follow.
    let count = (last - after).saturating_sub(entries as u64);
    if count == 0 {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT seckill.sequence, {AT_MS}, seckill.order_id, line_count, item, unit, gen, seckill.buyer, idem_key \
         FROM seckill FORCE INDEX (PRIMARY) LEFT JOIN seckill_key ON seckill_key.order_id = seckill.order_id \
         WHERE seckill.id >= {from_row} AND seckill.sale_num = {num} \
         AND seckill.sequence > {after} AND seckill.sequence <= {last} ORDER BY seckill.id LIMIT {count}"
    );
    let rows: Vec<Row> = session.query(&sql).await?;
    let read = |mut row: Row| {
        let row = &mut row;
        Some(ClaimRow {
            sequence: column(row, 0)?,
            at_ms: column(row, 1)?,
            order_id: order_id(row, 2)?,
            line_count: column(row, 3)?,
            units: [item_unit(row, 4)?].into_iter().collect(),
            buyer: text(row, 7)?,
            key: text_or_null(row, 8)?,
        })
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Builds events. `None` means that an event cannot be read.
struct Reader<'a> {
    sale: &'a Sale,
    units: HashMap<OrderId, ItemUnits>,
}

impl Reader<'_> {
    fn claim(&self, claim: ClaimRow) -> Option<Event> {
        let units = match claim.line_count {
            1 => &claim.units,
            _ => self.units.get(&claim.order_id)?,
        };
        let buyer = match claim.buyer.as_str() {
            "" => Buyer::anonymous(),
            name => Buyer::new(name).ok()?,
        };
        let key = claim.key.map(|key| IdempotencyKey::new(&key));
        let kind = EventKind::OrderReserved {
            units: self.order_units(units)?,
            order_id: claim.order_id,
            buyer,
            idempotency_key: key.transpose().ok()?,
        };
        Some(self.event(claim.sequence, claim.at_ms, kind))
    }

    fn entry(&self, entry: StoredEvent, at_ms: i64) -> Option<Event> {
        let kind = match entry.change? {
            StoredChange::Created(sale) => EventKind::SaleCreated(sale),
            StoredChange::Changed(sale) => EventKind::SaleChanged(sale),
            StoredChange::Order(order_id, state) => EventKind::OrderChanged {
                units: self.order_units(self.units.get(&order_id)?)?,
                order_id,
                state,
            },
        };
        Some(self.event(entry.sequence, at_ms, kind))
    }

    fn order_units(&self, units: &ItemUnits) -> Option<OrderUnits> {
        self.sale.order_units(units.iter().copied())
    }

    fn event(&self, sequence: u64, at_ms: i64, kind: EventKind) -> Event {
        Event {
            sale: self.sale.id.clone(),
            sequence,
            at_ms,
            kind,
        }
    }
}

/// Returns up to `max` events that are not claims, of all sales, after the one with this sale and
/// number, for the audit. The rows of the orders are the other events.
pub async fn page(
    session: &mut Session,
    after: Option<(u32, u64)>,
    max: usize,
) -> Result<Vec<StoredEvent>, Fault> {
    let after = after.map_or_else(String::new, |(num, sequence)| {
        format!("AND sale_num >= {num} AND (sale_num > {num} OR sequence > {sequence})")
    });
    let sql = format!(
        "SELECT sale_num, sequence, type, order_id, body FROM seckill_event WHERE type <> '{POINTER}' {after} \
         ORDER BY sale_num, sequence LIMIT {max}"
    );
    let rows: Vec<Row> = session.query(&sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|mut row| stored(&mut row))
        .collect())
}

/// Parses the columns `sale_num, sequence, type, order_id, body`.
fn stored(row: &mut Row) -> Option<StoredEvent> {
    Some(StoredEvent {
        sale_num: column(row, 0)?,
        sequence: column(row, 1)?,
        change: change(row),
    })
}

fn change(row: &mut Row) -> Option<StoredChange> {
    let kind = text(row, 2)?;
    let terms = |row: &mut Row| serde_json::from_str(&text(row, 4)?).ok();
    match kind.as_str() {
        SALE_CREATED => terms(row).map(StoredChange::Created),
        SALE_CHANGED => terms(row).map(StoredChange::Changed),
        _ => {
            let state = OrderState::from_name(kind.strip_prefix(ORDER_PREFIX)?)?;
            Some(StoredChange::Order(order_id(row, 3)?, state))
        }
    }
}
