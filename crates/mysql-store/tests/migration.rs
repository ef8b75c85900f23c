//! A database of schema version 1, written by the last program of that version, becomes one of
//! version 2 without losing anything.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod database;

use seckill_mysql_store::orders::{self, Settled};
use seckill_mysql_store::{sales, setup};
use seckill_sale::{
    Buyer, IdempotencyKey, ItemNo, ItemUnit, Order, OrderId, OrderState, SaleChange, SaleRebuild,
    Unit,
};

use database::{Database, sale_id, simple};

const VERSION_1: &str = include_str!("fixtures/version_1.sql");

async fn version_1() -> Database {
    let database = Database::empty().await;
    // Comments have no semicolons.
    for statement in VERSION_1
        .split(";\n")
        .filter(|part| !part.trim().is_empty())
    {
        database.sql::<u8>(statement).await;
    }
    database
}

async fn migrated() -> Database {
    let database = version_1().await;
    setup::migrate(&database.store).await.unwrap();
    database
}

fn order_id(id: &str) -> OrderId {
    OrderId::new(id).unwrap()
}

fn unit(number: u32, generation: u32) -> Unit {
    Unit { number, generation }
}

async fn check(database: &Database) {
    assert_eq!(database.count("seckill").await, 13);
    assert_eq!(database.count("seckill_key").await, 5);
    assert_eq!(database.count("seckill_slot").await, 3);
    let mut session = database.session().await;
    let all = sales::all(&mut session).await.unwrap();
    let shown = all.iter().map(|row| {
        let sale = &row.sale;
        let item = (sale.items[0].id.as_str(), &*sale.items[0].title);
        let counts = (row.num, row.epoch, row.last_sequence, row.voids);
        (sale.id.as_str(), counts, item, sale.total(), sale.version)
    });
    let phone = "Phone, 256 GB 手机";
    let expected = [
        ("counter", (1, 1, 13, 2), ("default", "counter"), 100, 1),
        ("empty", (3, 1, 1, 0), ("default", "empty"), 0, 1),
        ("phone", (2, 3, 6, 0), ("default", phone), 5, 3),
    ];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
    // The gates still have values of the old format.
    assert!(all.iter().all(|row| !row.is_open && row.lease_is_over));

    // The feed leads to the orders, and to their present states.
    let replay = database.replay("counter", 3).await;
    assert_eq!((replay.sequence(), replay.orders().len()), (13, 9));
    assert_eq!(replay.sale(), Some(&all[0].sale));
    for (id, replayed) in replay.orders() {
        let Order {
            units,
            buyer,
            state,
            ..
        } = database.order(id).await;
        assert_eq!((&replayed.units, &replayed.buyer), (&units, &buyer));
        assert_eq!(replayed.state, state);
    }
    assert_eq!(database.replay("phone", 100).await.orders().len(), 4);
    assert_eq!(database.replay("empty", 100).await.sequence(), 1);

    let kept = database
        .order(&order_id("AAAAAQAAAAEBohBVtqvclB8U6wlDbnP4"))
        .await;
    assert_eq!(kept.units[0].unit, unit(4, 3));
    assert_eq!(kept.buyer, Buyer::new("it's").unwrap());
    assert_eq!(kept.date, "2026-11-25T01:33:02.512Z");
    let ann = Buyer::new("ann").unwrap();
    let key = IdempotencyKey::new("k-1").unwrap();
    let cancelled = orders::of_key(&mut session, &sale_id("phone"), &ann, &key).await;
    let cancelled = cancelled.unwrap().unwrap();
    assert_eq!(cancelled.state, OrderState::Cancelled);
    let at = cancelled.cancelled_at.as_deref();
    assert_eq!(at, Some("2026-11-25T01:33:04.416Z"));
    let waiting = orders::to_give_back(&mut session, None, 10).await.unwrap();
    assert_eq!(waiting, [(cancelled.order_id, sale_id("phone"))]);

    let voids = [
        "AAAAAQAAAAABoe5WXgAbzM6mlnYuYenJ",
        "AAAAAQAAAAEBohBV0GrcOcExAXmpQhoK",
    ];
    let voids = voids.map(order_id);
    let settled = orders::settled(&mut session, &voids).await.unwrap();
    assert!(
        settled
            .iter()
            .all(|(_, settled)| matches!(settled, Settled::Void(_)))
    );
    assert_eq!(settled.len(), 2);

    // A rebuild finds the units and slots that are free.
    let row = &all[2];
    let mut rebuild = SaleRebuild::new(row.sale.clone());
    for stored in orders::page(&mut session, row.num, None, 10).await.unwrap() {
        assert_eq!((stored.line, stored.line_count), (1, 1));
        let is_active = stored.state.is_some_and(OrderState::is_active);
        let buyer = Some(u128::from(stored.buyer.as_bytes()[0]));
        rebuild.unit(stored.claimed, is_active, buyer).unwrap();
        rebuild.event(stored.sequence.unwrap());
    }
    let ledger = rebuild.finish().unwrap();
    assert_eq!(ledger.free(), [2]);
    let offsets = orders::offsets(&mut session, "store_v1fixture").await;
    assert_eq!(offsets.unwrap()[&0], (1, 13));
}

