//! `cargo xtask test`: every test there is. What is missing on the machine fails; nothing is skipped.

use crate::build::{cargo, succeed};
use crate::readme;

pub(crate) fn run() -> anyhow::Result<()> {
    succeed(cargo().args(["test", "--workspace", "--no-fail-fast"]))?;
    readme::run()
}
