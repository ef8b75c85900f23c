//! `cargo xtask test`: runs every test. A missing program is a failure; no test is skipped.

use seckill_testkit::servers::ENGINES_DIR_VARIABLE;

use crate::build::{cargo, succeed, target};
use crate::engines::Lease;
use crate::readme;

pub(crate) fn run() -> anyhow::Result<()> {
    // Build first, so that the servers do not run meanwhile.
    succeed(cargo().args(["test", "--workspace", "--no-run"]))?;
    let dir = target().join("engines-test");
    let (_lease, _) = Lease::up(&dir)?;
    succeed(cargo().env(ENGINES_DIR_VARIABLE, &dir).args([
        "test",
        "--workspace",
        "--no-fail-fast",
    ]))?;
    // The READMEs start servers as well and stop them; this stops them if a script fails.
    let _guarded = Lease::over(&target().join("engines"))?;
    readme::run()
}
