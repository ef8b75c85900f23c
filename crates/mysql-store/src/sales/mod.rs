//! Sales in the store: how they are read. Creating and changing them is in `terms`; epochs, and the
//! process that rebuilds a gate, are in `epochs`.

mod epochs;
mod terms;

use mysql_async::Row;
use seckill_engine::{Cause, Fault, SALES_PAGE_MAX};
use seckill_sale::{Currency, Item, ItemId, Price, Sale, SaleId};

pub use self::epochs::{abandoned, close, end_epoch, extend, fence, opened, suspect};
pub use self::terms::{StoredUsage, create, renew_slots, store_terms, usage};
use crate::session::Session;
use crate::sql::{column, quoted, text, text_or_null};

/// A sale's columns, then those of one of its items.
const COLUMNS: &str = "sale.num, sale.id, sale.stock_key, sale.title, sale.epoch, sale.gate = 'open', sale.suspect_epoch, \
     sale.version, sale.buyer_limit, sale.opens_at_ms, sale.closes_at_ms, \
     COALESCE(sale.lease_until < UTC_TIMESTAMP(3), 1), sale.last_sequence, sale.voids, \
     item.item, item.id, item.title, item.total, item.price, item.currency";
const ITEMS: &str = "LEFT JOIN seckill_item AS item ON item.sale_num = sale.num";

/// A sale with its cluster state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleRow {
    /// The number that identifies the sale in order ids and in the store.
    pub num: u32,
    pub sale: Sale,
    /// The key in Redis with the number of free units.
    pub stock_key: String,
    pub epoch: u32,
    /// Whether the gate is open according to the store.
    pub is_open: bool,
    /// The epoch in which the recorder saw a claim that a correct gate never makes.
    pub suspect_epoch: Option<u32>,
    /// Whether no process is rebuilding the gate.
    pub lease_is_over: bool,
    /// The number of the latest event in the sale's feed.
    pub last_sequence: u64,
    /// How many claims were voided. Grows with each.
    pub voids: u32,
}

impl SaleRow {
    /// Whether the gate's state in the current epoch is suspect.
    pub fn is_suspect(&self) -> bool {
        self.suspect_epoch == Some(self.epoch)
    }
}

/// Parses a sale's columns, without its items.
fn sale_row(row: &mut Row) -> Option<SaleRow> {
    Some(SaleRow {
        num: column(row, 0)?,
        stock_key: text(row, 2)?,
        epoch: column(row, 4)?,
        is_open: column(row, 5)?,
        suspect_epoch: column(row, 6)?,
        lease_is_over: column(row, 11)?,
        last_sequence: column(row, 12)?,
        voids: column(row, 13)?,
        sale: Sale {
            id: SaleId::new(&text(row, 1)?).ok()?,
            title: text(row, 3)?,
            items: Vec::new(),
            version: column(row, 7)?,
            buyer_limit: column(row, 8)?,
            opens_at_ms: column(row, 9)?,
            closes_at_ms: column(row, 10)?,
        },
    })
}

/// Parses the item of a row, whose number must be the next one.
fn item(row: &mut Row, index: usize) -> Option<Item> {
    let number: Option<u8> = column(row, 14)?;
    if number.map(usize::from) != Some(index + 1) {
        return None;
    }
    let amount: Option<u64> = column(row, 18)?;
    let currency = text_or_null(row, 19)?;
    let price = match amount.zip(currency) {
        Some((amount, currency)) => Some(Price {
            amount,
            currency: Currency::new(&currency).ok()?,
        }),
        None => None,
    };
    Some(Item {
        id: ItemId::new(&text(row, 15)?).ok()?,
        title: text(row, 16)?,
        total: column(row, 17)?,
        price,
    })
}

