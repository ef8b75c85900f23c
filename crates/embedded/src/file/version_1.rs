//! Converts a file of schema version 1: one unit an order, sales without items, no feed. The events
//! are made up from the rows, by their times. How the terms changed is not known: the first event of
//! a sale has those of now.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rusqlite::{Connection, Row};
use seckill_sale::{
    ClaimedUnit, IdempotencyKey, Item, ItemId, ItemNo, ItemUnit, OrderState, Sale, SaleId, Unit,
};

use super::checksum::Checksum;
use super::events::{self, EventRow, Kind, POINTER_ROWS};
use super::insert::{InsertLines, NewLine};
use super::rows;
use super::{FileError, sales};
use crate::{clock, order_id};

/// Renames the tables, so that the new schema can be created beside them.
pub(super) fn set_aside(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(
        "DROP INDEX IF EXISTS seckill_order_id;
         DROP INDEX IF EXISTS seckill_generation;
         DROP INDEX IF EXISTS seckill_active_unit;
         DROP INDEX IF EXISTS seckill_key;
         DROP INDEX IF EXISTS seckill_active_slot;
         ALTER TABLE seckill RENAME TO seckill_1;
         ALTER TABLE seckill_sale RENAME TO seckill_sale_1;
         ALTER TABLE seckill_meta RENAME TO seckill_meta_1;",
    )
}

/// Converts all rows, verifies their checksums, and drops the old tables.
pub(super) fn convert(conn: &Connection, path: &Path) -> Result<(), FileError> {
    let converted = Conversion::new(conn).and_then(Conversion::run);
    converted.map_err(|error| match error {
        ConvertError::Sqlite(error) => FileError::from_sqlite(path, error),
        ConvertError::Damaged(detail) => FileError::Damaged {
            path: path.to_owned(),
            detail,
        },
    })
}

enum ConvertError {
    Sqlite(rusqlite::Error),
    Damaged(String),
}

impl From<rusqlite::Error> for ConvertError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// A change of an order's state whose event is not written yet.
struct Changed {
    order: u128,
    state: OrderState,
    unit: Unit,
    at_ms: i64,
}

struct Feed {
    number: u32,
    sequence: u64,
    pointer: i64,
    /// By time, then by order.
    changed: BTreeMap<(i64, u128), Changed>,
    /// The key of each unit's latest change.
    latest_of_unit: HashMap<u32, (i64, u128)>,
}

struct Conversion<'a> {
    conn: &'a Connection,
    feeds: HashMap<String, Feed>,
    latest_row: i64,
}

impl<'a> Conversion<'a> {
    fn new(conn: &'a Connection) -> Result<Self, ConvertError> {
        let mut feeds = HashMap::new();
        let query = "SELECT id, title, total, buyer_limit, opens_at, closes_at, version, checksum \
             FROM seckill_sale_1 ORDER BY id";
        let mut statement = conn.prepare(query)?;
        let found = statement.query_map((), sale)?;
        for (sale, number) in found.zip(1..) {
            let sale = sale?.map_err(ConvertError::Damaged)?;
            sales::put(conn, number, &sale)?;
            let first: Option<String> = conn.query_row(
                "SELECT min(date) FROM seckill_1 WHERE sale = ?1",
                [sale.id.as_str()],
                |row| row.get(0),
            )?;
            let created = EventRow {
                sale: number,
                sequence: 1,
                row_id: 0,
                // When the sale was created is not known.
                date_ms: first.and_then(|date| clock::from_text(&date)).unwrap_or(0),
                kind: Kind::Created(&sale),
            };
            events::insert(conn, &created)?;
            let feed = Feed {
                number,
                sequence: 1,
                pointer: 0,
                changed: BTreeMap::new(),
                latest_of_unit: HashMap::new(),
            };
            feeds.insert(sale.id.to_string(), feed);
        }
        Ok(Self {
            conn,
            feeds,
            latest_row: 0,
        })
    }

