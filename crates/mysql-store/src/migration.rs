//! Makes a database of version 1 one of version 2. DDL is not transactional, so every step can be
//! repeated: an interrupted migration continues when it is run again.

use std::time::Duration;

use seckill_engine::{Cause, Fault};
use seckill_sale::ItemId;

use crate::events::{ORDER_PREFIX, POINTER, POINTER_EVERY_ROWS, SALE_CREATED};
use crate::sales;
use crate::schema::TABLES;
use crate::session::Session;
use crate::sql::quoted;

/// Timeout for copying a table.
const COPY_WAIT: Duration = Duration::from_secs(4 * 3_600);

/// The tables whose rows are copied. A copied table keeps the suffix until all are.
const COPIED: &[&str] = &[
    "seckill",
    "seckill_void",
    "seckill_give_back",
    "seckill_event",
];
const SUFFIX: &str = "_v1";
/// The columns of `seckill_sale` that version 2 does not have. Without them, processes of version 1
/// can read no sale.
const DROPPED: &[&str] = &["state", "pay_ms", "total"];

/// SQL for the bytes of an order id.
const ORDER_ID: &str = "FROM_BASE64(REPLACE(REPLACE(old.order_id, '-', '+'), '_', '/'))";
/// SQL for the number of a row's sale. If the sale was deleted, the order id still has it.
const SALE_NUM: &str = "COALESCE(sale.num, CONV(HEX(LEFT(FROM_BASE64(REPLACE(REPLACE(old.order_id, '-', '+'), '_', '/')), 4)), 16, 10))";
const SALE: &str = "LEFT JOIN seckill_sale AS sale ON sale.id = old.sale_id";

/// Migrates the tables. Must hold the schema lock; a process of version 1 that still runs fails.
pub(crate) async fn from_version_1(session: &mut Session) -> Result<(), Fault> {
    session.wait_longer(COPY_WAIT);
    for table in COPIED {
        let old = format!("{table}{SUFFIX}");
        // From here on, nothing can be stored in the old tables.
        if !has_table(session, &old).await? && has_column(session, table, "sale_id").await? {
            let rename = format!("RENAME TABLE {table} TO {old}");
            session.execute(&rename).await?;
        }
    }
    // Processes of version 1 must not move the positions.
    if has_table(session, "seckill_offset").await? {
        session
            .execute("RENAME TABLE seckill_offset TO seckill_position")
            .await?;
    }
    // This table is the first to be dropped once all are copied.
    let is_copied = !has_table(session, &format!("seckill{SUFFIX}")).await?;
    for table in TABLES {
        session.execute(table).await?;
    }
    add_sale_columns(session).await?;
    copy_items(session).await?;
    if !is_copied {
        copy(session).await?;
    }
    for table in COPIED {
        let drop = format!("DROP TABLE IF EXISTS {table}{SUFFIX}");
        session.execute(&drop).await?;
    }
    session
        .execute("DROP TABLE IF EXISTS seckill_numbered")
        .await
        .map(|_| ())
}

async fn has_table(session: &mut Session, table: &str) -> Result<bool, Fault> {
    has(session, "tables", &format!("table_name = '{table}'")).await
}

pub(crate) async fn has_column(
    session: &mut Session,
    table: &str,
    column: &str,
) -> Result<bool, Fault> {
    let which = format!("table_name = '{table}' AND column_name = '{column}'");
    has(session, "columns", &which).await
}

async fn has(session: &mut Session, what: &str, which: &str) -> Result<bool, Fault> {
    let sql = format!(
        "SELECT COUNT(*) FROM information_schema.{what} WHERE table_schema = DATABASE() AND {which}"
    );
    Ok(session.query::<u64>(&sql).await? != [0])
}