#[tokio::test]
async fn version_1_becomes_version_2() {
    let database = version_1().await;
    let Err(refused) = database.store.ready().await else {
        panic!("version 1 is not supported without a migration")
    };
    assert!(refused.detail.contains("run `seckill init`"), "{refused}");
    setup::migrate(&database.store).await.unwrap();
    check(&database).await;
    // Nothing is left of version 1, and another migration changes nothing.
    let tables = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() \
                  AND (table_name LIKE '%\\_v1' OR table_name = 'seckill_numbered')";
    assert_eq!(database.sql::<u64>(tables).await, [0]);
    setup::migrate(&database.store).await.unwrap();
    check(&database).await;
    // New orders get later rows and numbers.
    let row = database.row("counter").await;
    let claims = database.claims(&row, 7, 1);
    assert_eq!(database.record(&[&row], &claims).await, None);
    let latest = "SELECT id FROM seckill WHERE sequence = 14";
    assert_eq!(database.sql::<u64>(latest).await, [14]);
    assert_eq!(database.replay("counter", 4).await.sequence(), 14);
    database.drop().await;
}

#[tokio::test]
async fn an_interrupted_migration_continues() {
    // Before, during and after the copy.
    let interruptions: [&[&str]; 5] = [
        &["RENAME TABLE seckill TO seckill_v1"],
        &[
            "RENAME TABLE seckill TO seckill_v1, seckill_void TO seckill_void_v1",
            "CREATE TABLE seckill_item (sale_num INT UNSIGNED NOT NULL, item TINYINT UNSIGNED NOT NULL, \
             id VARBINARY(64) NOT NULL, title VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL, total INT UNSIGNED NOT NULL, \
             price BIGINT UNSIGNED NULL, currency BINARY(3) NULL, PRIMARY KEY (sale_num, item))",
            "INSERT INTO seckill_item VALUES (1, 1, 'half', '', 1, NULL, NULL)",
            "ALTER TABLE seckill_sale ADD COLUMN last_sequence BIGINT UNSIGNED NOT NULL DEFAULT 0",
            "CREATE TABLE seckill_numbered (id INT)",
        ],
        &[
            "RENAME TABLE seckill TO seckill_v1, seckill_void TO seckill_void_v1, \
             seckill_give_back TO seckill_give_back_v1, seckill_event TO seckill_event_v1, \
             seckill_offset TO seckill_position",
            "CREATE TABLE seckill_item (sale_num INT UNSIGNED NOT NULL, item TINYINT UNSIGNED NOT NULL, \
             id VARBINARY(64) NOT NULL, title VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL, total INT UNSIGNED NOT NULL, \
             price BIGINT UNSIGNED NULL, currency BINARY(3) NULL, PRIMARY KEY (sale_num, item))",
            "INSERT INTO seckill_item SELECT num, 1, 'default', title, total, NULL, NULL FROM seckill_sale",
            "ALTER TABLE seckill_sale DROP COLUMN state, DROP COLUMN pay_ms, DROP COLUMN total",
        ],
        &[],
        &["DELETE FROM seckill_schema WHERE version = 2"],
    ];
    for (index, statements) in interruptions.into_iter().enumerate() {
        let database = if index == 4 {
            migrated().await
        } else {
            version_1().await
        };
        for statement in statements {
            database.sql::<u8>(statement).await;
        }
        setup::migrate(&database.store).await.unwrap();
        check(&database).await;
        database.drop().await;
    }
}

#[tokio::test]
async fn a_new_database_starts_with_version_2() {
    let database = Database::empty().await;
    let store = &database.store;
    let (first, second) = tokio::join!(setup::migrate(store), setup::migrate(store));
    assert!(first.is_ok() && second.is_ok());
    let versions = database.sql::<u32>("SELECT version FROM seckill_schema");
    assert_eq!(versions.await, [2]);
    database.create(simple("s", 1)).await;
    setup::forget(&database.store).await.unwrap();
    let tables = [
        "seckill_sale",
        "seckill_item",
        "seckill",
        "seckill_event",
        "seckill_slot",
    ];
    for table in tables {
        assert_eq!(database.count(table).await, 0, "{table}");
    }
    // New sales start in epochs that no earlier claim has.
    assert_eq!(database.create(simple("s", 1)).await.epoch, 1);
    database.drop().await;
}

#[tokio::test]
async fn people_can_read_the_orders() {
    let database = migrated().await;
    let sql = "SELECT CONCAT_WS(' ', order_id, sale_id, item_id, buyer, idem_key, slot, state) \
               FROM seckill_orders WHERE id IN (11, 12) ORDER BY id";
    let expected = [
        "AAAAAgAAAAEBohBVu6IGSA5Af-BlZcCY phone default bob 1 reserved",
        "AAAAAgAAAAEBohBVvliDEhKexWg7wzBi phone default ann k-4 2 reserved",
    ];
    assert_eq!(database.sql::<String>(sql).await, expected);
    // What a change depends on is read from the same rows.
    let row = database.row("phone").await;
    let mut session = database.session().await;
    let change = SaleChange {
        buyer_limit: Some(Some(2)),
        ..SaleChange::of_total(3)
    };
    let stored = sales::usage(&mut session, &row, &change).await.unwrap();
    assert_eq!(stored.usage.most_held, 2);
    assert_eq!(stored.usage.highest_sold[..], [3]);
    let after = ItemUnit {
        item: ItemNo::FIRST,
        unit: unit(1, 2),
    };
    let rest = orders::page(&mut session, row.num, Some(after), 9).await;
    assert_eq!(rest.unwrap().len(), 2);
    drop(session);
    database.drop().await;
}
