//! Changes of orders and of sales' terms.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod database;

use mysql_async::Row;
use mysql_async::prelude::Queryable;
use seckill_mysql_store::{Inserted, SESSION_SETUP, orders, sales};
use seckill_sale::{
    Buyer, Currency, IdempotencyKey, ItemChange, ItemId, NewItem, NewSale, OrderChange, OrderState,
    Price, Sale, SaleChange,
};

use database::{Database, by, in_slot, keyed, sale_id, simple, unit, with_items};

/// MariaDB makes a join out of a list of 1,000 values or more, which reads the whole table if its
/// statistics are old.
#[tokio::test]
async fn a_long_list_of_ids_is_looked_up_one_by_one() {
    let database = Database::new().await;
    let mut conn = database.conn().await;
    for statement in SESSION_SETUP {
        conn.query_drop(statement).await.unwrap();
    }
    let ids: Vec<String> = (0..2_000).map(|id| format!("0x{id:048x}")).collect();
    let sql = format!(
        "EXPLAIN SELECT unit FROM seckill FORCE INDEX (one_order) WHERE order_id IN ({})",
        ids.join(",")
    );
    let plan: Vec<Row> = conn.query(sql).await.unwrap();
    let plan: Vec<(String, String)> = plan
        .iter()
        .map(|row| (row.get("select_type").unwrap(), row.get("type").unwrap()))
        .collect();
    assert_eq!(plan, [("SIMPLE".to_owned(), "range".to_owned())]);
    conn.disconnect().await.unwrap();
    database.drop().await;
}

#[tokio::test]
async fn an_order_ends_once_with_all_of_its_lines() {
    let database = Database::new().await;
    let row = database
        .create(with_items("s", &[("S", 9), ("M", 9)]))
        .await;
    let lines = [in_slot(1, unit(2, 1, 1)), in_slot(2, unit(1, 1, 1))];
    let claims = [
        keyed("ann", "k", database.claim(&row, &lines)),
        by("ann", database.claim(&row, &[in_slot(3, unit(1, 2, 1))])),
    ];
    assert_eq!(database.record(&[&row], &claims).await, None);
    let id = &claims[0].order_id;
    let order = database.order(id).await;
    let mut session = database.session().await;
    let ann = Buyer::new("ann").unwrap();
    let key = IdempotencyKey::new("k").unwrap();
    let of_key = orders::of_key(&mut session, &row.sale.id, &ann, &key).await;
    assert_eq!(of_key.unwrap().as_ref(), Some(&order));
    let bob = Buyer::new("bob").unwrap();
    let of_key = orders::of_key(&mut session, &row.sale.id, &bob, &key).await;
    assert_eq!(of_key, Ok(None));

    // Two at once: one changes it.
    let mut second = database.session().await;
    let (first, second) = tokio::join!(
        orders::change(&mut session, &order, OrderChange::Cancel),
        orders::change(&mut second, &order, OrderChange::Expire)
    );
    assert_eq!(
        [first, second]
            .iter()
            .filter(|change| **change == Ok(true))
            .count(),
        1
    );
    let ended = database.order(id).await;
    assert!(!ended.state.is_active() && ended.cancelled_at.is_some());
    assert_eq!(ended.units, order.units);
    assert_eq!(database.row("s").await.last_sequence, 4);
    assert_eq!(database.count("seckill WHERE active_unit IS NULL").await, 2);
    let slots: Vec<u8> = database.sql("SELECT slot FROM seckill_slot").await;
    assert_eq!(slots, [3]);
    let waiting = orders::to_give_back(&mut session, None, 9).await.unwrap();
    assert_eq!(waiting, [(id.clone(), row.sale.id.clone())]);
    let held = orders::active(&mut session, &row).await;
    assert_eq!(held, Ok(vec![1, 0]));

    // The units and slots can be used again, the key cannot.
    let again = by("bob", database.claim(&row, &[unit(2, 1, 2), unit(1, 1, 2)]));
    let slots = by("ann", database.claim(&row, &[in_slot(1, unit(1, 3, 1))]));
    assert_eq!(database.record(&[&row], &[again, slots]).await, None);
    let reused = [keyed("ann", "k", database.claim(&row, &[unit(1, 4, 1)]))];
    assert!(database.record(&[&row], &reused).await.is_some());

    // Another epoch's gate may not know of the release.
    orders::released(&mut session, id, row.epoch + 1)
        .await
        .unwrap();
    assert_eq!(database.count("seckill_give_back").await, 1);
    orders::released(&mut session, id, row.epoch).await.unwrap();
    assert_eq!(database.count("seckill_give_back").await, 0);
    drop(session);
    database.drop().await;
}

