//! Changes of a sale while it runs: its totals, its limit, its version, and what is refused.

use seckill_sale::{ChangeRefused, ItemId, NewSale, Rejection, SaleChange, SaleRefused, Verdict};

use super::{
    EngineFactory, TestContext, anyone, ask, audited, buy, by, cancel, change, create,
    distinct_units, limited, sale, sale_id, unit,
};

/// A sold-out sale sells again once units are added, even if it never had any.
pub async fn sells_again_after_units_are_added<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(0)).await;
    assert_eq!(
        ask(&engine, anyone()).await,
        Verdict::Rejected(Rejection::SoldOut)
    );
    let mut claims = Vec::new();
    for total in [2, 4, 6] {
        change(&engine, units(total)).await;
        claims.push(buy(&engine, anyone()).await);
        claims.push(buy(&engine, anyone()).await);
        assert_eq!(
            ask(&engine, anyone()).await,
            Verdict::Rejected(Rejection::SoldOut)
        );
    }
    assert_eq!(distinct_units(&claims), 6);
    audited(&engine, &claims).await;
}

fn units(total: u32) -> SaleChange {
    SaleChange::of_total(total)
}

/// The total can be lowered as long as no removed unit is sold. A released unit above a lowered
/// total keeps its generation until the total is raised again.
pub async fn takes_unsold_units_off_sale<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(10)).await;
    let mut claims = Vec::new();
    for _ in 0..4 {
        claims.push(buy(&engine, anyone()).await);
    }
    let refused = engine.change_sale(&sale_id("s"), units(3)).await;
    let below = ChangeRefused::TotalBelowSold {
        item: ItemId::default(),
        total: 3,
        highest_sold: 4,
    };
    assert_eq!(refused, Ok(Err(SaleRefused::Change(below))));
    change(&engine, units(4)).await;
    let sold_out = Verdict::Rejected(Rejection::SoldOut);
    assert_eq!(ask(&engine, anyone()).await, sold_out);
    cancel(&engine, &claims[3].order_id).await;
    change(&engine, units(3)).await;
    assert_eq!(ask(&engine, anyone()).await, sold_out);
    let engine = context.reopen(engine).await;
    assert_eq!(ask(&engine, anyone()).await, sold_out);
    audited(&engine, &claims).await;
    change(&engine, units(5)).await;
    let mut again = vec![buy(&engine, anyone()).await, buy(&engine, anyone()).await];
    again.sort_unstable_by_key(unit);
    assert_eq!(unit(&again[0]), unit(&claims[3]).next_generation());
    let fresh = unit(&again[1]);
    assert_eq!((fresh.number, fresh.generation), (5, 1));
    assert_eq!(ask(&engine, anyone()).await, sold_out);
    claims.extend(again);
    audited(&engine, &claims).await;
}

/// A change for an outdated version is refused, so that one that is sent twice is made once.
pub async fn changes_a_sale_only_in_the_version_that_was_read<F: EngineFactory>(
    context: TestContext<F>,
) {
    let engine = context.open().await;
    let made = create(&engine, sale(5)).await;
    let more = SaleChange {
        if_version: Some(made.version),
        ..units(6)
    };
    let changed = change(&engine, more.clone()).await;
    assert_eq!((changed.total(), changed.version), (6, made.version + 1));
    let again = engine.change_sale(&sale_id("s"), more).await;
    let expected = ChangeRefused::VersionDiffers {
        wanted: made.version,
        found: changed.version,
    };
    assert_eq!(again, Ok(Err(SaleRefused::Change(expected))));
    let engine = context.reopen(engine).await;
    match engine.sale(&sale_id("s")).await {
        Ok(Some(stock)) => assert_eq!((stock.sale, stock.free), (changed, vec![6])),
        other => panic!("{other:?}"),
    }
    audited(&engine, &[]).await;
}

/// An id in use, invalid terms, an empty change and a missing sale are refused, without effect.
pub async fn refuses_sales_and_changes_that_cannot_be<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    let made = create(&engine, sale(5)).await;
    match engine.create_sale(sale(9)).await {
        Ok(Err(SaleRefused::Exists(existing))) => assert_eq!(*existing, made),
        other => panic!("{other:?}"),
    }
    let invalid = NewSale {
        id: sale_id("invalid"),
        ..limited(1, 65)
    };
    let refused = engine.create_sale(invalid).await;
    assert!(
        matches!(refused, Ok(Err(SaleRefused::InvalidSale(_)))),
        "{refused:?}"
    );
    let unchanged = engine
        .change_sale(&sale_id("s"), SaleChange::default())
        .await;
    let expected = SaleRefused::Change(ChangeRefused::NothingToChange);
    assert_eq!(unchanged, Ok(Err(expected)));
    let missing = sale_id("missing");
    let refused = engine.change_sale(&missing, units(1)).await;
    assert_eq!(refused, Ok(Err(SaleRefused::NoSuchSale(missing.clone()))));
    assert_eq!(engine.sale(&missing).await, Ok(None));
    match engine.sales(None).await {
        Ok(sales) => assert_eq!(
            sales.into_iter().map(|s| s.sale).collect::<Vec<_>>(),
            [made]
        ),
        Err(fault) => panic!("{fault}"),
    }
    audited(&engine, &[]).await;
}

/// A limit that is set on a running sale counts existing orders. A limit below what a buyer holds
/// is refused. Without a limit, the buyer may buy again.
pub async fn changes_the_limit_of_a_running_sale<F: EngineFactory>(context: TestContext<F>) {
    let engine = context.open().await;
    create(&engine, sale(10)).await;
    let mut claims = vec![buy(&engine, by("ann")).await, buy(&engine, by("ann")).await];
    claims.push(buy(&engine, anyone()).await);
    let limit = |limit| SaleChange {
        buyer_limit: Some(limit),
        ..SaleChange::default()
    };
    let refused = engine.change_sale(&sale_id("s"), limit(Some(1))).await;
    let below = ChangeRefused::LimitBelowHeld {
        limit: 1,
        most_held: 2,
    };
    assert_eq!(refused, Ok(Err(SaleRefused::Change(below))));
    change(&engine, limit(Some(2))).await;
    let limit_reached = |limit| Verdict::Rejected(Rejection::LimitReached { limit });
    assert_eq!(ask(&engine, by("ann")).await, limit_reached(2));
    claims.push(buy(&engine, by("bob")).await);
    change(&engine, limit(Some(3))).await;
    claims.push(buy(&engine, by("ann")).await);
    assert_eq!(ask(&engine, by("ann")).await, limit_reached(3));
    let engine = context.reopen(engine).await;
    assert_eq!(ask(&engine, by("ann")).await, limit_reached(3));
    change(&engine, limit(None)).await;
    claims.push(buy(&engine, by("ann")).await);
    change(&engine, limit(Some(4))).await;
    assert_eq!(ask(&engine, by("ann")).await, limit_reached(4));
    audited(&engine, &claims).await;
}
