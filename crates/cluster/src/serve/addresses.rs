//! Finds the outcome of an order id or a key. The order of the steps makes each answer final.
//! Absence alone is never a rejection.

use seckill_engine::{Fault, Outcome};
use seckill_mysql_store::orders::{self, Settled};
use seckill_mysql_store::sales;
use seckill_sale::{Buyer, IdempotencyKey, OrderId, SaleId};

use crate::clock::now_ms;
use crate::shared::{Core, keys_of};

/// Returns the outcome of an order id.
pub(crate) async fn outcome(core: &Core, id: &OrderId) -> Result<Outcome, Fault> {
    // First open a session, which reads the store's secret: without it, no id can be verified.
    let mut session = core.store.ready().await?;
    let Some(named) = core.names().and_then(|names| names.ids.read(id)) else {
        return Ok(Outcome::None);
    };
    // Read the epoch before the order: the other way round, an order stored in between is missed.
    let Some(row) = sales::by_num(&mut session, named.sale_num).await? else {
        return Ok(Outcome::None);
    };
    if let Some(order) = orders::order(&mut session, id).await? {
        return Ok(Outcome::Order(order));
    }
    if let Some((_, settled)) = orders::settled(&mut session, [id]).await?.pop() {
        return match settled {
            Settled::Void(_) => Ok(Outcome::None),
            Settled::Order(..) => Ok(Outcome::Pending),
        };
    }
    if named.epoch < row.epoch {
        // The epoch is fenced: nothing of it can be stored any more.
        return Ok(Outcome::None);
    }
    // If the clock was set back meanwhile, the id's time may lie in the future.
    let is_young = now_ms().abs_diff(named.at_ms) < core.options.pending_age_ms;
    if !row.is_open || is_young {
        return Ok(Outcome::Pending);
    }
    drop(session);
    let keys = keys_of(&row);
    match core.gate.knows(&keys, row.epoch, id).await? {
        Ok(false) => {}
        Ok(true) => return Ok(Outcome::Pending),
        Err(refusal) => {
            core.refused(&row.sale.id, &refusal);
            return Ok(Outcome::Pending);
        }
    }
    let mut session = core.store.ready().await?;
    let given_up = orders::give_up(&mut session, &row.sale.id, id, named).await?;
    Ok(match given_up {
        Some(Settled::Void(_)) => Outcome::None,
        Some(Settled::Order(..)) | None => Outcome::Pending,
    })
}

/// Returns the outcome of a key. A key that the store does not know may have a claim in flight.
pub(crate) async fn of_key(
    core: &Core,
    sale: &SaleId,
    buyer: &Buyer,
    key: &IdempotencyKey,
) -> Result<Outcome, Fault> {
    let row = {
        let mut session = core.store.ready().await?;
        // As in `outcome`: read the epoch before the order.
        let Some(row) = sales::one(&mut session, sale).await? else {
            return Ok(Outcome::None);
        };
        if let Some(order) = orders::of_key(&mut session, sale, buyer, key).await? {
            return Ok(Outcome::Order(order));
        }
        row
    };
    if !row.is_open {
        return Ok(Outcome::Pending);
    }
    let Some(names) = core.names() else {
        return Ok(Outcome::Pending);
    };
    let keys = keys_of(&row);
    match core
        .gate
        .order_of_key(&keys, row.epoch, names.digester.key(buyer, key))
        .await?
    {
        Ok(Some(id)) => outcome(core, &id).await,
        Ok(None) => Ok(Outcome::None),
        Err(refusal) => {
            core.refused(sale, &refusal);
            Ok(Outcome::Pending)
        }
    }
}
