//! Makes what a cluster needs before it sells: tables, topic. Safe to run any number of times, by any number of processes.
//! And takes all of it back to the beginning, which nothing but an explicit word asks for.

use seckill_engine::Fault;
use seckill_sale::DEFAULT_SALE_ID;

use crate::store::{Store, orders, sales, schema};
use crate::{ClusterOptions, InvalidOptions, components, log};

/// Marks a store whose sales the demo made, and may forget.
const DEMO_MARK: &str = "made_by_demo";

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initialised {
    /// Whether the topic is new.
    pub topic_made: bool,
}

/// Whose the sales in a store are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nothing was sold, and there is no sale but the default one.
    Nobody,
    /// The demo made them, and nobody has used them since.
    Demo,
    /// Somebody's.
    Somebody,
}

/// Why a cluster was not made ready.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotInitialised {
    /// The options cannot be used.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// A server did not do its part.
    #[error("{}", .0.detail)]
    Server(Fault),
}

impl From<Fault> for NotInitialised {
    fn from(fault: Fault) -> Self {
        Self::Server(fault)
    }
}

/// Runs something on the store alone, and ends its connections.
async fn on_store<T>(
    options: &ClusterOptions,
    run: impl AsyncFnOnce(&Store) -> Result<T, Fault>,
) -> Result<T, NotInitialised> {
    let store = components::store(options)?;
    let done = run(&store).await;
    store.close().await;
    Ok(done?)
}

/// Makes the database with its tables, and the topic.
pub async fn init(options: &ClusterOptions) -> Result<Initialised, NotInitialised> {
    // First, so that nothing is made where the gate could not open.
    components::gate(options)?.redis.reach().await?;
    on_store(options, async |store| schema::migrate(store).await).await?;
    let topic_made = log::create_topic(options).await?;
    Ok(Initialised { topic_made })
}

/// Makes the lease of these options everybody's. Not while processes run with another: those that see it say no noes.
pub async fn set_lease(options: &ClusterOptions) -> Result<(), NotInitialised> {
    on_store(options, async |store| {
        let mut session = store.session().await?;
        schema::set_lease(&mut session, options.lease_ms).await
    })
    .await
}

/// Forgets all sales, orders, the gates' keys and the topic's records, so that everything begins anew. Not while anything
/// sells.
pub async fn reset(options: &ClusterOptions) -> Result<(), NotInitialised> {
    let store = components::store(options)?;
    let forgotten = forget(options, &store).await;
    store.close().await;
    forgotten
}

async fn forget(options: &ClusterOptions, store: &Store) -> Result<(), NotInitialised> {
    let gate = components::gate(options)?;
    let rows = {
        let mut session = store.ready().await?;
        sales::all(&mut session).await?
    };
    // The store first: without a sale, nothing that is still on its way can be stored.
    schema::forget(store).await?;
    for row in rows {
        gate.forget(&row.keys).await?;
    }
    let ends = log::empty_topic(options).await?;
    let mut session = store.ready().await?;
    Ok(orders::begin_at(&mut session, &options.topic, &ends).await?)
}

/// Whose the sales are.
pub async fn owner(options: &ClusterOptions) -> Result<Owner, NotInitialised> {
    on_store(options, async |store| {
        let mut session = store.ready().await?;
        let is_marked = schema::meta(&mut session, DEMO_MARK)
            .await?
            .is_some_and(|mark| mark == b"yes");
        // The default sale alone, of which nothing was sold, is what `init` leaves.
        let sales = sales::page(&mut session, None, 2).await?;
        let is_default = |row: &sales::SaleRow| row.sale.id.as_str() == DEFAULT_SALE_ID;
        let is_empty = sales.iter().all(is_default) && !orders::any(&mut session).await?;
        Ok(match (is_empty, is_marked) {
            (true, _) => Owner::Nobody,
            (false, true) => Owner::Demo,
            (false, false) => Owner::Somebody,
        })
    })
    .await
}

/// Says whether the demo may forget what is in the store.
pub async fn mark_as_demo(options: &ClusterOptions, is_demo: bool) -> Result<(), NotInitialised> {
    let mark = if is_demo { b"yes".as_slice() } else { b"no" };
    on_store(options, async |store| {
        let mut session = store.ready().await?;
        schema::set_meta(&mut session, DEMO_MARK, mark).await
    })
    .await
}
