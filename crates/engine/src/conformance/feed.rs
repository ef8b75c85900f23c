//! The feed: everything that happened to a sale, in order and without gaps.

use std::sync::Arc;

use seckill_sale::{
    Attempt, EventKind, Item, ItemId, Lines, Order, OrderState, Replay, SaleChange, Verdict,
};

use super::{
    EngineFactory, TestContext, anyone, ask, audited, buy, by, cancel, change, create, keyed,
    limited, sale, sale_id, stored,
};
use crate::{EVENTS_PAGE_MAX, Engine};

/// Reads all events of the sale, page by page, and replays them.
pub(super) async fn replayed(engine: &Arc<dyn Engine>) -> Replay {
    let mut replay = Replay::default();
    loop {
        let page = match engine.events(&sale_id("s"), replay.sequence()).await {
            Ok(Some(page)) => page,
            other => panic!("no events: {other:?}"),
        };
        if page.is_empty() {
            return replay;
        }
        for event in page {
            replay
                .apply(event)
                .unwrap_or_else(|fault| panic!("{fault}"));
        }
    }
}

/// Invariant 14: the events lead to what the engine itself says of the sale and of each order.
pub(super) async fn feed_gives_the_state(engine: &Arc<dyn Engine>) -> Replay {
    let replay = replayed(engine).await;
    let stock = match engine.sale(&sale_id("s")).await {
        Ok(Some(stock)) => stock,
        other => panic!("{other:?}"),
    };
    assert_eq!(replay.sale(), Some(&stock.sale));
    let free = |item: &Item| replay.free(item);
    let free: Vec<u32> = stock.sale.items.iter().map(free).collect();
    assert_eq!(free, stock.free);
    for (order_id, replayed) in replay.orders() {
        let Order {
            units,
            buyer,
            idempotency_key,
            state,
            ..
        } = stored(engine, order_id).await;
        assert_eq!(replayed.units, units);
        assert_eq!(replayed.buyer, buyer);
        assert_eq!(replayed.idempotency_key, idempotency_key);
        assert_eq!(replayed.state, state);
    }
    replay
}

/// Each change has one event, and a rejection has none. The events survive a restart.
pub async fn tells_everything_in_the_feed<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    let made = create(&engine, limited(5, 3)).await;
    let two = Attempt {
        lines: Lines::Quantity(2),
        ..keyed("ann", "k")
    };
    let first = buy(&engine, two).await;
    let second = buy(&engine, by("bob")).await;
    cancel(&engine, &first.order_id).await;
    // What changes nothing has no event.
    cancel(&engine, &first.order_id).await;
    let one = SaleChange::of_total(1);
    let refused = engine.change_sale(&sale_id("s"), one).await;
    assert!(matches!(refused, Ok(Err(_))), "{refused:?}");
    let four = Attempt {
        lines: Lines::Quantity(4),
        ..by("bob")
    };
    let rejected = ask(&engine, four).await;
    assert!(matches!(rejected, Verdict::Rejected(_)), "{rejected:?}");
    let changed = change(&engine, SaleChange::of_total(3)).await;
    let engine = context.reopen(engine).await;
    let third = buy(&engine, by("ann")).await;
    let events = match engine.events(&sale_id("s"), 0).await {
        Ok(Some(events)) => events,
        other => panic!("{other:?}"),
    };
    let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5, 6]);
    let names: Vec<&str> = events.iter().map(|event| event.kind.name()).collect();
    let expected = [
        "sale.created",
        "order.reserved",
        "order.reserved",
        "order.cancelled",
        "sale.changed",
        "order.reserved",
    ];
    assert_eq!(names, expected);
    assert!(events.iter().all(|event| event.at_ms > 1_700_000_000_000));
    let told = |index: usize| events[index].kind.clone();
    assert_eq!(told(0), EventKind::SaleCreated(Box::new(made)));
    let order = stored(&engine, &first.order_id).await;
    let reserved = EventKind::OrderReserved {
        order_id: first.order_id.clone(),
        buyer: order.buyer,
        idempotency_key: order.idempotency_key,
        units: first.units.clone(),
    };
    assert_eq!(told(1), reserved);
    assert_eq!(events[2].kind.order_id(), Some(&second.order_id));
    let ended = EventKind::OrderChanged {
        order_id: first.order_id.clone(),
        state: OrderState::Cancelled,
        units: first.units.clone(),
    };
    assert_eq!(told(3), ended);
    assert_eq!(told(4), EventKind::SaleChanged(Box::new(changed)));
    assert_eq!(engine.events(&sale_id("missing"), 0).await, Ok(None));
    feed_gives_the_state(&engine).await;
    let report = audited(&engine, &[first, second, third]).await;
    assert_eq!(report.events, 6);
}

/// A reader resumes after any event, across pages, whatever other sales do meanwhile.
pub async fn pages_through_the_feed<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    let total = EVENTS_PAGE_MAX as u32 + 500;
    create(&engine, sale(total)).await;
    let mut other = sale(total);
    other.id = sale_id("other");
    create(&engine, other).await;
    let mut claims = Vec::new();
    for i in 0..total {
        if i % 100 == 0 {
            let other = Attempt {
                sale: sale_id("other"),
                ..anyone()
            };
            let attempts = vec![other; 50];
            assert!(engine.decide(attempts).await.iter().all(Result::is_ok));
        }
        if i % 250 == 0 {
            for verdict in engine.decide(vec![anyone(); 250]).await {
                match verdict {
                    Ok(Verdict::Claimed(claim)) => claims.push(claim),
                    other => panic!("{other:?}"),
                }
            }
        }
        if i % 500 == 499 {
            cancel(&engine, &claims[i as usize].order_id).await;
        }
    }
    let replay = feed_gives_the_state(&engine).await;
    assert_eq!(replay.orders().len(), total as usize);
    let last = replay.sequence();
    for after in [0, 1, 999, 1_000, 1_001, last - 1, last, last + 1, u64::MAX] {
        let page = match engine.events(&sale_id("s"), after).await {
            Ok(Some(page)) => page,
            other => panic!("{other:?}"),
        };
        let expected = last.saturating_sub(after).min(EVENTS_PAGE_MAX as u64);
        assert_eq!(page.len() as u64, expected, "after {after}");
        let first = page.first().map(|event| event.sequence);
        assert_eq!(first, (expected > 0).then(|| after + 1));
    }
    assert_eq!(
        replay.sale().map(|sale| sale.items[0].id.clone()),
        Some(ItemId::default())
    );
    audited(&engine, &claims).await;
}
