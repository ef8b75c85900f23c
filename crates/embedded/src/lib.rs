//! The embedded engine: memory decides, one SQLite file remembers, and a yes is a committed row.
//! It needs nothing beside it, and knows nothing of HTTP.

mod audit;
mod batch;
mod engine;
mod file;
mod load;
mod memory;
mod order_id;
mod readers;
mod shared;
mod writer;

pub use audit::audit_file;
pub use engine::{EmbeddedEngine, EmbeddedOptions};
pub use file::lock::lock_owner;
pub use file::{DATABASE_FILE, FileError, LockOwner};
