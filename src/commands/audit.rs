//! `seckill audit`: checks all stored data against the invariants, and changes nothing.

use std::io::BufRead;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hyper::Method;
use seckill_api::{
    AuditReport, AuditVerdict, Audited, CONTROL_AUDIT_PATH, HistoryEntry, ItemReport,
};
use seckill_service::convert;

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::AuditArgs;
use crate::configuration::{Configuration, EngineKind};
use crate::control_client;
use crate::data_folder::{self, FolderUser};
use crate::output;
use crate::table::{self, grouped};

/// The most violations in the table. JSON has up to [`seckill_sale::AuditReport::NAMED_MAX`].
const SHOWN_MAX: usize = 20;
/// The longest wait for a running service: its audit may read millions of orders.
const AUDIT_WAIT: Duration = Duration::from_secs(600);

pub(crate) fn run(args: &AuditArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load([])?.configuration;
    let history = match &args.history {
        Some(path) => read_history(path)?,
        None => Vec::new(),
    };
    let report = match configuration.engine {
        EngineKind::Embedded => embedded(&configuration, history)?,
        EngineKind::Cluster => {
            let history = convert::history(history)?;
            let runtime = bootstrap::runtime(configuration.service.threads.get())?;
            runtime.block_on(async {
                let engine = bootstrap::engine(&configuration, "audit")?;
                let report = engine.audit(history).await;
                engine.close().await;
                anyhow::Ok(convert::audit_report(report?))
            })?
        }
    };
    let verdict = report.verdict();
    if args.json {
        output::print(serde_json::to_string_pretty(&Audited::from(report))? + "\n")?;
    } else {
        let mut text = table::pairs(&rows(&report)) + &broken(&report);
        for note in &report.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        text.push_str(&items(&report));
        output::print(text)?;
    }
    Ok(match verdict {
        AuditVerdict::Clean => CommandOutcome::Ok,
        AuditVerdict::Broken => CommandOutcome::Failed,
    })
}

/// Asks a running service, because only it knows which units it offers. Otherwise reads the file.
fn embedded(
    configuration: &Configuration,
    history: Vec<HistoryEntry>,
) -> anyhow::Result<AuditReport> {
    let data = &configuration.embedded.data;
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    match runtime.block_on(FolderUser::of(data)) {
        FolderUser::Service { socket, .. } => {
            let (path, body) = (CONTROL_AUDIT_PATH, Some(&history));
            let asked = control_client::ask(&socket, Method::POST, path, body, AUDIT_WAIT);
            return Ok(runtime.block_on(asked)?);
        }
        FolderUser::Busy { error, .. } => error.iter().for_each(data_folder::note_unreachable),
        FolderUser::Nobody => {}
    }
    let history = convert::history(history)?;
    let report = seckill_embedded::audit_file(data, &history)?;
    Ok(convert::audit_report(report))
}

fn read_history(path: &Path) -> anyhow::Result<Vec<HistoryEntry>> {
    let file = std::fs::File::open(path)
        .with_context(|| format!("the history {} cannot be read", path.display()))?;
    let lines = std::io::BufReader::new(file).lines();
    let confirmations = lines.enumerate().map(|(index, line)| {
        let place = || format!("line {} of the history {}", index + 1, path.display());
        serde_json::from_str(&line.with_context(place)?).with_context(place)
    });
    confirmations.collect()
}

fn rows(report: &AuditReport) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("sales", grouped(report.sales.len() as u64)),
        ("rows in the order store", grouped(report.store_rows)),
        ("events", grouped(report.events)),
    ];
    if let Some(records) = report.log_records {
        rows.push(("messages in the order log", grouped(records)));
        rows.push(("claims in flight", grouped(report.in_flight)));
    }
    rows.extend([
        ("units left", grouped(report.gate_left)),
        ("oversold", grouped(report.oversold)),
        ("undersold", grouped(report.undersold)),
        ("duplicates", grouped(report.duplicates)),
    ]);
    if report.confirmations_checked > 0 {
        rows.push((
            "confirmations checked",
            grouped(report.confirmations_checked),
        ));
    }
    rows.push(("broken invariants", grouped(report.violation_count)));
    rows.push(("verdict", report.verdict().to_string()));
    rows
}

/// The items of the sales that have several. Empty if there is no such sale.
pub(crate) fn items(report: &AuditReport) -> String {
    let sales = report.sales.iter().filter(|sale| sale.items.len() > 1);
    let row = |sale: &str, item: &ItemReport| {
        [
            sale.to_owned(),
            item.item.clone(),
            grouped(item.total.into()),
            grouped(item.active),
            grouped(item.gate_left.into()),
        ]
    };
    let rows = sales.flat_map(|sale| sale.items.iter().map(|item| row(&sale.sale, item)));
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    let heads = ["SALE", "ITEM", "UNITS", "SOLD", "LEFT"];
    format!("\n{}", table::columns(heads, &rows))
}

/// The first violations, one per line.
pub(crate) fn broken(report: &AuditReport) -> String {
    let mut text = String::new();
    for violation in report.violations.iter().take(SHOWN_MAX) {
        text.push_str(&format!("broken: {}: ", violation.invariant));
        if !violation.sale.is_empty() {
            text.push_str(&format!("sale {}: ", violation.sale));
        }
        if let Some(item) = &violation.item {
            text.push_str(&format!("item {item}: "));
        }
        if let Some(unit) = violation.unit {
            text.push_str(&format!("unit {unit}: "));
        }
        text.push_str(&violation.detail);
        if !violation.order_ids.is_empty() {
            text.push_str(&format!(" (orders {})", violation.order_ids.join(", ")));
        }
        text.push('\n');
    }
    let shown = report.violations.len().min(SHOWN_MAX) as u64;
    if report.violation_count > shown {
        let more = grouped(report.violation_count - shown);
        text.push_str(&format!(
            "and {more} more; --json lists up to {}\n",
            seckill_sale::AuditReport::NAMED_MAX
        ));
    }
    text
}
