//! The result of `seckill demo`: the checks beyond those of the audit, the table, and what to try
//! next. Starts nothing.

use std::net::SocketAddr;
use std::path::Path;

use seckill_api::{AuditReport, AuditVerdict, DemoReport, LoadReport};
use seckill_embedded::DATABASE_FILE;
use seckill_loadgen::{LoadRun, Outcome, Plan, Wanted};
use seckill_sale::DEFAULT_SALE_ID;

use crate::cli::DemoArgs;
use crate::commands::{audit, demo_cluster, load};
use crate::configuration::{Configuration, EngineKind};
use crate::table::{self, grouped};

/// What the load and the audit reported, and which checks failed.
pub(crate) struct DemoResult {
    /// Units for sale.
    units: u64,
    load: LoadReport,
    audit: AuditReport,
    failed_checks: Vec<String>,
}

impl DemoResult {
    pub(crate) fn new(units: u64, plan: &Plan, run: LoadRun, audit: AuditReport) -> Self {
        Self {
            failed_checks: failed_checks(units, plan, &run, &audit),
            units,
            load: run.report,
            audit,
        }
    }

    /// One sentence each.
    pub(crate) fn failed_checks(&self) -> &[String] {
        &self.failed_checks
    }

    pub(crate) fn verdict(&self) -> AuditVerdict {
        let is_clean = self.audit.verdict() == AuditVerdict::Clean;
        AuditVerdict::new(is_clean && self.failed_checks.is_empty())
    }

    pub(crate) fn report(&self) -> DemoReport {
        DemoReport {
            verdict: self.verdict(),
            asked: self.load.asked,
            won: self.load.won,
            sold_out: self.load.sold_out,
            failed: self.load.failed,
            units_won: self.load.units_won.unwrap_or_default(),
            wrong_units: self.load.wrong_units.unwrap_or_default(),
            gate_left: self.audit.gate_left,
            log_records: self.audit.log_records,
            store_rows: self.audit.store_rows,
            oversold: self.audit.oversold,
            undersold: self.audit.undersold,
            duplicates: self.audit.duplicates,
            units: self.units,
            elapsed_s: self.load.elapsed_s,
            latency: self.load.latency,
            outcomes: self.load.outcomes.clone(),
            audit: self.audit.clone().into(),
        }
    }

    /// The table, and a line for each check that failed.
    pub(crate) fn text(&self) -> String {
        let mut text = table::pairs(&self.rows()) + &audit::broken(&self.audit);
        for failed in &self.failed_checks {
            text.push_str(&format!("broken: {failed}\n"));
        }
        text
    }

    fn rows(&self) -> Vec<(String, String)> {
        let Self { load, audit, .. } = self;
        let row = |name: &str, value: String| (name.to_owned(), value);
        let count = |name, count| row(name, grouped(count));
        let mut rows = vec![
            count("asked", load.asked),
            count("won", load.won),
            count("sold out", load.sold_out),
        ];
        rows.extend(load::answer_rows(load, &[Outcome::Won, Outcome::SoldOut]));
        let wrong = load.wrong_units.filter(|wrong| *wrong > 0);
        rows.extend(wrong.map(|wrong| count("wrong units", wrong)));
        // The same number where each order has one unit.
        let units_won = load.units_won.filter(|units| *units != load.won);
        rows.extend(units_won.map(|units| count("units sold", units)));
        let latency = load.latency.iter().flat_map(load::latency_rows);
        rows.extend(latency.map(|(name, value)| row(name, value)));
        rows.push(row("time", format!("{:.2} s", load.elapsed_s)));
        rows.push(count("units left", audit.gate_left));
        let records = audit.log_records;
        rows.extend(records.map(|records| count("messages in the order log", records)));
        rows.extend([
            count("rows in the order store", audit.store_rows),
            count("oversold", audit.oversold),
            count("undersold", audit.undersold),
            count("duplicates", audit.duplicates),
            row("verdict", self.verdict().to_string()),
        ]);
        rows
    }
}

