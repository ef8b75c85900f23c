//! The sale and the load of the kill rounds: orders of several lines, a limit over units, and keys
//! that are repeated. Decides nothing about what must hold afterwards.

use anyhow::ensure;
use seckill_api::Sale;
use seckill_loadgen::{Buyers, Keys, Lines, LoadRun};

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

/// All or nothing: every confirmation has exactly the units that its attempt asked for.
pub(crate) fn check_units(run: &LoadRun) -> anyhow::Result<()> {
    ensure!(
        run.report.wrong_units == Some(0),
        "{:?} confirmations do not have the units that were asked for",
        run.report.wrong_units
    );
    Ok(())
}