async fn add_sale_columns(session: &mut Session) -> Result<(), Fault> {
    let columns = [
        ("last_sequence", "BIGINT UNSIGNED NOT NULL DEFAULT 0"),
        ("voids", "INT UNSIGNED NOT NULL DEFAULT 0"),
    ];
    for (column, kind) in columns {
        if !has_column(session, "seckill_sale", column).await? {
            let add = format!("ALTER TABLE seckill_sale ADD COLUMN {column} {kind}");
            session.execute(&add).await?;
        }
    }
    Ok(())
}

/// Makes an item of each sale's total, and drops the columns of version 1.
async fn copy_items(session: &mut Session) -> Result<(), Fault> {
    if has_column(session, "seckill_sale", "total").await? {
        session.execute("TRUNCATE TABLE seckill_item").await?;
        let items = format!(
            "INSERT INTO seckill_item (sale_num, item, id, title, total) \
             SELECT num, 1, {}, title, total FROM seckill_sale",
            quoted(ItemId::default().as_str().as_bytes())
        );
        session.execute(&items).await?;
    }
    for column in DROPPED {
        if has_column(session, "seckill_sale", column).await? {
            let drop = format!("ALTER TABLE seckill_sale DROP COLUMN {column}");
            session.execute(&drop).await?;
        }
    }
    Ok(())
}

/// Copies all rows. What an interrupted run has copied is deleted first.
async fn copy(session: &mut Session) -> Result<(), Fault> {
    for table in COPIED.iter().chain(&["seckill_key", "seckill_slot"]) {
        session.execute(&format!("TRUNCATE TABLE {table}")).await?;
    }
    // The gates have values of the old format: each is closed, drained and filled again.
    session
        .execute("UPDATE seckill_sale SET gate = 'rebuilding', leader = NULL, lease_until = NULL")
        .await?;
    number(session).await?;
    let rows = [
        format!(
            "INSERT INTO seckill (id, date, order_id, sale_num, unit, gen, buyer, epoch, sequence, state, version, ended_at) \
             SELECT old.id, old.date, {ORDER_ID}, {SALE_NUM}, old.unit, old.gen, old.buyer, old.epoch, numbered.sequence, \
             old.state, old.version, old.ended_at FROM seckill{SUFFIX} AS old {SALE} \
             JOIN seckill_numbered AS numbered ON numbered.id = old.id AND numbered.is_claim = 1 ORDER BY old.id"
        ),
        format!(
            "INSERT INTO seckill_key (sale_num, buyer, idem_key, order_id, fingerprint) \
             SELECT {SALE_NUM}, old.buyer, old.idem_key, {ORDER_ID}, old.fingerprint FROM seckill{SUFFIX} AS old {SALE} \
             WHERE old.idem_key IS NOT NULL"
        ),
        format!(
            "INSERT INTO seckill_slot (sale_num, buyer, slot, order_id, line) \
             SELECT {SALE_NUM}, old.buyer, old.active_slot, {ORDER_ID}, 1 FROM seckill{SUFFIX} AS old {SALE} \
             WHERE old.active_slot IS NOT NULL"
        ),
        // An order cannot have any other id, so other voids are of no use.
        format!(
            "INSERT INTO seckill_void (order_id, sale_num, epoch, reason, at) \
             SELECT {ORDER_ID}, sale.num, old.epoch, old.reason, old.at FROM seckill_void{SUFFIX} AS old \
             JOIN seckill_sale AS sale ON sale.id = old.sale_id WHERE LENGTH(old.order_id) = 32"
        ),
        format!(
            "INSERT INTO seckill_give_back (order_id, sale_num) \
             SELECT {ORDER_ID}, sale.num FROM seckill_give_back{SUFFIX} AS old \
             JOIN seckill_sale AS sale ON sale.id = old.sale_id"
        ),
        "UPDATE seckill_sale AS sale JOIN (SELECT sale_num, COUNT(*) AS voids FROM seckill_void GROUP BY sale_num) AS counted \
         ON counted.sale_num = sale.num SET sale.voids = counted.voids"
            .into(),
    ];
    for sql in rows {
        session.execute(&sql).await?;
    }
    events(session).await
}

