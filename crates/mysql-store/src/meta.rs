//! The values in `seckill_meta`, which all processes of a cluster share.

use seckill_engine::{Cause, Fault};

use crate::session::{Inserted, Session};
use crate::sql::quoted;

pub(crate) const LEASE: &str = "lease_ms";
const BASE_EPOCH: &str = "base_epoch";

/// Returns the epoch in which new sales start.
pub(crate) async fn base_epoch(session: &mut Session) -> Result<u32, Fault> {
    let text = get(session, BASE_EPOCH).await?.unwrap_or_default();
    Ok(std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0))
}

pub(crate) async fn set_base_epoch(session: &mut Session, epoch: u32) -> Result<(), Fault> {
    set(session, BASE_EPOCH, epoch.to_string().as_bytes()).await
}

/// Reads a value of `seckill_meta`.
pub async fn get(session: &mut Session, name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let sql = format!(
        "SELECT value FROM seckill_meta WHERE name = {}",
        quoted(name.as_bytes())
    );
    Ok(session.query(&sql).await?.pop())
}

/// Writes a value of `seckill_meta`.
pub async fn set(session: &mut Session, name: &str, value: &[u8]) -> Result<(), Fault> {
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

/// Sets the lease duration of all processes.
pub async fn set_lease(session: &mut Session, lease_ms: u64) -> Result<(), Fault> {
    set(session, LEASE, lease_ms.to_string().as_bytes()).await
}

/// Checks that this process uses the cluster's lease. A rebuild waits for its own lease before it
/// assumes that no server trusts old state, so all processes must use the same one.
pub async fn check_lease(session: &mut Session, lease_ms: u64) -> Result<(), Fault> {
    let known = get(session, LEASE).await?;
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
