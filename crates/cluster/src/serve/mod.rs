//! What a server needs to answer attempts: the gate's calls, the wait for the store, and what it knows of each sale.
//! The engine in front of it is `engine`; carrying claims to the store is the relay's and the recorder's.

pub(crate) mod addresses;
pub(crate) mod confirming;
pub(crate) mod deciding;
pub(crate) mod refresh;
pub(crate) mod sale_cache;
pub(crate) mod terms;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use seckill_engine::Fault;
use seckill_sale::{OrderId, SaleId};
use tokio::sync::{Mutex, Semaphore, mpsc};

use self::confirming::{ConfirmingCounts, Waiters};
use self::deciding::DecidingCounts;
use self::sale_cache::{CachedSale, SaleCache};
use crate::codec::digest::Digester;
use crate::codec::order_id::OrderIds;
use crate::gate::Gate;
use crate::gate::Offer;
use crate::gate::reply::Refusal;
use crate::log::LogCondition;
use crate::options::ClusterOptions;
use crate::store::{Store, sales};

/// How long an id that names no sale is taken for one, without asking the store again.
const UNKNOWN_FOR: Duration = Duration::from_millis(200);
/// Ids that are remembered as such.
const UNKNOWN_MAX: usize = 1_024;

/// Makes the names that hang on the store's secret.
pub(crate) struct Names {
    pub(crate) ids: OrderIds,
    pub(crate) digester: Digester,
}

/// What the parts of one server share.
pub(crate) struct Core {
    pub(crate) options: Arc<ClusterOptions>,
    pub(crate) store: Arc<Store>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) sale_cache: SaleCache,
    pub(crate) deciding: DecidingCounts,
    pub(crate) confirming: ConfirmingCounts,
    pub(crate) gate_condition: LogCondition,
    pub(crate) store_condition: LogCondition,
    /// How many sales may be loaded at a time.
    pub(crate) rebuilding: Semaphore,
    names: OnceLock<Names>,
    waiters: mpsc::UnboundedSender<Waiters>,
    outputs: Outputs,
    unknown: Mutex<Vec<(SaleId, Instant)>>,
    /// Sales whose gates could not be opened, and why.
    closed: std::sync::Mutex<BTreeMap<SaleId, String>>,
}

/// Where a server's work goes on in this process.
pub(crate) struct Outputs {
    /// New outbox entries, for the relay; none where it runs elsewhere.
    pub(crate) offers: Option<mpsc::Sender<Offer>>,
    /// Where offers go that no relay of this process takes.
    pub(crate) hints: Option<mpsc::Sender<Offer>>,
    /// Order ids that have a row or a void.
    pub(crate) settled: Option<mpsc::Sender<Vec<OrderId>>>,
    /// Sales whose gate is to be rebuilt.
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

    /// The names, once the store has given its secret.
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

    /// What is known of a sale; an id that was never seen is looked up.
    pub(crate) async fn cached(&self, id: &SaleId) -> Result<Option<Arc<CachedSale>>, Fault> {
        match self.sale_cache.get(id) {
            Some(cached) => Ok(Some(cached)),
            None => self.look_up(id).await,
        }
    }

    /// Looks up a sale that is not known. One look at a time: made-up ids must not take the store from buyers.
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

    /// Reads a sale from the store.
    pub(crate) async fn read_sale(&self, id: &SaleId) -> Result<Option<Arc<CachedSale>>, Fault> {
        let mut session = self.store.ready().await?;
        let row = sales::one(&mut session, id).await?;
        Ok(row.map(|row| self.sale_cache.take(row)))
    }

    /// Hears that the gate refused; most refusals ask for a rebuild.
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

    /// Notes that a sale is closed, and why.
    pub(crate) fn closed(&self, sale: &SaleId, why: String) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.get(sale) != Some(&why) {
            tracing::warn!(%sale, "the sale is closed: {why}");
            closed.insert(sale.clone(), why);
        }
    }

    /// Notes that a sale is open.
    pub(crate) fn opened(&self, sale: &SaleId) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.remove(sale);
    }

    /// Why a sale is closed, if it is known to be.
    pub(crate) fn why_closed(&self, sale: &SaleId) -> Option<String> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.get(sale).cloned()
    }

    /// Why nothing can be sold, where each sale that is known is closed.
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

    /// Asks for a rebuild; asking twice asks once.
    pub(crate) fn rebuild(&self, sale: &SaleId) {
        // The rebuilder is gone only when the process ends.
        let _ = self.outputs.rebuilds.send(sale.clone());
    }

    /// Gives a new outbox entry to the relay. One that is not taken is found by a sweep.
    pub(crate) fn offer(&self, offer: Offer) {
        let taker = self.outputs.offers.as_ref().or(self.outputs.hints.as_ref());
        if let Some(taker) = taker {
            let _ = taker.try_send(offer);
        }
    }

    /// Tells the relay what is settled; what it does not hear it asks the store for.
    pub(crate) fn settled(&self, ids: Vec<OrderId>) {
        if let Some(settled) = &self.outputs.settled
            && !ids.is_empty()
        {
            let _ = settled.try_send(ids);
        }
    }

    /// Lets claims wait for the store.
    pub(crate) fn wait_for_store(&self, waiters: Waiters) {
        if !waiters.is_empty() {
            // The waiting room is gone only when the process ends; then nobody reads the answer either.
            let _ = self.waiters.send(waiters);
        }
    }
}