/// Numbers the events of each sale from 2 on; 1 is its creation. Version 1 has stored no order of
/// events, so they are numbered as they may have happened: claims by id, and the end of an order
/// before its unit was sold again, or after all claims.
async fn number(session: &mut Session) -> Result<(), Fault> {
    session
        .execute("DROP TABLE IF EXISTS seckill_numbered")
        .await?;
    session
        .execute(
            "CREATE TABLE seckill_numbered (
                id BIGINT UNSIGNED NOT NULL,
                is_claim TINYINT NOT NULL,
                sequence BIGINT UNSIGNED NOT NULL,
                row_id BIGINT UNSIGNED NOT NULL,
                PRIMARY KEY (id, is_claim)
            ) ENGINE=InnoDB",
        )
        .await?;
    let sql = format!(
        "INSERT INTO seckill_numbered (id, is_claim, sequence, row_id) \
         SELECT id, is_claim, 1 + ROW_NUMBER() OVER (PARTITION BY sale_id ORDER BY row_id, is_claim, ended_at, id), row_id FROM \
         (SELECT id, 1 AS is_claim, sale_id, id AS row_id, NULL AS ended_at FROM seckill{SUFFIX} UNION ALL \
         SELECT id, 0, sale_id, COALESCE(LEAD(id) OVER (PARTITION BY sale_id, unit ORDER BY gen), \
         (SELECT MAX(id) + 1 FROM seckill{SUFFIX})), ended_at FROM seckill{SUFFIX} AS old) AS happened \
         WHERE is_claim = 1 OR id IN (SELECT id FROM seckill{SUFFIX} WHERE state <> 'reserved')"
    );
    session.execute(&sql).await.map(|_| ())
}

/// Writes the events that are not claims, and some that say where a claim's row is.
async fn events(session: &mut Session) -> Result<(), Fault> {
    let events = [
        format!(
            "INSERT INTO seckill_event (sale_num, sequence, row_id, date, type, order_id) \
             SELECT {SALE_NUM}, numbered.sequence, numbered.row_id, COALESCE(old.ended_at, old.date), \
             CONCAT('{ORDER_PREFIX}', old.state), {ORDER_ID} FROM seckill{SUFFIX} AS old {SALE} \
             JOIN seckill_numbered AS numbered ON numbered.id = old.id AND numbered.is_claim = 0"
        ),
        format!(
            "INSERT INTO seckill_event (sale_num, sequence, row_id, type) \
             SELECT sale_num, sequence, id, '{POINTER}' FROM (SELECT sale_num, sequence, id, \
             LAG(id) OVER (PARTITION BY sale_num ORDER BY id) AS before_id FROM seckill) AS claim \
             WHERE COALESCE(id DIV {POINTER_EVERY_ROWS} <> before_id DIV {POINTER_EVERY_ROWS}, 1)"
        ),
        "UPDATE seckill_sale SET last_sequence = 1".into(),
        "UPDATE seckill_sale AS sale JOIN (SELECT sale_num, COUNT(*) AS events FROM (SELECT sale_num FROM seckill \
         UNION ALL SELECT sale_num FROM seckill_event WHERE order_id IS NOT NULL) AS event GROUP BY sale_num) AS counted \
         ON counted.sale_num = sale.num SET sale.last_sequence = 1 + counted.events"
            .into(),
    ];
    for sql in events {
        session.execute(&sql).await?;
    }
    for row in sales::all(session).await? {
        let body = serde_json::to_vec(&row.sale).map_err(|error| {
            let detail = format!("the terms of sale {} are not JSON: {error}", row.sale.id);
            Fault::without_effect(Cause::Store, detail)
        })?;
        let sql = format!(
            "INSERT INTO seckill_event (sale_num, sequence, row_id, type, body) VALUES ({}, 1, 0, '{SALE_CREATED}', {})",
            row.num,
            quoted(&body)
        );
        session.execute(&sql).await?;
    }
    Ok(())
}
