//! Repeated SIGKILL under load: each round sells one sale across two runs of the service, in orders
//! of several lines. What clients read before the kill must still hold after it, and the rest must
//! sell.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use seckill_api::{HistoryEntry, Sale};
use seckill_loadgen::{LoadRun, Outcome, Plan, Progress, Target};

use crate::mixed_orders;
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
    /// The seed of the random kill times and lines.
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
    /// Attempts that would have given their buyer more units than the limit.
    pub limit_reached: u64,
    /// Confirmed orders of more than one unit.
    pub several_units: u64,
}

/// What differs between rounds.
struct Round {
    sale: String,
    /// From the first answer to the kill.
    wait: Duration,
    /// Of the lines, before and after the kill.
    seed: u64,
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
        let round = Round {
            sale: format!("round-{round}"),
            wait: Duration::from_millis(next(&mut random) % plan.kill_within_ms.max(1)),
            seed: next(&mut random),
        };
        let before = before_kill(plan, &data, &round).with_context(place)?;
        summary.confirmations_before_kills += before.confirmations.len() as u64;
        summary.cut_off += before.report.failed;
        let sold = before.report.units_won.unwrap_or_default();
        summary.killed_while_selling += u32::from(sold > 0 && sold < plan.units.into());
        write(&mut history, &before.confirmations)?;
        // Every confirmation must be in the database as the kill left it.
        audit(plan, &data).with_context(place)?;
        let after = after_restart(plan, &data, &round).with_context(place)?;
        write(&mut history, &after.confirmations)?;
        audit(plan, &data).with_context(place)?;
        compare(&before.confirmations, &after.confirmations).with_context(place)?;
        for run in [&before, &after] {
            summary.limit_reached += run.report.count(Outcome::LimitReached);
        }
        let all = [before.confirmations, after.confirmations].concat();
        summary.several_units += mixed_orders::of_several_units(&all);
        summary.rounds += 1;
    }
    mixed_orders::check_coverage(summary.limit_reached, summary.several_units)?;
    Ok(summary)
}

/// xorshift64 (Marsaglia 2003): the kill times need to vary, not to be unpredictable.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Each buyer repeats its keys.
fn load(
    plan: &KillPlan,
    served: &ServerProcess,
    round: &Round,
    passes: u64,
) -> anyhow::Result<Plan> {
    let target = Target::parse(&served.url(&format!("/v1/sales/{}/orders", round.sale)))?;
    let units = u64::from(plan.units);
    Ok(Plan {
        buyers: mixed_orders::buyers(units),
        keys: mixed_orders::keys(),
        lines: mixed_orders::lines(),
        seed: round.seed,
        keep_confirmations: true,
        ..Plan::new(target, passes * mixed_orders::one_pass(units))
    })
}

fn before_kill(plan: &KillPlan, data: &Path, round: &Round) -> anyhow::Result<LoadRun> {
    let served = ServerProcess::start(&plan.binary, data, &[], &["--units", "0"])?;
    let mut create = mixed_orders::create_sale(&round.sale, plan.units.into());
    create.extend(["--data".to_owned(), data.display().to_string()]);
    let words: Vec<&str> = create.iter().map(String::as_str).collect();
    let made = run(&plan.binary, &words)?;
    ensure!(
        made.status.success(),
        "the sale was not created: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let load = load(plan, &served, round, 6)?;
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| seckill_loadgen::run(&load, &progress));
        let began = Instant::now();
        // The wait counts from the first answer; otherwise a slow start would put every kill before
        // the first order.
        while progress.counts().answered == 0 && began.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        std::thread::sleep(round.wait);
        served.kill()?;
        progress.stop();
        let run = running
            .join()
            .map_err(|_| anyhow::anyhow!("the loadgen thread panicked"))??;
        mixed_orders::check_units(&run)?;
        Ok(run)
    })
}

fn after_restart(plan: &KillPlan, data: &Path, round: &Round) -> anyhow::Result<LoadRun> {
    let sale = &round.sale;
    let served = ServerProcess::start(&plan.binary, data, &[], &["--units", "0"])?;
    let load = load(plan, &served, round, 2)?;
    let mut run = send(&load)?;
    let shown = || -> anyhow::Result<Sale> {
        crate::get(served.address, &format!("/v1/sales/{sale}"))?.read()
    };
    let mut left = shown()?;
    while let Some(rest) = mixed_orders::rest(&left) {
        let rest = Plan {
            buyers: rest.buyers,
            lines: rest.lines,
            keep_confirmations: true,
            ..Plan::new(load.target.clone(), rest.requests)
        };
        run.confirmations.extend(send(&rest)?.confirmations);
        let now = shown()?;
        ensure!(
            now.remaining < left.remaining,
            "{sale} has units that cannot be bought: {now:?}"
        );
        left = now;
    }
    served.kill()?;
    Ok(run)
}

/// Runs a load during which nothing is killed.
fn send(load: &Plan) -> anyhow::Result<LoadRun> {
    let run = seckill_loadgen::run(load, &Progress::default())?;
    ensure!(
        run.report.failed == 0,
        "{} attempts failed although nothing was killed",
        run.report.failed
    );
    mixed_orders::check_units(&run)?;
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

/// A key that had a claim before the kill must get the same claim after it, with the same units.
fn compare(before: &[HistoryEntry], after: &[HistoryEntry]) -> anyhow::Result<()> {
    let name = |yes: &HistoryEntry| (yes.buyer.clone(), yes.key.clone());
    let first: HashMap<_, &HistoryEntry> = before.iter().map(|yes| (name(yes), yes)).collect();
    // A buyer without a key may buy again.
    for yes in after.iter().filter(|yes| yes.key.is_some()) {
        if let Some(first) = first.get(&name(yes)) {
            ensure!(*first == yes, "{first:?} became {yes:?}");
        }
    }
    Ok(())
}
