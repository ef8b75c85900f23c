//! Writes, reads and verifies the rows of sales.

use rusqlite::{Connection, Row, params};
use seckill_sale::{Sale, SaleId};

use super::rows::Checksum;
use crate::clock;

/// The terms in the form in which they are stored.
struct SaleRow {
    id: String,
    title: String,
    total: u32,
    buyer_limit: Option<u32>,
    opens_at: Option<String>,
    closes_at: Option<String>,
    version: i64,
}

impl SaleRow {
    fn of(sale: &Sale) -> Self {
        Self {
            id: sale.id.to_string(),
            title: sale.title.clone(),
            total: sale.total,
            buyer_limit: sale.buyer_limit,
            opens_at: sale.opens_at_ms.map(clock::to_text),
            closes_at: sale.closes_at_ms.map(clock::to_text),
            version: sale.version as i64,
        }
    }

    /// Covers every column.
    fn checksum(&self) -> i64 {
        let mut sum = Checksum::new();
        sum.text(&self.id);
        sum.text(&self.title);
        for time in [&self.opens_at, &self.closes_at] {
            sum.text(time.as_deref().unwrap_or_default());
        }
        sum.bytes(&self.total.to_le_bytes());
        sum.bytes(&self.buyer_limit.unwrap_or(0).to_le_bytes());
        sum.bytes(&self.version.to_le_bytes());
        sum.finish()
    }

    fn sale(self) -> Result<Sale, String> {
        let time = |text: &Option<String>| match text {
            Some(text) => clock::from_text(text)
                .map(Some)
                .ok_or_else(|| format!("sale {}: {text:?} is not a time", self.id)),
            None => Ok(None),
        };
        Ok(Sale {
            id: SaleId::new(&self.id).map_err(|error| error.to_string())?,
            opens_at_ms: time(&self.opens_at)?,
            closes_at_ms: time(&self.closes_at)?,
            title: self.title,
            total: self.total,
            buyer_limit: self.buyer_limit,
            version: self.version as u64,
        })
    }
}

/// Stores a new sale, or the changed terms of an existing one.
pub(crate) fn put(conn: &Connection, sale: &Sale) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO seckill_sale \
         (id, title, total, buyer_limit, opens_at, closes_at, version, checksum) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let row = SaleRow::of(sale);
    conn.prepare_cached(insert)?.execute(params![
        row.id,
        row.title,
        row.total,
        row.buyer_limit,
        row.opens_at,
        row.closes_at,
        row.version,
        row.checksum(),
    ])?;
    Ok(())
}

/// Every sale, by ascending id. An inner error describes the damage of a row.
pub(crate) fn all(conn: &Connection) -> rusqlite::Result<Vec<Result<Sale, String>>> {
    let query = "SELECT id, title, total, buyer_limit, opens_at, closes_at, version, checksum \
         FROM seckill_sale ORDER BY id";
    conn.prepare(query)?.query_map((), read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Result<Sale, String>> {
    let found = SaleRow {
        id: row.get(0)?,
        title: row.get(1)?,
        total: row.get(2)?,
        buyer_limit: row.get(3)?,
        opens_at: row.get(4)?,
        closes_at: row.get(5)?,
        version: row.get(6)?,
    };
    if row.get::<_, i64>(7)? != found.checksum() {
        return Ok(Err(format!(
            "sale {}: its terms were modified, their checksum differs; \
             change sales with `seckill sale change` only",
            found.id
        )));
    }
    Ok(found.sale())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_every_term() {
        let row = || SaleRow {
            id: "s".into(),
            title: "t".into(),
            total: 1,
            buyer_limit: None,
            opens_at: None,
            closes_at: None,
            version: 1,
        };
        let edits: [fn(&mut SaleRow); 7] = [
            |row| row.id = "r".into(),
            |row| row.title = "u".into(),
            |row| row.total = 2,
            |row| row.buyer_limit = Some(1),
            |row| row.opens_at = Some("x".into()),
            |row| row.closes_at = Some("x".into()),
            |row| row.version = 2,
        ];
        let mut sums = std::collections::HashSet::from([row().checksum()]);
        for edit in edits {
            let mut edited = row();
            edit(&mut edited);
            assert!(sums.insert(edited.checksum()));
        }
    }
}