#[tokio::test]
async fn an_order_in_two_states_is_not_changed() {
    let database = Database::new().await;
    let row = database.create(simple("s", 9)).await;
    let claim = database.claim(&row, &[unit(1, 1, 1), unit(1, 2, 1)]);
    let id = claim.order_id.clone();
    assert_eq!(database.record(&[&row], &[claim]).await, None);
    let order = database.order(&id).await;
    database
        .sql::<u8>("UPDATE seckill SET state = 'expired' WHERE line = 2")
        .await;
    let mut session = database.session().await;
    let changed = orders::change(&mut session, &order, OrderChange::Cancel).await;
    assert!(changed.unwrap_err().detail.contains("run `seckill audit`"));
    drop(session);
    assert_eq!(database.order(&id).await.state, OrderState::Reserved);
    assert_eq!(database.row("s").await.last_sequence, 2);
    database.drop().await;
}

#[tokio::test]
async fn terms_are_stored_with_their_items() {
    let database = Database::new().await;
    let price = Price {
        amount: 1_999,
        currency: Currency::new("CNY").unwrap(),
    };
    let item = |id: &str, price| NewItem {
        id: ItemId::new(id).unwrap(),
        title: format!("Größe {id}'; --"),
        total: 7,
        price,
    };
    let new = NewSale {
        title: "T-Shirt 衬衫".into(),
        items: vec![item("S", Some(price)), item("M", None)],
        buyer_limit: Some(3),
        opens_at_ms: Some(1_000),
        closes_at_ms: Some(9_999_999_999_999),
        ..simple("shirt", 0)
    };
    let terms = new.clone().validate().unwrap();
    let row = database.create(new).await;
    assert_eq!((&row.sale, row.last_sequence, row.voids), (&terms, 1, 0));
    let mut session = database.session().await;
    let twice = sales::create(&mut session, &terms, "another key").await;
    assert!(matches!(twice.unwrap(), Inserted::Duplicate(_)));
    assert_eq!(database.count("seckill_item").await, 2);

    let sold = [
        by(
            "ann",
            database.claim(
                &row,
                &[in_slot(1, unit(2, 5, 1)), in_slot(2, unit(1, 1, 1))],
            ),
        ),
        by("bob", database.claim(&row, &[unit(2, 6, 1)])),
    ];
    assert_eq!(database.record(&[&row], &sold).await, None);
    let order = database.order(&sold[1].order_id).await;
    let ended = orders::change(&mut session, &order, OrderChange::Cancel).await;
    assert_eq!(ended, Ok(true));
    let of_item = |id: &str, total| ItemChange {
        id: ItemId::new(id).unwrap(),
        title: None,
        total: Some(total),
        price: Some(None),
    };
    let change = |total| SaleChange {
        items: vec![of_item("M", total)],
        buyer_limit: Some(Some(2)),
        ..SaleChange::default()
    };
    let stored = sales::usage(&mut session, &row, &change(5)).await.unwrap();
    assert_eq!(stored.usage.highest_sold[..], [1, 5]);
    assert_eq!(stored.usage.most_held, 2);
    assert!(change(4).apply(&row.sale, &stored.usage).is_err());
    let changed = change(5).apply(&row.sale, &stored.usage).unwrap();
    assert!(stored.ends_epoch(&row, &changed));
    session.begin().await.unwrap();
    let locked = sales::locked(&mut session, &row.sale.id).await;
    let locked = locked.unwrap().unwrap();
    sales::store_terms(&mut session, &locked, &changed)
        .await
        .unwrap();
    sales::end_epoch(&mut session, &row.sale.id).await.unwrap();
    // Units have slots only while there is a limit.
    let unlimited = Sale {
        buyer_limit: None,
        ..changed.clone()
    };
    for (terms, slots) in [(&unlimited, 0), (&changed, 2)] {
        sales::renew_slots(&mut session, &locked, terms)
            .await
            .unwrap();
        session.commit().await.unwrap();
        assert_eq!(database.count("seckill_slot").await, slots);
        session.begin().await.unwrap();
    }
    session.commit().await.unwrap();
    let now = database.row("shirt").await;
    assert_eq!((&now.sale, now.epoch), (&changed, row.epoch + 1));
    assert_eq!(database.replay("shirt", 2).await.sale(), Some(&changed));

    // Unit 6 was sold once, so a gate needs its generation.
    let more = |item: &str, total| SaleChange {
        items: vec![of_item(item, total)],
        ..SaleChange::default()
    };
    for (item, total, ends_epoch) in [
        ("M", 9, true),
        ("S", 9, false),
        ("S", 6, true),
        ("M", 5, false),
    ] {
        let change = more(item, total);
        let stored = sales::usage(&mut session, &now, &change).await.unwrap();
        let changed = change.apply(&now.sale, &stored.usage).unwrap();
        assert_eq!(
            stored.ends_epoch(&now, &changed),
            ends_epoch,
            "{item} {total}"
        );
    }
    drop(session);
    database.drop().await;
}

