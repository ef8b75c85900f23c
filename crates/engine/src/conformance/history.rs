//! Checks random histories of attempts, repeats, cancellations, changes and restarts against a
//! small model. It shares no code with the rules, so that both cannot have the same bug.

use std::collections::HashMap;

use proptest::prelude::{Just, Strategy, any, prop};
use proptest::prop_oneof;
use proptest::test_runner::{Config, TestRunner};
use seckill_sale::{
    Attempt, Buyer, Claim, Invalid, ItemChange, ItemRemaining, Line, Lines, NewSale, OrderChange,
    OrderId, OrderUnits, Rejection, SaleChange, SaleRefused, Verdict,
};

use super::feed::feed_gives_the_state;
use super::{
    EngineFactory, TestContext, anyone, audited, change, create, item_id, items, key, named,
    sale_id,
};
use crate::Engine;

const HISTORIES: u32 = 48;
const STEPS_MAX: usize = 40;
const ITEMS: [&str; 2] = ["S", "M"];

#[derive(Debug, Clone)]
struct Try {
    buyer: u8,
    key: Option<u8>,
    /// By item; the items without a quantity have no line.
    quantities: [u32; 2],
}

#[derive(Debug, Clone)]
enum Step {
    Tries(Vec<Try>),
    Cancel(prop::sample::Index),
    Units(usize, i32),
    Limit(Option<u32>),
    Close(bool),
    Restart,
}

