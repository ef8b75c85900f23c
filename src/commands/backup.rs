//! `seckill backup` and `seckill restore`: audited copies of the embedded engine's database.

use anyhow::bail;
use seckill_api::AuditVerdict;
use seckill_embedded::{CopySummary, LockOwner};

use crate::CommandOutcome;
use crate::cli::{BackupArgs, Common, RestoreArgs};
use crate::configuration::{Configuration, EngineKind};
use crate::output;
use crate::table::{self, grouped};

pub(crate) fn backup(args: &BackupArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = embedded(&args.common, "backup")?;
    let made = seckill_embedded::backup(&configuration.embedded.data, &args.file)?;
    show(&made)
}

pub(crate) fn restore(args: &RestoreArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = embedded(&args.common, "restore")?;
    let owner = LockOwner {
        pid: std::process::id(),
        purpose: "restore".into(),
        takes_commands: false,
    };
    let data = &configuration.embedded.data;
    let made = seckill_embedded::restore(&args.file, data, &owner, args.accept_live_copy)?;
    show(&made)
}

fn embedded(common: &Common, command: &str) -> anyhow::Result<Configuration> {
    let configuration = common.load([])?.configuration;
    if configuration.engine != EngineKind::Embedded {
        bail!(
            "`seckill {command}` is for the embedded engine; for a cluster, use the tools of MySQL"
        );
    }
    Ok(configuration)
}

fn show(made: &CopySummary) -> anyhow::Result<CommandOutcome> {
    let orders = made.report.sales.iter().map(|sale| sale.orders).sum();
    let verdict = AuditVerdict::new(made.report.is_clean());
    let rows = [
        ("file", made.path.display().to_string()),
        ("sales", grouped(made.report.sales.len() as u64)),
        ("orders", grouped(orders)),
        ("rows", grouped(made.report.store_rows)),
        (
            "latest order",
            made.latest_order.clone().unwrap_or_else(|| "-".into()),
        ),
        ("audit", verdict.to_string()),
    ];
    output::print(table::pairs(&rows))?;
    Ok(CommandOutcome::Ok)
}
