//! The schema, version 2, for MySQL 8.0.16 and MariaDB 10.11 or later. How a database of version 1
//! becomes one is in `migration`. Nothing here reads or writes single orders.

use seckill_cluster_codec::order_id::SECRET_BYTES;
use seckill_engine::{Cause, Fault};

use crate::meta::{self, check_lease};
use crate::session::Session;

/// The schema version that this binary requires.
pub(crate) const VERSION: u32 = 2;

/// The name of the secret in `seckill_meta`.
pub(crate) const SECRET: &str = "order_id_secret";

/// External names are VARBINARY because common collations treat `ann`, `Ann` and `ann ` as equal.
/// The unique keys make it impossible to store an oversell, a unit sold twice, a key claimed twice
/// or an exceeded limit. NULL never conflicts, so an ended order frees its units. Keys and slots
/// have tables of their own, because most orders have neither, and each index costs every order.
pub(crate) const TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS seckill_meta (
        name VARBINARY(64) NOT NULL PRIMARY KEY,
        value VARBINARY(255) NOT NULL
    ) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS seckill_sale (
        id VARBINARY(64) NOT NULL PRIMARY KEY,
        num INT UNSIGNED NOT NULL AUTO_INCREMENT,
        stock_key VARBINARY(128) NOT NULL,
        title VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL,
        epoch INT UNSIGNED NOT NULL DEFAULT 0,
        gate ENUM('open','rebuilding') NOT NULL DEFAULT 'rebuilding',
        suspect_epoch INT UNSIGNED NULL,
        leader VARBINARY(64) NULL,
        lease_until DATETIME(3) NULL,
        version BIGINT UNSIGNED NOT NULL DEFAULT 1,
        buyer_limit TINYINT UNSIGNED NULL,
        opens_at_ms BIGINT NULL,
        closes_at_ms BIGINT NULL,
        last_sequence BIGINT UNSIGNED NOT NULL DEFAULT 0,
        voids INT UNSIGNED NOT NULL DEFAULT 0,
        UNIQUE KEY sale_num (num),
        UNIQUE KEY sale_stock_key (stock_key)
    ) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS seckill_item (
        sale_num INT UNSIGNED NOT NULL,
        item TINYINT UNSIGNED NOT NULL,
        id VARBINARY(64) NOT NULL,
        title VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL,
        total INT UNSIGNED NOT NULL,
        price BIGINT UNSIGNED NULL,
        currency BINARY(3) NULL,
        PRIMARY KEY (sale_num, item),
        UNIQUE KEY item_id (sale_num, id)
    ) ENGINE=InnoDB",
    // One row for each unit of an order. The first line's `sequence` is the number of the event
    // that the order was reserved.
    "CREATE TABLE IF NOT EXISTS seckill (
        id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
        date TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3),
        order_id BINARY(24) NOT NULL,
        line TINYINT UNSIGNED NOT NULL DEFAULT 1,
        line_count TINYINT UNSIGNED NOT NULL DEFAULT 1,
        sale_num INT UNSIGNED NOT NULL,
        item TINYINT UNSIGNED NOT NULL DEFAULT 1,
        unit INT UNSIGNED NOT NULL,
        gen INT UNSIGNED NOT NULL,
        buyer VARBINARY(128) NOT NULL,
        epoch INT UNSIGNED NOT NULL,
        sequence BIGINT UNSIGNED NULL,
        state ENUM('reserved','paid','expired','cancelled') NOT NULL DEFAULT 'reserved',
        version INT UNSIGNED NOT NULL DEFAULT 1,
        ended_at DATETIME(3) NULL,
        active_unit INT UNSIGNED GENERATED ALWAYS AS (IF(state IN ('reserved','paid'), unit, NULL)) VIRTUAL,
        UNIQUE KEY one_order (order_id, line),
        UNIQUE KEY one_generation (sale_num, item, unit, gen),
        UNIQUE KEY one_active_unit (sale_num, item, active_unit),
        CONSTRAINT seckill_line CHECK (item BETWEEN 1 AND 64 AND (line > 1 OR sequence IS NOT NULL))
    ) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS seckill_key (
        sale_num INT UNSIGNED NOT NULL,
        buyer VARBINARY(128) NOT NULL,
        idem_key VARBINARY(255) NOT NULL,
        order_id BINARY(24) NOT NULL,
        fingerprint BIGINT UNSIGNED NOT NULL,
        PRIMARY KEY (sale_num, buyer, idem_key),
        UNIQUE KEY one_key (order_id)
    ) ENGINE=InnoDB",
    // The slots of active orders only.
    "CREATE TABLE IF NOT EXISTS seckill_slot (
        sale_num INT UNSIGNED NOT NULL,
        buyer VARBINARY(128) NOT NULL,
        slot TINYINT UNSIGNED NOT NULL,
        order_id BINARY(24) NOT NULL,
        line TINYINT UNSIGNED NOT NULL,
        PRIMARY KEY (sale_num, buyer, slot)
    ) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS seckill_void (
        order_id BINARY(24) NOT NULL PRIMARY KEY,
        sale_num INT UNSIGNED NOT NULL,
        epoch INT UNSIGNED NOT NULL,
        reason VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL,
        at TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3)
    ) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS seckill_give_back (
        order_id BINARY(24) NOT NULL PRIMARY KEY,
        sale_num INT UNSIGNED NOT NULL
    ) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS seckill_position (
        topic VARBINARY(249) NOT NULL,
        part INT NOT NULL,
        log_gen INT UNSIGNED NOT NULL,
        next_offset BIGINT NOT NULL,
        last_order_id VARBINARY(64) NULL,
        PRIMARY KEY (topic, part)
    ) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS seckill_dead (
        topic VARBINARY(249) NOT NULL,
        log_gen INT UNSIGNED NOT NULL,
        part INT NOT NULL,
        at_offset BIGINT NOT NULL,
        payload BLOB NOT NULL,
        error VARCHAR(500) CHARACTER SET utf8mb4 NOT NULL,
        PRIMARY KEY (topic, log_gen, part, at_offset)
    ) ENGINE=InnoDB",
    // The events that are not rows of `seckill`. One of type `order.reserved` only says that the
    // event with this number is in row `row_id`. Rows with higher numbers never have lower ids.
    "CREATE TABLE IF NOT EXISTS seckill_event (
        sale_num INT UNSIGNED NOT NULL,
        sequence BIGINT UNSIGNED NOT NULL,
        row_id BIGINT UNSIGNED NOT NULL,
        date TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3),
        type VARBINARY(32) NOT NULL,
        order_id BINARY(24) NULL,
        body MEDIUMBLOB NULL,
        PRIMARY KEY (sale_num, sequence)
    ) ENGINE=InnoDB",
];

