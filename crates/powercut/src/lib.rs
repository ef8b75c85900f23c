//! Power cuts and process kills under the real SQLite: a VFS whose disk keeps only what was synced,
//! and rounds that check the embedded engine on it. For tests only; no product crate may use it.

mod client;
mod disk;
mod ffi;
mod interface;
mod locks;
mod machine;
mod promises;
mod rng;
mod rounds;
mod shm;
mod state;
mod vfs;

pub use machine::Machine;
pub use rng::Rng;
pub use rounds::{PowerPlan, PowerSummary, power_round, power_rounds};
pub use state::Fuse;
pub use vfs::VFS_NAME;
