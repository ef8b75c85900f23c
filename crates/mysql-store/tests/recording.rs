//! Stores batches: in one round trip with guards, or under locks. Whatever is refused leaves
//! nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod database;

use seckill_cluster_codec::message::ClaimMessage;
use seckill_mysql_store::recording::{self, BatchEnd, Content, Numbers, Place};
use seckill_mysql_store::sales::SaleRow;
use seckill_mysql_store::{Inserted, orders};
use seckill_sale::{OrderId, OrderState};

use database::{Database, TOPIC, batch, by, in_slot, keyed, sale_id, simple, unit, with_items};

/// Everything that a refused batch must leave unchanged.
async fn contents(database: &Database) -> Vec<String> {
    let sql = "SELECT CONCAT_WS(' ', 'order', HEX(order_id), line, line_count, sale_num, item, unit, gen, sequence) FROM seckill \
               UNION ALL SELECT CONCAT_WS(' ', 'key', sale_num, buyer, idem_key, HEX(order_id)) FROM seckill_key \
               UNION ALL SELECT CONCAT_WS(' ', 'slot', sale_num, buyer, slot, HEX(order_id), line) FROM seckill_slot \
               UNION ALL SELECT CONCAT_WS(' ', 'event', sale_num, sequence, type) FROM seckill_event \
               UNION ALL SELECT CONCAT_WS(' ', 'sale', num, epoch, last_sequence, voids) FROM seckill_sale \
               UNION ALL SELECT CONCAT_WS(' ', 'offset', log_gen, next_offset, last_order_id) FROM seckill_position";
    database.sql(sql).await
}

#[tokio::test]
async fn a_batch_is_stored_in_one_round_trip() {
    let database = Database::new().await;
    let shirt = database
        .create(with_items("shirt", &[("S", 5), ("M", 5)]))
        .await;
    let phone = database.create(simple("phone", 5)).await;
    let lines = [
        in_slot(1, unit(2, 3, 1)),
        in_slot(2, unit(2, 4, 2)),
        in_slot(3, unit(1, 1, 1)),
    ];
    let claims = [
        keyed("ann", "k\"1\\", database.claim(&shirt, &lines)),
        database.claim(&phone, &[unit(1, 1, 1)]),
        by("王'芳", database.claim(&shirt, &[unit(1, 2, 1)])),
    ];
    let refused = database.record(&[&shirt, &phone], &claims).await;
    assert_eq!(refused, None);
    let place = database.place().await;
    assert_eq!(
        place,
        Place {
            log_gen: 1,
            next: 3
        }
    );

    let mut session = database.session().await;
    let ids = claims.iter().map(|claim| &claim.order_id);
    let settled = orders::settled(&mut session, ids).await.unwrap();
    for claim in &claims {
        let units = claim.units.iter().map(|claimed| claimed.item_unit());
        let found = settled.iter().find(|(id, _)| *id == claim.order_id);
        let expected = orders::Settled::Order(units.collect(), OrderState::Reserved);
        assert_eq!(found.unwrap().1, expected);
    }
    let borrowed: Vec<&ClaimMessage> = claims.iter().collect();
    let stored = recording::contents(&mut session, &borrowed).await.unwrap();
    for claim in &claims {
        assert_eq!(stored[&claim.order_id], Content::of(claim));
    }
    let rows = orders::page(&mut session, shirt.num, None, 10).await;
    let rows = rows.unwrap();
    let shown = rows.iter().map(|row| {
        let key = row.key.as_deref();
        (row.claimed, row.line, row.line_count, row.sequence, key)
    });
    let key = Some("k\"1\\");
    let expected = [
        (lines[2], 3, 3, None, key),
        (unit(1, 2, 1), 1, 1, Some(3), None),
        (lines[0], 1, 3, Some(2), key),
        (lines[1], 2, 3, None, key),
    ];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
    assert_eq!(rows[0].fingerprint, Some(claims[0].fingerprint));
    assert_eq!(database.row("shirt").await.last_sequence, 3);
    assert_eq!(database.row("phone").await.last_sequence, 2);
    drop(session);
    database.drop().await;
}