/// Checks that every request was answered with a confirmation or a rejection for lack of units,
/// that each is right, and that the numbers add up.
fn failed_checks(units: u64, plan: &Plan, run: &LoadRun, audited: &AuditReport) -> Vec<String> {
    let report = &run.report;
    let (won, sold_out) = (report.count(Outcome::Won), report.count(Outcome::SoldOut));
    let rejected = sold_out + report.count(Outcome::NotEnoughLeft);
    let mut failed = Vec::new();
    let mut check = |holds: bool, otherwise: String| {
        if !holds {
            failed.push(otherwise);
        }
    };
    check(
        report.failed == 0,
        format!("{} requests got no answer", grouped(report.failed)),
    );
    let other = report.answered.saturating_sub(won + rejected);
    let example = run.refusal.as_ref().map(load::described);
    let example = example.map_or_else(String::new, |said| format!(", such as {said}"));
    check(
        other == 0,
        format!(
            "{} answers are neither a confirmation nor a rejection for lack of units{example}",
            grouped(other)
        ),
    );
    let wrong = report.wrong_units.unwrap_or_default();
    check(
        wrong == 0,
        format!(
            "{} confirmations cannot be read or do not have the units that were asked for",
            grouped(wrong)
        ),
    );
    let units_won = report.units_won.unwrap_or_default();
    let rows = audited.store_rows;
    check(
        units_won == rows,
        format!(
            "{} units were confirmed, but the order store has {} rows",
            grouped(units_won),
            grouped(rows)
        ),
    );
    let left = audited.gate_left;
    check(
        rows + left == units,
        format!(
            "{} rows in the order store and {} units left are not the {} units for sale",
            grouped(rows),
            grouped(left),
            grouped(units)
        ),
    );
    let records = audited.log_records.unwrap_or(won);
    check(
        records == won,
        format!(
            "{} orders were confirmed, but the order log has {} messages",
            grouped(won),
            grouped(records)
        ),
    );
    let rightly = Rejections::at_most(plan, audited);
    check(
        sold_out <= rightly.sold_out,
        format!(
            "{} requests were rejected as sold out, but only {} asked for nothing but items without a unit left",
            grouped(sold_out),
            grouped(rightly.sold_out)
        ),
    );
    check(
        rejected <= rightly.all,
        format!(
            "{} requests were rejected for lack of units, but only {} asked for more units than are left",
            grouped(rejected),
            grouped(rightly.all)
        ),
    );
    failed
}

/// The most requests that can have been rejected for lack of units.
#[derive(Debug, PartialEq, Eq)]
struct Rejections {
    /// Because no item that the request named had a unit left.
    sold_out: u64,
    all: u64,
}

impl Rejections {
    /// Nothing is released in a demo, so what is left at the end was left all the time.
    fn at_most(plan: &Plan, audited: &AuditReport) -> Self {
        let sales = &audited.sales;
        let sale = sales.iter().find(|report| report.sale == DEFAULT_SALE_ID);
        let items = sale.map_or(&[][..], |sale| &sale.items);
        let left_of = |id: &str| {
            let item = items.iter().find(|item| item.item == id);
            item.map_or(0, |item| item.gate_left)
        };
        let left_of_only = items.first().map_or(0, |item| item.gate_left);
        let mut most = Self {
            sold_out: 0,
            all: 0,
        };
        for index in 0..plan.requests {
            let (is_short, is_sold_out) = match plan.wanted(index) {
                Wanted::Quantity(quantity) => (quantity > left_of_only, left_of_only == 0),
                Wanted::Lines(lines) => (
                    lines.iter().any(|line| line.quantity > left_of(&line.item)),
                    lines.iter().all(|line| left_of(&line.item) == 0),
                ),
            };
            most.all += u64::from(is_short);
            most.sold_out += u64::from(is_sold_out);
        }
        most
    }
}

