//! State shared by the components of one process, and the channels between them. What a component
//! does with it does not belong here.

mod sale_cache;
mod waiting;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use seckill_cluster_codec::digest::Digester;
use seckill_cluster_codec::order_id::OrderIds;
use seckill_engine::Fault;
use seckill_kafka_log::LogCondition;
use seckill_mysql_store::{Store, sales};
use seckill_redis_gate::{Gate, Offer, Refusal};
use seckill_sale::{OrderId, SaleId};
use tokio::sync::{Mutex, Semaphore, mpsc};

pub(crate) use self::sale_cache::{CachedSale, SaleCache, keys_of};
pub(crate) use self::waiting::{ConfirmingCounts, DecidingCounts, Waiter, Waiters};
use crate::options::ClusterOptions;

/// How long an unknown sale id is remembered, so that the store is not asked again.
const UNKNOWN_FOR: Duration = Duration::from_millis(200);
/// Maximum number of unknown sale ids that are remembered.
const UNKNOWN_MAX: usize = 1_024;

/// Generates the ids and digests that depend on the store's secret.
pub(crate) struct Names {
    pub(crate) ids: OrderIds,
    pub(crate) digester: Digester,
}

/// State shared by the components of one server.
pub(crate) struct Core {
    pub(crate) options: Arc<ClusterOptions>,
    pub(crate) store: Arc<Store>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) sale_cache: SaleCache,
    pub(crate) deciding: DecidingCounts,
    pub(crate) confirming: ConfirmingCounts,
    pub(crate) gate_condition: LogCondition,
    pub(crate) store_condition: LogCondition,
    /// Limits how many sales are loaded into their gates at a time.
    pub(crate) rebuilding: Semaphore,
    names: OnceLock<Names>,
    waiters: mpsc::UnboundedSender<Waiters>,
    outputs: Outputs,
    unknown: Mutex<Vec<(SaleId, Instant)>>,
    /// Sales whose gates could not be opened, and why.
    closed: std::sync::Mutex<BTreeMap<SaleId, String>>,
}

/// Where a server sends work for the other components of this process.
pub(crate) struct Outputs {
    /// New outbox entries for the relay; `None` if no relay runs in this process.
    pub(crate) offers: Option<mpsc::Sender<Offer>>,
    /// New outbox entries to write hints for; `None` if a relay runs in this process.
    pub(crate) hints: Option<mpsc::Sender<Offer>>,
    /// Order ids that have a row or a void.
    pub(crate) settled: Option<mpsc::Sender<Vec<OrderId>>>,
    /// Sales whose gates are to be rebuilt.
    pub(crate) rebuilds: mpsc::UnboundedSender<SaleId>,
}

impl Core {
    pub(crate) fn new(
        options: Arc<ClusterOptions>,
        store: Arc<Store>,
        gate: Arc<Gate>,
        waiters: mpsc::UnboundedSender<Waiters>,
        outputs: Outputs,
    ) -> Self {
        let lease = Duration::from_millis(options.lease_ms);
        let rebuilding = Semaphore::new((options.store_connections / 4).max(1));
        Self {
            options,
            store,
            gate,
            sale_cache: SaleCache::new(lease),
            deciding: DecidingCounts::default(),
            confirming: ConfirmingCounts::default(),
            gate_condition: LogCondition::default(),
            store_condition: LogCondition::default(),
            rebuilding,
            names: OnceLock::new(),
            waiters,
            outputs,
            unknown: Mutex::default(),
            closed: std::sync::Mutex::default(),
        }
    }

    /// `None` until the store's secret has been read.
    pub(crate) fn names(&self) -> Option<&Names> {
        if let Some(names) = self.names.get() {
            return Some(names);
        }
        let secret = self.store.secret()?;
        Some(self.names.get_or_init(|| Names {
            ids: OrderIds::new(secret),
            digester: Digester::new(secret),
        }))
    }

