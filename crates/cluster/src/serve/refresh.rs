//! Keeps cached sales fresh: reads all sales within the lease and checks the gates of those in use.
//! Also finishes interrupted work: newer terms, releases, rebuilds. Never on a request's path.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seckill_engine::Fault;
use seckill_mysql_store::{meta, orders, sales};
use seckill_sale::{OrderId, SaleId};
use tokio::sync::watch;

use crate::shared::{CachedSale, Core};
use crate::stop::stopped;

const GIVE_BACKS_MAX: usize = 1_000;

/// Refreshes until `stop` is set.
pub(crate) async fn run(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    let period = refresh_period(&core);
    loop {
        match read(&core).await {
            Ok(()) => core.store_condition.is_well(),
            Err(fault) => {
                tracing::debug!(%fault, "the sales could not be read");
                core.store_condition.fails(fault.detail);
            }
        }
        if core.gate_condition.trouble().is_some() && core.gate.ping().await.is_ok() {
            core.gate_condition.is_well();
        }
        peek_used(&core).await;
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = stopped(&mut stop) => return,
        }
    }
}

/// Releases pending units until `stop` is set. Runs beside the refresh, which must not wait for a
/// long list of them.
pub(crate) async fn give_backs(core: Arc<Core>, mut stop: watch::Receiver<bool>) {
    loop {
        let round = async {
            if let Err(fault) = give_back_waiting(&core).await {
                tracing::debug!(%fault, "units could not be released yet");
            }
            tokio::time::sleep(refresh_period(&core)).await;
        };
        tokio::select! {
            () = round => {}
            () = stopped(&mut stop) => return,
        }
    }
}

fn refresh_period(core: &Core) -> Duration {
    Duration::from_millis(core.options.lease_ms / 3).max(Duration::from_millis(10))
}

/// Reads all sales into the cache once.
pub(crate) async fn read(core: &Core) -> Result<(), Fault> {
    let began = Instant::now();
    let mut session = core.store.ready().await?;
    meta::check_lease(&mut session, core.options.lease_ms).await?;
    let mut known = HashSet::new();
    for row in sales::all(&mut session).await? {
        known.insert(row.sale.id.clone());
        if (!row.is_open && row.lease_is_over) || row.is_suspect() {
            core.rebuild(&row.sale.id);
        }
        core.sale_cache.take(row);
    }
    core.sale_cache.keep_only(&known);
    core.sale_cache.read_since(began);
    Ok(())
}

/// Checks the gates of sales that were requested since the last round. For all others, clears the
/// sold-out mark instead.
async fn peek_used(core: &Core) {
    for cached in core.sale_cache.all() {
        if cached.take_used() {
            peek(core, &cached).await;
        } else {
            cached.doubt();
        }
    }
}

async fn peek(core: &Core, cached: &CachedSale) {
    let row = &cached.row;
    if !row.is_open {
        return;
    }
    match core.gate.peek(&cached.keys, row.epoch).await {
        Ok(Ok(head)) => {
            cached.heard(&head);
            core.gate_condition.is_well();
            if head.version < row.sale.version {
                // The process that changed the terms died before it updated the gate.
                let _ = core.gate.sync(&cached.keys, row.epoch, &row.sale).await;
            }
        }
        Ok(Err(refusal)) => {
            cached.doubt();
            core.refused(&row.sale.id, &refusal);
        }
        Err(fault) => {
            cached.doubt();
            core.gate_condition.fails(fault.detail);
        }
    }
}

/// Releases pending units, page by page. A sale whose units cannot be released now does not hold up
/// the others.
async fn give_back_waiting(core: &Core) -> Result<(), Fault> {
    let mut after: Option<OrderId> = None;
    loop {
        let waiting = {
            let mut session = core.store.ready().await?;
            orders::to_give_back(&mut session, after.as_ref(), GIVE_BACKS_MAX).await?
        };
        for (order_id, sale) in &waiting {
            if let Err(fault) = give_back(core, order_id, sale).await {
                tracing::debug!(%order_id, %fault, "the unit will be released later");
            }
        }
        if waiting.len() < GIVE_BACKS_MAX {
            return Ok(());
        }
        after = waiting.into_iter().next_back().map(|(id, _)| id);
    }
}

/// Releases an ended order's unit and records that in the store. A later round retries failures.
pub(crate) async fn give_back(core: &Core, order_id: &OrderId, sale: &SaleId) -> Result<(), Fault> {
    let Some(cached) = core.cached(sale).await? else {
        return Ok(());
    };
    let row = &cached.row;
    if !row.is_open {
        return Ok(());
    }
    match core
        .gate
        .give_back(&cached.keys, row.epoch, order_id)
        .await?
    {
        Ok((head, true)) => {
            cached.heard(&head);
            let mut session = core.store.ready().await?;
            orders::released(&mut session, order_id, row.epoch).await
        }
        Ok((_, false)) => {
            // The store has an order that the gate does not know.
            tracing::error!(%order_id, %sale, "the gate does not know an order that has ended; rebuilding the gate");
            let mut session = core.store.ready().await?;
            sales::suspect(&mut session, sale, row.epoch).await?;
            core.rebuild(sale);
            Ok(())
        }
        Err(refusal) => {
            core.refused(sale, &refusal);
            Ok(())
        }
    }
}
