//! Rebuilds a sale's gate from the store: one procedure for a new sale, a lost or restarted Redis, drift and suspicion.
//! The epoch is the fence: what older gates gave can no longer be stored, and every step checks that it is still its own.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seckill_engine::{Cause, Fault};
use seckill_sale::{Buyer, IdempotencyKey, OrderState, SaleId, Slots, Unit};
use tokio::sync::{mpsc, watch};

use crate::codec::message::fingerprint_text;
use crate::gate::reply::{Refusal, ResponseKind};
use crate::gate::stored::{slots_text, stored_claim};
use crate::gate::{ITEMS_MAX, Into};
use crate::serve::Core;
use crate::stop::stopped;
use crate::store::orders::{self, Stored};
use crate::store::sales::{self, SaleRow};

/// Orders in one page of the snapshot.
const PAGE: usize = 5_000;
const DRAIN_POLL: Duration = Duration::from_millis(10);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Rebuilds the sales that it is asked for, each at most once at a time, until `stop` says so.
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
                    // Which sale it was is not known; whoever needs it asks again.
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

/// Tries until the sale's gate is open, by whoever's hand.
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

/// Brings a sale's gate into a sound state; done at once where it is in one.
pub(crate) async fn rebuild(core: &Core, id: &SaleId) -> Result<(), Fault> {
    let row = {
        let mut session = core.store.ready().await?;
        sales::one(&mut session, id).await?
    };
    let Some(row) = row else {
        return Ok(());
    };
    if row.is_open && !row.is_suspect() {
        match core.gate.peek(&row.keys, row.epoch).await? {
            Ok(head) => {
                core.sale_cache.take(row).heard(&head);
                return Ok(());
            }
            Err(refusal @ Refusal::Type(_)) => return Err(refused(&refusal)),
            Err(Refusal::Epoch(epoch)) if epoch > row.epoch => {
                return Err(ahead(core, &row, epoch).await);
            }
            Err(refusal) => tracing::warn!(sale = %id, "the sale closes: {refusal}"),
        }
    }
    if !row.is_open && !row.lease_is_over {
        return Err(not_yet("another process is rebuilding it"));
    }
    let began = Instant::now();
    drain(core, &row).await?;
    // Loading takes two connections: not all sales at once may take them from those who sell.
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
        // By then no server can say a no of an epoch before; a new sale has none.
        if row.epoch > 0 {
            let lease = Duration::from_millis(core.options.lease_ms);
            tokio::time::sleep(lease.saturating_sub(fenced_at.elapsed())).await;
        }
        open(core, id, epoch, &leader, loaded).await
    };
    if let Err(fault) = built.await {
        // Without this word the next try waits for the lease; also where the fence stands and its answer was lost.
        if let Ok(mut session) = core.store.ready().await {
            let _ = sales::abandoned(&mut session, id, epoch, &leader).await;
        }
        return Err(fault);
    }
    core.read_sale(id).await?;
    tracing::info!(sale = %id, epoch, closed_ms = began.elapsed().as_millis() as u64, "the gate is open");
    Ok(())
}

