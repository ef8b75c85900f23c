//! The schema, as versioned migration steps for MySQL 8 and MariaDB 10.11. Released steps must
//! never change. Nothing here reads or writes single orders.

use std::time::Duration;

use seckill_engine::{Cause, Fault};

use super::{Inserted, Session, Store, quoted};
use crate::codec::order_id::SECRET_BYTES;

/// The schema version that this binary requires.
pub(crate) const VERSION: u32 = STEPS.len() as u32;

/// Serializes migrations by processes that start at the same time.
const LOCK: &str = "seckill_schema";
const LOCK_WAIT_S: u32 = 30;

const SECRET: &str = "order_id_secret";
const LEASE: &str = "lease_ms";
const BASE_EPOCH: &str = "base_epoch";
/// Timeout for truncating a table.
const FORGET_WAIT: Duration = Duration::from_secs(120);

/// External names are VARBINARY because common collations treat `ann`, `Ann` and `ann ` as equal.
/// The unique keys make it impossible to store an oversell, a unit sold twice, a key claimed twice
/// or an exceeded limit. NULL never conflicts, so an ended order frees its unit and its slot.
const STEPS: &[&[&str]] = &[&[
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

/// Creates the database and any missing tables. Any number of processes may call this concurrently.
pub(crate) async fn migrate(store: &Store) -> Result<(), Fault> {
    store.create_database().await?;
    let mut session = store.session().await?;
    let lock = format!("SELECT GET_LOCK('{LOCK}', {LOCK_WAIT_S})");
    let locked: Vec<Option<u8>> = session.query(&lock).await?;
    if locked.first() != Some(&Some(1)) {
        let detail = format!(
            "another process has held the schema lock for {LOCK_WAIT_S} s; see SHOW PROCESSLIST"
        );
        return Err(Fault::without_effect(Cause::Store, detail));
    }
    let migrated = migrate_locked(&mut session, store.lease_ms).await;
    let unlock = format!("SELECT RELEASE_LOCK('{LOCK}')");
    let unlocked = session.query::<Option<u8>>(&unlock).await;
    // The first failure names the cause: after it the connection may be gone.
    migrated?;
    unlocked?;
    store.forget_version();
    Ok(())
}

async fn migrate_locked(session: &mut Session, lease_ms: u64) -> Result<(), Fault> {
    let versions = "CREATE TABLE IF NOT EXISTS seckill_schema (
        version INT UNSIGNED NOT NULL PRIMARY KEY,
        at TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3)
    ) ENGINE=InnoDB";
    session.execute(versions).await?;
    let version = version(session).await?;
    check_newer(version)?;
    for (index, step) in STEPS.iter().enumerate().skip(version as usize) {
        for statement in *step {
            // DDL is not transactional, so an interrupted run may have created some tables already.
            let statement = statement.replacen("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ", 1);
            session.execute(&statement).await?;
        }
        session
            .execute(&format!(
                "INSERT INTO seckill_schema (version) VALUES ({})",
                index + 1
            ))
            .await?;
    }
    if meta(session, LEASE).await?.is_none() {
        set_lease(session, lease_ms).await?;
    }
    if meta(session, SECRET).await?.is_none() {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| {
            Fault::without_effect(
                Cause::Store,
                format!("the system provided no random bytes: {error}"),
            )
        })?;
        set_meta(session, SECRET, &secret).await?;
    }
    Ok(())
}

/// Deletes all sales, orders and decisions. Keeps the tables, the secret and the position in the
/// log. New sales start in epochs that no earlier claim has.
pub(crate) async fn forget(store: &Store) -> Result<(), Fault> {
    let mut session = store.ready().await?;
    session.begin().await?;
    let highest: Vec<Option<u32>> = session
        .query("SELECT MAX(epoch) FROM seckill_sale FOR UPDATE")
        .await?;
    let base = base_epoch(&mut session).await?.max(
        highest
            .first()
            .copied()
            .flatten()
            .map_or(0, |epoch| epoch + 1),
    );
    // Claims in transit cannot be stored once their sale is deleted.
    session.execute("DELETE FROM seckill_sale").await?;
    set_meta(&mut session, BASE_EPOCH, base.to_string().as_bytes()).await?;
    session.commit().await?;
    session.wait_longer(FORGET_WAIT);
    for table in [
        "seckill_give_back",
        "seckill_event",
        "seckill_void",
        "seckill_dead",
        "seckill",
    ] {
        session.execute(&format!("TRUNCATE TABLE {table}")).await?;
    }
    Ok(())
}

/// Returns the epoch in which new sales start.
pub(crate) async fn base_epoch(session: &mut Session) -> Result<u32, Fault> {
    let text = meta(session, BASE_EPOCH).await?.unwrap_or_default();
    Ok(std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0))
}

/// Reads a value of `seckill_meta`.
pub(crate) async fn meta(session: &mut Session, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let sql = format!(
        "SELECT value FROM seckill_meta WHERE name = {}",
        quoted(name.as_bytes())
    );
    Ok(session.query(&sql).await?.pop())
}

/// Writes a value of `seckill_meta`.
pub(crate) async fn set_meta(session: &mut Session, name: &str, value: &[u8]) -> Result<(), Fault> {
    let name = quoted(name.as_bytes());
    let sql = format!(
        "INSERT INTO seckill_meta (name, value) VALUES ({name}, {})",
        quoted(value)
    );
    if session.insert(&sql).await? != Inserted::Done {
        session
            .execute(&format!(
                "UPDATE seckill_meta SET value = {} WHERE name = {name}",
                quoted(value)
            ))
            .await?;
    }
    Ok(())
}

/// Returns the schema version, or 0 if no step has run yet.
async fn version(session: &mut Session) -> Result<u32, Fault> {
    let found: Vec<u32> = session
        .query("SELECT COALESCE(MAX(version), 0) FROM seckill_schema")
        .await?;
    Ok(found.first().copied().unwrap_or(0))
}

/// Sets the lease duration of all processes.
pub(crate) async fn set_lease(session: &mut Session, lease_ms: u64) -> Result<(), Fault> {
    set_meta(session, LEASE, lease_ms.to_string().as_bytes()).await
}

/// Checks that this process uses the cluster's lease. A rebuild waits for its own lease before it
/// assumes that no server trusts old state, so all processes must use the same one.
pub(crate) async fn check_lease(session: &mut Session, lease_ms: u64) -> Result<(), Fault> {
    let known = meta(session, LEASE).await?;
    let known = known.map(|value| String::from_utf8_lossy(&value).into_owned());
    match known {
        Some(known) if known != lease_ms.to_string() => Err(Fault::without_effect(
            Cause::Store,
            format!(
                "cluster.lease_ms is {lease_ms} here, and {known} in the cluster; it must be the same in \
                 all processes. To change it, stop all processes and run `seckill init` with the new \
                 value"
            ),
        )),
        Some(_) | None => Ok(()),
    }
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
    let known = meta(session, SECRET).await?;
    let secret = known.and_then(|value| value.as_slice().try_into().ok());
    secret.ok_or_else(|| {
        let detail =
            format!("seckill_meta has no {SECRET} with {SECRET_BYTES} bytes; run `seckill init`");
        Fault::without_effect(Cause::Store, detail)
    })
}

fn check_newer(version: u32) -> Result<(), Fault> {
    if version > VERSION {
        let detail = format!(
            "the MySQL schema has version {version}, but this binary supports up to {VERSION}: use the newer binary"
        );
        return Err(Fault::without_effect(Cause::Store, detail));
    }
    Ok(())
}
