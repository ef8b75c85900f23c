//! Makes what a cluster needs before it sells: tables, topic. Safe to run any number of times, by any number of processes.

use seckill_engine::Fault;

use crate::store::schema;
use crate::{BadOptions, ClusterOptions, log, parts};

/// What was there and what was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initialised {
    /// Whether the topic is new.
    pub topic_made: bool,
}

/// Why a cluster was not made ready.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotInitialised {
    /// The options cannot be used.
    #[error(transparent)]
    Options(#[from] BadOptions),
    /// A server did not do its part.
    #[error("{}", .0.detail)]
    Server(Fault),
}

/// Makes the database with its tables, and the topic.
pub async fn init(options: &ClusterOptions) -> Result<Initialised, NotInitialised> {
    let store = parts::store(options)?;
    let migrated = schema::migrate(&store).await;
    store.close().await;
    migrated.map_err(NotInitialised::Server)?;
    let topic_made = log::create_topic(options)
        .await
        .map_err(NotInitialised::Server)?;
    Ok(Initialised { topic_made })
}

/// Forgets all sales and orders, so that everything begins anew. The topic's records stay; they count no more.
pub async fn reset(options: &ClusterOptions) -> Result<(), NotInitialised> {
    let store = parts::store(options)?;
    let forgotten = schema::forget(&store).await;
    store.close().await;
    forgotten.map_err(NotInitialised::Server)
}
