//! SIGKILL under load; longer runs: `cargo xtask faults kill`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::path::PathBuf;

use seckill_testkit::{KillPlan, kill_rounds};

#[test]
fn every_yes_survives_sigkill_and_the_rest_sells() {
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
        "no kill came while selling: {summary:?}"
    );
    assert!(
        summary.confirmations_before_kills > 0 && summary.cut_off > 0,
        "{summary:?}"
    );
}
