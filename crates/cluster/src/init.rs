//! Creates what a cluster needs before it can sell: tables and topic. Idempotent, also when several
//! processes run it at once. `reset` deletes all data and must run only on an explicit request.

use seckill_engine::Fault;
use seckill_mysql_store::{Store, meta, orders, sales, setup};
use seckill_sale::DEFAULT_SALE_ID;

use crate::options::{ClusterOptions, InvalidOptions};
use crate::servers;
use crate::shared::keys_of;

/// Marks a store whose sales were created by the demo, which may delete them.
const DEMO_MARK: &str = "made_by_demo";

/// What `init` created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initialised {
    /// False if the topic already existed.
    pub topic_made: bool,
}

/// Who owns the sales in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nothing was sold, and only the default sale exists.
    None,
    /// The demo created them and may delete them.
    Demo,
    /// A user created them; they must be kept.
    User,
}

/// Why a cluster could not be initialised.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotInitialised {
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    #[error("{}", .0.detail)]
    Server(Fault),
}

impl From<Fault> for NotInitialised {
    fn from(fault: Fault) -> Self {
        Self::Server(fault)
    }
}

/// Runs `run` on the store, then closes the store's connections.
async fn on_store<T>(
    options: &ClusterOptions,
    run: impl AsyncFnOnce(&Store) -> Result<T, Fault>,
) -> Result<T, NotInitialised> {
    let store = servers::store(options)?;
    let done = run(&store).await;
    store.close().await;
    Ok(done?)
}

/// Creates the database with its tables, and the topic.
pub async fn init(options: &ClusterOptions) -> Result<Initialised, NotInitialised> {
    // Reach Redis first, so that nothing is created where no gate could open.
    servers::gate(options)?.reach().await?;
    on_store(options, async |store| setup::migrate(store).await).await?;
    let topic_made = seckill_kafka_log::create_topic(&servers::log(options)).await?;
    Ok(Initialised { topic_made })
}

/// Sets the lease that all processes of the cluster must use. Must not run while processes use
/// another lease: once they see the new one, they stop sending rejections.
pub async fn set_lease(options: &ClusterOptions) -> Result<(), NotInitialised> {
    on_store(options, async |store| {
        let mut session = store.session().await?;
        meta::set_lease(&mut session, options.lease_ms).await
    })
    .await
}

/// Deletes all sales, orders, the gates' keys and the topic's records, so that the cluster starts
/// over. Must not run while anything is being sold.
pub async fn reset(options: &ClusterOptions) -> Result<(), NotInitialised> {
    let store = servers::store(options)?;
    let forgotten = forget(options, &store).await;
    store.close().await;
    forgotten
}

async fn forget(options: &ClusterOptions, store: &Store) -> Result<(), NotInitialised> {
    let gate = servers::gate(options)?;
    let rows = {
        let mut session = store.ready().await?;
        sales::all(&mut session).await?
    };
    // The store first: without its sale, a claim still in flight cannot be stored.
    setup::forget(store).await?;
    for row in rows {
        gate.forget(&keys_of(&row)).await?;
    }
    let ends = seckill_kafka_log::empty_topic(&servers::log(options)).await?;
    let mut session = store.ready().await?;
    Ok(orders::begin_at(&mut session, &options.topic, &ends).await?)
}

pub async fn owner(options: &ClusterOptions) -> Result<Owner, NotInitialised> {
    on_store(options, async |store| {
        let mut session = store.ready().await?;
        let is_marked = meta::get(&mut session, DEMO_MARK)
            .await?
            .is_some_and(|mark| mark == b"yes");
        // `init` leaves only the default sale, with nothing sold.
        let sales = sales::page(&mut session, None, 2).await?;
        let is_default = |row: &sales::SaleRow| row.sale.id.as_str() == DEFAULT_SALE_ID;
        let is_empty = sales.iter().all(is_default) && !orders::any(&mut session).await?;
        Ok(match (is_empty, is_marked) {
            (true, _) => Owner::None,
            (false, true) => Owner::Demo,
            (false, false) => Owner::User,
        })
    })
    .await
}

/// Records whether the demo may delete what is in the store.
pub async fn mark_as_demo(options: &ClusterOptions, is_demo: bool) -> Result<(), NotInitialised> {
    let mark = if is_demo { b"yes".as_slice() } else { b"no" };
    on_store(options, async |store| {
        let mut session = store.ready().await?;
        meta::set(&mut session, DEMO_MARK, mark).await
    })
    .await
}
