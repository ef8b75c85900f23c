//! A database of its own for each test, on the running server, with claims to store in it.

#![allow(
    dead_code,
    reason = "tests share this module and each uses only part of it"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Conn, Opts, OptsBuilder};
use seckill_cluster_codec::message::ClaimMessage;
use seckill_cluster_codec::order_id::{Named, OrderIds};
use seckill_mysql_store::recording::{self, Batch, Place};
use seckill_mysql_store::sales::{self, SaleRow};
use seckill_mysql_store::{Inserted, Session, Store, StoreOptions, events, orders, setup};
use seckill_sale::{
    Attempt, Buyer, ClaimedUnit, Event, IdempotencyKey, ItemId, ItemNo, NewItem, NewSale, Order,
    OrderId, Replay, SaleId, Unit,
};
use seckill_testkit::servers::Urls;

pub(crate) const TOPIC: &str = "log";
pub(crate) const EPOCH: u32 = 0;
const LEASE_MS: u64 = 3_000;
static DATABASES: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Database {
    pub(crate) store: Store,
    name: String,
    url: String,
}

impl Database {
    /// A database without tables.
    pub(crate) async fn empty() -> Self {
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = format!("store{}_{number}", std::process::id());
        let url = Urls::up().unwrap().with_database(&name).mysql;
        let options = StoreOptions {
            url: url.clone(),
            ca: None,
            connections: 4,
            wait: Duration::from_secs(20),
            lease_ms: LEASE_MS,
        };
        let store = Store::new(options).unwrap();
        let database = Self { store, name, url };
        let sql = format!("CREATE DATABASE {}", database.name);
        database.on_server(&sql).await;
        database
    }

    /// A database of the latest version.
    pub(crate) async fn new() -> Self {
        let database = Self::empty().await;
        setup::migrate(&database.store).await.unwrap();
        database
    }

    pub(crate) async fn drop(self) {
        self.store.close().await;
        self.on_server(&format!("DROP DATABASE {}", self.name))
            .await;
    }

    async fn on_server(&self, sql: &str) {
        let opts = Opts::from_url(&self.url).unwrap();
        let opts = OptsBuilder::from_opts(opts).db_name(None::<String>);
        let mut conn = Conn::new(opts).await.unwrap();
        conn.query_drop(sql).await.unwrap();
        conn.disconnect().await.unwrap();
    }

    /// A connection of an operator.
    pub(crate) async fn conn(&self) -> Conn {
        let mut conn = Conn::from_url(&self.url).await.unwrap();
        let setup = "SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES'";
        conn.query_drop(setup).await.unwrap();
        conn
    }

