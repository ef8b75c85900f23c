//! The schema, as versioned migration steps for MySQL 8 and MariaDB 10.11. Released steps must
//! never change. Nothing here reads or writes single orders.

use seckill_cluster_codec::order_id::SECRET_BYTES;
use seckill_engine::{Cause, Fault};

use crate::meta::{self, check_lease};
use crate::session::Session;

/// The schema version that this binary requires.
const VERSION: u32 = STEPS.len() as u32;

/// The name of the secret in `seckill_meta`.
pub(crate) const SECRET: &str = "order_id_secret";

/// External names are VARBINARY because common collations treat `ann`, `Ann` and `ann ` as equal.
/// The unique keys make it impossible to store an oversell, a unit sold twice, a key claimed twice
/// or an exceeded limit. NULL never conflicts, so an ended order frees its unit and its slot.
pub(crate) const STEPS: &[&[&str]] = &[&[
    "CREATE TABLE seckill_meta (
        name VARBINARY(64) NOT NULL PRIMARY KEY,
        value VARBINARY(255) NOT NULL
    ) ENGINE=InnoDB",
    "CREATE TABLE seckill_sale (
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
        state ENUM('live','archived') NOT NULL DEFAULT 'live',
        total INT UNSIGNED NOT NULL,
        buyer_limit TINYINT UNSIGNED NULL,
        opens_at_ms BIGINT NULL,
        closes_at_ms BIGINT NULL,
        pay_ms BIGINT NULL,
        UNIQUE KEY sale_num (num),
        UNIQUE KEY sale_stock_key (stock_key)
    ) ENGINE=InnoDB",
    "CREATE TABLE seckill (
        id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
        date TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3),
        order_id VARBINARY(64) NOT NULL,
        line SMALLINT UNSIGNED NOT NULL DEFAULT 1,
        sale_id VARBINARY(64) NOT NULL,
        unit INT UNSIGNED NOT NULL,
        gen INT UNSIGNED NOT NULL,
        buyer VARBINARY(128) NOT NULL,
        slot TINYINT UNSIGNED NULL,
        idem_key VARBINARY(255) NULL,
        fingerprint BIGINT UNSIGNED NOT NULL,
        epoch INT UNSIGNED NOT NULL,
        state ENUM('reserved','paid','expired','cancelled') NOT NULL DEFAULT 'reserved',
        version INT UNSIGNED NOT NULL DEFAULT 1,
        expires_at DATETIME(3) NULL,
        ended_at DATETIME(3) NULL,
        active_unit INT UNSIGNED GENERATED ALWAYS AS (IF(state IN ('reserved','paid'), unit, NULL)) VIRTUAL,
        active_slot TINYINT UNSIGNED GENERATED ALWAYS AS (IF(state IN ('reserved','paid'), slot, NULL)) VIRTUAL,
        UNIQUE KEY one_order (order_id, line),
        UNIQUE KEY one_generation (sale_id, unit, gen),
        UNIQUE KEY one_active_unit (sale_id, active_unit),
        UNIQUE KEY one_claim_a_key (sale_id, buyer, idem_key, line),
        UNIQUE KEY one_order_a_slot (sale_id, buyer, active_slot)
    ) ENGINE=InnoDB",
    "CREATE TABLE seckill_void (
        order_id VARBINARY(64) NOT NULL PRIMARY KEY,
        sale_id VARBINARY(64) NOT NULL,
        epoch INT UNSIGNED NOT NULL,
        reason VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL,
        at TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3)
    ) ENGINE=InnoDB",
    "CREATE TABLE seckill_give_back (
        order_id VARBINARY(64) NOT NULL PRIMARY KEY,
        sale_id VARBINARY(64) NOT NULL
    ) ENGINE=InnoDB",
    "CREATE TABLE seckill_offset (
        topic VARBINARY(249) NOT NULL,
        part INT NOT NULL,
        log_gen INT UNSIGNED NOT NULL,
        next_offset BIGINT NOT NULL,
        last_order_id VARBINARY(64) NULL,
        PRIMARY KEY (topic, part)
    ) ENGINE=InnoDB",
    "CREATE TABLE seckill_dead (
        topic VARBINARY(249) NOT NULL,
        log_gen INT UNSIGNED NOT NULL,
        part INT NOT NULL,
        at_offset BIGINT NOT NULL,
        payload BLOB NOT NULL,
        error VARCHAR(500) CHARACTER SET utf8mb4 NOT NULL,
        PRIMARY KEY (topic, log_gen, part, at_offset)
    ) ENGINE=InnoDB",
    "CREATE TABLE seckill_event (
        id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
        pos BIGINT UNSIGNED NULL,
        sale_id VARBINARY(64) NOT NULL,
        order_id VARBINARY(64) NULL,
        type VARBINARY(32) NOT NULL,
        body MEDIUMBLOB NULL,
        UNIQUE KEY event_pos (pos)
    ) ENGINE=InnoDB",
]];

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