fn tries() -> impl Strategy<Value = Try> {
    let quantity = || prop_oneof![4 => Just(0), 8 => Just(1), 3 => Just(2), 1 => Just(15)];
    let quantities = [quantity(), quantity()];
    (0..4_u8, prop::option::of(0..3_u8), quantities).prop_map(|(buyer, key, quantities)| Try {
        buyer,
        key,
        quantities,
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => prop::collection::vec(tries(), 1..8).prop_map(Step::Tries),
        3 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => (0..2_usize, -3..4_i32).prop_map(|(item, more)| Step::Units(item, more)),
        1 => prop::option::of(1..6_u32).prop_map(Step::Limit),
        1 => any::<bool>().prop_map(Step::Close),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..STEPS_MAX)
}

struct Placed {
    order_id: OrderId,
    buyer: Buyer,
    units: OrderUnits,
    is_active: bool,
}

#[derive(Default)]
struct Model {
    totals: [usize; 2],
    limit: Option<u32>,
    closed: bool,
    /// All claims in order.
    orders: Vec<Placed>,
    /// The claim of each key, and the quantities of its attempt.
    keys: HashMap<(Buyer, u8), (OrderId, [u32; 2])>,
    claims: Vec<Claim>,
}

impl Model {
    fn active_units(&self) -> impl Iterator<Item = (usize, u32)> {
        let active = self.orders.iter().filter(|order| order.is_active);
        active.flat_map(|order| &order.units).map(|unit| {
            let item = ITEMS.iter().position(|id| *id == unit.item.as_str());
            (item.unwrap_or(usize::MAX), unit.unit.number)
        })
    }

    fn free(&self, item: usize) -> usize {
        self.totals[item] - self.active_units().filter(|(of, _)| *of == item).count()
    }

    fn remaining(&self) -> usize {
        self.free(0) + self.free(1)
    }

    fn held(&self, buyer: &Buyer) -> u32 {
        let active = self.orders.iter().filter(|order| order.is_active);
        let own = active.filter(|order| order.buyer == *buyer);
        own.map(|order| order.units.len() as u32).sum()
    }

    fn most_held(&self) -> u32 {
        let named = self.orders.iter().filter(|o| !o.buyer.is_anonymous());
        named.map(|o| self.held(&o.buyer)).max().unwrap_or(0)
    }

    /// The rejection that an attempt must get, if any.
    fn refusal(&self, tried: &Try, buyer: &Buyer) -> Option<Verdict> {
        let wanted = |item: usize| tried.quantities[item] as usize;
        let quantity = tried.quantities[0] + tried.quantities[1];
        // The lines of an attempt are in the order of their ids: M before S.
        let lines = || [1, 0].into_iter().filter(|&item| wanted(item) > 0);
        if quantity == 0 || quantity > 16 {
            return Some(Verdict::Invalid(Invalid::Quantity { max: 16 }));
        }
        if self.limit.is_some() && buyer.is_anonymous() {
            return Some(Verdict::Invalid(Invalid::BuyerRequired));
        }
        if self.closed {
            return Some(Verdict::Rejected(Rejection::Closed { closed_at_ms: 1 }));
        }
        if let Some(limit) = self
            .limit
            .filter(|limit| self.held(buyer) + quantity > *limit)
        {
            return Some(Verdict::Rejected(Rejection::LimitReached { limit }));
        }
        if lines().all(|item| self.free(item) == 0) {
            return Some(Verdict::Rejected(Rejection::SoldOut));
        }
        if lines().any(|item| self.free(item) < wanted(item)) {
            let remaining = lines().map(|item| ItemRemaining {
                item: item_id(ITEMS[item]),
                remaining: self.free(item) as u32,
            });
            return Some(Verdict::Rejected(Rejection::NotEnoughLeft {
                remaining: remaining.collect(),
            }));
        }
        None
    }

    /// Checks one verdict, and applies it to the model.
    fn expect(&mut self, tried: &Try, attempt: &Attempt, verdict: &Verdict) {
        let keyed = tried.key.map(|key| (attempt.buyer.clone(), key));
        if let Some((order_id, quantities)) = keyed.as_ref().and_then(|key| self.keys.get(key)) {
            match verdict {
                Verdict::Repeat { claim, state } if *quantities == tried.quantities => {
                    assert_eq!(claim.order_id, *order_id);
                    let order = self.orders.iter().find(|o| o.order_id == *order_id);
                    let expected = order.map(|order| (&order.units, order.is_active));
                    assert_eq!(Some((&claim.units, state.is_active())), expected);
                }
                other => {
                    assert_ne!(*quantities, tried.quantities, "not a repeat: {other:?}");
                    assert_eq!(*other, Verdict::Mismatch);
                }
            }
            return;
        }
        if let Some(expected) = self.refusal(tried, &attempt.buyer) {
            assert_eq!(*verdict, expected);
            return;
        }
        let Verdict::Claimed(claim) = verdict else {
            panic!("not a claim: {verdict:?}");
        };
        for (item, id) in ITEMS.iter().enumerate() {
            let got = claim.units.iter().filter(|unit| unit.item.as_str() == *id);
            assert_eq!(got.count(), tried.quantities[item] as usize, "{claim:?}");
        }
        self.orders.push(Placed {
            order_id: claim.order_id.clone(),
            buyer: attempt.buyer.clone(),
            units: claim.units.clone(),
            is_active: true,
        });
        if let Some(key) = keyed {
            let order_id = claim.order_id.clone();
            self.keys.insert(key, (order_id, tried.quantities));
        }
        assert_eq!(claim.remaining as usize, self.remaining());
        self.claims.push(claim.clone());
    }
}

fn attempt(tried: &Try) -> Attempt {
    let buyer = match tried.buyer {
        0 => Buyer::anonymous(),
        n => named(&format!("b{n}")),
    };
    let lines = ITEMS.iter().zip(tried.quantities);
    let lines = lines.filter(|(_, quantity)| *quantity > 0);
    Attempt {
        buyer,
        key: tried.key.map(|k| key(&format!("k{k}"))),
        lines: Lines::named(lines.map(|(id, quantity)| Line {
            item: item_id(id),
            quantity,
        })),
        ..anyone()
    }
}

/// Checks each history step by step against the model, and then with the audit.
pub async fn random_histories_match_the_model<F: EngineFactory>(context: TestContext<F>) {
    let runtime = tokio::runtime::Handle::current();
    let config = Config {
        cases: HISTORIES,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let result = tokio::task::block_in_place(|| {
        runner.run(&steps(), |steps| {
            runtime.block_on(run_history(&context, steps));
            Ok(())
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

async fn run_history<F: EngineFactory>(context: &TestContext<F>, steps: Vec<Step>) {
    context.factory.clear();
    let mut engine = context.open().await;
    let new = NewSale {
        buyer_limit: Some(3),
        ..items(&[("S", 4), ("M", 3)])
    };
    create(&engine, new).await;
    let mut model = Model {
        totals: [4, 3],
        limit: Some(3),
        ..Model::default()
    };
    for step in steps {
        match step {
            Step::Tries(tries) => {
                let attempts: Vec<Attempt> = tries.iter().map(attempt).collect();
                let verdicts = engine.decide(attempts.clone()).await;
                assert_eq!(verdicts.len(), attempts.len());
                for ((tried, attempt), verdict) in tries.iter().zip(&attempts).zip(verdicts) {
                    match verdict {
                        Ok(verdict) => model.expect(tried, attempt, &verdict),
                        Err(fault) => panic!("{fault}"),
                    }
                }
            }
            Step::Cancel(index) if !model.orders.is_empty() => {
                let at = index.index(model.orders.len());
                let order = &mut model.orders[at];
                let cancelled = engine.change_order(&order.order_id, OrderChange::Cancel);
                let cancelled = cancelled.await;
                assert!(matches!(cancelled, Ok(Ok(_))), "{cancelled:?}");
                order.is_active = false;
            }
            Step::Cancel(_) => {}
            Step::Units(item, more) => set_total(engine.as_ref(), &mut model, item, more).await,
            Step::Limit(limit) => set_limit(engine.as_ref(), &mut model, limit).await,
            Step::Close(closed) => {
                model.closed = closed;
                let window = SaleChange {
                    closes_at_ms: Some(closed.then_some(1)),
                    ..SaleChange::default()
                };
                change(&engine, window).await;
            }
            Step::Restart => engine = context.reopen(engine).await,
        }
    }
    let report = audited(&engine, &model.claims).await;
    assert_eq!(report.gate_left as usize, model.remaining());
    let units = model.orders.iter().map(|order| order.units.len());
    assert_eq!(report.store_rows as usize, units.sum::<usize>());
    let replay = feed_gives_the_state(&engine).await;
    assert_eq!(replay.orders().len(), model.orders.len());
}

async fn set_total(engine: &dyn Engine, model: &mut Model, item: usize, more: i32) {
    let total = (model.totals[item] as i32 + more).max(0) as u32;
    let wanted = SaleChange {
        items: vec![ItemChange {
            id: item_id(ITEMS[item]),
            title: None,
            total: Some(total),
            price: None,
        }],
        ..SaleChange::default()
    };
    let changed = engine.change_sale(&sale_id("s"), wanted).await;
    let of_item = model.active_units().filter(|(of, _)| *of == item);
    let highest_sold = of_item.map(|(_, number)| number).max().unwrap_or(0);
    if total < highest_sold {
        assert!(
            matches!(changed, Ok(Err(SaleRefused::Change(_)))),
            "{changed:?}"
        );
    } else {
        assert!(matches!(changed, Ok(Ok(_))), "{changed:?}");
        model.totals[item] = total as usize;
    }
}

async fn set_limit(engine: &dyn Engine, model: &mut Model, limit: Option<u32>) {
    let wanted = SaleChange {
        buyer_limit: Some(limit),
        ..SaleChange::default()
    };
    let changed = engine.change_sale(&sale_id("s"), wanted).await;
    if limit.is_some_and(|limit| limit < model.most_held()) {
        assert!(
            matches!(changed, Ok(Err(SaleRefused::Change(_)))),
            "{changed:?}"
        );
    } else {
        assert!(matches!(changed, Ok(Ok(_))), "{changed:?}");
        model.limit = limit;
    }
}