#[tokio::test]
async fn sales_are_read_in_pages() {
    let database = Database::new().await;
    for id in ["c", "a", "b"] {
        database
            .create(with_items(id, &[("S", 1), ("M", 2), ("L", 3)]))
            .await;
    }
    let mut session = database.session().await;
    let ids = |rows: Vec<sales::SaleRow>| -> Vec<String> {
        rows.iter().map(|row| row.sale.id.to_string()).collect()
    };
    let first = sales::page(&mut session, None, 2).await.unwrap();
    assert!(first.iter().all(|row| row.sale.total() == 6));
    assert_eq!(ids(first), ["a", "b"]);
    let rest = sales::page(&mut session, Some(&sale_id("b")), 2).await;
    assert_eq!(ids(rest.unwrap()), ["c"]);
    // A sale that a manual edit has damaged is left out.
    database
        .sql::<u8>("DELETE FROM seckill_item WHERE sale_num = 2 AND item = 2")
        .await;
    assert_eq!(ids(sales::all(&mut session).await.unwrap()), ["b", "c"]);
    let row = sales::by_num(&mut session, 3).await.unwrap().unwrap();
    assert_eq!(row.sale.id.as_str(), "b");
    let fault = sales::one(&mut session, &sale_id("a")).await.unwrap_err();
    assert!(fault.detail.contains("the rows of sale a"), "{fault}");
    let missing = sales::one(&mut session, &sale_id("missing")).await;
    assert_eq!(missing, Ok(None));
    drop(session);
    database.drop().await;
}

#[tokio::test]
async fn what_deleted_orders_leave_behind_can_be_removed() {
    let database = Database::new().await;
    let row = database.create(simple("s", 9)).await;
    let claim = |number, slot| {
        let units = [in_slot(slot, unit(1, number, 1))];
        keyed("ann", &format!("k{slot}"), database.claim(&row, &units))
    };
    let stored = [claim(1, 1), claim(2, 2), claim(3, 3)];
    assert_eq!(database.record(&[&row], &stored).await, None);
    database
        .sql::<u8>("DELETE FROM seckill WHERE unit = 1")
        .await;
    database
        .sql::<u8>("UPDATE seckill SET state = 'cancelled' WHERE unit = 2")
        .await;
    let again = [claim(4, 1)];
    let refused = database.record(&[&row], &again).await;
    assert!(refused.unwrap().contains("Duplicate"));
    let mut session = database.session().await;
    let removed = orders::remove_leftovers(&mut session, &row.sale.id).await;
    assert_eq!(removed, Ok(3));
    assert_eq!(database.record(&[&row], &again).await, None);
    // The cancelled order keeps its key, and the active ones everything.
    let removed = orders::remove_leftovers(&mut session, &row.sale.id).await;
    assert_eq!(removed, Ok(0));
    assert_eq!(database.count("seckill_key").await, 3);
    assert_eq!(database.count("seckill_slot").await, 2);
    drop(session);
    database.drop().await;
}
