//! Runs the embedded engine through power cuts and kills, on a simulated disk and the real SQLite.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use seckill_powercut::{PowerPlan, power_rounds};

const ROUNDS: u32 = 300;

#[test]
fn every_confirmation_and_rejection_survives() {
    let plan = PowerPlan {
        rounds: ROUNDS,
        seed: 20_261_111,
    };
    let summary = power_rounds(&plan)
        .map_err(|error| format!("{error:#}"))
        .unwrap();
    println!("{summary}");
    assert_eq!(summary.rounds, ROUNDS);
    // Rounds without interruptions would pass as well.
    for count in [
        summary.cuts,
        summary.kills,
        summary.second_cuts,
        summary.cuts_after_kill,
        summary.stopped_in_operation,
        summary.failed_starts,
        summary.confirmations_checked,
        summary.confirmations_before_cut,
        summary.rejections_checked,
        summary.rejections_before_cut,
    ] {
        assert!(count > 0, "{summary:#?}");
    }
}
