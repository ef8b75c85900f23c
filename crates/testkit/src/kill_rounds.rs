//! Repeated SIGKILL under load: each round sells one sale across two runs of the service.
//! What clients read before the kill must still hold after it, and the rest must sell.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use seckill_api::{HistoryEntry, Sale};
use seckill_loadgen::{Buyers, Keys, LoadRun, Outcome, Plan, Progress, Target};

use crate::process::{ServerProcess, run};

/// Rounds that share a database. Each audit reads the whole database, so with a single one the last
/// rounds would take the longest.
const ROUNDS_A_FILE: u32 = 8;

#[derive(Debug, Clone)]
pub struct KillPlan {
    pub binary: PathBuf,
    /// An empty working folder.
    pub dir: PathBuf,
    /// The number of rounds, with one kill each.
    pub rounds: u32,
    /// Units of each round's sale.
    pub units: u32,
    /// The latest time of a kill after the first answer, in milliseconds.
    pub kill_within_ms: u64,
    /// The seed of the random kill times.
    pub seed: u64,
}

/// The results of [`kill_rounds`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KillSummary {
    /// Rounds without a violation.
    pub rounds: u32,
    /// Rounds whose kill came while units were being sold.
    pub killed_while_selling: u32,
    /// Confirmations that clients read before a kill; each has its order.
    pub confirmations_before_kills: u64,
    /// Attempts whose answer was cut off by a kill.
    pub cut_off: u64,
}

/// Runs the rounds. Returns an error that describes the first violation.
pub fn kill_rounds(plan: &KillPlan) -> anyhow::Result<KillSummary> {
    let data = plan.dir.join("data");
    let mut random = plan.seed.max(1);
    let mut summary = KillSummary::default();
    let mut history = std::fs::File::create(plan.dir.join("history.jsonl"))?;
    for round in 0..plan.rounds {
        if round > 0 && round % ROUNDS_A_FILE == 0 {
            std::fs::remove_dir_all(&data)?;
            history = std::fs::File::create(plan.dir.join("history.jsonl"))?;
        }
        let place = || format!("round {round} of seed {}", plan.seed);
        let sale = format!("round-{round}");
        let wait = Duration::from_millis(next(&mut random) % plan.kill_within_ms.max(1));
        let before = before_kill(plan, &data, &sale, wait).with_context(place)?;
        summary.confirmations_before_kills += before.confirmations.len() as u64;
        summary.cut_off += before.report.failed;
        let sold = before.report.count(Outcome::Won);
        summary.killed_while_selling += u32::from(sold > 0 && sold < plan.units.into());
        write(&mut history, &before.confirmations)?;
        // Every confirmation must be in the database as the kill left it.
        audit(plan, &data).with_context(place)?;
        let after = after_restart(plan, &data, &sale).with_context(place)?;
        write(&mut history, &after.confirmations)?;
        audit(plan, &data).with_context(place)?;
        compare(&before.confirmations, &after.confirmations).with_context(place)?;
        summary.rounds += 1;
    }
    Ok(summary)
}

/// xorshift64 (Marsaglia 2003): the kill times need to vary, not to be unpredictable.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Twice as many buyers as units, one unit each; each buyer retries with its key.
fn load(
    plan: &KillPlan,
    served: &ServerProcess,
    sale: &str,
    requests: u64,
) -> anyhow::Result<Plan> {
    let target = Target::parse(&served.url(&format!("/v1/sales/{sale}/orders")))?;
    Ok(Plan {
        buyers: Buyers::Repeating(2 * u64::from(plan.units)),
        keys: Keys::PerBuyer(1),
        keep_confirmations: true,
        ..Plan::new(target, requests)
    })
}

fn before_kill(
    plan: &KillPlan,
    data: &Path,
    sale: &str,
    wait: Duration,
) -> anyhow::Result<LoadRun> {
    let served = ServerProcess::start(&plan.binary, data, &[], &["--units", "0"])?;
    let (units, folder) = (plan.units.to_string(), data.display().to_string());
    let create = [
        "sale", "create", sale, "--units", &units, "--limit", "1", "--data", &folder,
    ];
    let made = run(&plan.binary, &create)?;
    ensure!(
        made.status.success(),
        "the sale was not created: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let requests = 8 * u64::from(plan.units);
    let load = load(plan, &served, sale, requests)?;
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| seckill_loadgen::run(&load, &progress));
        let began = Instant::now();
        // The wait counts from the first answer; otherwise a slow start would put every kill before
        // the first order.
        while progress.counts().answered == 0 && began.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        std::thread::sleep(wait);
        served.kill()?;
        progress.stop();
        let run = running
            .join()
            .map_err(|_| anyhow::anyhow!("the loadgen thread panicked"))?;
        Ok(run?)
    })
}

fn after_restart(plan: &KillPlan, data: &Path, sale: &str) -> anyhow::Result<LoadRun> {
    let served = ServerProcess::start(&plan.binary, data, &[], &["--units", "0"])?;
    let load = load(plan, &served, sale, 4 * u64::from(plan.units))?;
    let run = seckill_loadgen::run(&load, &Progress::default())?;
    ensure!(
        run.report.failed == 0,
        "{} attempts failed although nothing was killed",
        run.report.failed
    );
    let shown: Sale = crate::get(served.address, &format!("/v1/sales/{sale}"))?.read()?;
    ensure!(shown.remaining == 0, "{sale} is not sold out: {shown:?}");
    served.kill()?;
    Ok(run)
}

fn write(history: &mut std::fs::File, confirmations: &[HistoryEntry]) -> anyhow::Result<()> {
    for yes in confirmations {
        writeln!(history, "{}", serde_json::to_string(yes)?)?;
    }
    Ok(())
}

fn audit(plan: &KillPlan, data: &Path) -> anyhow::Result<()> {
    let (data, history) = (data.display().to_string(), plan.dir.join("history.jsonl"));
    let history = history.display().to_string();
    let audited = run(
        &plan.binary,
        &["audit", "--data", &data, "--history", &history],
    )?;
    if !audited.status.success() {
        bail!(
            "the audit failed: {}{}",
            String::from_utf8_lossy(&audited.stdout),
            String::from_utf8_lossy(&audited.stderr)
        );
    }
    Ok(())
}

/// A key that had a claim before the kill must get the same claim after it.
fn compare(before: &[HistoryEntry], after: &[HistoryEntry]) -> anyhow::Result<()> {
    let name = |yes: &HistoryEntry| (yes.buyer.clone(), yes.key.clone());
    let first: HashMap<_, &str> = before
        .iter()
        .map(|yes| (name(yes), yes.order_id.as_str()))
        .collect();
    for yes in after {
        if let Some(order_id) = first.get(&name(yes)) {
            ensure!(
                *order_id == yes.order_id,
                "{order_id} became {} for {:?}",
                yes.order_id,
                name(yes)
            );
        }
    }
    Ok(())
}