#[tokio::test]
async fn each_guard_refuses_the_batch() {
    let database = Database::new().await;
    let row = database.create(simple("phone", 100)).await;
    let other = database.create(simple("other", 100)).await;
    let first = database.claims(&row, 1, 2);
    assert_eq!(database.record(&[&row], &first).await, None);
    let at = database.place().await;
    let before = contents(&database).await;

    let changed = |change: fn(&mut SaleRow)| {
        let mut row = row.clone();
        change(&mut row);
        row
    };
    let other_epoch = changed(|row| row.epoch += 1);
    let other_version = changed(|row| row.sale.version += 1);
    let other_voids = changed(|row| row.voids += 1);
    let no_sale = changed(|row| row.sale.id = sale_id("missing"));
    let of_missing = |mut claims: Vec<ClaimMessage>| {
        claims
            .iter_mut()
            .for_each(|claim| claim.sale_id = sale_id("missing"));
        claims
    };
    let new = || database.claims(&row, 11, 2);
    let of_both = || [new(), database.claims(&other, 1, 2)].concat();
    let later = Place {
        next: at.next + 1,
        ..at
    };
    let other_log = Place { log_gen: 2, ..at };
    let cases: [(&str, Place, Vec<&SaleRow>, Vec<ClaimMessage>); 8] = [
        ("offset", later, vec![&row], new()),
        ("log", other_log, vec![&row], new()),
        ("epoch", at, vec![&other_epoch], new()),
        ("version", at, vec![&other_version], new()),
        ("voids", at, vec![&other_voids], new()),
        ("second sale", at, vec![&other, &other_epoch], of_both()),
        ("no sale", at, vec![&no_sale], of_missing(new())),
        (
            "no second sale",
            at,
            vec![&no_sale, &other],
            [database.claims(&other, 1, 2), of_missing(new())].concat(),
        ),
    ];
    for (case, at, rows, claims) in cases {
        let claims: Vec<&ClaimMessage> = claims.iter().collect();
        let mut session = database.session().await;
        let refused = recording::record(&mut session, &batch(at, &rows, &claims)).await;
        assert!(refused.unwrap().is_some(), "{case}");
        drop(session);
        assert_eq!(contents(&database).await, before, "{case}");
    }
    // The same batch with all guards right.
    assert_eq!(database.record(&[&row, &other], &of_both()).await, None);

    // The row of the position is missing.
    let claims = database.claims(&row, 21, 1);
    let claims: Vec<&ClaimMessage> = claims.iter().collect();
    let at = database.place().await;
    database.sql::<u8>("DELETE FROM seckill_position").await;
    let before = contents(&database).await;
    let mut session = database.session().await;
    let refused = recording::record(&mut session, &batch(at, &[&row], &claims)).await;
    assert!(refused.unwrap().is_some());
    assert_eq!(contents(&database).await, before);
    drop(session);
    database.drop().await;
}

#[tokio::test]
async fn each_unique_key_refuses_the_batch() {
    let database = Database::new().await;
    let row = database
        .create(with_items("shirt", &[("S", 50), ("M", 50)]))
        .await;
    let claim = |number, slot| {
        let lines = [unit(2, number, 1), in_slot(slot, unit(1, number, 1))];
        database.claim(&row, &lines)
    };
    let stored = keyed("ann", "k", claim(1, 1));
    let first = std::slice::from_ref(&stored);
    assert_eq!(database.record(&[&row], first).await, None);
    let before = contents(&database).await;
    let cases = [
        (
            "order",
            ClaimMessage {
                order_id: stored.order_id.clone(),
                ..by("bob", claim(2, 1))
            },
        ),
        ("unit", by("bob", claim(1, 1))),
        (
            "active unit",
            by("bob", database.claim(&row, &[unit(1, 3, 1), unit(2, 1, 2)])),
        ),
        ("key", keyed("ann", "k", claim(4, 2))),
        ("slot", keyed("ann", "k-2", claim(5, 1))),
    ];
    for (case, claim) in cases {
        // What comes before and after it is not stored either.
        let batch = [
            by("before", database.claim(&row, &[unit(1, 30, 1)])),
            claim,
            keyed(
                "after",
                "k",
                database.claim(&row, &[in_slot(1, unit(1, 31, 1))]),
            ),
        ];
        let refused = database.record(&[&row], &batch).await;
        assert!(refused.is_some(), "{case}");
        assert_eq!(contents(&database).await, before, "{case}");
    }
    database.drop().await;
}