/// Orders as people read them. The service never uses it.
pub(crate) const VIEW: &str = "CREATE OR REPLACE SQL SECURITY INVOKER VIEW seckill_orders AS
    SELECT seckill.id, seckill.date,
        REPLACE(REPLACE(TO_BASE64(seckill.order_id), '+', '-'), '/', '_') AS order_id,
        seckill.line, seckill.line_count,
        CONVERT(sale.id USING utf8mb4) AS sale_id, CONVERT(item.id USING utf8mb4) AS item_id,
        seckill.unit, seckill.gen, CONVERT(seckill.buyer USING utf8mb4) AS buyer,
        CONVERT(claimed.idem_key USING utf8mb4) AS idem_key, slot.slot,
        seckill.state, seckill.ended_at, seckill.epoch, seckill.sequence
    FROM seckill
    LEFT JOIN seckill_sale AS sale ON sale.num = seckill.sale_num
    LEFT JOIN seckill_item AS item ON item.sale_num = seckill.sale_num AND item.item = seckill.item
    LEFT JOIN seckill_key AS claimed ON claimed.order_id = seckill.order_id
    LEFT JOIN seckill_slot AS slot ON slot.sale_num = seckill.sale_num AND slot.buyer = seckill.buyer
        AND slot.order_id = seckill.order_id AND slot.line = seckill.line";

/// Returns the schema version, or 0 if no step has run yet.
pub(crate) async fn version(session: &mut Session) -> Result<u32, Fault> {
    let found: Vec<u32> = session
        .query("SELECT COALESCE(MAX(version), 0) FROM seckill_schema")
        .await?;
    Ok(found.first().copied().unwrap_or(0))
}

/// Checks that this binary and its settings fit the schema. Returns the store's secret.
pub(crate) async fn check(
    session: &mut Session,
    lease_ms: u64,
) -> Result<[u8; SECRET_BYTES], Fault> {
    let version = version(session).await?;
    check_newer(version)?;
    if version < VERSION {
        let detail =
            format!("the MySQL schema has version {version}, not {VERSION}; run `seckill init`");
        return Err(Fault::without_effect(Cause::Store, detail));
    }
    check_lease(session, lease_ms).await?;
    let known = meta::get(session, SECRET).await?;
    let secret = known.and_then(|value| value.as_slice().try_into().ok());
    secret.ok_or_else(|| {
        let detail =
            format!("seckill_meta has no {SECRET} with {SECRET_BYTES} bytes; run `seckill init`");
        Fault::without_effect(Cause::Store, detail)
    })
}

pub(crate) fn check_newer(version: u32) -> Result<(), Fault> {
    if version > VERSION {
        let detail = format!(
            "the MySQL schema has version {version}, but this binary supports up to {VERSION}: use the newer binary"
        );
        return Err(Fault::without_effect(Cause::Store, detail));
    }
    Ok(())
}
