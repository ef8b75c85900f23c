//! Rebuilds a sale's gate from the store: for a new sale, a lost or restarted Redis, drift or
//! suspicion. The epoch fences off the claims of older gates; each step checks its own epoch.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seckill_cluster_codec::order_id;
use seckill_engine::{Cause, Fault};
use seckill_mysql_store::Session;
use seckill_mysql_store::orders::{self, Stored};
use seckill_mysql_store::sales::{self, SaleRow};
use seckill_redis_gate::{GateKeys, GateLoad, GateReply, LoadedItem, LoadedOrder, Refusal};
use seckill_sale::{
    Buyer, ClaimedUnits, IdempotencyKey, Names, OrderId, OrderState, SaleId, SaleRebuild,
};
use tokio::sync::{mpsc, watch};

use crate::shared::{self, Core, keys_of};
use crate::stop::stopped;

/// Orders per page of the snapshot.
const PAGE: usize = 5_000;
const DRAIN_POLL: Duration = Duration::from_millis(10);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Rebuilds the requested sales, with at most one rebuild per sale at a time, until `stop` is set.
pub(crate) async fn run(
    core: Arc<Core>,
    mut asked: mpsc::UnboundedReceiver<SaleId>,
    mut stop: watch::Receiver<bool>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    let mut under_way: HashSet<SaleId> = HashSet::new();
    let stop_of_each = stop.clone();
    loop {
        tokio::select! {
            Some(done) = tasks.join_next(), if !tasks.is_empty() => {
                match done {
                    Ok(sale) => drop(under_way.remove(&sale)),
                    // The task panicked, so its sale is unknown; a later request or refresh asks
                    // for it again.
                    Err(_) => under_way.clear(),
                }
            }
            sale = asked.recv() => {
                let Some(sale) = sale else { return };
                if under_way.insert(sale.clone()) {
                    let (core, stop) = (Arc::clone(&core), stop_of_each.clone());
                    tasks.spawn(async move {
                        until_open(&core, &sale, stop).await;
                        sale
                    });
                }
            }
            () = stopped(&mut stop) => return,
        }
    }
}

