//! Creates and changes sales: first in the store, then in the gate, then waits until no server
//! still applies the old terms.

use std::time::Duration;

use seckill_engine::{Cause, Effect, Fault};
use seckill_mysql_store::{Inserted, Session, sales};
use seckill_sale::{ChangeRefused, NewSale, Sale, SaleChange, SaleId, SaleRefused};

use super::deciding;
use crate::rebuild;
use crate::shared::{CachedSale, Core};

/// How often a new or changed sale is checked until its gate is open.
const OPEN_POLL: Duration = Duration::from_millis(10);
/// The longest wait for a statement over all orders of a sale.
const SLOTS_WAIT: Duration = Duration::from_secs(60);

/// The deadline of an operator's request that waits for a gate.
fn deadline(core: &Core) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_millis(core.options.rebuild_lease_ms)
}

/// Creates a sale, and waits until it is open.
pub(crate) async fn create(core: &Core, new: NewSale) -> Result<Result<Sale, SaleRefused>, Fault> {
    let sale = match new.validate() {
        Ok(sale) => sale,
        Err(bad) => return Ok(Err(bad.into())),
    };
    let stock_key = format!("{}{}", core.options.key_prefix, sale.id);
    let mut session = core.store.ready().await?;
    if sales::create(&mut session, &sale, &stock_key).await? != Inserted::Done {
        return match sales::one(&mut session, &sale.id).await? {
            Some(row) => Ok(Err(SaleRefused::Exists(Box::new(row.sale)))),
            None => Err(Fault::without_effect(
                Cause::Store,
                format!(
                    "another sale has the stock key {stock_key}; set another cluster.key_prefix"
                ),
            )),
        };
    }
    drop(session);
    open(core, &sale.id).await?;
    Ok(Ok(sale))
}

/// Requests that a sale's gate be opened, and waits until this or another process has done so.
async fn open(core: &Core, id: &SaleId) -> Result<(), Fault> {
    let until = deadline(core);
    core.rebuild(id);
    loop {
        if let Ok(Some(cached)) = core.read_sale(id).await
            && cached.row.is_open
        {
            return Ok(());
        }
        if tokio::time::Instant::now() > until {
            let why = core.why_closed(id);
            let why = why.unwrap_or_else(|| "it is being rebuilt".into());
            return Err(Fault {
                effect: Effect::Happened,
                cause: Cause::Rebuilding,
                detail: format!("the sale is stored, but its gate is not open yet: {why}"),
            });
        }
        tokio::time::sleep(OPEN_POLL).await;
    }
}

/// Changes a sale's terms, and waits until no server still applies the old terms.
pub(crate) async fn change(
    core: &Core,
    id: &SaleId,
    change: SaleChange,
) -> Result<Result<Sale, SaleRefused>, Fault> {
    let mut session = core.store.ready().await?;
    // Counting what each buyer of a large sale holds takes time, too.
    session.wait_longer(SLOTS_WAIT);
    let mut closed = None;
    let until = deadline(core);
    while closed.is_none()
        && let Some(row) = sales::one(&mut session, id).await?
    {
        // Refuse an impossible change before closing the gate for it.
        let stored = sales::usage(&mut session, &row, &change).await?;
        let changed = match change.apply(&row.sale, &stored.usage) {
            Ok(changed) => changed,
            Err(refused) => return Ok(Err(ChangeRefused::into(refused))),
        };
        if !stored.ends_epoch(&row, &changed) {
            break;
        }
        // The epoch ends: claims in transit are stored first, and meanwhile the lease keeps other
        // processes from rebuilding the closed gate.
        let (leader, lease_ms) = (rebuild::leader()?, core.options.rebuild_lease_ms);
        if sales::close(&mut session, &row, &leader, lease_ms).await? {
            closed = Some((row, leader));
        } else if tokio::time::Instant::now() > until {
            return Err(deciding::rebuilding());
        } else {
            tokio::time::sleep(OPEN_POLL).await;
        }
    }
    let drained = match &closed {
        Some((row, _)) => rebuild::drain(core, row).await,
        None => Ok(()),
    };
    let stored = match drained {
        Ok(()) => store_change(&mut session, id, &change).await,
        Err(fault) => Err(fault),
    };
    // A session in which a statement failed may be unusable.
    drop(session);
    if !matches!(stored, Ok(Ok(_)))
        && let Some((row, leader)) = closed
    {
        // The change is not known to be stored, so reopen the gate.
        if let Ok(mut session) = core.store.ready().await {
            let _ = sales::abandoned(&mut session, id, row.epoch, &leader).await;
        }
        core.rebuild(id);
    }
    let (changed, ends_epoch) = match stored? {
        Ok(stored) => stored,
        Err(refused) => return Ok(Err(refused)),
    };
    if ends_epoch {
        open(core, id).await?;
    } else {
        send_terms(core, id, &changed).await?;
    }
    Ok(Ok(changed))
}

/// Stores changed terms. Returns whether the change ended the epoch.
async fn store_change(
    session: &mut Session,
    id: &SaleId,
    change: &SaleChange,
) -> Result<Result<(Sale, bool), SaleRefused>, Fault> {
    session.begin().await?;
    let Some(row) = sales::locked(session, id).await? else {
        session.rollback().await?;
        return Ok(Err(SaleRefused::NoSuchSale(id.clone())));
    };
    let stored = sales::usage(session, &row, change).await?;
    let changed = match change.apply(&row.sale, &stored.usage) {
        Ok(changed) => changed,
        Err(refused) => {
            session.rollback().await?;
            return Ok(Err(ChangeRefused::into(refused)));
        }
    };
    sales::store_terms(session, &row, &changed).await?;
    let ends_epoch = stored.ends_epoch(&row, &changed);
    if changed.buyer_limit != row.sale.buyer_limit {
        sales::renew_slots(session, &row, &changed).await?;
    }
    if ends_epoch {
        sales::end_epoch(session, id).await?;
    }
    session.commit().await?;
    Ok(Ok((changed, ends_epoch)))
}

/// Sends changed terms to the gate, and waits until no server applies the old ones.
async fn send_terms(core: &Core, id: &SaleId, sale: &Sale) -> Result<(), Fault> {
    let until = deadline(core);
    let stored = |detail: String| Fault {
        effect: Effect::Happened,
        cause: Cause::Rebuilding,
        detail: format!("the change is stored, but the gate has not applied it yet: {detail}"),
    };
    loop {
        let why = match core.read_sale(id).await {
            Ok(None) => return Ok(()),
            Ok(Some(cached)) => match send_once(core, id, &cached, sale).await {
                None => break,
                Some(why) => why,
            },
            Err(fault) => fault.detail,
        };
        if tokio::time::Instant::now() > until {
            return Err(stored(why));
        }
        tokio::time::sleep(OPEN_POLL).await;
    }
    tokio::time::sleep(Duration::from_millis(core.options.lease_ms)).await;
    Ok(())
}

/// Sends newer terms to the gate. Returns the reason if the gate does not apply them.
async fn send_once(core: &Core, id: &SaleId, cached: &CachedSale, sale: &Sale) -> Option<String> {
    let row = &cached.row;
    match core.gate.sync(&cached.keys, row.epoch, sale).await {
        Ok(Ok(head)) if head.version >= sale.version => {
            cached.heard(&head);
            None
        }
        Ok(Ok(_)) => Some("the gate still has older terms".into()),
        Ok(Err(refusal)) => {
            core.refused(id, &refusal);
            Some(refusal.to_string())
        }
        Err(fault) => Some(fault.detail),
    }
}
