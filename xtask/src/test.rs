//! `cargo xtask test`: every test there is. What is missing on the machine fails; nothing is skipped.

use seckill_testkit::servers::ENGINES_DIR_VARIABLE;

use crate::build::{cargo, succeed, target};
use crate::engines::Lease;
use crate::readme;

pub(crate) fn run() -> anyhow::Result<()> {
    // Built first, so that the servers are not up meanwhile.
    succeed(cargo().args(["test", "--workspace", "--no-run"]))?;
    let dir = target().join("engines-test");
    let (_lease, _) = Lease::up(&dir)?;
    succeed(cargo().env(ENGINES_DIR_VARIABLE, &dir).args([
        "test",
        "--workspace",
        "--no-fail-fast",
    ]))?;
    // The READMEs bring servers up, too, and end them; so does this where they could not.
    let _guarded = Lease::over(&target().join("engines"))?;
    readme::run()
}