    /// Runs SQL as an operator would.
    pub(crate) async fn sql<T: FromRow + Send + 'static>(&self, sql: &str) -> Vec<T> {
        let mut conn = self.conn().await;
        let rows = conn.query(sql).await.unwrap();
        conn.disconnect().await.unwrap();
        rows
    }

    pub(crate) async fn count(&self, what: &str) -> u64 {
        let sql = format!("SELECT COUNT(*) FROM {what}");
        self.sql(&sql).await[0]
    }

    pub(crate) async fn session(&self) -> Session {
        self.store.ready().await.unwrap()
    }

    pub(crate) async fn create(&self, new: NewSale) -> SaleRow {
        let sale = new.validate().unwrap();
        let mut session = self.session().await;
        let created = sales::create(&mut session, &sale, sale.id.as_str()).await;
        assert_eq!(created, Ok(Inserted::Done));
        drop(session);
        self.row(sale.id.as_str()).await
    }

    pub(crate) async fn row(&self, id: &str) -> SaleRow {
        let mut session = self.session().await;
        let row = sales::one(&mut session, &sale_id(id)).await.unwrap();
        row.unwrap()
    }

    pub(crate) async fn place(&self) -> Place {
        let place = recording::place(&self.store, TOPIC, 0).await;
        place.unwrap().0
    }

    /// The id of a new claim of a sale.
    pub(crate) fn order_id(&self, row: &SaleRow) -> OrderId {
        let named = Named {
            sale_num: row.num,
            epoch: row.epoch,
            at_ms: 1_795_000_000_000,
        };
        let secret = self.store.secret().unwrap();
        OrderIds::new(secret).next(named).unwrap()
    }

    pub(crate) fn claim(&self, row: &SaleRow, units: &[ClaimedUnit]) -> ClaimMessage {
        let attempt = Attempt::anonymous(row.sale.id.clone());
        ClaimMessage {
            sale_id: row.sale.id.clone(),
            epoch: row.epoch,
            n: 1,
            order_id: self.order_id(row),
            units: units.iter().copied().collect(),
            buyer: Buyer::anonymous(),
            idem_key: None,
            fingerprint: attempt.fingerprint(),
            at_ms: 1,
        }
    }

    /// Claims of the units from `first` on, one unit each.
    pub(crate) fn claims(&self, row: &SaleRow, first: u32, count: u32) -> Vec<ClaimMessage> {
        let units = first..first + count;
        units
            .map(|number| self.claim(row, &[unit(1, number, 1)]))
            .collect()
    }

    /// Stores claims in one round trip, and says why they were refused.
    pub(crate) async fn record(
        &self,
        rows: &[&SaleRow],
        claims: &[ClaimMessage],
    ) -> Option<String> {
        let at = self.place().await;
        let claims: Vec<&ClaimMessage> = claims.iter().collect();
        let batch = batch(at, rows, &claims);
        let mut session = self.session().await;
        recording::record(&mut session, &batch).await.unwrap()
    }

    /// Reads all events of a sale in pages, and replays them.
    pub(crate) async fn replay(&self, id: &str, page: usize) -> Replay {
        let mut replay = Replay::default();
        loop {
            let events = self.events(id, replay.sequence(), page).await;
            if events.is_empty() {
                return replay;
            }
            for event in events {
                replay.apply(event).unwrap();
            }
        }
    }

    pub(crate) async fn events(&self, id: &str, after: u64, max: usize) -> Vec<Event> {
        let (mut session, id) = (self.session().await, sale_id(id));
        let found = events::events(&mut session, &id, after, max).await;
        found.unwrap().unwrap()
    }

    pub(crate) async fn order(&self, id: &OrderId) -> Order {
        let mut session = self.session().await;
        let order = orders::order(&mut session, id).await;
        order.unwrap().unwrap()
    }
}

pub(crate) fn batch<'a>(
    at: Place,
    rows: &[&'a SaleRow],
    claims: &'a [&'a ClaimMessage],
) -> Batch<'a> {
    Batch {
        topic: TOPIC,
        part: 0,
        at,
        place: Place {
            next: at.next + claims.len() as i64,
            ..at
        },
        mark: "mark",
        sales: rows.to_vec(),
        claims,
    }
}

pub(crate) fn sale_id(id: &str) -> SaleId {
    SaleId::new(id).unwrap()
}

pub(crate) fn simple(id: &str, total: u32) -> NewSale {
    NewSale::units(sale_id(id), total)
}

pub(crate) fn with_items(id: &str, items: &[(&str, u32)]) -> NewSale {
    let item = |&(id, total): &(&str, u32)| NewItem {
        id: ItemId::new(id).unwrap(),
        title: String::new(),
        total,
        price: None,
    };
    NewSale {
        items: items.iter().map(item).collect(),
        ..simple(id, 0)
    }
}

pub(crate) fn unit(item: u8, number: u32, generation: u32) -> ClaimedUnit {
    ClaimedUnit {
        item: ItemNo::new(item).unwrap(),
        unit: Unit { number, generation },
        slot: None,
    }
}

pub(crate) fn in_slot(slot: u8, unit: ClaimedUnit) -> ClaimedUnit {
    ClaimedUnit {
        slot: Some(slot),
        ..unit
    }
}

/// The claim of a named buyer.
pub(crate) fn by(buyer: &str, claim: ClaimMessage) -> ClaimMessage {
    ClaimMessage {
        buyer: Buyer::new(buyer).unwrap(),
        ..claim
    }
}

pub(crate) fn keyed(buyer: &str, key: &str, claim: ClaimMessage) -> ClaimMessage {
    ClaimMessage {
        idem_key: Some(IdempotencyKey::new(key).unwrap()),
        ..by(buyer, claim)
    }
}
