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
/// A batch whose first claim of a sale is more rows than this behind the sale's latest entry in
/// `seckill_event` adds a pointer to that claim. So a reader of the feed that starts at an entry
/// finds the claims after it within this many rows and one batch, whatever other sales store.
pub(crate) const POINTER_EVERY_ROWS: u64 = 4_096;
/// Entries that are no more rows apart than this are read with one statement.
const TOGETHER_ROWS: u64 = 256;

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
    let (marks, entries) = entries(session, &range).await?;
    let claims = claims(session, range.num, &segments(&range, &marks)).await?;
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

/// Where an entry of `seckill_event` is in the feed, and in the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    sequence: u64,
    /// Claims before the entry are not behind this row, and claims after it not before.
    row_id: u64,
    is_pointer: bool,
}

/// Claims to read with one statement.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    /// The numbers of the first and the last claim.
    first: u64,
    last: u64,
    count: u64,
    from_row: u64,
    /// `None` after the latest entry.
    to_row: Option<u64>,
}

/// Divides the claims of a range, which are all numbers without an entry, at the marks.
fn segments(range: &Range, marks: &[Mark]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut add = |segment: Segment| match segments.last_mut() {
        Some(before) if segment.from_row <= before.from_row + TOGETHER_ROWS => {
            before.last = segment.last;
            before.count += segment.count;
            before.to_row = segment.to_row;
        }
        _ => segments.push(segment),
    };
    let (mut next, mut from_row) = (range.after + 1, 0);
    for mark in marks {
        if mark.sequence > next {
            add(Segment {
                first: next,
                last: mark.sequence - 1,
                count: mark.sequence - next,
                from_row,
                to_row: Some(mark.row_id),
            });
        }
        from_row = mark.row_id;
        next = next.max(mark.sequence + u64::from(!mark.is_pointer));
    }
    if next <= range.last {
        add(Segment {
            first: next,
            last: range.last,
            count: range.last - next + 1,
            from_row,
            to_row: None,
        });
    }
    segments
}

/// Reads the entries in the range, with their times. The marks are those of all entries from the
/// one at or before the range on; those of pointers have no entry.
async fn entries(
    session: &mut Session,
    range: &Range,
) -> Result<(Vec<Mark>, Vec<(StoredEvent, i64)>), Fault> {
    let Range { num, after, last } = range;
    let columns =
        format!("sale_num, sequence, type, order_id, body, {AT_MS}, row_id, type = '{POINTER}'");
    let sql = format!(
        "(SELECT {columns} FROM seckill_event WHERE sale_num = {num} AND sequence <= {after} \
         ORDER BY sequence DESC LIMIT 1) UNION ALL (SELECT {columns} FROM seckill_event \
         WHERE sale_num = {num} AND sequence > {after} AND sequence <= {last}) ORDER BY sequence"
    );
    let (mut marks, mut entries) = (Vec::new(), Vec::new());
    for mut row in session.query::<Row>(&sql).await? {
        let row = &mut row;
        let (Some(row_id), Some(is_pointer), Some(entry)) =
            (column(row, 6), column(row, 7), stored(row))
        else {
            continue;
        };
        let sequence = entry.sequence;
        marks.push(Mark {
            sequence,
            row_id,
            is_pointer,
        });
        if sequence > *after
            && !is_pointer
            && let Some(at_ms) = column(row, 5)
        {
            entries.push((entry, at_ms));
        }
    }
    Ok((marks, entries))
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
    num: u32,
    segments: &[Segment],
) -> Result<Vec<ClaimRow>, Fault> {
    let select = |segment: &Segment| {
        let Segment {
            first,
            last,
            count,
            from_row,
            to_row,
        } = segment;
        let to = to_row.map_or_else(String::new, |to| format!("AND seckill.id <= {to} "));
        // Reading ends with the last claim, however many rows of other sales follow.
        format!(
            "SELECT seckill.sequence, {AT_MS}, seckill.order_id, line_count, item, unit, gen, seckill.buyer, idem_key \
             FROM seckill FORCE INDEX (PRIMARY) LEFT JOIN seckill_key ON seckill_key.order_id = seckill.order_id \
             WHERE seckill.id >= {from_row} {to}AND seckill.sale_num = {num} \
             AND seckill.sequence BETWEEN {first} AND {last} ORDER BY seckill.id LIMIT {count}"
        )
    };
    if segments.is_empty() {
        return Ok(Vec::new());
    }
    let selects: Vec<String> = segments.iter().map(select).collect();
    let rows = session.query_all(&selects.join("; ")).await?;
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
    Ok(rows.into_iter().flatten().filter_map(read).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(marks: &[(u64, u64, bool)]) -> Vec<Mark> {
        let mark = |&(sequence, row_id, is_pointer)| Mark {
            sequence,
            row_id,
            is_pointer,
        };
        marks.iter().map(mark).collect()
    }

    fn shown(
        after: u64,
        last: u64,
        of: &[(u64, u64, bool)],
    ) -> Vec<(u64, u64, u64, u64, Option<u64>)> {
        let range = Range {
            num: 1,
            after,
            last,
        };
        let segments = segments(&range, &marks(of)).into_iter();
        let shown = |it: Segment| (it.first, it.last, it.count, it.from_row, it.to_row);
        segments.map(shown).collect()
    }

    const CREATED: (u64, u64, bool) = (1, 0, false);

    #[test]
    fn claims_are_read_between_entries_and_nowhere_else() {
        // Rows of other sales between two claims are not read.
        let far = [CREATED, (2, 5_000, true), (5, 90_000, true)];
        assert_eq!(
            shown(0, 6, &far),
            [(2, 4, 3, 5_000, Some(90_000)), (5, 6, 2, 90_000, None)]
        );
        assert_eq!(shown(3, 4, &far[1..2]), [(4, 4, 1, 5_000, None)]);
        // A change is no claim.
        let changes = [(4, 700, false), (6, 9_000, false), (7, 9_000, false)];
        assert_eq!(
            shown(4, 8, &changes),
            [(5, 5, 1, 700, Some(9_000)), (8, 8, 1, 9_000, None)]
        );
        assert_eq!(shown(5, 7, &changes[1..]), []);
    }

    #[test]
    fn what_is_close_is_read_with_one_statement() {
        let close = [
            CREATED,
            (3, 10, false),
            (6, TOGETHER_ROWS, true),
            (9, TOGETHER_ROWS + 1, true),
        ];
        assert_eq!(
            shown(0, 12, &close),
            [
                (2, 8, 6, 0, Some(TOGETHER_ROWS + 1)),
                (9, 12, 4, TOGETHER_ROWS + 1, None)
            ]
        );
    }
}