    /// Returns the cached sale. An id that is not cached is looked up in the store.
    pub(crate) async fn cached(&self, id: &SaleId) -> Result<Option<Arc<CachedSale>>, Fault> {
        match self.sale_cache.get(id) {
            Some(cached) => Ok(Some(cached)),
            None => self.look_up(id).await,
        }
    }

    /// Looks up a sale that is not cached. One lookup at a time, so that made-up ids cannot use up
    /// the store's connections.
    async fn look_up(&self, id: &SaleId) -> Result<Option<Arc<CachedSale>>, Fault> {
        let mut unknown = self.unknown.lock().await;
        if let Some(cached) = self.sale_cache.get(id) {
            return Ok(Some(cached));
        }
        unknown.retain(|(_, at)| at.elapsed() < UNKNOWN_FOR);
        if unknown.iter().any(|(unknown, _)| unknown == id) {
            return Ok(None);
        }
        let cached = self.read_sale(id).await?;
        if cached.is_none() && unknown.len() < UNKNOWN_MAX {
            unknown.push((id.clone(), Instant::now()));
        }
        Ok(cached)
    }

    /// Reads a sale from the store into the cache.
    pub(crate) async fn read_sale(&self, id: &SaleId) -> Result<Option<Arc<CachedSale>>, Fault> {
        let mut session = self.store.ready().await?;
        let row = sales::one(&mut session, id).await?;
        Ok(row.map(|row| self.sale_cache.take(row)))
    }

    /// Handles a refusal by the gate. Most refusals request a rebuild.
    pub(crate) fn refused(&self, sale: &SaleId, refusal: &Refusal) {
        match refusal {
            Refusal::Epoch(_) => {}
            Refusal::Rebuilding => self.rebuild(sale),
            refusal => {
                self.closed(sale, refusal.to_string());
                self.rebuild(sale);
            }
        }
    }

    /// Records that a sale is closed, and why.
    pub(crate) fn closed(&self, sale: &SaleId, why: String) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.get(sale) != Some(&why) {
            tracing::warn!(%sale, "the sale is closed: {why}");
            closed.insert(sale.clone(), why);
        }
    }

    pub(crate) fn opened(&self, sale: &SaleId) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.remove(sale);
    }

    /// Why a sale is closed; `None` if it is not known to be.
    pub(crate) fn why_closed(&self, sale: &SaleId) -> Option<String> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.get(sale).cloned()
    }

    /// Why nothing can be sold; `None` unless every cached sale is closed.
    pub(crate) fn all_closed(&self) -> Option<String> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let (sale, why) = closed.first_key_value()?;
        let all = self
            .sale_cache
            .all()
            .iter()
            .all(|cached| closed.contains_key(&cached.row.sale.id));
        all.then(|| format!("sale {sale} is closed: {why}"))
    }

    /// Requests a rebuild. A request for a sale that is being rebuilt has no effect.
    pub(crate) fn rebuild(&self, sale: &SaleId) {
        // The receiver is dropped only at shutdown.
        let _ = self.outputs.rebuilds.send(sale.clone());
    }

    /// Offers a new outbox entry to the relay. A sweep finds entries dropped by a full channel.
    pub(crate) fn offer(&self, offer: Offer) {
        let taker = self.outputs.offers.as_ref().or(self.outputs.hints.as_ref());
        if let Some(taker) = taker {
            let _ = taker.try_send(offer);
        }
    }

    /// Tells the relay which claims are settled. It queries the store for any that it misses.
    pub(crate) fn settled(&self, ids: Vec<OrderId>) {
        if let Some(settled) = &self.outputs.settled
            && !ids.is_empty()
        {
            let _ = settled.try_send(ids);
        }
    }

    /// Queues claims that wait for the store's decision.
    pub(crate) fn wait_for_store(&self, waiters: Waiters) {
        if !waiters.is_empty() {
            // The receiver is dropped only at shutdown, when no one reads the answer either.
            let _ = self.waiters.send(waiters);
        }
    }
}
