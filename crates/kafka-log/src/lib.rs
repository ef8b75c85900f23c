//! The order log: creates, writes and reads the Kafka topic that transports claims to the store. It
//! does not decide what a record means.

mod client;
mod condition;
mod consumer;
mod contents;
mod inbox;
mod options;
mod producer;
mod record;
mod topic;

pub use condition::LogCondition;
pub use consumer::LogConsumer;
pub use contents::{LogContents, read_all};
pub use options::LogOptions;
pub use producer::{Delivered, LogProducer};
pub use record::{Foreign, FromLog, Record};
pub use topic::{create_topic, empty_topic, weaker_settings};