/// Closes what can be closed and waits, for a bounded time, until its outbox has been carried to the store. A Redis that
/// restarted intact loses nothing that way. A gate of a later epoch than the store's is a fault: to go on would sell again
/// what was sold in it.
pub(crate) async fn drain(core: &Core, row: &SaleRow) -> Result<(), Fault> {
    let until = Instant::now() + Duration::from_millis(core.options.drain_wait_ms);
    loop {
        match core.gate.close(&row.keys, row.epoch).await {
            Ok(Ok(waiting)) if waiting > 0 && Instant::now() < until => {}
            Ok(Err(Refusal::Epoch(epoch))) if epoch > row.epoch => {
                return Err(ahead(core, row, epoch).await);
            }
            Ok(Ok(_) | Err(_)) | Err(_) => return Ok(()),
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// What it means that a gate is of a later epoch than a row: the row was read before somebody rebuilt it, or the store went
/// back.
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
        "the gate {} is of epoch {epoch}, and MySQL has its sale in epoch {}: MySQL's data is older than the gate's, or \
         the keys are another cluster's. Bring MySQL's data up to date, or set cluster.key_prefix; delete the keys of \
         that name only if nothing of them is wanted",
        row.keys.terms(),
        row.epoch
    );
    Fault::without_effect(Cause::Rebuilding, detail)
}

/// What a snapshot of the store came to.
#[derive(Debug, Clone, Copy)]
struct Loaded {
    /// Units that were handed out.
    handed_out: u32,
    /// How many of these are free.
    returned: usize,
}

/// Fills the gate of an epoch that this process leads.
async fn fill(core: &Core, id: &SaleId, epoch: u32, leader: &str) -> Result<Loaded, Fault> {
    let mut session = core.store.ready().await?;
    let row = sales::one(&mut session, id)
        .await?
        .ok_or_else(|| not_yet("the sale is gone"))?;
    if row.epoch != epoch {
        return Err(not_yet("another process is rebuilding it"));
    }
    led(core.gate.reset(&row.keys, epoch, leader).await?)?;
    // Not before the reset: what was stored by then is in the snapshot, and nothing can come after it but endings.
    orders::begin_snapshot(&mut session).await?;
    let snapshot = load(core, &mut session, &row, leader).await;
    session.rollback().await?;
    let loaded = snapshot?;
    extend(core, &row, leader).await?;
    Ok(loaded)
}

/// Opens a gate that is filled.
async fn open(
    core: &Core,
    id: &SaleId,
    epoch: u32,
    leader: &str,
    loaded: Loaded,
) -> Result<(), Fault> {
    let mut session = core.store.ready().await?;
    // The terms may have changed since; the gate takes the newest, and later ones come by `sync`.
    let row = sales::one(&mut session, id)
        .await?
        .ok_or_else(|| not_yet("the sale is gone"))?;
    let Loaded {
        handed_out,
        returned,
    } = loaded;
    led(core
        .gate
        .open(&row.keys, epoch, leader, &row.sale, handed_out, returned)
        .await?)?;
    if !sales::opened(&mut session, id, epoch, leader).await? {
        return Err(not_yet("another process is rebuilding it"));
    }
    Ok(())
}

/// Keeps the lease while there is something to do; on a connection of its own, since the snapshot's is in a transaction.
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
    session: &mut crate::store::Session,
    row: &SaleRow,
    leader: &str,
) -> Result<Loaded, Fault> {
    let names = core
        .names()
        .ok_or_else(|| not_yet("the store's secret is not known"))?;
    let mut loading = Loading {
        core,
        row,
        leader,
        items: HashMap::new(),
    };
    let mut slots: HashMap<String, Slots> = HashMap::new();
    let mut latest: Option<(Unit, bool)> = None;
    let (mut handed_out, mut returned) = (0_u32, 0_usize);
    let mut after = None;
    loop {
        extend(core, row, leader).await?;
        let page = orders::page(session, &row.sale.id, after, PAGE).await?;
        let is_last = page.len() < PAGE;
        after = page.last().map(|order| order.unit);
        for order in page {
            let is_active = order.state.is_some_and(OrderState::is_active);
            if let Some((unit, held)) = latest
                && unit.number != order.unit.number
                && !held
            {
                returned += 1;
                loading
                    .add(Into::Returned, [free(unit.next_generation())])
                    .await?;
            }
            // Units that no order ever had, below one that has: a claim of theirs was not stored.
            let unseen = handed_out + 1..order.unit.number;
            for number in unseen {
                returned += 1;
                loading
                    .add(
                        Into::Returned,
                        [free(Unit {
                            number,
                            generation: 1,
                        })],
                    )
                    .await?;
            }
            handed_out = handed_out.max(order.unit.number);
            latest = Some((order.unit, is_active));
            claim(&mut loading, names, &mut slots, order, is_active).await?;
        }
        if is_last {
            break;
        }
    }
    if let Some((unit, false)) = latest {
        returned += 1;
        loading
            .add(Into::Returned, [free(unit.next_generation())])
            .await?;
    }
    for (buyer, slots) in slots {
        loading
            .add(Into::Buyers, [buyer, slots_text(slots)])
            .await?;
    }
    loading.flush_all().await?;
    Ok(Loaded {
        handed_out,
        returned,
    })
}

async fn claim(
    loading: &mut Loading<'_>,
    names: &crate::serve::Names,
    slots: &mut HashMap<String, Slots>,
    order: Stored,
    is_active: bool,
) -> Result<(), Fault> {
    let buyer = Buyer::new(&order.buyer).unwrap_or_default();
    let digest = names.digester.buyer(&buyer);
    if let (true, Some(slot)) = (is_active, order.slot) {
        let taken = slots.entry(digest.clone()).or_default();
        *taken = taken.with(slot).unwrap_or(*taken);
    }
    let fingerprint = fingerprint_text(order.fingerprint);
    let text = stored_claim(order.unit, order.slot, &fingerprint, &digest, is_active);
    if let Some(Ok(key)) = order.key.as_deref().map(IdempotencyKey::new) {
        let key = names.digester.key(&buyer, &key);
        loading
            .add(Into::Keys, [key, order.order_id.clone()])
            .await?;
    }
    loading.add(Into::Claims, [order.order_id, text]).await
}

fn free(unit: Unit) -> String {
    format!("{}:{}", unit.number, unit.generation)
}

/// Items on their way into the gate, a call at a time.
struct Loading<'a> {
    core: &'a Core,
    row: &'a SaleRow,
    leader: &'a str,
    items: HashMap<Into, Vec<String>>,
}

impl Loading<'_> {
    async fn add<const N: usize>(&mut self, into: Into, item: [String; N]) -> Result<(), Fault> {
        let items = self.items.entry(into).or_default();
        items.extend(item);
        if items.len() + N > ITEMS_MAX {
            let items = std::mem::take(items);
            self.send(into, &items).await?;
        }
        Ok(())
    }

    async fn flush_all(&mut self) -> Result<(), Fault> {
        for (into, items) in std::mem::take(&mut self.items) {
            if !items.is_empty() {
                self.send(into, &items).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, into: Into, items: &[String]) -> Result<(), Fault> {
        led(self
            .core
            .gate
            .load(&self.row.keys, self.row.epoch, self.leader, into, items)
            .await?)
    }
}

/// A name for one try: 64 random bits.
pub(crate) fn leader() -> Result<String, Fault> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| {
        Fault::without_effect(
            Cause::Store,
            format!("the system gave no random bytes: {error}"),
        )
    })?;
    let mut text = String::with_capacity(16);
    for byte in random {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

fn led(said: ResponseKind<()>) -> Result<(), Fault> {
    said.map_err(|refusal| refused(&refusal))
}

fn refused(refusal: &Refusal) -> Fault {
    Fault::without_effect(Cause::Rebuilding, refusal.to_string())
}

fn not_yet(why: &str) -> Fault {
    Fault::without_effect(Cause::Rebuilding, why)
}
