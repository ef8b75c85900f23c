//! Writes, reads and verifies the rows of sales and their items.

use rusqlite::{Connection, Row, params};
use seckill_sale::{Currency, Item, ItemId, ItemNo, Price, Sale, SaleId};

use super::checksum::Checksum;
use crate::clock;

/// The terms in the form in which they are stored.
struct SaleRow {
    number: u32,
    id: String,
    title: String,
    buyer_limit: Option<u32>,
    opens_at: Option<String>,
    closes_at: Option<String>,
    version: i64,
    items: Vec<ItemRow>,
}

struct ItemRow {
    /// From 1.
    number: u32,
    id: String,
    title: String,
    total: u32,
    price: Option<i64>,
    currency: Option<String>,
}

impl ItemRow {
    fn of((number, item): (ItemNo, &Item)) -> Self {
        Self {
            number: number.get().into(),
            id: item.id.to_string(),
            title: item.title.clone(),
            total: item.total,
            price: item.price.map(|price| price.amount as i64),
            currency: item.price.map(|price| price.currency.to_string()),
        }
    }

    fn item(self) -> Result<Item, String> {
        let price = match (self.price, &self.currency) {
            (Some(amount), Some(currency)) => Some(Price {
                amount: amount as u64,
                currency: Currency::new(currency).map_err(|error| error.to_string())?,
            }),
            _ => None,
        };
        Ok(Item {
            id: ItemId::new(&self.id).map_err(|error| error.to_string())?,
            title: self.title,
            total: self.total,
            price,
        })
    }
}

impl SaleRow {
    fn of(number: u32, sale: &Sale) -> Self {
        Self {
            number,
            id: sale.id.to_string(),
            title: sale.title.clone(),
            buyer_limit: sale.buyer_limit,
            opens_at: sale.opens_at_ms.map(clock::to_text),
            closes_at: sale.closes_at_ms.map(clock::to_text),
            version: sale.version as i64,
            items: sale.numbered_items().map(ItemRow::of).collect(),
        }
    }

    /// Covers every column, of the items as well.
    fn checksum(&self) -> i64 {
        let mut sum = Checksum::new();
        sum.bytes(&self.number.to_le_bytes());
        sum.text(&self.id);
        sum.text(&self.title);
        sum.optional_text(self.opens_at.as_deref());
        sum.optional_text(self.closes_at.as_deref());
        sum.bytes(&self.buyer_limit.unwrap_or(0).to_le_bytes());
        sum.bytes(&self.version.to_le_bytes());
        for item in &self.items {
            sum.bytes(&item.number.to_le_bytes());
            sum.text(&item.id);
            sum.text(&item.title);
            sum.bytes(&item.total.to_le_bytes());
            sum.bytes(&item.price.unwrap_or(-1).to_le_bytes());
            sum.optional_text(item.currency.as_deref());
        }
        sum.finish()
    }

    fn sale(self) -> Result<Sale, String> {
        let time = |text: &Option<String>| match text {
            Some(text) => clock::from_text(text)
                .map(Some)
                .ok_or_else(|| format!("sale {}: {text:?} is not a time", self.id)),
            None => Ok(None),
        };
        let id = SaleId::new(&self.id).map_err(|error| error.to_string())?;
        let (opens_at_ms, closes_at_ms) = (time(&self.opens_at)?, time(&self.closes_at)?);
        let items: Result<Vec<Item>, String> = self.items.into_iter().map(ItemRow::item).collect();
        Ok(Sale {
            items: items.map_err(|error| format!("sale {id}: {error}"))?,
            id,
            title: self.title,
            buyer_limit: self.buyer_limit,
            opens_at_ms,
            closes_at_ms,
            version: self.version as u64,
        })
    }
}

/// Stores a new sale, or the changed terms of an existing one.
pub(crate) fn put(conn: &Connection, number: u32, sale: &Sale) -> rusqlite::Result<()> {
    let insert = "INSERT INTO seckill_sale \
         (number, id, title, buyer_limit, opens_at, closes_at, version, checksum) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
         ON CONFLICT (number) DO UPDATE SET title = ?3, buyer_limit = ?4, opens_at = ?5, \
         closes_at = ?6, version = ?7, checksum = ?8";
    let row = SaleRow::of(number, sale);
    conn.prepare_cached(insert)?.execute(params![
        row.number,
        row.id,
        row.title,
        row.buyer_limit,
        row.opens_at,
        row.closes_at,
        row.version,
        row.checksum(),
    ])?;
    let insert = "INSERT INTO seckill_item (sale, item, id, title, total, price, currency) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
         ON CONFLICT (sale, item) DO UPDATE SET title = ?4, total = ?5, price = ?6, currency = ?7";
    let mut insert = conn.prepare_cached(insert)?;
    for item in &row.items {
        insert.execute(params![
            row.number,
            item.number,
            item.id,
            item.title,
            item.total,
            item.price,
            item.currency,
        ])?;
    }
    Ok(())
}

