//! Audits a cluster, also during a sale: compares gate, log and store unit by unit. Reads the
//! store, then the log, and must not mistake claims in flight for violations.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use seckill_cluster_codec::message::ClaimMessage;
use seckill_engine::Fault;
use seckill_kafka_log::LogContents;
use seckill_mysql_store::Session;
use seckill_mysql_store::events::{self, StoredChange, StoredEvent};
use seckill_mysql_store::orders::{self, Stored};
use seckill_mysql_store::sales::{self, SaleRow};
use seckill_redis_gate::{GateKeys, Head, Offered};
use seckill_sale::{
    AuditReport, AuditedEvent, Auditor, EventFacts, HistoryEntry, IdempotencyKey, Invariant,
    OrderId, OrderState, RowFacts, RowIntegrity, Violation,
};

use crate::servers;
use crate::shared::{Core, keys_of};

/// Rows per page.
const PAGE: usize = 5_000;
/// How many times the audit reads the store while gates keep changing during the read.
const STILL_TRIES: u32 = 20;
const STILL_PAUSE: Duration = Duration::from_millis(50);
const OUTBOX_PAGE: usize = 256;

/// The state of a sale's gate while the store was read.
struct GateView {
    row: SaleRow,
    keys: GateKeys,
    /// `None` if the gate was closed or unreachable.
    before: Option<Head>,
    /// The gate did not change during the read, and its outbox was empty.
    is_still: bool,
    outbox: Vec<OrderId>,
    /// By item.
    offered: Option<Vec<Offered>>,
}

/// The store's contents, for the comparison with the log.
#[derive(Default)]
struct Orders {
    sales: Vec<SaleRow>,
    contents: HashMap<OrderId, StoredOrder>,
    events: Vec<StoredEvent>,
    voids: HashSet<OrderId>,
    offsets: HashMap<i32, (u32, i64)>,
}

/// The rows of an order.
struct StoredOrder {
    sale: String,
    lines: Vec<Stored>,
}

pub(crate) async fn audit(core: &Core, history: &[HistoryEntry]) -> Result<AuditReport, Fault> {
    let mut outside = Vec::new();
    let mut notes = Vec::new();
    let mut tries = 0;
    let (gates, stored) = loop {
        let mut gates = look_at_gates(core).await?;
        let stored = read_store(core).await?;
        look_again(core, &mut gates).await;
        tries += 1;
        if tries == STILL_TRIES
            || gates
                .iter()
                .all(|gate| gate.is_still || gate.before.is_none())
        {
            break (gates, stored);
        }
        tokio::time::sleep(STILL_PAUSE).await;
    };
    let terms = stored.sales.iter().map(|row| row.sale.clone());
    let mut auditor = Auditor::new(terms);
    history.iter().for_each(|entry| auditor.confirmed(entry));
    for order in stored.contents.values() {
        for line in &order.lines {
            auditor.row(&facts(&order.sale, line));
        }
    }
    audit_events(&mut auditor, &stored, &mut outside);
    let mut in_flight = HashSet::new();
    for gate in &gates {
        let sale = gate.row.sale.id.as_str();
        in_flight.extend(gate.outbox.iter().filter(|id| stored.is_open(id)).cloned());
        match &gate.before {
            Some(head) if gate.is_still => {
                auditor.gate_left(sale, &head.free);
                outside.extend(offered_and_sold(gate, &stored));
            }
            Some(_) => notes.push(format!("sale {sale}: its gate kept changing, so its units could not be compared with the store")),
            None => notes.push(format!("sale {sale}: its gate is closed or unreachable, so only the log and the store were compared")),
        }
    }
    let log = seckill_kafka_log::read_all(&servers::log(&core.options)).await?;
    compare_log(&log, &stored, &mut in_flight, &mut outside, &mut notes);
    let mut report = auditor.finish(0);
    report.log_records = Some(log.records);
    report.in_flight = in_flight.len() as u64;
    report.notes = notes;
    for violation in outside {
        if violation.invariant == Invariant::NoOversell {
            report.oversold += 1;
        }
        report.add(violation);
    }
    Ok(report)
}

impl Orders {
    fn add(&mut self, sale: &str, line: Stored) {
        let order = self.contents.entry(line.order_id.clone());
        let order = order.or_insert_with(|| StoredOrder {
            sale: sale.to_owned(),
            lines: Vec::new(),
        });
        order.lines.push(line);
    }

    fn is_open(&self, id: &OrderId) -> bool {
        !self.contents.contains_key(id) && !self.voids.contains(id)
    }
}

