//! The feed of a sale: complete, in order and resumable anywhere, whatever other sales do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod database;

use seckill_cluster_codec::message::ClaimMessage;
use seckill_mysql_store::events::{self, StoredChange};
use seckill_mysql_store::recording::{self, BatchEnd, Numbers, Place};
use seckill_mysql_store::sales::{self, SaleRow};
use seckill_mysql_store::{Inserted, orders};
use seckill_sale::{EventKind, OrderChange, OrderId, OrderState, SaleChange, SaleUsage};

use database::{Database, TOPIC, by, keyed, sale_id, simple, unit, with_items};

async fn cancel(database: &Database, id: &OrderId) {
    let order = database.order(id).await;
    let mut session = database.session().await;
    let changed = orders::change(&mut session, &order, OrderChange::Cancel).await;
    assert_eq!(changed, Ok(true));
}

async fn change_title(database: &Database, id: &str, title: &str) -> SaleRow {
    let mut session = database.session().await;
    session.begin().await.unwrap();
    let row = sales::locked(&mut session, &sale_id(id))
        .await
        .unwrap()
        .unwrap();
    let change = SaleChange {
        title: Some(title.to_owned()),
        ..SaleChange::default()
    };
    let changed = change.apply(&row.sale, &SaleUsage::default()).unwrap();
    sales::store_terms(&mut session, &row, &changed)
        .await
        .unwrap();
    session.commit().await.unwrap();
    drop(session);
    let stored = database.row(id).await;
    assert_eq!(stored.sale, changed);
    stored
}

#[tokio::test]
async fn the_feed_can_be_read_from_anywhere_in_pages_of_any_size() {
    let database = Database::new().await;
    let mut row = database
        .create(with_items("s", &[("S", 99), ("M", 99)]))
        .await;
    let other = database.create(simple("other", 500)).await;
    let mut expected = vec!["sale.created"];
    for round in 0..12_u32 {
        let first = 3 * round + 1;
        let claims = [
            keyed(
                "ann",
                &format!("k{round}"),
                database.claim(&row, &[unit(1, first, 1)]),
            ),
            by(
                "bob",
                database.claim(&row, &[unit(2, first, 1), unit(1, first + 1, 1)]),
            ),
            database.claim(&row, &[unit(1, first + 2, 1)]),
        ];
        // Rows of the other sale are between those of this one.
        let mixed = [
            &claims[..2],
            &database.claims(&other, 5 * round + 1, 5),
            &claims[2..],
        ]
        .concat();
        let refused = database.record(&[&row, &other], &mixed).await;
        assert_eq!(refused, None);
        expected.extend(["order.reserved"; 3]);
        if round % 3 == 1 {
            cancel(&database, &claims[1].order_id).await;
            expected.push("order.cancelled");
        }
        if round % 4 == 2 {
            row = change_title(&database, "s", &format!("round {round}")).await;
            expected.push("sale.changed");
        }
        cancel(&database, &mixed[3].order_id).await;
    }
    let whole = database.events("s", 0, 1_000).await;
    let names: Vec<&str> = whole.iter().map(|event| event.kind.name()).collect();
    assert_eq!(names, expected);
    let is_numbered = whole.iter().zip(1..).all(|(event, n)| event.sequence == n);
    assert!(is_numbered);
    assert!(whole.iter().all(|event| event.at_ms > 1_700_000_000_000));
    let EventKind::OrderReserved {
        order_id, units, ..
    } = &whole[2].kind
    else {
        panic!("{:?}", whole[2])
    };
    let order = database.order(order_id).await;
    assert_eq!((&order.units, units.len()), (units, 2));
    assert_eq!(units[0].item.as_str(), "M");
    let last = whole.len();
    for after in (0..last + 2).chain([usize::MAX]) {
        for max in [1, 2, 7, 1_000] {
            let page = database.events("s", after as u64, max).await;
            let rest = whole.get(after..).unwrap_or_default();
            assert_eq!(page, rest[..rest.len().min(max)], "{max} after {after}");
        }
    }
    let replay = database.replay("s", 4).await;
    assert_eq!(replay.sale(), Some(&row.sale));
    assert_eq!(database.replay("other", 100).await.sequence(), 73);
    let mut session = database.session().await;
    let missing = events::events(&mut session, &sale_id("missing"), 0, 9).await;
    assert_eq!(missing, Ok(None));

    // The audit reads all entries that are not claims, of all sales.
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let page = events::page(&mut session, after, 4).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.sale_num, last.sequence));
        entries.extend(page);
    }
    let of_orders = entries.iter().filter(|entry| {
        let change = entry.change.as_ref().unwrap();
        matches!(change, StoredChange::Order(_, OrderState::Cancelled))
    });
    assert_eq!((entries.len(), of_orders.count()), (2 + 3 + 4 + 12, 16));
    drop(session);
    database.drop().await;
}