    fn run(mut self) -> Result<(), ConvertError> {
        let query = "SELECT id, date, order_id, sale, unit, generation, buyer, state, slot, idem_key, fingerprint, \
             checksum, version, state_checksum, ended_at FROM seckill_1 ORDER BY id";
        let mut statement = self.conn.prepare(query)?;
        let mut found = statement.query(())?;
        let mut insert = InsertLines::prepare(self.conn)?;
        while let Some(row) = found.next()? {
            let order = Order::read(row)?;
            let damaged =
                |detail: &str| ConvertError::Damaged(format!("row {}: {detail}", order.id));
            if order.checksum != order.expected_checksum() {
                return Err(damaged("the row was modified: its checksum differs"));
            }
            let name = order.state;
            let state = OrderState::from_name(name)
                .ok_or_else(|| damaged("its state is not a valid order state"))?;
            if !order.has_written_state(state) {
                return Err(damaged(
                    "the state was modified: its state_checksum differs",
                ));
            }
            let number = order_id::from_text(order.order_id)
                .ok_or_else(|| damaged("its order_id is not valid"))?;
            let date_ms =
                clock::from_text(order.date).ok_or_else(|| damaged("its date is not a time"))?;
            let time = |at| clock::from_text(at).ok_or_else(|| damaged("ended_at is not a time"));
            let ended_at_ms = order.ended_at.map(time).transpose()?;
            self.insert(&mut insert, &order, (number, date_ms))?;
            if state != OrderState::Reserved || order.version > 1 {
                rows::write_state(self.conn, number, state, order.version, ended_at_ms)?;
            }
            if state != OrderState::Reserved {
                let changed = Changed {
                    order: number,
                    state,
                    unit: order.unit,
                    at_ms: ended_at_ms.unwrap_or(date_ms),
                };
                let feed = self.feeds.get_mut(order.sale);
                let feed = feed.ok_or_else(|| damaged("its sale does not exist"))?;
                let key = (changed.at_ms, number);
                feed.latest_of_unit.insert(changed.unit.number, key);
                feed.changed.insert(key, changed);
            }
        }
        drop(found);
        drop((statement, insert));
        self.finish()
    }

    fn insert(
        &mut self,
        insert: &mut InsertLines<'_>,
        order: &Order<'_>,
        (number, date_ms): (u128, i64),
    ) -> Result<(), ConvertError> {
        let Some(feed) = self.feeds.get_mut(order.sale) else {
            let detail = format!("row {}: its sale does not exist", order.id);
            return Err(ConvertError::Damaged(detail));
        };
        let damaged = |detail: &dyn std::fmt::Display| {
            ConvertError::Damaged(format!("row {}: {detail}", order.id))
        };
        // What happened before, by the clock of then, and in any case the end of the unit's earlier
        // order, if it was sold again.
        let by_clock = feed.changed.range(..=(date_ms, u128::MAX));
        let mut before: Vec<_> = by_clock.map(|(key, _)| *key).collect();
        before.extend(feed.latest_of_unit.remove(&order.unit.number));
        for key in before {
            if let Some(changed) = feed.changed.remove(&key) {
                write_change(self.conn, feed, &changed, self.latest_row)?;
            }
        }
        feed.sequence += 1;
        let line = NewLine {
            // Gaps show which rows were deleted, so each row keeps its id.
            id: order.id,
            date_ms,
            order_id: number,
            line: 1,
            lines: 1,
            sale: feed.number,
            claimed: ClaimedUnit {
                item: ItemNo::FIRST,
                unit: order.unit,
                slot: order.slot,
            },
            sequence: Some(feed.sequence),
            buyer: rows::buyer(order.buyer).map_err(|error| damaged(&error))?,
            key: order
                .key
                .map(IdempotencyKey::new)
                .transpose()
                .map_err(|error| damaged(&error))?,
            fingerprint: order.key.and(order.fingerprint),
        };
        insert.add(line)?;
        insert.flush()?;
        self.latest_row = order.id;
        if order.id - feed.pointer > POINTER_ROWS {
            feed.pointer = order.id;
            let pointer = EventRow {
                sale: feed.number,
                sequence: feed.sequence,
                row_id: order.id,
                date_ms,
                kind: Kind::Pointer,
            };
            events::insert(self.conn, &pointer)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), ConvertError> {
        for feed in self.feeds.values_mut() {
            for changed in std::mem::take(&mut feed.changed).into_values() {
                write_change(self.conn, feed, &changed, self.latest_row)?;
            }
        }
        self.conn.execute_batch(
            "UPDATE seckill_meta SET (row_count, deleted, opened_in) =
                 (SELECT orders, deleted, opened_in FROM seckill_meta_1);
             DROP TABLE seckill_1;
             DROP TABLE seckill_sale_1;
             DROP TABLE seckill_meta_1;",
        )?;
        Ok(())
    }
}

fn write_change(
    conn: &Connection,
    feed: &mut Feed,
    changed: &Changed,
    latest_row: i64,
) -> rusqlite::Result<()> {
    feed.sequence += 1;
    feed.pointer = latest_row;
    let unit = ItemUnit {
        item: ItemNo::FIRST,
        unit: changed.unit,
    };
    events::insert(
        conn,
        &EventRow {
            sale: feed.number,
            sequence: feed.sequence,
            row_id: latest_row,
            date_ms: changed.at_ms,
            kind: Kind::Order(changed.order, changed.state, &[unit]),
        },
    )
}

/// A row of the table `seckill` in version 1.
struct Order<'a> {
    id: i64,
    date: &'a str,
    order_id: &'a str,
    sale: &'a str,
    unit: Unit,
    buyer: &'a str,
    state: &'a str,
    slot: Option<u8>,
    key: Option<&'a str>,
    fingerprint: Option<u64>,
    checksum: i64,
    version: i64,
    state_checksum: Option<i64>,
    ended_at: Option<&'a str>,
}

