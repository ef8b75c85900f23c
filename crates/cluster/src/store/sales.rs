//! The sales as the store has them: terms, epoch, and who rebuilds. Every change of an epoch is one statement here.

use mysql_async::Row;
use seckill_engine::{Fault, SALES_PAGE_MAX};
use seckill_sale::{Sale, SaleChange, SaleId};

use super::{Inserted, Session, column, or_null, quoted, schema, text};
use crate::gate::keys::GateKeys;

const COLUMNS: &str = "num, id, stock_key, title, epoch, gate = 'open', suspect_epoch, version, total, buyer_limit, opens_at_ms, \
     closes_at_ms, COALESCE(lease_until < UTC_TIMESTAMP(3), 1)";

/// A sale with what the cluster knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SaleRow {
    /// Its number in order ids.
    pub(crate) num: u32,
    pub(crate) sale: Sale,
    pub(crate) keys: GateKeys,
    pub(crate) epoch: u32,
    /// Whether its gate is open, by the store's word.
    pub(crate) is_open: bool,
    /// The epoch in which the recorder saw what a sound gate never gives.
    pub(crate) suspect_epoch: Option<u32>,
    /// Whether nobody is rebuilding it now.
    pub(crate) lease_is_over: bool,
}

impl SaleRow {
    /// Whether the gate's word in this epoch is in doubt.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect_epoch == Some(self.epoch)
    }
}

fn sale_row(mut row: Row) -> Option<SaleRow> {
    let row = &mut row;
    Some(SaleRow {
        num: column(row, 0)?,
        keys: GateKeys::new(&text(row, 2)?),
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

/// Up to `max` sales in the order of their ids, beginning behind `after`.
pub(crate) async fn page(
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

/// Every sale, read page by page.
pub(crate) async fn all(session: &mut Session) -> Result<Vec<SaleRow>, Fault> {
    let (mut all, mut after) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let page = select_rows(session, &in_order(after.as_deref(), SALES_PAGE_MAX)).await?;
        // Counted before what is no sale is left out.
        let is_last = page.len() < SALES_PAGE_MAX;
        after = page.last().and_then(|row| row.get(1));
        all.extend(rows(page));
        if is_last || after.is_none() {
            return Ok(all);
        }
    }
}

/// One sale.
pub(crate) async fn one(session: &mut Session, id: &SaleId) -> Result<Option<SaleRow>, Fault> {
    Ok(select(session, &format!("WHERE id = {}", named(id)))
        .await?
        .pop())
}

/// The sale of an order id.
pub(crate) async fn by_num(session: &mut Session, num: u32) -> Result<Option<SaleRow>, Fault> {
    Ok(select(session, &format!("WHERE num = {num}")).await?.pop())
}

/// One sale, held until the transaction ends: no claim of it is stored meanwhile.
pub(crate) async fn locked(session: &mut Session, id: &SaleId) -> Result<Option<SaleRow>, Fault> {
    Ok(
        select(session, &format!("WHERE id = {} FOR UPDATE", named(id)))
            .await?
            .pop(),
    )
}

/// The statement that holds several sales, in the order of their ids so that two recorders never wait for each other.
pub(crate) fn lock_statement(ids: &str) -> String {
    format!("SELECT {COLUMNS} FROM seckill_sale WHERE id IN ({ids}) ORDER BY id FOR UPDATE")
}

/// The sales among these rows. One that somebody made by hand with an impossible id is none; the audit names it.
pub(crate) fn rows(rows: Vec<Row>) -> Vec<SaleRow> {
    rows.into_iter().filter_map(sale_row).collect()
}

/// Makes a sale whose gate is still to be built.
pub(crate) async fn create(
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
        schema::base_epoch(session).await?,
        sale.version,
        sale.total,
        or_null(sale.buyer_limit),
        or_null(sale.opens_at_ms),
        or_null(sale.closes_at_ms),
    );
    session.insert(&sql).await
}

/// Stores changed terms, with the event. The row must be held.
pub(crate) async fn store_terms(session: &mut Session, sale: &Sale) -> Result<(), Fault> {
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

/// The most active orders that one named buyer holds.
pub(crate) async fn most_held(session: &mut Session, id: &SaleId) -> Result<u32, Fault> {
    let sql = format!(
        "SELECT COUNT(*) AS held FROM seckill WHERE sale_id = {} AND buyer <> '' AND state IN ('reserved','paid') \
         GROUP BY buyer ORDER BY held DESC LIMIT 1",
        named(id)
    );
    Ok(session.query::<u32>(&sql).await?.pop().unwrap_or(0))
}

/// Gives each buyer's active orders the slots 1, 2, … anew, as a changed limit needs it, and ends the epoch: the gate
/// knows the old slots. The row must be held.
pub(crate) async fn renew_slots(session: &mut Session, id: &SaleId) -> Result<(), Fault> {
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
    let end = format!(
        "UPDATE seckill_sale SET epoch = epoch + 1, gate = 'rebuilding', leader = NULL, lease_until = NULL WHERE id = {id}"
    );
    session.execute(&end).await?;
    Ok(())
}

/// Closes an open sale within its epoch: what was claimed in it can still be stored, and nobody rebuilds it meanwhile.
pub(crate) async fn close(
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

/// The fence: begins an epoch, unless somebody else did or is at it. What the epochs before gave can no longer be stored.
pub(crate) async fn fence(
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

/// Makes a rebuild's lease last anew; false where it is another's by now.
pub(crate) async fn extend(
    session: &mut Session,
    id: &SaleId,
    epoch: u32,
    leader: &str,
    lease_ms: u64,
) -> Result<bool, Fault> {
    // `version` stays: this is no change of terms.
    let sql = format!(
        "UPDATE seckill_sale SET lease_until = UTC_TIMESTAMP(3) + INTERVAL {} MICROSECOND \
         WHERE id = {} AND epoch = {epoch} AND leader = {} AND gate = 'rebuilding'",
        lease_ms * 1_000,
        named(id),
        quoted(leader.as_bytes())
    );
    Ok(session.execute(&sql).await? == 1)
}

/// Puts the gate's word in this epoch in doubt.
pub(crate) async fn suspect(session: &mut Session, id: &SaleId, epoch: u32) -> Result<(), Fault> {
    let sql = format!(
        "UPDATE seckill_sale SET suspect_epoch = {epoch} WHERE id = {} AND epoch = {epoch}",
        named(id)
    );
    session.execute(&sql).await.map(|_| ())
}

/// Says that the gate of this epoch is open.
pub(crate) async fn opened(
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

/// Gives a failed rebuild up, so that the next need not wait for the lease.
pub(crate) async fn abandoned(
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

/// Whether a change gives the sale another limit.
pub(crate) fn changes_limit(row: &SaleRow, change: &SaleChange) -> bool {
    change
        .buyer_limit
        .is_some_and(|limit| limit != row.sale.buyer_limit)
}

fn named(id: &SaleId) -> String {
    quoted(id.as_str().as_bytes())
}

fn title(title: &str) -> String {
    format!("CONVERT({} USING utf8mb4)", quoted(title.as_bytes()))
}
