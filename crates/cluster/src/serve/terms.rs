//! Sales made and changed: what is stored first, then what the gate is told, and the wait until no server can answer by the
//! old terms.

use std::time::Duration;

use seckill_engine::{Cause, Effect, Fault, SaleRefused};
use seckill_sale::{ChangeRefused, NewSale, Sale, SaleChange, SaleId};

use super::Core;
use super::deciding;
use super::sale_cache::CachedSale;
use crate::rebuild;
use crate::store::{Inserted, Session, sales};

/// How often a new or changed sale is looked at until its gate is open.
const OPEN_POLL: Duration = Duration::from_millis(10);
/// How long it may take to go over a whole sale's orders for its buyers' slots.
const SLOTS_WAIT: Duration = Duration::from_secs(60);

/// The moment until which an operator's request waits for a gate.
fn deadline(core: &Core) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_millis(core.options.rebuild_lease_ms)
}

/// Makes a sale, and waits until it sells.
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

/// Has a sale's gate opened, by this process or another, and waits for it.
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

/// Changes a sale's terms, and waits until no server can answer by the old ones.
pub(crate) async fn change(
    core: &Core,
    id: &SaleId,
    change: SaleChange,
) -> Result<Result<Sale, SaleRefused>, Fault> {
    let mut session = core.store.ready().await?;
    // Counting what each buyer of a large sale holds takes its time, too.
    session.wait_longer(SLOTS_WAIT);
    let mut closed = None;
    let until = deadline(core);
    while closed.is_none()
        && let Some(row) = sales::one(&mut session, id).await?
        && sales::changes_limit(&row, &change)
    {
        // What cannot be is refused before anything is closed for it.
        let most_held = sales::most_held(&mut session, id).await?;
        if let Err(refused) = change.apply(&row.sale, most_held) {
            return Ok(Err(ChangeRefused::into(refused)));
        }
        // A changed limit ends the epoch: what is on its way is carried to the store first, while nobody else
        // takes the closed gate for a lost one.
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
    // A session in which something failed may be of no more use.
    drop(session);
    if !matches!(stored, Ok(Ok(_)))
        && let Some((row, leader)) = closed
    {
        // As far as is known nothing was changed: the gate opens again.
        if let Ok(mut session) = core.store.ready().await {
            let _ = sales::abandoned(&mut session, id, row.epoch, &leader).await;
        }
        core.rebuild(id);
    }
    let (changed, changes_limit) = match stored? {
        Ok(stored) => stored,
        Err(refused) => return Ok(Err(refused)),
    };
    if changes_limit {
        open(core, id).await?;
    } else {
        told(core, id, &changed).await?;
    }
    Ok(Ok(changed))
}

/// Stores changed terms; says whether the limit is one of them.
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
    let changes_limit = sales::changes_limit(&row, change);
    let most_held = if change.buyer_limit.is_some() {
        sales::most_held(session, id).await?
    } else {
        0
    };
    let changed = match change.apply(&row.sale, most_held) {
        Ok(changed) => changed,
        Err(refused) => {
            session.rollback().await?;
            return Ok(Err(ChangeRefused::into(refused)));
        }
    };
    sales::store_terms(session, &changed).await?;
    if changes_limit {
        sales::renew_slots(session, id).await?;
    }
    session.commit().await?;
    Ok(Ok((changed, changes_limit)))
}

/// Tells the gate of changed terms, and waits until no server can answer by the old ones.
async fn told(core: &Core, id: &SaleId, sale: &Sale) -> Result<(), Fault> {
    let until = deadline(core);
    let stored = |detail: String| Fault {
        effect: Effect::Happened,
        cause: Cause::Rebuilding,
        detail: format!("the change is stored, but the gate does not know it yet: {detail}"),
    };
    loop {
        let why = match core.read_sale(id).await {
            Ok(None) => return Ok(()),
            Ok(Some(cached)) => match tell(core, id, &cached, sale).await {
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

/// Tells the gate of newer terms; why not, where it does not take them.
async fn tell(core: &Core, id: &SaleId, cached: &CachedSale, sale: &Sale) -> Option<String> {
    let row = &cached.row;
    match core.gate.sync(&row.keys, row.epoch, sale).await {
        Ok(Ok(head)) if head.version >= sale.version => {
            cached.heard(&head);
            None
        }
        Ok(Ok(_)) => Some("the gate kept its terms".into()),
        Ok(Err(refusal)) => {
            core.refused(id, &refusal);
            Some(refusal.to_string())
        }
        Err(fault) => Some(fault.detail),
    }
}
