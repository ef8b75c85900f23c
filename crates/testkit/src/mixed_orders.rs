//! The sale and the load of the kill rounds: orders of several lines, a limit over units, and keys
//! that are repeated. Decides nothing about what must hold afterwards.

use std::collections::HashSet;

use anyhow::ensure;
use seckill_api::{HistoryEntry, Sale};
use seckill_loadgen::{Buyers, Keys, Lines, LoadRun, Outcome};

const ITEMS: [&str; 3] = ["S", "M", "L"];
/// Units that one buyer may hold: more than one order of [`ORDER_UNITS`], fewer than two large ones.
const LIMIT: &str = "4";
const ORDER_UNITS: std::ops::RangeInclusive<u32> = 1..=3;
const KEYS_A_BUYER: u64 = 4;

/// The arguments of `seckill` that create a sale with this many units, over several items.
pub(crate) fn create_sale(sale: &str, units: u64) -> Vec<String> {
    let half = units / 2;
    let third = units / 3;
    let totals = [half, third, units - half - third];
    let items = ITEMS.iter().zip(totals);
    let items: Vec<String> = items
        .map(|(item, total)| format!("{item}={total}"))
        .collect();
    let words = [
        "sale",
        "create",
        sale,
        "--items",
        &items.join(","),
        "--limit",
        LIMIT,
    ];
    words.map(str::to_owned).to_vec()
}

/// So few buyers that some reach the limit, and so many that all units can be sold.
pub(crate) fn buyers(units: u64) -> Buyers {
    Buyers::Repeating((units / 3).max(1))
}

pub(crate) fn keys() -> Keys {
    Keys::PerBuyer(KEYS_A_BUYER)
}

pub(crate) fn lines() -> Lines {
    Lines::Random {
        units: ORDER_UNITS,
        items: ITEMS.map(str::to_owned).to_vec(),
    }
}

/// The requests after which each buyer has used each key.
pub(crate) fn one_pass(units: u64) -> u64 {
    (units / 3).max(1) * KEYS_A_BUYER
}

/// A load for the units that orders of several lines leave over.
pub(crate) struct Rest {
    pub(crate) requests: u64,
    pub(crate) buyers: Buyers,
    pub(crate) lines: Lines,
}

/// One unit of an item for each of many new buyers. `None` once everything is sold.
pub(crate) fn rest(sale: &Sale) -> Option<Rest> {
    let left = sale.items.iter().find(|item| item.remaining > 0)?;
    // The buyers of the load have the lower numbers, and may have reached the limit.
    let known = (sale.total / 3).max(1);
    Some(Rest {
        requests: known + u64::from(left.remaining),
        buyers: Buyers::Unique,
        lines: Lines::Fixed(vec![(left.id.clone(), 1)]),
    })
}

/// All or nothing: every confirmation has exactly the units that its attempt asked for. None is
/// missing in what the audit will check.
pub(crate) fn check_units(run: &LoadRun) -> anyhow::Result<()> {
    ensure!(
        run.report.wrong_units == Some(0),
        "{:?} confirmations do not have the units that were asked for",
        run.report.wrong_units
    );
    let confirmed = run.report.count(Outcome::Won) + run.report.count(Outcome::Repeat);
    ensure!(
        run.confirmations.len() as u64 == confirmed,
        "{} of {confirmed} confirmations were kept",
        run.confirmations.len()
    );
    Ok(())
}

/// The orders that have several units. A repeated confirmation is of the same order.
pub(crate) fn of_several_units(confirmations: &[HistoryEntry]) -> u64 {
    let several = confirmations.iter().filter(|yes| yes.units.len() > 1);
    let orders: HashSet<&str> = several.map(|yes| yes.order_id.as_str()).collect();
    orders.len() as u64
}

/// Refuses a run whose load did not do what it is for: it proves nothing.
pub(crate) fn check_coverage(limit_reached: u64, several_units: u64) -> anyhow::Result<()> {
    ensure!(
        limit_reached > 0,
        "no buyer reached the limit of {LIMIT} units, so the run proves nothing about it; use more rounds or units"
    );
    ensure!(
        several_units > 0,
        "no order has several units, so the run proves nothing about them; use more rounds or units"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_api::{HistoryUnit, LoadReport};

    /// A run with this many confirmations in its report and this many kept ones.
    fn run(confirmed: u64, kept: usize) -> anyhow::Result<LoadRun> {
        let outcomes = serde_json::json!({"won": confirmed - 1, "repeat": 1});
        let report: LoadReport = serde_json::from_value(serde_json::json!({
            "asked": confirmed, "answered": confirmed, "won": confirmed - 1, "sold_out": 0,
            "failed": 0, "units_won": 0, "wrong_units": 0, "outcomes": outcomes, "statuses": {},
            "failures": {}, "elapsed_s": 1.0, "answers_per_s": 1.0, "latency_from": "sent"
        }))?;
        let unit = |unit| HistoryUnit {
            item: Some("S".into()),
            unit,
            generation: Some(1),
        };
        let entry = HistoryEntry {
            order_id: "01a2".into(),
            sale: None,
            units: vec![unit(1), unit(2)],
            buyer: None,
            key: None,
        };
        Ok(LoadRun {
            report,
            confirmations: vec![entry; kept],
            refusal: None,
        })
    }

    #[test]
    fn a_confirmation_that_was_not_kept_is_an_error() -> anyhow::Result<()> {
        check_units(&run(3, 3)?)?;
        let missing = check_units(&run(3, 2)?);
        assert!(missing.is_err_and(|error| error.to_string().starts_with("2 of 3 ")));
        Ok(())
    }

    #[test]
    fn a_run_must_reach_the_limit_with_orders_of_several_units() -> anyhow::Result<()> {
        let repeated = run(3, 3)?.confirmations;
        assert_eq!(of_several_units(&repeated), 1);
        check_coverage(1, 1)?;
        assert!(check_coverage(0, 1).is_err() && check_coverage(1, 0).is_err());
        Ok(())
    }
}
