//! The epochs of sales, and the process that rebuilds a gate. Every change must be one statement, so
//! that two processes never both succeed.

use seckill_engine::Fault;
use seckill_sale::SaleId;

use super::{SaleRow, named};
use crate::session::Session;
use crate::sql::quoted;

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
