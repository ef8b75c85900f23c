//! Orders of several units: all lines or none, in one step, and released together.

use seckill_sale::{
    Attempt, Invalid, ItemChange, ItemRemaining, Line, Lines, NewSale, OrderState, Rejection,
    SaleChange, Verdict,
};

use super::cases::{all_at_once, claims, count};
use super::{
    EngineFactory, TestContext, anyone, ask, audited, buy, by, cancel, create, distinct_units,
    item_id, items, key, keyed, limited, sale, sale_id, several, stored,
};

fn lines(lines: &[(&str, u32)]) -> Lines {
    Lines::named(lines.iter().map(|&(item, quantity)| Line {
        item: item_id(item),
        quantity,
    }))
}

fn wants(wanted: &[(&str, u32)]) -> Attempt {
    Attempt {
        lines: lines(wanted),
        ..anyone()
    }
}

fn not_enough(remaining: &[(&str, u32)]) -> Verdict {
    let remaining = remaining.iter().map(|&(item, remaining)| ItemRemaining {
        item: item_id(item),
        remaining,
    });
    Verdict::Rejected(Rejection::NotEnoughLeft {
        remaining: remaining.collect(),
    })
}

/// An order has the units of all its lines, by item. If one line cannot be had, nothing is taken.
pub async fn sells_all_lines_or_none<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, items(&[("S", 3), ("M", 2), ("L", 0)])).await;
    let claim = buy(&engine, wants(&[("S", 2), ("M", 1)])).await;
    let units: Vec<(&str, u32)> = claim
        .units
        .iter()
        .map(|unit| (unit.item.as_str(), unit.unit.number))
        .collect();
    assert_eq!(units, [("M", 1), ("S", 1), ("S", 2)]);
    assert_eq!(claim.remaining, 2);
    assert_eq!(stored(&engine, &claim.order_id).await.units, claim.units);
    let short = ask(&engine, wants(&[("S", 2), ("M", 1)])).await;
    assert_eq!(short, not_enough(&[("M", 1), ("S", 1)]));
    let one_left = ask(&engine, wants(&[("L", 1), ("S", 1)])).await;
    assert_eq!(one_left, not_enough(&[("L", 0), ("S", 1)]));
    let sold_out = Verdict::Rejected(Rejection::SoldOut);
    assert_eq!(ask(&engine, wants(&[("L", 1)])).await, sold_out);
    let last = buy(&engine, wants(&[("S", 1), ("M", 1)])).await;
    assert_eq!(ask(&engine, wants(&[("S", 1), ("M", 1)])).await, sold_out);
    let missing = ask(&engine, wants(&[("XL", 1)])).await;
    assert_eq!(
        missing,
        Verdict::Invalid(Invalid::NoSuchItem {
            item: item_id("XL"),
            items: ["S", "M", "L"].map(item_id).into(),
        })
    );
    let unnamed = Invalid::ItemRequired {
        items: ["S", "M", "L"].map(item_id).into(),
    };
    assert_eq!(ask(&engine, anyone()).await, Verdict::Invalid(unnamed));
    let engine = context.reopen(engine).await;
    assert_eq!(stored(&engine, &claim.order_id).await.units, claim.units);
    let report = audited(&engine, &[claim, last]).await;
    assert_eq!((report.store_rows, report.gate_left), (5, 0));
}

/// Parallel attempts for 1 to 3 units: no order is cut short, and no unit is sold twice.
pub async fn sells_lines_all_or_nothing_to_parallel_buyers<F: EngineFactory>(
    context: TestContext<F>,
) {
    let engine = context.open().await;
    create(&engine, items(&[("S", 40), ("M", 40), ("L", 20)])).await;
    let wanted: Vec<Attempt> = (0..240_u32)
        .map(|i| match i % 3 {
            0 => wants(&[("S", 1 + i % 2)]),
            1 => wants(&[("S", 1), ("M", 1)]),
            _ => wants(&[("S", 1), ("M", 1), ("L", 1)]),
        })
        .collect();
    let verdicts = all_at_once(&engine, wanted.clone()).await;
    for (attempt, verdict) in wanted.iter().zip(&verdicts) {
        if let Verdict::Claimed(claim) = verdict {
            assert_eq!(claim.units.len() as u32, attempt.lines.quantity());
        }
    }
    let claims = claims(&verdicts);
    let sold: usize = claims.iter().map(|claim| claim.units.len()).sum();
    assert_eq!(distinct_units(&claims), sold);
    let small = claims.iter().flat_map(|claim| &claim.units);
    let small = small.filter(|unit| unit.item.as_str() == "S").count();
    assert_eq!(small, 40);
    let report = audited(&engine, &claims).await;
    assert_eq!(report.store_rows as usize, sold);
    assert_eq!(report.gate_left as usize, 100 - sold);
}

