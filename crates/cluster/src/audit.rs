//! Audits a cluster, also during a sale: compares gate, log and store unit by unit. Reads the
//! store, then the log, and must not mistake claims in flight for violations.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use seckill_cluster_codec::message::ClaimMessage;
use seckill_engine::Fault;
use seckill_kafka_log::LogContents;
use seckill_mysql_store::orders::{self, Stored};
use seckill_mysql_store::sales::{self, SaleRow};
use seckill_redis_gate::{GateKeys, Head};
use seckill_sale::{
    AuditReport, Auditor, HistoryEntry, Invariant, OrderFacts, OrderState, RowIntegrity, Violation,
};

use crate::servers;
use crate::shared::Core;

/// Orders per page.
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
    outbox: Vec<String>,
    offered: Option<(Vec<u32>, u32)>,
}

/// The store's contents, for the comparison with the log.
#[derive(Default)]
struct Orders {
    contents: HashMap<String, (String, Stored)>,
    voids: HashSet<String>,
    offsets: HashMap<i32, (u32, i64)>,
}

pub(crate) async fn audit(core: &Core, history: &[HistoryEntry]) -> Result<AuditReport, Fault> {
    let mut outside = Vec::new();
    let mut notes = Vec::new();
    let mut tries = 0;
    let (gates, stored) = loop {
        let mut gates = look_at_gates(core).await?;
        let stored = read_store(core, &gates).await?;
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
    let mut auditor = Auditor::new(gates.iter().map(|gate| gate.row.sale.clone()));
    for yes in history {
        auditor.confirmed(yes.order_id.as_str(), yes.sale.as_deref(), yes.unit);
    }
    for (sale, order) in stored.contents.values() {
        auditor.order(&facts(sale, order));
    }
    let mut in_flight = HashSet::new();
    for gate in &gates {
        let sale = gate.row.sale.id.as_str();
        in_flight.extend(gate.outbox.iter().filter(|id| stored.is_open(id)).cloned());
        match gate.before {
            Some(head) if gate.is_still => {
                auditor.gate_left(sale, head.free);
                outside.extend(offered_and_sold(gate, &stored));
            }
            Some(_) => notes.push(format!("sale {sale}: its gate kept changing, so its units could not be compared with the store")),
            None => notes.push(format!("sale {sale}: its gate is closed or unreachable, so only the log and the store were compared")),
        }
    }
    let log = seckill_kafka_log::read_all(&servers::log(&core.options)).await?;
    compare_log(&log, &stored, &mut in_flight, &mut outside, &mut notes);
    let mut report = auditor.finish();
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
    fn is_open(&self, id: &str) -> bool {
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
        let keys = GateKeys::new(&row.stock_key);
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
            gate.outbox
                .extend(claims.map(|claim| claim.order_id.to_string()));
            if is_last {
                break;
            }
        }
        gate.offered = core.gate.offered(&gate.keys).await.ok();
        let now = peek(core, &gate.keys, &gate.row).await;
        let n = |head: Option<Head>| head.map(|head| (head.epoch, head.n));
        gate.is_still =
            now.is_some() && n(now) == n(gate.before) && gate.outbox.is_empty() && gate.row.is_open;
    }
}

async fn read_store(core: &Core, gates: &[GateView]) -> Result<Orders, Fault> {
    let mut session = core.store.ready().await?;
    orders::begin_snapshot(&mut session).await?;
    let mut stored = Orders::default();
    for gate in gates {
        let sale = &gate.row.sale.id;
        let mut after = None;
        loop {
            let page = orders::page(&mut session, sale, after, PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|order| order.unit);
            for order in page {
                stored
                    .contents
                    .insert(order.order_id.clone(), (sale.to_string(), order));
            }
            if is_last {
                break;
            }
        }
    }
    for order in orders::of_no_sale(&mut session).await? {
        stored.contents.insert(order.1.order_id.clone(), order);
    }
    stored.voids = orders::voids(&mut session).await?.into_iter().collect();
    stored.offsets = orders::offsets(&mut session, &core.options.topic).await?;
    session.rollback().await?;
    Ok(stored)
}

fn facts<'a>(sale: &'a str, order: &'a Stored) -> OrderFacts<'a> {
    OrderFacts {
        order_id: &order.order_id,
        sale,
        unit: order.unit,
        buyer: &order.buyer,
        key: order.key.as_deref(),
        state: order.state,
        integrity: RowIntegrity::Intact,
    }
}

/// Violations for units that the gate offers although an order holds them.
fn offered_and_sold(gate: &GateView, stored: &Orders) -> Vec<Violation> {
    let Some((returned, next)) = &gate.offered else {
        return Vec::new();
    };
    let returned: HashSet<u32> = returned.iter().copied().collect();
    let sale = gate.row.sale.id.as_str();
    let is_offered = |unit: u32| unit > *next || returned.contains(&unit);
    let held = stored.contents.values().filter(|(of, order)| {
        of == sale
            && order.state.is_some_and(OrderState::is_active)
            && is_offered(order.unit.number)
    });
    held.map(|(_, order)| Violation {
        invariant: Invariant::NoOversell,
        sale: sale.to_owned(),
        unit: Some(order.unit.number),
        order_ids: vec![order.order_id.clone()],
        detail: "the gate offers a unit that an order holds".into(),
    })
    .collect()
}

fn compare_log(
    log: &LogContents,
    stored: &Orders,
    in_flight: &mut HashSet<String>,
    outside: &mut Vec<Violation>,
    notes: &mut Vec<String>,
) {
    let mut logged = HashSet::new();
    for (part, offset, claim) in &log.claims {
        let id = claim.order_id.as_str();
        logged.insert(id);
        if let Some((sale, order)) = stored.contents.get(id) {
            if !is_same(claim, sale, order) {
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
            in_flight.insert(id.to_owned());
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
    for (id, (sale, order)) in &stored.contents {
        if !logged.contains(id.as_str()) {
            outside.push(Violation {
                invariant: Invariant::NoPhantoms,
                sale: sale.clone(),
                unit: Some(order.unit.number),
                order_ids: vec![id.clone()],
                detail: "the log has no record of the order".into(),
            });
        }
    }
}

fn is_same(claim: &ClaimMessage, sale: &str, order: &Stored) -> bool {
    claim.sale_id.as_str() == sale
        && claim.line.unit() == order.unit
        && claim.buyer.as_str() == order.buyer
        && claim
            .idem_key
            .as_ref()
            .map(seckill_sale::IdempotencyKey::as_str)
            == order.key.as_deref()
        && claim.fingerprint == order.fingerprint
        && claim.epoch == order.epoch
}

fn violation(invariant: Invariant, claim: &ClaimMessage, detail: &str) -> Violation {
    Violation {
        invariant,
        sale: claim.sale_id.to_string(),
        unit: Some(claim.line.unit),
        order_ids: vec![claim.order_id.to_string()],
        detail: detail.to_owned(),
    }
}
