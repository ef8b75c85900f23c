//! The order store: MySQL or MariaDB, the source of truth. Contains all SQL; what a record of the
//! log becomes is up to the recorder. Must not access the gate or the log.

pub mod events;
pub mod meta;
mod migration;
mod options;
pub mod orders;
pub mod recording;
pub mod sales;
mod schema;
mod session;
mod settings;
pub mod setup;
mod sql;
mod store;

pub use options::StoreOptions;
pub use session::{Inserted, Session};
pub use settings::weaker_settings;
pub use store::{InvalidMysqlUrl, SESSION_SETUP, Store};
