//! SIGKILL of one process of each kind under load, round by round: each sells one sale in orders of
//! several lines. Every confirmation that a client read must hold afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use seckill_api::{AuditVerdict, Audited};

use crate::cluster::{Cluster, LoadPlan, QUIET_WAIT, is_quiet};
use crate::kill_rounds::next;
use crate::mixed_orders;

/// The results of [`cluster_kill_rounds`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClusterKillSummary {
    /// Rounds without a violation.
    pub rounds: u32,
    /// Confirmations that clients read; each is exactly one row afterwards.
    pub confirmations: u64,
    /// Answers with the order's address (202).
    pub pending: u64,
    /// Attempts without an answer.
    pub failed: u64,
    /// Attempts that would have given their buyer more units than the limit.
    pub limit_reached: u64,
    /// Confirmed orders of more than one unit.
    pub several_units: u64,
}

/// In each round, sells a sale while one process of each kind is killed at a random time.
pub fn cluster_kill_rounds(
    cluster: &mut Cluster,
    rounds: u32,
    units: u64,
    within_ms: u64,
    seed: u64,
) -> anyhow::Result<ClusterKillSummary> {
    let mut random = seed.max(1);
    let mut summary = ClusterKillSummary::default();
    for round in 0..rounds {
        let place = || format!("round {round} of seed {seed}");
        let sale = format!("round-{round}");
        let create = mixed_orders::create_sale(&sale, units);
        cluster.seckill(&create.iter().map(String::as_str).collect::<Vec<_>>())?;
        let wait = Duration::from_millis(next(&mut random) % within_ms.max(1));
        let who = next(&mut random);
        // The same buyers on all servers, and other lines in each round.
        let plan = load_plan(units, next(&mut random));
        let sum = cluster.load(&sale, &plan, |cluster| {
            std::thread::sleep(wait);
            cluster.kill_one_of_each(who)
        });
        let sum = sum.with_context(place)?;
        summary.pending += sum.pending;
        summary.failed += sum.failed;
        summary.limit_reached += sum.limit_reached;
        cluster.start_missing().with_context(place)?;
        let limit_reached = sell_out_named(cluster, &sale, units, &plan).with_context(place)?;
        summary.limit_reached += limit_reached;
        summary.rounds += 1;
    }
    summary.confirmations = cluster.confirmations().len() as u64;
    summary.several_units = mixed_orders::of_several_units(cluster.confirmations());
    mixed_orders::check_coverage(summary.limit_reached, summary.several_units)?;
    Ok(summary)
}

fn load_plan(units: u64, seed: u64) -> LoadPlan {
    LoadPlan {
        requests: mixed_orders::one_pass(units),
        connections: 64,
        over: None,
        buyers: mixed_orders::buyers(units),
        keys: mixed_orders::keys(),
        lines: mixed_orders::lines(),
        seed,
    }
}

/// Repeats the load, and then sells single units, until every unit is sold. Returns how many
/// attempts of the load were rejected because of the limit.
fn sell_out_named(
    cluster: &mut Cluster,
    sale: &str,
    units: u64,
    plan: &LoadPlan,
) -> anyhow::Result<u64> {
    let began = Instant::now();
    let mut limit_reached = 0;
    loop {
        limit_reached += cluster.load(sale, plan, |_| Ok(()))?.limit_reached;
        sell_rest(cluster, sale)?;
        let Audited { report, verdict } = cluster.audit()?;
        ensure!(
            verdict == AuditVerdict::Clean,
            "the audit is not clean: {report:#?}\n{}",
            cluster.logs()
        );
        if is_quiet(&report, sale, units) {
            return Ok(limit_reached);
        }
        if began.elapsed() > QUIET_WAIT {
            bail!(
                "{units} units of {sale} were not all sold within {QUIET_WAIT:?}: {report:#?}\n{}",
                cluster.logs()
            );
        }
    }
}

/// Sells what the orders of several lines left over. The gate may be closed at this time, so that
/// nothing proves that all is sold.
fn sell_rest(cluster: &mut Cluster, sale: &str) -> anyhow::Result<()> {
    let left = cluster.sale(sale)?;
    let Some(rest) = mixed_orders::rest(&left) else {
        return Ok(());
    };
    let plan = LoadPlan {
        requests: rest.requests,
        buyers: rest.buyers,
        lines: rest.lines,
        ..LoadPlan::closed(64)
    };
    cluster.load(sale, &plan, |_| Ok(())).map(|_| ())
}
