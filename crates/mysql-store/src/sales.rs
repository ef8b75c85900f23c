//! Sales in the store: terms, epoch, and the process that rebuilds. Every epoch change must be one
//! statement in this file.

use mysql_async::Row;
use seckill_engine::{Fault, SALES_PAGE_MAX};
use seckill_sale::{Sale, SaleChange, SaleId, SaleUsage};

use crate::meta;
use crate::session::{Inserted, Session};
use crate::sql::{column, or_null, quoted, text};

const COLUMNS: &str = "num, id, stock_key, title, epoch, gate = 'open', suspect_epoch, version, total, buyer_limit, opens_at_ms, \
     closes_at_ms, COALESCE(lease_until < UTC_TIMESTAMP(3), 1)";

/// A sale with its cluster state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleRow {
    /// The number that identifies the sale in order ids.
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
}

impl SaleRow {
    /// Whether the gate's state in the current epoch is suspect.
    pub fn is_suspect(&self) -> bool {
        self.suspect_epoch == Some(self.epoch)
    }
}

fn sale_row(mut row: Row) -> Option<SaleRow> {
    let row = &mut row;
    Some(SaleRow {
        num: column(row, 0)?,
        stock_key: text(row, 2)?,
        epoch: column(row, 4)?,
        is_open: column(row, 5)?,
        suspect_epoch: column(row, 6)?,
        lease_is_over: column(row, 12)?,
        sale: Sale {
            id: SaleId::new(&text(row, 1)?).ok()?,
            title: text(row, 3)?,
            version: column(row, 7)?,
            total: column(row, 8)?,
            buyer_limit: column(row, 9)?,
            opens_at_ms: column(row, 10)?,
            closes_at_ms: column(row, 11)?,
        },
    })
}

async fn select_rows(session: &mut Session, which: &str) -> Result<Vec<Row>, Fault> {
    session
        .query(&format!("SELECT {COLUMNS} FROM seckill_sale {which}"))
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
        // Check before invalid rows are filtered out.
        let is_last = page.len() < SALES_PAGE_MAX;
        after = page.last().and_then(|row| row.get(1));
        all.extend(rows(page));
        if is_last || after.is_none() {
            return Ok(all);
        }
    }
}

pub async fn one(session: &mut Session, id: &SaleId) -> Result<Option<SaleRow>, Fault> {
    Ok(select(session, &format!("WHERE id = {}", named(id)))
        .await?
        .pop())
}

/// Looks up a sale by the number in an order id.
pub async fn by_num(session: &mut Session, num: u32) -> Result<Option<SaleRow>, Fault> {
    Ok(select(session, &format!("WHERE num = {num}")).await?.pop())
}

/// Returns a sale and locks its row until the transaction ends. No claim of the sale can be stored
/// meanwhile.
pub async fn locked(session: &mut Session, id: &SaleId) -> Result<Option<SaleRow>, Fault> {
    Ok(
        select(session, &format!("WHERE id = {} FOR UPDATE", named(id)))
            .await?
            .pop(),
    )
}

/// Builds the statement that locks several sales, in id order so that two recorders never deadlock.
pub(crate) fn lock_statement(ids: &str) -> String {
    format!("SELECT {COLUMNS} FROM seckill_sale WHERE id IN ({ids}) ORDER BY id FOR UPDATE")
}

/// Parses rows as sales. Skips rows with an invalid id from a manual edit; the audit reports them.
pub(crate) fn rows(rows: Vec<Row>) -> Vec<SaleRow> {
    rows.into_iter().filter_map(sale_row).collect()
}

/// Creates a sale. Its gate has yet to be built.
pub async fn create(
    session: &mut Session,
    sale: &Sale,
    stock_key: &str,
) -> Result<Inserted, Fault> {
    let sql = format!(
        "INSERT INTO seckill_sale (id, stock_key, title, epoch, version, total, buyer_limit, opens_at_ms, closes_at_ms) \
         VALUES ({}, {}, {}, {}, {}, {}, {}, {}, {})",
        named(&sale.id),
        quoted(stock_key.as_bytes()),
        title(&sale.title),
        meta::base_epoch(session).await?,
        sale.version,
        sale.total,
        or_null(sale.buyer_limit),
        or_null(sale.opens_at_ms),
        or_null(sale.closes_at_ms),
    );
    session.insert(&sql).await
}