async fn look_at_gates(core: &Core) -> Result<Vec<GateView>, Fault> {
    let rows = {
        let mut session = core.store.ready().await?;
        sales::all(&mut session).await?
    };
    let mut gates = Vec::with_capacity(rows.len());
    for row in rows {
        let keys = keys_of(&row);
        let before = peek(core, &keys, &row).await;
        gates.push(GateView {
            row,
            keys,
            before,
            is_still: false,
            outbox: Vec::new(),
            offered: None,
        });
    }
    Ok(gates)
}

async fn peek(core: &Core, keys: &GateKeys, row: &SaleRow) -> Option<Head> {
    match core.gate.peek(keys, row.epoch).await {
        Ok(Ok(head)) => Some(head),
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Records whether each gate changed while the store was read, and which claims are in flight.
async fn look_again(core: &Core, gates: &mut [GateView]) {
    for gate in gates {
        gate.outbox.clear();
        let mut after: Option<String> = None;
        while let Ok(page) = core
            .gate
            .outbox(&gate.keys, after.as_deref(), OUTBOX_PAGE)
            .await
        {
            let is_last = page.len() < OUTBOX_PAGE;
            after = page.last().map(|entry| entry.id.clone());
            let claims = page.into_iter().flat_map(|entry| entry.claims);
            gate.outbox.extend(claims.map(|claim| claim.order_id));
            if is_last {
                break;
            }
        }
        gate.offered = core.gate.offered(&gate.keys).await.ok();
        let now = peek(core, &gate.keys, &gate.row).await;
        let n = |head: &Option<Head>| head.as_ref().map(|head| (head.epoch, head.n));
        gate.is_still = now.is_some()
            && n(&now) == n(&gate.before)
            && gate.outbox.is_empty()
            && gate.row.is_open;
    }
}

async fn read_store(core: &Core) -> Result<Orders, Fault> {
    let mut session = core.store.ready().await?;
    orders::begin_snapshot(&mut session).await?;
    let mut stored = Orders {
        // Terms and events must be of the same time.
        sales: sales::all(&mut session).await?,
        ..Orders::default()
    };
    for row in stored.sales.clone() {
        let mut after = None;
        loop {
            let page = orders::page(&mut session, row.num, after, PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|line| line.claimed.item_unit());
            for line in page {
                stored.add(row.sale.id.as_str(), line);
            }
            if is_last {
                break;
            }
        }
    }
    for (sale_num, line) in orders::of_no_sale(&mut session).await? {
        stored.add(&format!("number {sale_num}"), line);
    }
    read_events(&mut session, &mut stored.events).await?;
    stored.voids = orders::voids(&mut session).await?.into_iter().collect();
    stored.offsets = orders::offsets(&mut session, &core.options.topic).await?;
    session.rollback().await?;
    Ok(stored)
}

async fn read_events(session: &mut Session, events: &mut Vec<StoredEvent>) -> Result<(), Fault> {
    loop {
        let after = events.last().map(|event| (event.sale_num, event.sequence));
        let page = events::page(session, after, PAGE).await?;
        let is_last = page.len() < PAGE;
        events.extend(page);
        if is_last {
            return Ok(());
        }
    }
}

fn facts<'a>(sale: &'a str, line: &'a Stored) -> RowFacts<'a> {
    RowFacts {
        order_id: line.order_id.as_str(),
        line: line.line,
        lines: line.line_count,
        sale,
        item: line.claimed.item,
        unit: line.claimed.unit,
        buyer: &line.buyer,
        key: line.key.as_deref().filter(|_| line.line == 1),
        state: line.state,
        sequence: line.sequence,
        integrity: RowIntegrity::Intact,
        is_edited: false,
    }
}

fn audit_events(auditor: &mut Auditor, stored: &Orders, outside: &mut Vec<Violation>) {
    let names = stored.sales.iter();
    let names: HashMap<u32, &str> = names.map(|row| (row.num, row.sale.id.as_str())).collect();
    for event in &stored.events {
        let number = event.sale_num;
        let unnamed = format!("number {number}");
        let sale = names.get(&number).copied().unwrap_or(&unnamed);
        let audited = match &event.change {
            Some(StoredChange::Created(terms)) => AuditedEvent::Created(terms),
            Some(StoredChange::Changed(terms)) => AuditedEvent::Changed(terms),
            Some(StoredChange::Order(order_id, state)) => AuditedEvent::Order {
                order_id: order_id.as_str(),
                state: *state,
            },
            None => {
                outside.push(Violation {
                    invariant: Invariant::FeedTellsAll,
                    sale: sale.to_owned(),
                    item: None,
                    unit: None,
                    order_ids: Vec::new(),
                    detail: format!("event {} cannot be read", event.sequence),
                });
                continue;
            }
        };
        auditor.event(&EventFacts {
            sale,
            sequence: event.sequence,
            event: audited,
        });
    }
}

/// Violations for units that the gate offers although an order holds them.
fn offered_and_sold(gate: &GateView, stored: &Orders) -> Vec<Violation> {
    let Some(offered) = &gate.offered else {
        return Vec::new();
    };
    let sale = &gate.row.sale;
    let returned = offered.iter().map(|offered| {
        let returned = offered.returned.iter();
        returned.map(|free| free.number).collect::<HashSet<_>>()
    });
    let returned: Vec<HashSet<u32>> = returned.collect();
    let is_offered = |line: &Stored| {
        let (index, unit) = (line.claimed.item.index(), line.claimed.unit.number);
        let offered = offered.get(index).zip(returned.get(index));
        offered.is_some_and(|(offered, returned)| {
            unit > offered.handed_out || returned.contains(&unit)
        })
    };
    let orders = stored.contents.values();
    let lines = orders.filter(|order| order.sale == sale.id.as_str());
    let held = lines
        .flat_map(|order| &order.lines)
        .filter(|line| line.state.is_some_and(OrderState::is_active) && is_offered(line));
    held.map(|line| Violation {
        invariant: Invariant::NoOversell,
        sale: sale.id.to_string(),
        item: sale
            .items
            .get(line.claimed.item.index())
            .map(|item| item.id.to_string()),
        unit: Some(line.claimed.unit.number),
        order_ids: vec![line.order_id.to_string()],
        detail: "the gate offers a unit that an order holds".into(),
    })
    .collect()
}

fn compare_log(
    log: &LogContents,
    stored: &Orders,
    in_flight: &mut HashSet<OrderId>,
    outside: &mut Vec<Violation>,
    notes: &mut Vec<String>,
) {
    let mut logged = HashSet::new();
    for (part, offset, claim) in &log.claims {
        let id = &claim.order_id;
        logged.insert(id);
        if let Some(order) = stored.contents.get(id) {
            if !is_same(claim, order) {
                outside.push(violation(
                    Invariant::NoPhantoms,
                    claim,
                    "the log has the order with different content",
                ));
            }
            continue;
        }
        // The store was read before the log: records past the recorder's position are in flight.
        let next = stored.offsets.get(part).map_or(0, |(_, next)| *next);
        if stored.voids.contains(id) {
            continue;
        }
        if *offset >= next {
            in_flight.insert(id.clone());
        } else {
            let detail =
                "the recorder has passed a claim in the log that is neither an order nor a void";
            outside.push(violation(Invariant::NoUndersell, claim, detail));
        }
    }
    let replaced: Vec<&i32> = stored
        .offsets
        .iter()
        .filter(|(_, (log_gen, _))| *log_gen > 1)
        .map(|(part, _)| part)
        .collect();
    if !replaced.is_empty() {
        notes.push(format!(
            "the log was replaced (partitions {replaced:?}), so older orders are no longer in it"
        ));
        return;
    }
    for (id, order) in &stored.contents {
        if !logged.contains(id) {
            outside.push(Violation {
                invariant: Invariant::NoPhantoms,
                sale: order.sale.clone(),
                item: None,
                unit: None,
                order_ids: vec![id.to_string()],
                detail: "the log has no record of the order".into(),
            });
        }
    }
}

/// The log's slots may differ: a change of the limit renews those of the store.
fn is_same(claim: &ClaimMessage, order: &StoredOrder) -> bool {
    let mut lines: Vec<&Stored> = order.lines.iter().collect();
    lines.sort_unstable_by_key(|line| line.line);
    let logged = claim.units.iter().map(|unit| unit.item_unit());
    let units = lines.iter().map(|line| line.claimed.item_unit());
    let key = claim.idem_key.as_ref().map(IdempotencyKey::as_str);
    let is_same_line = |line: &&Stored| {
        line.buyer == claim.buyer.as_str()
            && line.epoch == claim.epoch
            && line.key.as_deref() == key
            // Without a key, the store has no fingerprint.
            && (key.is_none() || line.fingerprint == Some(claim.fingerprint))
    };
    claim.sale_id.as_str() == order.sale && logged.eq(units) && lines.iter().all(is_same_line)
}

fn violation(invariant: Invariant, claim: &ClaimMessage, detail: &str) -> Violation {
    Violation {
        invariant,
        sale: claim.sale_id.to_string(),
        item: None,
        unit: None,
        order_ids: vec![claim.order_id.to_string()],
        detail: detail.to_owned(),
    }
}
