//! Inserts the rows of new orders, several with one statement: most of the cost of a statement does
//! not depend on its rows.

use rusqlite::{CachedStatement, Connection};
use seckill_sale::{Buyer, ClaimedUnit, IdempotencyKey};

use super::rows::LineRow;

/// The rows of one statement. More save little.
const GROUP: usize = 16;
const COLUMNS: usize = 15;

/// The parameters of a row. Those that most rows share are bound only when they change.
mod parameter {
    pub(super) const DATE: usize = 1;
    pub(super) const SALE: usize = 2;
    pub(super) const LINE: usize = 3;
    pub(super) const LINES: usize = 4;
    pub(super) const ITEM: usize = 5;
    pub(super) const GENERATION: usize = 6;
    pub(super) const ORDER_ID: usize = 7;
    pub(super) const UNIT: usize = 8;
    pub(super) const SEQUENCE: usize = 9;
    pub(super) const CHECKSUM: usize = 10;
    pub(super) const BUYER: usize = 11;
    pub(super) const SLOT: usize = 12;
    pub(super) const KEY: usize = 13;
    pub(super) const FINGERPRINT: usize = 14;
    pub(super) const ID: usize = 15;
}

fn insert_statement(rows: usize) -> String {
    let columns = "date, sale, line, lines, item, generation, order_id, unit, sequence, checksum, \
         buyer, slot, idem_key, fingerprint, id";
    let row = format!("({})", vec!["?"; COLUMNS].join(", "));
    let rows = vec![row; rows].join(", ");
    format!("INSERT INTO seckill ({columns}) VALUES {rows}")
}

/// A row that waits for its statement.
#[derive(Debug)]
pub(crate) struct NewLine {
    /// Given by the program, because SQLite would use the id of a deleted last row again.
    pub(crate) id: i64,
    /// Unix milliseconds.
    pub(crate) date_ms: i64,
    pub(crate) order_id: u128,
    pub(crate) line: u32,
    pub(crate) lines: u32,
    /// The number of the sale.
    pub(crate) sale: u32,
    pub(crate) claimed: ClaimedUnit,
    pub(crate) sequence: Option<u64>,
    pub(crate) buyer: Buyer,
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) fingerprint: Option<u64>,
}

impl NewLine {
    fn row(&self) -> LineRow<'_> {
        LineRow {
            date_ms: self.date_ms,
            order_id: self.order_id,
            line: self.line,
            lines: self.lines,
            sale: self.sale,
            claimed: self.claimed,
            sequence: self.sequence,
            buyer: self.buyer.as_str(),
            key: self.key.as_ref().map(IdempotencyKey::as_str),
            fingerprint: self.fingerprint,
        }
    }
}

/// What the parameters of a row are bound to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bound {
    shared: Option<Shared>,
    has_names: bool,
}

/// The values that consecutive rows often have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shared {
    date_ms: i64,
    sale: u32,
    line: u32,
    lines: u32,
    item: u8,
    generation: u32,
}

/// A statement that inserts a fixed number of rows.
struct Insert<'conn> {
    statement: CachedStatement<'conn>,
    bound: Vec<Bound>,
}

impl<'conn> Insert<'conn> {
    fn prepare(conn: &'conn Connection, rows: usize) -> rusqlite::Result<Self> {
        let mut statement = conn.prepare_cached(&insert_statement(rows))?;
        // The cached statement may still have the values of an earlier batch.
        statement.clear_bindings();
        for row in 0..rows {
            statement.raw_bind_parameter(row * COLUMNS + parameter::BUYER, "")?;
        }
        Ok(Self {
            statement,
            bound: vec![Bound::default(); rows],
        })
    }

    fn execute(&mut self, lines: &[NewLine]) -> rusqlite::Result<()> {
        for (line, index) in lines.iter().zip(0..) {
            self.bind(index, line.id, &line.row())?;
        }
        self.statement.raw_execute()?;
        Ok(())
    }

    fn bind(&mut self, index: usize, id: i64, row: &LineRow<'_>) -> rusqlite::Result<()> {
        let (statement, bound) = (&mut self.statement, &mut self.bound[index]);
        let mut bind = |parameter: usize, value: &dyn rusqlite::ToSql| {
            statement.raw_bind_parameter(index * COLUMNS + parameter, value)
        };
        let ClaimedUnit { item, unit, slot } = row.claimed;
        let shared = Shared {
            date_ms: row.date_ms,
            sale: row.sale,
            line: row.line,
            lines: row.lines,
            item: item.get(),
            generation: unit.generation,
        };
        if bound.shared != Some(shared) {
            bind(parameter::DATE, &shared.date_ms)?;
            bind(parameter::SALE, &shared.sale)?;
            bind(parameter::LINE, &shared.line)?;
            bind(parameter::LINES, &shared.lines)?;
            bind(parameter::ITEM, &shared.item)?;
            bind(parameter::GENERATION, &shared.generation)?;
            bound.shared = Some(shared);
        }
        bind(parameter::ID, &id)?;
        bind(parameter::ORDER_ID, &row.order_id.to_be_bytes())?;
        bind(parameter::UNIT, &unit.number)?;
        bind(
            parameter::SEQUENCE,
            &row.sequence.map(|number| number as i64),
        )?;
        bind(parameter::CHECKSUM, &row.checksum())?;
        let has_names = !row.buyer.is_empty() || row.key.is_some() || slot.is_some();
        if has_names || bound.has_names {
            bind(parameter::BUYER, &row.buyer)?;
            bind(parameter::SLOT, &slot)?;
            bind(parameter::KEY, &row.key)?;
            bind(
                parameter::FINGERPRINT,
                &row.fingerprint.map(|digest| digest as i64),
            )?;
            bound.has_names = has_names;
        }
        Ok(())
    }
}

/// Collects rows and inserts them in groups. What was not flushed is not inserted.
pub(crate) struct InsertLines<'conn> {
    group: Insert<'conn>,
    single: Insert<'conn>,
    waiting: Vec<NewLine>,
}

impl<'conn> InsertLines<'conn> {
    pub(crate) fn prepare(conn: &'conn Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            group: Insert::prepare(conn, GROUP)?,
            single: Insert::prepare(conn, 1)?,
            waiting: Vec::with_capacity(GROUP),
        })
    }

    pub(crate) fn add(&mut self, line: NewLine) -> rusqlite::Result<()> {
        self.waiting.push(line);
        if self.waiting.len() < GROUP {
            return Ok(());
        }
        self.group.execute(&self.waiting)?;
        self.waiting.clear();
        Ok(())
    }

    /// Inserts the rows that still wait.
    pub(crate) fn flush(&mut self) -> rusqlite::Result<()> {
        for line in &self.waiting {
            self.single.execute(std::slice::from_ref(line))?;
        }
        self.waiting.clear();
        Ok(())
    }
}
