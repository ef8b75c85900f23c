//! `seckill audit`: everything that is stored against the invariants, with what breaks them.

use std::io::BufRead;
use std::path::Path;

use anyhow::Context;
use seckill_sale::{AuditReport, HistoryEntry};
use serde_json::{Value, json};

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::AuditArgs;
use crate::configuration::EngineKind;
use crate::table::{self, grouped};

/// How many broken invariants the table names; JSON names up to a thousand.
const SHOWN_MAX: usize = 20;

pub(crate) fn run(args: &AuditArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load([])?.configuration;
    let history = match &args.history {
        Some(path) => read_history(path)?,
        None => Vec::new(),
    };
    let report = match configuration.engine {
        EngineKind::Embedded => {
            seckill_embedded::audit_file(&configuration.embedded.data, &history)?
        }
        EngineKind::Cluster => {
            let runtime = bootstrap::runtime(configuration.service.threads.get())?;
            runtime.block_on(async {
                let engine = bootstrap::engine(&configuration, "audit".into(), None)?;
                let report = engine.audit(history).await;
                engine.close().await;
                anyhow::Ok(report?)
            })?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&to_json(&report)?)?);
    } else {
        print!("{}", table::pairs(&rows(&report)));
        print!("{}", broken(&report));
        report
            .notes
            .iter()
            .for_each(|note| println!("note: {note}"));
    }
    Ok(if report.is_clean() {
        CommandOutcome::Ok
    } else {
        CommandOutcome::Failed
    })
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

/// The report with its verdict.
pub(crate) fn to_json(report: &AuditReport) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(report)?;
    value["verdict"] = json!(report.verdict());
    Ok(value)
}

fn rows(report: &AuditReport) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("sales", grouped(report.sales.len() as u64)),
        ("rows in the order store", grouped(report.store_rows)),
    ];
    if let Some(records) = report.log_records {
        rows.push(("messages in the order log", grouped(records)));
        rows.push(("claims on their way", grouped(report.in_flight)));
    }
    rows.extend([
        ("units left", grouped(report.gate_left)),
        ("oversold", grouped(report.oversold)),
        ("undersold", grouped(report.undersold)),
        ("duplicates", grouped(report.duplicates)),
    ]);
    if report.promises_checked > 0 {
        rows.push((
            "confirmations of clients checked",
            grouped(report.promises_checked),
        ));
    }
    rows.push(("broken invariants", grouped(report.violation_count)));
    rows.push(("verdict", report.verdict().into()));
    rows
}

/// The first broken invariants, a line each.
pub(crate) fn broken(report: &AuditReport) -> String {
    let mut text = String::new();
    for violation in report.violations.iter().take(SHOWN_MAX) {
        text.push_str(&format!("broken: {}: ", violation.invariant));
        if !violation.sale.is_empty() {
            text.push_str(&format!("sale {}: ", violation.sale));
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
            "and {more} more; --json names up to {}\n",
            AuditReport::NAMED_MAX
        ));
    }
    text
}