/// The limit per buyer counts units, over all items.
pub async fn counts_units_towards_the_limit<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, limited(20, 4)).await;
    let of = |buyer: &str, quantity| Attempt {
        lines: Lines::Quantity(quantity),
        ..by(buyer)
    };
    let reached = Verdict::Rejected(Rejection::LimitReached { limit: 4 });
    assert_eq!(ask(&engine, of("ann", 5)).await, reached);
    let three = buy(&engine, of("ann", 3)).await;
    assert_eq!(ask(&engine, of("ann", 2)).await, reached);
    let one = buy(&engine, of("ann", 1)).await;
    assert_eq!(ask(&engine, of("ann", 1)).await, reached);
    cancel(&engine, &three.order_id).await;
    let engine = context.reopen(engine).await;
    assert_eq!(ask(&engine, of("ann", 4)).await, reached);
    let again = buy(&engine, of("ann", 3)).await;
    let attempts = vec![of("bob", 2); 10];
    let verdicts = all_at_once(&engine, attempts).await;
    assert_eq!(claims(&verdicts).len(), 2);
    assert_eq!(count(&verdicts, &reached), 8);
    let all = [vec![three, one, again], claims(&verdicts)].concat();
    let report = audited(&engine, &all).await;
    assert_eq!((report.store_rows, report.gate_left), (11, 12));
}

/// A cancelled order releases all its units, each at its next generation. Its key still returns it.
pub async fn releases_all_units_of_a_cancelled_order<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(3)).await;
    let wanted = Attempt {
        lines: Lines::Quantity(3),
        ..keyed("ann", "k")
    };
    let first = buy(&engine, wanted.clone()).await;
    let sold_out = Verdict::Rejected(Rejection::SoldOut);
    assert_eq!(ask(&engine, anyone()).await, sold_out);
    let order = cancel(&engine, &first.order_id).await;
    assert_eq!(
        (&order.units, order.state),
        (&first.units, OrderState::Cancelled)
    );
    let two = buy(&engine, several(2)).await;
    assert_eq!(
        ask(&engine, several(2)).await,
        not_enough(&[("default", 1)])
    );
    let engine = context.reopen(engine).await;
    let one = buy(&engine, anyone()).await;
    let mut again: Vec<_> = two.units.iter().chain(&one.units).cloned().collect();
    again.sort_unstable();
    let next = first.units.iter().map(|unit| {
        let mut unit = unit.clone();
        unit.unit = unit.unit.next_generation();
        unit
    });
    assert_eq!(again, next.collect::<Vec<_>>());
    match ask(&engine, wanted).await {
        Verdict::Repeat { claim, state } => {
            assert_eq!(
                (claim.units, state),
                (first.units.clone(), OrderState::Cancelled)
            );
        }
        other => panic!("not a repeat: {other:?}"),
    }
    let of_key = engine
        .order_of_key(&sale_id("s"), &by("ann").buyer, &key("k"))
        .await;
    assert_eq!(of_key, Ok(crate::Outcome::Order(order)));
    let report = audited(&engine, &[first, two, one]).await;
    assert_eq!((report.store_rows, report.gate_left), (6, 0));
}

/// A change names the item. The other items keep their stock, also when it is the first that grows.
pub async fn changes_the_total_of_one_item<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    let new = NewSale {
        buyer_limit: Some(64),
        ..items(&[("S", 1), ("M", 1)])
    };
    create(&engine, new).await;
    let wants = |wanted: &[(&str, u32)]| Attempt {
        lines: lines(wanted),
        ..by("ann")
    };
    let first = buy(&engine, wants(&[("S", 1), ("M", 1)])).await;
    let more = SaleChange {
        items: vec![ItemChange {
            id: item_id("S"),
            title: None,
            total: Some(3),
            price: None,
        }],
        ..SaleChange::default()
    };
    super::change(&engine, more).await;
    match engine.sale(&sale_id("s")).await {
        Ok(Some(stock)) => assert_eq!(stock.free, [2, 0]),
        other => panic!("{other:?}"),
    }
    let second = buy(&engine, wants(&[("S", 2)])).await;
    let sold_out = Verdict::Rejected(Rejection::SoldOut);
    assert_eq!(ask(&engine, wants(&[("M", 1)])).await, sold_out);
    let report = audited(&engine, &[first, second]).await;
    assert_eq!((report.store_rows, report.gate_left), (4, 0));
}
