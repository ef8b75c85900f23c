//! Creates the database and its tables, or migrates them. `forget` deletes what is in them, and must
//! run only on an explicit request.

use std::time::Duration;

use seckill_cluster_codec::order_id::SECRET_BYTES;
use seckill_engine::{Cause, Fault};

use crate::meta::{self, LEASE};
use crate::migration::{from_version_1, has_column};
use crate::schema::{SECRET, TABLES, VERSION, VIEW, check_newer, version};
use crate::session::Session;
use crate::store::Store;

/// Serializes migrations by processes that start at the same time.
const LOCK: &str = "seckill_schema";
const LOCK_WAIT_S: u32 = 30;

/// Timeout for truncating a table.
const FORGET_WAIT: Duration = Duration::from_secs(120);

/// Creates the database and any missing tables. Any number of processes may call this concurrently.
pub async fn migrate(store: &Store) -> Result<(), Fault> {
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
    let migrated = migrate_locked(&mut session, store.lease_ms()).await;
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
    if version == 0 && has_column(session, "seckill", "sale_id").await? {
        let detail = "an older program has created some of its tables, but not all; run its `seckill init` again, \
                      then this one's";
        return Err(Fault::without_effect(Cause::Store, detail));
    }
    if version == 1 {
        from_version_1(session).await?;
    }
    if version < VERSION {
        // An interrupted run may have created some tables already.
        for table in TABLES {
            session.execute(table).await?;
        }
        session.execute(VIEW).await?;
        session
            .execute(&format!(
                "INSERT INTO seckill_schema (version) VALUES ({VERSION})"
            ))
            .await?;
    }
    if meta::get(session, LEASE).await?.is_none() {
        meta::set_lease(session, lease_ms).await?;
    }
    if meta::get(session, SECRET).await?.is_none() {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| {
            Fault::without_effect(
                Cause::Store,
                format!("the system provided no random bytes: {error}"),
            )
        })?;
        meta::set(session, SECRET, &secret).await?;
    }
    Ok(())
}

/// Deletes all sales, orders and decisions. Keeps the tables, the secret and the position in the
/// log. New sales start in epochs that no earlier claim has.
pub async fn forget(store: &Store) -> Result<(), Fault> {
    let mut session = store.ready().await?;
    session.begin().await?;
    let highest: Vec<Option<u32>> = session
        .query("SELECT MAX(epoch) FROM seckill_sale FOR UPDATE")
        .await?;
    let base = meta::base_epoch(&mut session).await?.max(
        highest
            .first()
            .copied()
            .flatten()
            .map_or(0, |epoch| epoch + 1),
    );
    // Claims in transit cannot be stored once their sale is deleted.
    session.execute("DELETE FROM seckill_sale").await?;
    meta::set_base_epoch(&mut session, base).await?;
    session.commit().await?;
    session.wait_longer(FORGET_WAIT);
    for table in [
        "seckill_give_back",
        "seckill_event",
        "seckill_void",
        "seckill_dead",
        "seckill_slot",
        "seckill_key",
        "seckill_item",
        "seckill",
    ] {
        session.execute(&format!("TRUNCATE TABLE {table}")).await?;
    }
    Ok(())
}