/// A stored sale with its number. An error describes the damage of its rows.
pub(crate) type StoredSale = (u32, Result<Sale, String>);

/// Every sale, by ascending number.
pub(crate) fn all(conn: &Connection) -> rusqlite::Result<Vec<StoredSale>> {
    let query = "SELECT number, id, title, buyer_limit, opens_at, closes_at, version, checksum \
         FROM seckill_sale ORDER BY number";
    let mut statement = conn.prepare(query)?;
    let rows = statement.query_map((), |row| Ok((sale_row(row)?, row.get::<_, i64>(7)?)))?;
    let rows: Vec<(SaleRow, i64)> = rows.collect::<rusqlite::Result<_>>()?;
    let stored = |(row, checksum)| verified(conn, row, checksum);
    rows.into_iter().map(stored).collect()
}

fn verified(conn: &Connection, mut row: SaleRow, checksum: i64) -> rusqlite::Result<StoredSale> {
    let query = "SELECT item, id, title, total, price, currency FROM seckill_item WHERE sale = ?1 ORDER BY item";
    let mut statement = conn.prepare_cached(query)?;
    row.items = statement
        .query_map([row.number], item_row)?
        .collect::<rusqlite::Result<_>>()?;
    let number = row.number;
    if checksum != row.checksum() {
        let damage = format!(
            "sale {}: its terms were modified, their checksum differs; \
             change sales with `seckill sale change` only",
            row.id
        );
        return Ok((number, Err(damage)));
    }
    Ok((number, row.sale()))
}

fn sale_row(row: &Row<'_>) -> rusqlite::Result<SaleRow> {
    Ok(SaleRow {
        number: row.get(0)?,
        id: row.get(1)?,
        title: row.get(2)?,
        buyer_limit: row.get(3)?,
        opens_at: row.get(4)?,
        closes_at: row.get(5)?,
        version: row.get(6)?,
        items: Vec::new(),
    })
}

fn item_row(row: &Row<'_>) -> rusqlite::Result<ItemRow> {
    Ok(ItemRow {
        number: row.get(0)?,
        id: row.get(1)?,
        title: row.get(2)?,
        total: row.get(3)?,
        price: row.get(4)?,
        currency: row.get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_every_term() {
        let item = || ItemRow {
            number: 1,
            id: "i".into(),
            title: "t".into(),
            total: 1,
            price: None,
            currency: None,
        };
        let row = || SaleRow {
            number: 1,
            id: "s".into(),
            title: "t".into(),
            buyer_limit: None,
            opens_at: None,
            closes_at: None,
            version: 1,
            items: vec![item()],
        };
        let edits: [fn(&mut SaleRow); 15] = [
            |row| row.number = 2,
            |row| row.id = "r".into(),
            |row| row.title = "u".into(),
            |row| row.buyer_limit = Some(1),
            |row| row.opens_at = Some("x".into()),
            |row| row.closes_at = Some("x".into()),
            |row| row.version = 2,
            |row| row.items[0].number = 2,
            |row| row.items[0].id = "j".into(),
            |row| row.items[0].title = "u".into(),
            |row| row.items[0].total = 2,
            |row| row.items[0].price = Some(0),
            |row| row.items[0].currency = Some("CNY".into()),
            |row| row.items.push(ItemRow::of((ItemNo::FIRST, &test_item()))),
            |row| row.items.clear(),
        ];
        let mut sums = std::collections::HashSet::from([row().checksum()]);
        for edit in edits {
            let mut edited = row();
            edit(&mut edited);
            assert!(sums.insert(edited.checksum()));
        }
    }

    fn test_item() -> Item {
        Item {
            id: ItemId::default(),
            title: String::new(),
            total: 0,
            price: None,
        }
    }
}