#[tokio::test]
async fn the_second_way_stores_what_fits() {
    let database = Database::new().await;
    let row = database.create(simple("phone", 100)).await;
    let first = keyed(
        "ann",
        "k",
        database.claim(&row, &[in_slot(1, unit(1, 1, 1))]),
    );
    let first = std::slice::from_ref(&first);
    assert_eq!(database.record(&[&row], first).await, None);
    let claims = [
        by("bob", database.claim(&row, &[unit(1, 2, 1)])),
        keyed("ann", "k", database.claim(&row, &[unit(1, 3, 1)])),
        by("ann", database.claim(&row, &[in_slot(1, unit(1, 4, 1))])),
        keyed(
            "ann",
            "k-2",
            database.claim(&row, &[in_slot(2, unit(1, 5, 1))]),
        ),
    ];
    let all: Vec<&ClaimMessage> = claims.iter().collect();
    let at = database.place().await;
    let mut session = database.session().await;
    let locked = recording::lock(&mut session, TOPIC, 0, at, &all).await;
    let locked = locked.unwrap().unwrap();
    assert_eq!(locked.sales[0].row.last_sequence, 2);
    assert!(locked.sales[0].has_all_voids && locked.voids.is_empty());
    let mut numbers = Numbers::after(locked.sales.iter().map(|sale| &sale.row));
    let place = Place { next: 5, ..at };
    let stored = [&claims[0], &claims[3]];
    let voids = [(&claims[1], "key"), (&claims[2], "slot")];
    let end = BatchEnd {
        topic: TOPIC,
        part: 0,
        place,
        mark: "mark",
        voids: &voids,
        dead: &[],
        suspects: vec![(&row.sale.id, row.epoch)],
    };
    let at_once = recording::insert_and_finish(&mut session, &all, &numbers, &end).await;
    assert!(matches!(at_once.unwrap(), Inserted::Duplicate(_)));
    // The numbers of refused orders are used for the next ones.
    for claim in &all {
        let inserted = recording::insert(&mut session, &[claim], &mut numbers).await;
        let fits = stored.iter().any(|fits| fits.order_id == claim.order_id);
        assert_eq!(inserted.unwrap() == Inserted::Done, fits);
    }
    let finished = recording::finish(&mut session, &numbers, &end).await;
    finished.unwrap();
    drop(session);
    assert_eq!(database.place().await, place);
    let known = database.row("phone").await;
    assert_eq!((known.last_sequence, known.voids), (4, 2));
    assert!(known.is_suspect());
    assert_eq!(database.replay("phone", 10).await.orders().len(), 3);
    assert_eq!(database.count("seckill_slot").await, 2);

    // The next batch learns of the voids, and a recorder that has not cannot store at once.
    let next = [claims[1].clone(), database.claim(&row, &[unit(1, 3, 1)])];
    assert!(database.record(&[&row], &next[1..]).await.is_some());
    let next: Vec<&ClaimMessage> = next.iter().collect();
    let mut session = database.session().await;
    let locked = recording::lock(&mut session, TOPIC, 0, place, &next).await;
    let locked = locked.unwrap().unwrap();
    session.rollback().await.unwrap();
    assert!(locked.voids.contains(&next[0].order_id));
    assert_eq!((locked.voids.len(), locked.sales[0].voids.len()), (1, 2));
    let moved = recording::lock(&mut session, TOPIC, 0, at, &next).await;
    assert!(moved.unwrap().is_none());
    session.rollback().await.unwrap();
    drop(session);
    let known = &locked.sales[0].row;
    let next = [next[1].clone()];
    assert_eq!(database.record(&[known], &next).await, None);
    database.drop().await;
}

#[tokio::test]
async fn a_claim_is_stored_or_given_up() {
    let database = Database::new().await;
    let row = database.create(simple("phone", 100)).await;
    let claims = database.claims(&row, 1, 2);
    let named = seckill_cluster_codec::order_id::Named {
        sale_num: row.num,
        epoch: row.epoch,
        at_ms: 0,
    };
    let mut session = database.session().await;
    let sale = &row.sale.id;
    let lost = orders::give_up(&mut session, sale, &claims[0].order_id, named).await;
    assert_eq!(lost.unwrap(), Some(orders::Settled::Void("lost".into())));
    // The recorder that does not know of the void must read it.
    assert!(database.record(&[&row], &claims).await.is_some());
    let known = database.row("phone").await;
    assert_eq!(known.voids, 1);
    assert_eq!(database.record(&[&known], &claims[1..]).await, None);
    let again = orders::give_up(&mut session, sale, &claims[0].order_id, named).await;
    assert_eq!(again.unwrap(), Some(orders::Settled::Void("lost".into())));
    let stored = orders::give_up(&mut session, sale, &claims[1].order_id, named).await;
    assert!(matches!(stored.unwrap(), Some(orders::Settled::Order(..))));
    assert_eq!(database.row("phone").await.voids, 1);
    let voids = orders::voids(&mut session).await.unwrap();
    assert_eq!(voids, [claims[0].order_id.clone()]);
    drop(session);
    database.drop().await;
}

#[tokio::test]
async fn the_server_itself_refuses_an_oversell() {
    let database = Database::new().await;
    let row = database.create(simple("phone", 100)).await;
    let claims = database.claims(&row, 1, 1);
    assert_eq!(database.record(&[&row], &claims).await, None);
    let made_up = OrderId::new("AAECAwQFBgcICQoLDA0ODxAREhMUFRb-").unwrap();
    let bytes = seckill_cluster_codec::order_id::to_bytes(&made_up).unwrap();
    let hex = bytes.map(|byte| format!("{byte:02x}")).concat();
    let row_of = |unit, generation, item, sequence| {
        format!(
            "INSERT INTO seckill (order_id, sale_num, item, unit, gen, buyer, epoch, sequence) \
             VALUES (x'{hex}', {}, {item}, {unit}, {generation}, '', 0, {sequence})",
            row.num
        )
    };
    let mut session = database.session().await;
    let cases = [
        ("same unit", row_of(1, 2, 1, "9")),
        ("same generation", row_of(1, 1, 1, "9")),
        ("no item", row_of(2, 1, 0, "9")),
        ("no event", row_of(2, 1, 1, "NULL")),
    ];
    for (case, sql) in cases {
        let mut conn = database.conn().await;
        let refused = mysql_async::prelude::Queryable::query_drop(&mut conn, sql).await;
        assert!(refused.is_err(), "{case}");
    }
    let held = orders::active(&mut session, &row).await.unwrap();
    assert_eq!(held, [1]);
    drop(session);
    database.drop().await;
}