/// Stores changed terms and the event. The row must be locked.
pub async fn store_terms(session: &mut Session, sale: &Sale) -> Result<(), Fault> {
    let sql = format!(
        "UPDATE seckill_sale SET title = {}, version = {}, total = {}, buyer_limit = {}, opens_at_ms = {}, closes_at_ms = {} \
         WHERE id = {}",
        title(&sale.title),
        sale.version,
        sale.total,
        or_null(sale.buyer_limit),
        or_null(sale.opens_at_ms),
        or_null(sale.closes_at_ms),
        named(&sale.id),
    );
    session.execute(&sql).await?;
    let body = serde_json::to_string(sale).unwrap_or_default();
    let event = format!(
        "INSERT INTO seckill_event (sale_id, type, body) VALUES ({}, 'sale.changed', {})",
        named(&sale.id),
        quoted(body.as_bytes())
    );
    session.execute(&event).await?;
    Ok(())
}

/// What a change must respect because of the sale's orders.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoredUsage {
    pub usage: SaleUsage,
    /// The highest unit number that any order ever had.
    highest_ever: u32,
}

impl StoredUsage {
    /// Whether the change requires the gate to be rebuilt in a new epoch: the gate has only the
    /// slots of the old limit, and no units above the old total.
    pub fn ends_epoch(&self, row: &SaleRow, change: &SaleChange) -> bool {
        let changes_limit = change
            .buyer_limit
            .is_some_and(|limit| limit != row.sale.buyer_limit);
        let total = change.total.unwrap_or(row.sale.total);
        let returns_units = total > row.sale.total && self.highest_ever > row.sale.total;
        changes_limit || total < row.sale.total || returns_units
    }
}

/// Reads what the change depends on, and nothing else.
pub async fn usage(
    session: &mut Session,
    id: &SaleId,
    change: &SaleChange,
) -> Result<StoredUsage, Fault> {
    let id = named(id);
    let mut found = StoredUsage::default();
    if change.buyer_limit.is_some() {
        let most_held = format!(
            "SELECT COUNT(*) AS held FROM seckill WHERE sale_id = {id} AND buyer <> '' \
             AND state IN ('reserved','paid') GROUP BY buyer ORDER BY held DESC LIMIT 1"
        );
        found.usage.most_held = session.query::<u32>(&most_held).await?.pop().unwrap_or(0);
    }
    if change.total.is_some() {
        let highest = async |session: &mut Session, column: &str| {
            let sql = format!("SELECT MAX({column}) FROM seckill WHERE sale_id = {id}");
            let highest: Vec<Option<u32>> = session.query(&sql).await?;
            Ok::<_, Fault>(highest.first().copied().flatten().unwrap_or(0))
        };
        found.usage.highest_sold = highest(session, "active_unit").await?;
        found.highest_ever = highest(session, "unit").await?;
    }
    Ok(found)
}

/// Renumbers the slots of each buyer's active orders from 1, as a changed limit requires, and ends
/// the epoch because the gate has the old slots. The row must be locked.
pub async fn renew_slots(session: &mut Session, id: &SaleId) -> Result<(), Fault> {
    let id = named(id);
    session
        .execute(&format!(
            "UPDATE seckill SET slot = NULL WHERE sale_id = {id} AND slot IS NOT NULL"
        ))
        .await?;
    let number = format!(
        "UPDATE seckill JOIN (SELECT id, ROW_NUMBER() OVER (PARTITION BY buyer ORDER BY id) AS place FROM seckill \
         WHERE sale_id = {id} AND buyer <> '' AND state IN ('reserved','paid')) AS held ON seckill.id = held.id \
         SET seckill.slot = held.place WHERE held.place <= 64"
    );
    session.execute(&number).await?;
    Ok(())
}

/// Ends the epoch: the gate is filled again. The row must be locked.
pub async fn end_epoch(session: &mut Session, id: &SaleId) -> Result<(), Fault> {
    let id = named(id);
    let end = format!(
        "UPDATE seckill_sale SET epoch = epoch + 1, gate = 'rebuilding', leader = NULL, lease_until = NULL WHERE id = {id}"
    );
    session.execute(&end).await?;
    Ok(())
}

