//! Creates and changes sales. The terms, the items and the event are stored in one transaction.

use mysql_async::Row;
use seckill_engine::{Cause, Fault};
use seckill_sale::{Item, ItemNo, Sale, SaleChange, SaleUsage};

use super::{SaleRow, named};
use crate::events::{SALE_CHANGED, SALE_CREATED};
use crate::meta;
use crate::session::{Inserted, Session};
use crate::sql::{column, or_null, push_row, quoted};

/// Creates a sale. Its gate has yet to be built.
pub async fn create(
    session: &mut Session,
    sale: &Sale,
    stock_key: &str,
) -> Result<Inserted, Fault> {
    let mut sql = format!(
        "START TRANSACTION; \
         INSERT INTO seckill_sale (id, stock_key, title, epoch, version, buyer_limit, opens_at_ms, closes_at_ms, last_sequence) \
         VALUES ({}, {}, {}, {}, {}, {}, {}, {}, 1); \
         SET @num = LAST_INSERT_ID(); \
         INSERT INTO seckill_item (sale_num, item, id, title, total, price, currency) VALUES ",
        named(&sale.id),
        quoted(stock_key.as_bytes()),
        title(&sale.title),
        meta::base_epoch(session).await?,
        sale.version,
        or_null(sale.buyer_limit),
        or_null(sale.opens_at_ms),
        or_null(sale.closes_at_ms),
    );
    for (number, item) in sale.numbered_items() {
        let Item { id, total, .. } = item;
        let (price, currency) = price(item);
        let id = quoted(id.as_str().as_bytes());
        let title = title(&item.title);
        let is_first = number == ItemNo::FIRST;
        push_row(
            &mut sql,
            is_first,
            format_args!(
                "(@num, {}, {id}, {title}, {total}, {price}, {currency})",
                number.get()
            ),
        );
    }
    sql.push_str("; ");
    sql.push_str(&event("@num", 1, SALE_CREATED, sale)?);
    sql.push_str("; COMMIT");
    session.began();
    let inserted = session.insert(&sql).await?;
    if inserted == Inserted::Done {
        session.ended();
    } else {
        session.rollback().await?;
    }
    Ok(inserted)
}

/// Stores changed terms and the event. The row must be locked.
pub async fn store_terms(
    session: &mut Session,
    row: &SaleRow,
    changed: &Sale,
) -> Result<(), Fault> {
    let sequence = row.last_sequence + 1;
    let mut sql = format!(
        "UPDATE seckill_sale SET title = {}, version = {}, buyer_limit = {}, opens_at_ms = {}, closes_at_ms = {}, \
         last_sequence = {sequence} WHERE num = {}; ",
        title(&changed.title),
        changed.version,
        or_null(changed.buyer_limit),
        or_null(changed.opens_at_ms),
        or_null(changed.closes_at_ms),
        row.num,
    );
    for ((number, item), before) in changed.numbered_items().zip(&row.sale.items) {
        if item != before {
            let (price, currency) = price(item);
            sql.push_str(&format!(
                "UPDATE seckill_item SET title = {}, total = {}, price = {price}, currency = {currency} \
                 WHERE sale_num = {} AND item = {}; ",
                title(&item.title),
                item.total,
                row.num,
                number.get(),
            ));
        }
    }
    let num = row.num.to_string();
    sql.push_str(&event(&num, sequence, SALE_CHANGED, changed)?);
    session.execute(&sql).await.map(|_| ())
}

/// Numbers the slots of each buyer's active units from 1, as a changed limit requires. Without a
/// limit, there are no slots. The row must be locked.
pub async fn renew_slots(
    session: &mut Session,
    row: &SaleRow,
    changed: &Sale,
) -> Result<(), Fault> {
    let num = row.num;
    let forget = format!("DELETE FROM seckill_slot WHERE sale_num = {num}");
    session.execute(&forget).await?;
    if changed.buyer_limit.is_none() {
        return Ok(());
    }
    let number = format!(
        "INSERT INTO seckill_slot (sale_num, buyer, slot, order_id, line) \
         SELECT {num}, buyer, place, order_id, line FROM (SELECT buyer, order_id, line, \
         ROW_NUMBER() OVER (PARTITION BY buyer ORDER BY id) AS place FROM seckill \
         WHERE sale_num = {num} AND buyer <> '' AND state IN ('reserved','paid')) AS held WHERE place <= 64"
    );
    session.execute(&number).await.map(|_| ())
}