#[tokio::test]
async fn far_claims_of_a_quiet_sale_have_pointers() {
    let database = Database::new().await;
    let quiet = database.create(simple("quiet", 100)).await;
    let other = database.create(simple("other", 20_000)).await;
    // The rows of the other sale, then claims of the quiet one in one batch.
    let rounds = [(0, 2), (1_000, 1), (4_000, 3), (5_000, 2), (10, 1)];
    let (mut unit, mut of_other) = (1, 1);
    for (rows, claims) in rounds {
        let mut left = rows;
        while left > 0 {
            let count = left.min(1_000);
            let claims = database.claims(&other, of_other, count);
            assert_eq!(database.record(&[&other], &claims).await, None);
            (of_other, left) = (of_other + count, left - count);
        }
        let claims = database.claims(&quiet, unit, claims);
        assert_eq!(database.record(&[&quiet], &claims).await, None);
        unit += claims.len() as u32;
    }
    // After 1,000 rows, there is none. After 1,000 + 4,000, the first claim of the batch has one.
    let pointers = "SELECT sequence, row_id FROM seckill_event JOIN seckill_sale ON num = sale_num \
                    WHERE seckill_sale.id = 'quiet' AND type = 'order.reserved' ORDER BY sequence";
    let pointers: Vec<(u64, u64)> = database.sql(pointers).await;
    assert_eq!(pointers, [(5, 5_004), (8, 10_007)]);
    let whole = database.events("quiet", 0, 1_000).await;
    assert_eq!(whole.len(), 10);
    for after in 0..10 {
        for max in [1, 3, 1_000] {
            let page = database.events("quiet", after as u64, max).await;
            let rest = &whole[after..];
            assert_eq!(page, rest[..rest.len().min(max)], "{max} after {after}");
        }
    }
    database.drop().await;
}

#[tokio::test]
async fn only_committed_events_are_read() {
    let database = Database::new().await;
    let row = database.create(simple("s", 10)).await;
    let claims = database.claims(&row, 1, 2);
    let claims: Vec<&ClaimMessage> = claims.iter().collect();
    let at = database.place().await;
    let mut session = database.session().await;
    let locked = recording::lock(&mut session, TOPIC, 0, at, &claims).await;
    let locked = locked.unwrap().unwrap();
    let mut numbers = Numbers::after(locked.sales.iter().map(|sale| &sale.row));
    let inserted = recording::insert(&mut session, &claims, &mut numbers).await;
    assert_eq!(inserted, Ok(Inserted::Done));
    assert_eq!(database.events("s", 0, 10).await.len(), 1);
    assert_eq!(database.events("s", 1, 10).await.len(), 0);
    let end = BatchEnd {
        topic: TOPIC,
        part: 0,
        place: Place { next: 2, ..at },
        mark: "mark",
        voids: &[],
        dead: &[],
        suspects: Vec::new(),
    };
    recording::finish(&mut session, &numbers, &end)
        .await
        .unwrap();
    drop(session);
    assert_eq!(database.events("s", 1, 10).await.len(), 2);
    database.drop().await;
}

#[tokio::test]
async fn a_missing_event_is_reported() {
    let database = Database::new().await;
    let row = database.create(simple("s", 10)).await;
    assert_eq!(
        database.record(&[&row], &database.claims(&row, 1, 4)).await,
        None
    );
    database
        .sql::<u8>("DELETE FROM seckill WHERE sequence = 4")
        .await;
    let before: Vec<u64> = database
        .events("s", 0, 10)
        .await
        .iter()
        .map(|event| event.sequence)
        .collect();
    assert_eq!(before, [1, 2, 3]);
    let mut session = database.session().await;
    let gap = events::events(&mut session, &sale_id("s"), 3, 10).await;
    let fault = gap.unwrap_err();
    assert!(fault.detail.contains("event 4 of sale s"), "{fault}");
    drop(session);
    assert_eq!(database.events("s", 4, 10).await.len(), 1);
    database.drop().await;
}