/// Closes an open sale without ending its epoch. Claims of the epoch can still be stored, and no
/// other process can rebuild the gate until the lease ends.
pub async fn close(
    session: &mut Session,
    row: &SaleRow,
    leader: &str,
    lease_ms: u64,
) -> Result<bool, Fault> {
    let sql = format!(
        "UPDATE seckill_sale SET gate = 'rebuilding', leader = {}, \
         lease_until = UTC_TIMESTAMP(3) + INTERVAL {} MICROSECOND WHERE id = {} AND epoch = {} AND gate = 'open'",
        quoted(leader.as_bytes()),
        lease_ms * 1_000,
        named(&row.sale.id),
        row.epoch
    );
    Ok(session.execute(&sql).await? == 1)
}

/// The fence: starts a new epoch, unless another process has started one or is rebuilding. Claims
/// of earlier epochs can no longer be stored.
pub async fn fence(
    session: &mut Session,
    row: &SaleRow,
    leader: &str,
    lease_ms: u64,
) -> Result<bool, Fault> {
    let sql = format!(
        "UPDATE seckill_sale SET epoch = epoch + 1, gate = 'rebuilding', leader = {}, \
         lease_until = UTC_TIMESTAMP(3) + INTERVAL {} MICROSECOND WHERE id = {} AND epoch = {} \
         AND (gate = 'open' OR lease_until IS NULL OR lease_until < UTC_TIMESTAMP(3))",
        quoted(leader.as_bytes()),
        lease_ms * 1_000,
        named(&row.sale.id),
        row.epoch
    );
    Ok(session.execute(&sql).await? == 1)
}

/// Renews the lease of a rebuild. Returns false if another process has taken over.
pub async fn extend(
    session: &mut Session,
    id: &SaleId,
    epoch: u32,
    leader: &str,
    lease_ms: u64,
) -> Result<bool, Fault> {
    // `version` is unchanged: the terms do not change.
    let sql = format!(
        "UPDATE seckill_sale SET lease_until = UTC_TIMESTAMP(3) + INTERVAL {} MICROSECOND \
         WHERE id = {} AND epoch = {epoch} AND leader = {} AND gate = 'rebuilding'",
        lease_ms * 1_000,
        named(id),
        quoted(leader.as_bytes())
    );
    Ok(session.execute(&sql).await? == 1)
}

/// Marks the gate's state in this epoch as suspect.
pub async fn suspect(session: &mut Session, id: &SaleId, epoch: u32) -> Result<(), Fault> {
    let sql = format!(
        "UPDATE seckill_sale SET suspect_epoch = {epoch} WHERE id = {} AND epoch = {epoch}",
        named(id)
    );
    session.execute(&sql).await.map(|_| ())
}

/// Records that the gate of this epoch is open.
pub async fn opened(
    session: &mut Session,
    id: &SaleId,
    epoch: u32,
    leader: &str,
) -> Result<bool, Fault> {
    let sql = format!(
        "UPDATE seckill_sale SET gate = 'open', lease_until = NULL WHERE id = {} AND epoch = {epoch} AND leader = {} \
         AND gate = 'rebuilding'",
        named(id),
        quoted(leader.as_bytes())
    );
    Ok(session.execute(&sql).await? == 1)
}

/// Abandons a failed rebuild, so that the next one need not wait for the lease to end.
pub async fn abandoned(
    session: &mut Session,
    id: &SaleId,
    epoch: u32,
    leader: &str,
) -> Result<(), Fault> {
    let sql = format!(
        "UPDATE seckill_sale SET lease_until = NULL WHERE id = {} AND epoch = {epoch} AND leader = {}",
        named(id),
        quoted(leader.as_bytes())
    );
    session.execute(&sql).await.map(|_| ())
}

fn named(id: &SaleId) -> String {
    quoted(id.as_str().as_bytes())
}

fn title(title: &str) -> String {
    format!("CONVERT({} USING utf8mb4)", quoted(title.as_bytes()))
}