impl<'a> Order<'a> {
    fn read(row: &'a Row<'_>) -> rusqlite::Result<Self> {
        let text = |index| row.get_ref(index).and_then(|value| Ok(value.as_str()?));
        Ok(Self {
            id: row.get(0)?,
            date: text(1)?,
            order_id: text(2)?,
            sale: text(3)?,
            unit: Unit {
                number: row.get(4)?,
                generation: row.get(5)?,
            },
            buyer: text(6)?,
            state: text(7)?,
            slot: row.get(8)?,
            key: row.get_ref(9)?.as_str_or_null()?,
            fingerprint: row.get::<_, Option<i64>>(10)?.map(|number| number as u64),
            checksum: row.get(11)?,
            version: row.get(12)?,
            state_checksum: row.get(13)?,
            ended_at: row.get_ref(14)?.as_str_or_null()?,
        })
    }

    fn expected_checksum(&self) -> i64 {
        let mut sum = Checksum::new();
        let texts = [self.date, self.order_id, self.sale, self.buyer];
        texts.into_iter().chain(self.key).for_each(|t| sum.text(t));
        sum.bytes(&self.unit.number.to_le_bytes());
        sum.bytes(&self.unit.generation.to_le_bytes());
        sum.bytes(&self.fingerprint.unwrap_or(0).to_le_bytes());
        sum.finish()
    }

    fn has_written_state(&self, state: OrderState) -> bool {
        const MANUAL_EDIT: i64 = 0;
        match self.state_checksum {
            None => state == OrderState::Reserved && self.version == 1 && self.ended_at.is_none(),
            Some(MANUAL_EDIT) => true,
            Some(found) => {
                let mut sum = Checksum::new();
                sum.text(self.order_id);
                sum.text(state.as_str());
                sum.text(self.ended_at.unwrap_or_default());
                sum.bytes(&self.version.to_le_bytes());
                let expected = match sum.finish() {
                    MANUAL_EDIT => 1,
                    sum => sum,
                };
                found == expected
            }
        }
    }
}

/// Reads and verifies a row of the table `seckill_sale` in version 1.
fn sale(row: &Row<'_>) -> rusqlite::Result<Result<Sale, String>> {
    let (id, title): (String, String) = (row.get(0)?, row.get(1)?);
    let total: u32 = row.get(2)?;
    let buyer_limit: Option<u32> = row.get(3)?;
    let times: [Option<String>; 2] = [row.get(4)?, row.get(5)?];
    let version: i64 = row.get(6)?;
    let mut sum = Checksum::new();
    sum.text(&id);
    sum.text(&title);
    for time in &times {
        sum.text(time.as_deref().unwrap_or_default());
    }
    sum.bytes(&total.to_le_bytes());
    sum.bytes(&buyer_limit.unwrap_or(0).to_le_bytes());
    sum.bytes(&version.to_le_bytes());
    if row.get::<_, i64>(7)? != sum.finish() {
        let damage = "its terms were modified, their checksum differs";
        return Ok(Err(format!("sale {id}: {damage}")));
    }
    let mut times_ms = [None; 2];
    for (at_ms, time) in times_ms.iter_mut().zip(&times) {
        let Some(time) = time else { continue };
        *at_ms = clock::from_text(time);
        if at_ms.is_none() {
            return Ok(Err(format!("sale {id}: {time:?} is not a time")));
        }
    }
    let [opens_at_ms, closes_at_ms] = times_ms;
    let id = match SaleId::new(&id) {
        Ok(id) => id,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let item = Item {
        id: ItemId::default(),
        title: title.clone(),
        total,
        price: None,
    };
    Ok(Ok(Sale {
        id,
        title,
        items: vec![item],
        buyer_limit,
        opens_at_ms,
        closes_at_ms,
        version: version as u64,
    }))
}