/// Retries until the sale's gate is open, whether this process or another one opened it.
async fn until_open(core: &Core, sale: &SaleId, mut stop: watch::Receiver<bool>) {
    let mut pause = PAUSE_MIN;
    loop {
        match rebuild(core, sale).await {
            Ok(()) => return core.opened(sale),
            Err(fault) => core.closed(sale, fault.detail),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopped(&mut stop) => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Rebuilds a sale's gate unless it is already usable.
pub(crate) async fn rebuild(core: &Core, id: &SaleId) -> Result<(), Fault> {
    let row = {
        let mut session = core.store.ready().await?;
        sales::one(&mut session, id).await?
    };
    let Some(row) = row else {
        return Ok(());
    };
    if row.is_open && !row.is_suspect() {
        let keys = keys_of(&row);
        match core.gate.peek(&keys, row.epoch).await? {
            Ok(head) => {
                core.sale_cache.take(row).heard(&head);
                return Ok(());
            }
            Err(refusal @ Refusal::Type(_)) => return Err(refused(&refusal)),
            Err(Refusal::Epoch(epoch)) if epoch > row.epoch => {
                return Err(ahead(core, &row, epoch).await);
            }
            Err(refusal) => tracing::warn!(sale = %id, "closing the sale: {refusal}"),
        }
    }
    if !row.is_open && !row.lease_is_over {
        return Err(not_yet("another process is rebuilding it"));
    }
    let began = Instant::now();
    drain(core, &row).await?;
    if row.is_suspect() {
        let mut session = core.store.ready().await?;
        let removed = orders::remove_leftovers(&mut session, id).await?;
        if removed > 0 {
            tracing::warn!(sale = %id, removed, "removed keys and slots of orders that manual edits have deleted or ended");
        }
    }
    // Loading uses two store connections; the limit leaves connections for sales that are open.
    let Ok(permit) = core.rebuilding.acquire().await else {
        return Err(not_yet("the engine is stopping"));
    };
    let leader = leader()?;
    let epoch = row.epoch + 1;
    let built = async {
        let fenced = {
            let mut session = core.store.ready().await?;
            sales::fence(&mut session, &row, &leader, core.options.rebuild_lease_ms).await?
        };
        if !fenced {
            return Err(not_yet("another process is rebuilding it"));
        }
        let fenced_at = Instant::now();
        let loaded = fill(core, id, epoch, &leader).await?;
        drop(permit);
        // After one lease, no server can reject in an earlier epoch. A new sale has none.
        if row.epoch > 0 {
            let lease = Duration::from_millis(core.options.lease_ms);
            tokio::time::sleep(lease.saturating_sub(fenced_at.elapsed())).await;
        }
        open(core, id, epoch, &leader, loaded).await
    };
    if let Err(fault) = built.await {
        // Give up the rebuild lease, or the next try waits for it to expire. This also covers a
        // fence that was committed although its reply was lost.
        if let Ok(mut session) = core.store.ready().await {
            let _ = sales::abandoned(&mut session, id, epoch, &leader).await;
        }
        return Err(fault);
    }
    core.read_sale(id).await?;
    tracing::info!(sale = %id, epoch, closed_ms = began.elapsed().as_millis() as u64, "the gate is open");
    Ok(())
}

/// Closes the gate if possible and waits, for a bounded time, until its outbox has been stored.
/// This way, a Redis that restarted intact loses nothing. A gate in a later epoch than the store's
/// is a fault: continuing would sell again what was sold in that epoch.
pub(crate) async fn drain(core: &Core, row: &SaleRow) -> Result<(), Fault> {
    let keys = keys_of(row);
    let until = Instant::now() + Duration::from_millis(core.options.drain_wait_ms);
    loop {
        match core.gate.close(&keys, row.epoch).await {
            Ok(Ok(waiting)) if waiting > 0 && Instant::now() < until => {}
            Ok(Err(Refusal::Epoch(epoch))) if epoch > row.epoch => {
                return Err(ahead(core, row, epoch).await);
            }
            Ok(Ok(_) | Err(_)) | Err(_) => return Ok(()),
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Explains a gate in a later epoch than a row: either another process rebuilt the sale after the
/// row was read, or the store's data is older than the gate's.
async fn ahead(core: &Core, row: &SaleRow, epoch: u32) -> Fault {
    let now = async {
        let mut session = core.store.ready().await?;
        sales::one(&mut session, &row.sale.id).await
    };
    match now.await {
        Ok(Some(now)) if now.epoch >= epoch => not_yet("another process is rebuilding it"),
        Ok(_) => went_back(row, epoch),
        Err(fault) => fault,
    }
}

fn went_back(row: &SaleRow, epoch: u32) -> Fault {
    let detail = format!(
        "the gate {} is in epoch {epoch}, but MySQL has its sale in epoch {}: MySQL's data is older than the gate's, or \
         the keys belong to another cluster. Bring MySQL's data up to date, or set cluster.key_prefix; delete the keys \
         with that name only if none of their data is needed",
        keys_of(row).terms(),
        row.epoch
    );
    Fault::without_effect(Cause::Rebuilding, detail)
}

/// Loads the store into the gate, in an epoch that this process leads.
async fn fill(
    core: &Core,
    id: &SaleId,
    epoch: u32,
    leader: &str,
) -> Result<Vec<LoadedItem>, Fault> {
    let mut session = core.store.ready().await?;
    let row = sales::one(&mut session, id)
        .await?
        .ok_or_else(|| not_yet("the sale no longer exists"))?;
    if row.epoch != epoch {
        return Err(not_yet("another process is rebuilding it"));
    }
    let keys = keys_of(&row);
    led(core.gate.reset(&keys, epoch, leader).await?)?;
    // Only after the reset: the snapshot then has every order stored so far, and the only changes
    // that can follow it are orders that end.
    orders::begin_snapshot(&mut session).await?;
    let snapshot = load(core, &mut session, &row, &keys, leader).await;
    session.rollback().await?;
    let loaded = snapshot?;
    extend(core, &row, leader).await?;
    Ok(loaded)
}

/// Opens a filled gate and marks its sale as open in the store.
async fn open(
    core: &Core,
    id: &SaleId,
    epoch: u32,
    leader: &str,
    loaded: Vec<LoadedItem>,
) -> Result<(), Fault> {
    let mut session = core.store.ready().await?;
    // The terms may have changed since. The gate gets the latest; `sync` delivers later changes.
    let row = sales::one(&mut session, id)
        .await?
        .ok_or_else(|| not_yet("the sale no longer exists"))?;
    let keys = keys_of(&row);
    let opened = core.gate.open(&keys, epoch, leader, &row.sale, &loaded);
    led(opened.await?)?;
    if !sales::opened(&mut session, id, epoch, leader).await? {
        return Err(not_yet("another process is rebuilding it"));
    }
    Ok(())
}

/// Extends the rebuild lease. Uses a connection of its own, because the snapshot's is in a
/// transaction.
async fn extend(core: &Core, row: &SaleRow, leader: &str) -> Result<(), Fault> {
    let mut session = core.store.ready().await?;
    let lease_ms = core.options.rebuild_lease_ms;
    if sales::extend(&mut session, &row.sale.id, row.epoch, leader, lease_ms).await? {
        return Ok(());
    }
    Err(not_yet("another process is rebuilding it"))
}

/// Loads a snapshot of the store into the gate.
async fn load(
    core: &Core,
    session: &mut Session,
    row: &SaleRow,
    keys: &GateKeys,
    leader: &str,
) -> Result<Vec<LoadedItem>, Fault> {
    let names = core
        .names()
        .ok_or_else(|| not_yet("the store's secret has not been read yet"))?;
    let has_limit = row.sale.buyer_limit.is_some();
    let mut loading = Loading {
        names,
        gate: core.gate.load(keys, row.epoch, leader, has_limit),
        ledger: SaleRebuild::new(row.sale.clone()),
        incomplete: HashMap::new(),
    };
    let mut after = None;
    loop {
        extend(core, row, leader).await?;
        let page = orders::page(session, row.num, after, PAGE).await?;
        let is_last = page.len() < PAGE;
        after = page.last().map(|row| row.claimed.item_unit());
        for line in page {
            loading.line(line).await?;
        }
        if is_last {
            break;
        }
    }
    loading.finish().await
}

/// Loads the rows of a sale into its gate, and follows with a ledger what they leave.
struct Loading<'a> {
    names: &'a shared::Names,
    gate: GateLoad<'a>,
    ledger: SaleRebuild,
    /// Orders of several units whose lines have not all been read yet.
    incomplete: HashMap<OrderId, Vec<Stored>>,
}

impl Loading<'_> {
    async fn line(&mut self, line: Stored) -> Result<(), Fault> {
        let buyer = Buyer::new(&line.buyer).unwrap_or_default();
        let digest = self.names.digester.buyer(&buyer);
        let seen = self.ledger.unit(line.claimed, is_active(&line), digest);
        seen.map_err(|fault| contradiction(&line.order_id, &fault))?;
        if line.line_count <= 1 {
            return self.order(&[line]).await;
        }
        let (order_id, count) = (line.order_id.clone(), line.line_count);
        let lines = self.incomplete.entry(order_id.clone()).or_default();
        lines.push(line);
        if lines.len() < count as usize {
            return Ok(());
        }
        let mut lines = self.incomplete.remove(&order_id).unwrap_or_default();
        lines.sort_unstable_by_key(|line| line.line);
        self.order(&lines).await
    }

    /// Loads an order, whose lines are complete.
    async fn order(&mut self, lines: &[Stored]) -> Result<(), Fault> {
        let Some(first) = lines.first() else {
            return Ok(());
        };
        let Some(id) = order_id::to_bytes(&first.order_id) else {
            return Err(contradiction(&first.order_id, &"it is not an order id"));
        };
        let buyer = Buyer::new(&first.buyer).unwrap_or_default();
        let key = first.key.as_deref().map(IdempotencyKey::new);
        let key = key.and_then(Result::ok);
        let units: ClaimedUnits = lines.iter().map(|line| line.claimed).collect();
        let loaded = self.gate.order(LoadedOrder {
            id,
            units: &units,
            names: Names {
                buyer: self.names.digester.buyer(&buyer),
                key: key.map(|key| self.names.digester.key(&buyer, &key)),
            },
            fingerprint: first.fingerprint,
            is_active: is_active(first),
        });
        led(loaded.await?)
    }

    async fn finish(self) -> Result<Vec<LoadedItem>, Fault> {
        if let Some((order_id, lines)) = self.incomplete.iter().next() {
            let count = lines.first().map_or(0, |line| line.line_count);
            let detail = format!("it has {} of its {count} lines", lines.len());
            return Err(contradiction(order_id, &detail));
        }
        let ledger = self.ledger.finish();
        let ledger = ledger.map_err(|fault| not_yet(&fault.to_string()))?;
        self.gate
            .finish(ledger)
            .await?
            .map_err(|refusal| refused(&refusal))
    }
}

fn is_active(line: &Stored) -> bool {
    line.state.is_some_and(OrderState::is_active)
}

/// The store contradicts itself: its unique keys were removed, or it was edited.
fn contradiction(order_id: &OrderId, detail: &dyn std::fmt::Display) -> Fault {
    let detail = format!(
        "order {order_id} in MySQL: {detail}; `seckill audit` lists everything that is wrong"
    );
    Fault::without_effect(Cause::Store, detail)
}

/// Returns a new name for the leader of one rebuild: 64 random bits.
pub(crate) fn leader() -> Result<String, Fault> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| {
        Fault::without_effect(
            Cause::Store,
            format!("the operating system returned no random bytes: {error}"),
        )
    })?;
    let mut text = String::with_capacity(16);
    for byte in random {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

fn led(said: GateReply<()>) -> Result<(), Fault> {
    said.map_err(|refusal| refused(&refusal))
}

fn refused(refusal: &Refusal) -> Fault {
    Fault::without_effect(Cause::Rebuilding, refusal.to_string())
}

fn not_yet(why: &str) -> Fault {
    Fault::without_effect(Cause::Rebuilding, why)
}
