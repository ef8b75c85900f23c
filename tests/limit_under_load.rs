//! Repeated attempts under load: no buyer exceeds the limit, and a key yields at most one order.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::collections::{HashMap, HashSet};
use std::path::Path;

use seckill_loadgen::{Buyers, Keys, LoadRun, Outcome, Plan, Progress, Target};
use seckill_testkit::{ServerProcess, run};
use tempfile::TempDir;

/// 5,000 buyers make 20 attempts each, with 4 keys per buyer and a limit of 2.
#[test]
fn repeated_attempts_never_exceed_the_limit_per_buyer() {
    const BUYERS: u64 = 5_000;
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let binary = Path::new(env!("CARGO_BIN_EXE_seckill"));
    let server = ServerProcess::start(binary, &data, &[], &["--units", "0"]).unwrap();
    let data = data.display().to_string();
    let create = [
        "sale", "create", "s", "--units", "20000", "--limit", "2", "--data", &data,
    ];
    assert!(run(binary, &create).unwrap().status.success());
    let target = Target::parse(&server.url("/v1/sales/s/orders")).unwrap();
    let plan = Plan {
        buyers: Buyers::Repeating(BUYERS),
        keys: Keys::PerBuyer(4),
        connections: 256,
        keep_confirmations: true,
        ..Plan::new(target, 20 * BUYERS)
    };
    let LoadRun {
        report,
        confirmations,
        ..
    } = seckill_loadgen::run(&plan, &Progress::default()).unwrap();
    assert_eq!((report.answered, report.failed), (20 * BUYERS, 0));
    // Two of each buyer's keys get a unit. The other two are rejected each time.
    assert_eq!(report.count(Outcome::Won), 2 * BUYERS);
    assert_eq!(
        report.count(Outcome::Won) + report.count(Outcome::Repeat),
        10 * BUYERS
    );
    assert_eq!(report.count(Outcome::LimitReached), 10 * BUYERS);
    let mut orders_by_buyer: HashMap<_, HashSet<&str>> = HashMap::new();
    let mut order_by_key: HashMap<_, &str> = HashMap::new();
    for confirmation in &confirmations {
        orders_by_buyer
            .entry(&confirmation.buyer)
            .or_default()
            .insert(&confirmation.order_id);
        let first = order_by_key
            .entry((&confirmation.buyer, &confirmation.key))
            .or_insert(&confirmation.order_id);
        assert_eq!(*first, confirmation.order_id);
    }
    assert_eq!(orders_by_buyer.len() as u64, BUYERS);
    assert!(orders_by_buyer.values().all(|orders| orders.len() == 2));
    let audit = run(binary, &["audit", "--data", &data, "--json"]).unwrap();
    let audit: serde_json::Value = serde_json::from_slice(&audit.stdout).unwrap();
    assert_eq!(
        (&audit["store_rows"], &audit["verdict"]),
        (&10_000.into(), &"clean".into())
    );
}
