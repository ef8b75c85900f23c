//! SIGKILL under load of orders of several lines, with limits and keys. For longer runs, use `cargo xtask faults kill`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::PathBuf;

use seckill_testkit::{KillPlan, kill_rounds};

#[test]
fn every_confirmation_survives_sigkill_and_the_remaining_units_sell() {
    let dir = tempfile::tempdir().unwrap();
    let plan = KillPlan {
        binary: PathBuf::from(env!("CARGO_BIN_EXE_seckill")),
        dir: dir.path().to_owned(),
        rounds: 12,
        units: 2_000,
        kill_within_ms: 120,
        seed: 0x5ec_c111,
    };
    let summary = kill_rounds(&plan).unwrap();
    assert_eq!(summary.rounds, 12);
    assert!(
        summary.killed_while_selling > 0,
        "no kill interrupted the sale: {summary:?}"
    );
    assert!(
        summary.confirmations_before_kills > 0 && summary.cut_off > 0,
        "{summary:?}"
    );
    assert!(
        summary.limit_reached > 0 && summary.several_units > 0,
        "{summary:?}"
    );
}