/// Parses the rows of sales with their items, ordered by sale and item. Skips sales that are
/// invalid after a manual edit; the audit reports their orders.
pub(crate) fn rows(rows: Vec<Row>) -> Vec<SaleRow> {
    let mut sales: Vec<SaleRow> = Vec::new();
    let mut skipped: Option<u32> = None;
    for mut row in rows {
        let Some(num) = row.get_opt(0).and_then(Result::ok) else {
            continue;
        };
        if skipped == Some(num) {
            continue;
        }
        let is_next = sales.last().is_none_or(|sale| sale.num != num);
        if is_next && let Some(sale) = sale_row(&mut row) {
            sales.push(sale);
        }
        let last = sales.last_mut().filter(|sale| sale.num == num);
        let added = last.and_then(|last| {
            let item = item(&mut row, last.sale.items.len())?;
            last.sale.items.push(item);
            Some(())
        });
        if added.is_none() {
            skipped = Some(num);
            sales.pop_if(|sale| sale.num == num);
        }
    }
    sales
}

/// Reads sales with their items. `which` selects and orders the sales.
async fn select_rows(session: &mut Session, which: &str) -> Result<Vec<Row>, Fault> {
    session
        .query(&format!(
            "SELECT {COLUMNS} FROM (SELECT * FROM seckill_sale {which}) AS sale {ITEMS} ORDER BY sale.id, item.item"
        ))
        .await
}

async fn select(session: &mut Session, which: &str) -> Result<Vec<SaleRow>, Fault> {
    Ok(rows(select_rows(session, which).await?))
}

/// Returns up to `max` sales after `after`, ordered by id.
pub async fn page(
    session: &mut Session,
    after: Option<&SaleId>,
    max: usize,
) -> Result<Vec<SaleRow>, Fault> {
    let after = after.map(|id| id.as_str().as_bytes());
    select(session, &in_order(after, max)).await
}

fn in_order(after: Option<&[u8]>, max: usize) -> String {
    let after = after.map_or_else(String::new, |id| format!("WHERE id > {}", quoted(id)));
    format!("{after} ORDER BY id LIMIT {max}")
}

/// Reads all sales, page by page.
pub async fn all(session: &mut Session) -> Result<Vec<SaleRow>, Fault> {
    let (mut all, mut after) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let page = select_rows(session, &in_order(after.as_deref(), SALES_PAGE_MAX)).await?;
        after = page.last().and_then(|row| row.get(1));
        // A sale has a row for each item.
        let is_last = page.len() < SALES_PAGE_MAX;
        all.extend(rows(page));
        if is_last || after.is_none() {
            return Ok(all);
        }
    }
}

pub async fn one(session: &mut Session, id: &SaleId) -> Result<Option<SaleRow>, Fault> {
    only(select_rows(session, &format!("WHERE id = {}", named(id))).await?)
}

/// Looks up a sale by the number in an order id.
pub async fn by_num(session: &mut Session, num: u32) -> Result<Option<SaleRow>, Fault> {
    only(select_rows(session, &format!("WHERE num = {num}")).await?)
}

/// Parses the rows of at most one sale. If there are some, but they are invalid, the sale exists.
fn only(found: Vec<Row>) -> Result<Option<SaleRow>, Fault> {
    let id: Option<Vec<u8>> = found.first().and_then(|row| row.get(1));
    match rows(found).pop() {
        Some(sale) => Ok(Some(sale)),
        None => match id {
            None => Ok(None),
            Some(id) => {
                let id = String::from_utf8_lossy(&id);
                let detail = format!(
                    "the rows of sale {id} in seckill_sale and seckill_item are invalid; undo the manual edit"
                );
                Err(Fault::without_effect(Cause::Store, detail))
            }
        },
    }
}

/// Returns a sale and locks its row until the transaction ends. No claim of the sale can be stored
/// meanwhile.
pub async fn locked(session: &mut Session, id: &SaleId) -> Result<Option<SaleRow>, Fault> {
    only(session.query(&lock_statement(&named(id))).await?)
}

/// Builds the statement that locks several sales, in id order so that two recorders never deadlock.
pub(crate) fn lock_statement(ids: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM seckill_sale AS sale {ITEMS} WHERE sale.id IN ({ids}) \
         ORDER BY sale.id, item.item FOR UPDATE"
    )
}

pub(crate) fn named(id: &SaleId) -> String {
    quoted(id.as_str().as_bytes())
}
