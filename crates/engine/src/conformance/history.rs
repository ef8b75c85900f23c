//! Checks random histories of attempts, repeats, cancellations, changes and restarts against a
//! small model. It shares no code with the rules, so that both cannot have the same bug.

use std::collections::HashMap;

use proptest::prelude::{Just, Strategy, any, prop};
use proptest::prop_oneof;
use proptest::test_runner::{Config, TestRunner};
use seckill_sale::{
    Attempt, Buyer, Claim, Invalid, OrderChange, OrderId, Rejection, SaleChange, Verdict,
};

use super::{
    EngineFactory, TestContext, anyone, audited, change, create, key, limited, named, sale_id,
};
use crate::{Engine, SaleRefused};

const HISTORIES: u32 = 48;
const STEPS_MAX: usize = 40;

#[derive(Debug, Clone)]
struct Try {
    buyer: u8,
    key: Option<u8>,
    quantity: u32,
}

#[derive(Debug, Clone)]
enum Step {
    Tries(Vec<Try>),
    Cancel(prop::sample::Index),
    Units(i32),
    Limit(Option<u32>),
    Close(bool),
    Restart,
}

fn tries() -> impl Strategy<Value = Try> {
    let quantity = prop_oneof![9 => Just(1), 1 => Just(2)];
    (0..4_u8, prop::option::of(0..3_u8), quantity).prop_map(|(buyer, key, quantity)| Try {
        buyer,
        key,
        quantity,
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => prop::collection::vec(tries(), 1..8).prop_map(Step::Tries),
        3 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => (-3..4_i32).prop_map(Step::Units),
        1 => prop::option::of(1..4_u32).prop_map(Step::Limit),
        1 => any::<bool>().prop_map(Step::Close),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..STEPS_MAX)
}

#[derive(Default)]
struct Model {
    total: usize,
    limit: Option<u32>,
    closed: bool,
    /// All claims in order: id, buyer, unit, and whether the order is active.
    orders: Vec<(OrderId, Buyer, u32, bool)>,
    /// The claim of each key, and the quantity of its attempt.
    keys: HashMap<(Buyer, u8), (OrderId, u32)>,
    claims: Vec<Claim>,
}

impl Model {
    fn active(&self) -> usize {
        self.orders
            .iter()
            .filter(|(_, _, _, active)| *active)
            .count()
    }

    fn held(&self, buyer: &Buyer) -> u32 {
        let holds =
            |(_, owner, _, active): &&(OrderId, Buyer, u32, bool)| *active && owner == buyer;
        self.orders.iter().filter(holds).count() as u32
    }

    fn most_held(&self) -> u32 {
        let named = self
            .orders
            .iter()
            .filter(|(_, buyer, _, _)| !buyer.is_anonymous());
        named
            .map(|(_, buyer, _, _)| self.held(buyer))
            .max()
            .unwrap_or(0)
    }

    /// Checks one verdict, and applies it to the model.
    fn expect(&mut self, tried: &Try, attempt: &Attempt, verdict: &Verdict) {
        let keyed = tried.key.map(|key| (attempt.buyer.clone(), key));
        if let Some((order_id, quantity)) = keyed.as_ref().and_then(|key| self.keys.get(key)) {
            match verdict {
                Verdict::Repeat { claim, state } if *quantity == tried.quantity => {
                    assert_eq!(claim.order_id, *order_id);
                    let order = self.orders.iter().find(|(id, _, _, _)| id == order_id);
                    assert_eq!(
                        order.map(|(_, _, _, active)| *active),
                        Some(state.is_active())
                    );
                }
                other => {
                    assert_ne!(*quantity, tried.quantity, "not a repeat: {other:?}");
                    assert_eq!(*other, Verdict::Mismatch);
                }
            }
            return;
        }
        let buyer = &attempt.buyer;
        let limit = self.limit.filter(|limit| self.held(buyer) >= *limit);
        let expected = if tried.quantity != 1 {
            Verdict::Invalid(Invalid::Quantity { max: 1 })
        } else if self.limit.is_some() && buyer.is_anonymous() {
            Verdict::Invalid(Invalid::BuyerRequired)
        } else if self.closed {
            Verdict::Rejected(Rejection::Closed { closed_at_ms: 1 })
        } else if let Some(limit) = limit {
            Verdict::Rejected(Rejection::LimitReached { limit })
        } else if self.active() == self.total {
            Verdict::Rejected(Rejection::SoldOut)
        } else {
            let Verdict::Claimed(claim) = verdict else {
                panic!("not a claim: {verdict:?}");
            };
            self.orders.push((
                claim.order_id.clone(),
                buyer.clone(),
                claim.unit.number,
                true,
            ));
            if let Some(key) = keyed {
                self.keys
                    .insert(key, (claim.order_id.clone(), tried.quantity));
            }
            assert_eq!(claim.remaining as usize, self.total - self.active());
            self.claims.push(claim.clone());
            return;
        };
        assert_eq!(*verdict, expected);
    }
}

fn attempt(tried: &Try) -> Attempt {
    let buyer = match tried.buyer {
        0 => Buyer::anonymous(),
        n => named(&format!("b{n}")),
    };
    Attempt {
        buyer,
        key: tried.key.map(|k| key(&format!("k{k}"))),
        quantity: tried.quantity,
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
    create(&engine, limited(4, 2)).await;
    let mut model = Model {
        total: 4,
        limit: Some(2),
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
                let (order_id, _, _, active) = index.get(&model.orders).clone();
                let cancelled = engine.change_order(&order_id, OrderChange::Cancel).await;
                assert!(matches!(cancelled, Ok(Ok(_))), "{cancelled:?} ({active})");
                let order = model
                    .orders
                    .iter_mut()
                    .find(|(id, _, _, _)| *id == order_id);
                order.into_iter().for_each(|order| order.3 = false);
            }
            Step::Cancel(_) => {}
            Step::Units(more) => set_total(engine.as_ref(), &mut model, more).await,
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
    assert_eq!(report.gate_left as usize, model.total - model.active());
    assert_eq!(report.store_rows as usize, model.orders.len());
}

async fn set_total(engine: &dyn Engine, model: &mut Model, more: i32) {
    let total = (model.total as i32 + more).max(0) as u32;
    let wanted = SaleChange {
        total: Some(total),
        ..SaleChange::default()
    };
    let changed = engine.change_sale(&sale_id("s"), wanted).await;
    let active = model.orders.iter().filter(|(_, _, _, active)| *active);
    let highest_sold = active.map(|(_, _, unit, _)| *unit).max().unwrap_or(0);
    if total < highest_sold {
        assert!(
            matches!(changed, Ok(Err(SaleRefused::Change(_)))),
            "{changed:?}"
        );
    } else {
        assert!(matches!(changed, Ok(Ok(_))), "{changed:?}");
        model.total = total as usize;
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