/// Builds the statement for an event with a sale's terms.
pub(crate) fn event(num: &str, sequence: u64, kind: &str, sale: &Sale) -> Result<String, Fault> {
    let body = serde_json::to_vec(sale).map_err(|error| {
        let detail = format!("the terms of sale {} are not JSON: {error}", sale.id);
        Fault::without_effect(Cause::Store, detail)
    })?;
    Ok(format!(
        "INSERT INTO seckill_event (sale_num, sequence, row_id, type, body) \
         SELECT {num}, {sequence}, COALESCE(MAX(id), 0), '{kind}', {} FROM seckill",
        quoted(&body)
    ))
}

fn price(item: &Item) -> (String, String) {
    let amount = or_null(item.price.map(|price| price.amount));
    let currency = item.price.map(|price| format!("'{}'", price.currency));
    (amount, or_null(currency))
}

fn title(title: &str) -> String {
    format!("CONVERT({} USING utf8mb4)", quoted(title.as_bytes()))
}

/// What a change must respect because of the sale's orders.
#[derive(Debug, Clone, Default)]
pub struct StoredUsage {
    pub usage: SaleUsage,
    /// The highest unit number of each item that any order ever had.
    highest_ever: Vec<u32>,
}

impl StoredUsage {
    /// Whether the change requires the gate to be rebuilt in a new epoch: the gate counts what
    /// buyers hold only while there is a limit, and has no units above the old totals.
    pub fn ends_epoch(&self, row: &SaleRow, changed: &Sale) -> bool {
        let items = row.sale.items.iter().zip(&changed.items);
        let mut moves_units = items.enumerate().map(|(index, (before, after))| {
            let highest_ever = self.highest_ever.get(index).copied().unwrap_or(0);
            let returns_units = after.total > before.total && highest_ever > before.total;
            after.total < before.total || returns_units
        });
        changed.buyer_limit != row.sale.buyer_limit || moves_units.any(|moves| moves)
    }
}

/// Reads what the change depends on, and nothing else.
pub async fn usage(
    session: &mut Session,
    row: &SaleRow,
    change: &SaleChange,
) -> Result<StoredUsage, Fault> {
    let num = row.num;
    let mut found = StoredUsage::default();
    if change.buyer_limit.is_some() {
        let most_held = format!(
            "SELECT COUNT(*) AS held FROM seckill WHERE sale_num = {num} AND buyer <> '' \
             AND state IN ('reserved','paid') GROUP BY buyer ORDER BY held DESC LIMIT 1"
        );
        found.usage.most_held = session.query::<u32>(&most_held).await?.pop().unwrap_or(0);
    }
    if change.sets_total() {
        // One look-up in an index for each number.
        let of_item = |number: ItemNo| {
            let item = format!(
                "FROM seckill WHERE sale_num = {num} AND item = {}",
                number.get()
            );
            let number = number.get();
            format!("SELECT {number}, (SELECT MAX(active_unit) {item}), (SELECT MAX(unit) {item})")
        };
        let items = row.sale.numbered_items().map(|(number, _)| of_item(number));
        let items: Vec<String> = items.collect();
        let sql = format!("{} ORDER BY 1", items.join(" UNION ALL "));
        let rows: Vec<Row> = session.query(&sql).await?;
        for mut row in rows {
            let highest = |row: &mut Row, at| column::<Option<u32>>(row, at).flatten().unwrap_or(0);
            found.usage.highest_sold.push(highest(&mut row, 1));
            found.highest_ever.push(highest(&mut row, 2));
        }
    }
    Ok(found)
}