/// Commands that work on what the demo leaves behind.
pub(crate) fn next_steps(
    args: &DemoArgs,
    configuration: &Configuration,
    address: SocketAddr,
    dir: &Path,
) -> String {
    let mut text = "\nTry next:\n".to_owned();
    let of_engine = match configuration.engine {
        EngineKind::Embedded => {
            let (database, dir) = (dir.join(DATABASE_FILE), dir.display());
            text.push_str(&format!(
                "  sqlite3 {} 'select * from seckill_orders limit 5'\n  seckill audit --data {dir}\n",
                database.display()
            ));
            format!("--data {dir}")
        }
        EngineKind::Cluster => {
            text.push_str(&demo_cluster::look(&configuration.cluster_options()));
            "--engine cluster".to_owned()
        }
    };
    if !args.keep {
        return text
            + "  seckill demo --keep          leave the service running\n  seckill serve --help\n";
    }
    // The sale may be sold out: first there must be a unit to buy.
    let (more, body) = match args.items.as_ref().and_then(|items| items.0.first()) {
        Some((item, total)) => (
            format!("--items {item}={}", u64::from(*total) + 1),
            format!(
                " -H 'content-type: application/json' -d '{{\"lines\":[{{\"item\":\"{item}\"}}]}}'"
            ),
        ),
        None => ("--add-units 1".to_owned(), String::new()),
    };
    text.push_str(&format!(
        "  seckill sale change {DEFAULT_SALE_ID} {more} {of_engine}\n  \
         curl -X POST http://{address}/seckill{body}\n\
         \nThe service is running on http://{address}; Ctrl-C stops it.\n"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_api::{ItemReport, LatencyFrom, SaleReport};
    use seckill_loadgen::{Lines, Target};
    use std::collections::BTreeMap;

    /// 100 requests for one or two units of S or M.
    fn plan() -> Plan {
        let target = Target::parse("http://127.0.0.1:3000/seckill").unwrap();
        Plan {
            lines: Lines::Random {
                units: 1..=2,
                items: vec!["S".into(), "M".into()],
            },
            ..Plan::new(target, 100)
        }
    }

    fn run(outcomes: &[(Outcome, u64)], units_won: u64) -> LoadRun {
        let outcomes: BTreeMap<_, _> = outcomes.iter().copied().collect();
        let count = |outcome| outcomes.get(&outcome).copied().unwrap_or(0);
        let answered = outcomes.values().sum();
        LoadRun {
            report: LoadReport {
                asked: answered,
                answered,
                won: count(Outcome::Won),
                sold_out: count(Outcome::SoldOut),
                failed: 0,
                units_won: Some(units_won),
                wrong_units: Some(0),
                statuses: BTreeMap::new(),
                failures: BTreeMap::new(),
                elapsed_s: 1.0,
                answers_per_s: 1.0,
                latency_from: LatencyFrom::Sent,
                latency: None,
                latency_won: None,
                outcomes,
            },
            confirmations: Vec::new(),
            refusal: None,
        }
    }

    /// Items with their totals and the units that are left.
    fn audited(items: &[(&str, u32, u32)]) -> AuditReport {
        let item = |&(item, total, gate_left): &(&str, u32, u32)| ItemReport {
            item: item.to_owned(),
            total,
            active: u64::from(total - gate_left),
            gate_left,
        };
        let items: Vec<_> = items.iter().map(item).collect();
        let active = items.iter().map(|item| item.active).sum();
        let gate_left = items.iter().map(|item| item.gate_left).sum();
        AuditReport {
            store_rows: active,
            gate_left: u64::from(gate_left),
            sales: vec![SaleReport {
                sale: DEFAULT_SALE_ID.to_owned(),
                total: items.iter().map(|item| item.total).sum(),
                orders: active,
                active,
                gate_left,
                items,
            }],
            ..AuditReport::default()
        }
    }

    fn result(outcomes: &[(Outcome, u64)], items: &[(&str, u32, u32)]) -> DemoResult {
        let audited = audited(items);
        let run = run(outcomes, audited.store_rows);
        DemoResult::new(80, &plan(), run, audited)
    }

    #[test]
    fn a_rejection_needs_an_item_without_enough_units() {
        let sold_out = result(&[(Outcome::SoldOut, 100)], &[("S", 40, 40), ("M", 40, 40)]);
        assert_eq!(sold_out.verdict(), AuditVerdict::Broken);
        let said = sold_out.text();
        assert!(said.contains("broken: 100 requests were rejected as sold out, but only 0"));
        let short = [(Outcome::NotEnoughLeft, 100)];
        let short = result(&short, &[("S", 40, 2), ("M", 40, 2)]);
        assert_eq!(short.verdict(), AuditVerdict::Broken, "{}", short.text());

        // Requests for S alone are sold out, those for S and M get too little.
        let some = [
            (Outcome::Won, 60),
            (Outcome::SoldOut, 20),
            (Outcome::NotEnoughLeft, 20),
        ];
        let some = result(&some, &[("S", 40, 0), ("M", 40, 5)]);
        assert_eq!(some.verdict(), AuditVerdict::Clean, "{}", some.text());
        let all = [(Outcome::Won, 10), (Outcome::SoldOut, 90)];
        let all = result(&all, &[("S", 40, 0), ("M", 40, 5)]);
        assert_eq!(all.failed_checks().len(), 2, "{}", all.text());
        let none_left = [(Outcome::Won, 50), (Outcome::SoldOut, 50)];
        let none_left = result(&none_left, &[("S", 40, 0), ("M", 40, 0)]);
        assert_eq!(none_left.verdict(), AuditVerdict::Clean);
    }

    #[test]
    fn each_check_that_fails_has_a_line() {
        let items = [("S", 40, 0), ("M", 40, 0)];
        let mut run = run(&[(Outcome::Won, 50), (Outcome::Unavailable, 50)], 79);
        run.report.wrong_units = Some(3);
        let broken = DemoResult::new(81, &plan(), run, audited(&items));
        let said = broken.text();
        for expected in [
            "unavailable",
            "broken: 50 answers are neither",
            "broken: 3 confirmations cannot be read",
            "broken: 79 units were confirmed, but the order store has 80 rows",
            "are not the 81 units for sale",
        ] {
            assert!(said.contains(expected), "{expected} is not in {said}");
        }
        assert_eq!(broken.failed_checks().len(), 4, "{said}");
    }
}
