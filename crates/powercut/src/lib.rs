//! Simulates power cuts and process kills under the real SQLite: a VFS that may lose unsynced
//! writes, and rounds that check the embedded engine on it. Product crates must not use it.

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
