//! The embedded engine: it decides in memory, stores orders in one SQLite file, and confirms only
//! committed rows. It needs no other server, and does not know about HTTP.

mod audit;
mod backup;
mod batch;
mod clock;
mod engine;
mod failpoints;
mod feed;
mod file;
mod load;
mod memory;
mod opened;
mod operations;
mod order_id;
mod readers;
mod shared;
mod writer;

pub use audit::audit_file;
pub use backup::{BackupError, CopySummary, backup, restore};
pub use engine::{EmbeddedEngine, EmbeddedOptions};
pub use feed::events_of_file;
pub use file::lock::lock_owner;
pub use file::{CONTROL_SOCKET_FILE, DATA_FILES, DATABASE_FILE, FileError, LockOwner};
