use std::collections::{BTreeMap, HashSet};

use proptest::prelude::{Just, Strategy, any, prop};
use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::{Buyer, IdempotencyKey, ItemChange, ItemId, Line, Lines, NewItem};

fn id() -> SaleId {
    SaleId::new("s").unwrap()
}

fn item_id(index: u8) -> ItemId {
    ItemId::new(["S", "M", "L"][usize::from(index)]).unwrap()
}

fn new_sale() -> NewSale {
    let item = |index| NewItem {
        id: item_id(index),
        title: String::new(),
        total: 4,
        price: None,
    };
    NewSale {
        items: (0..3).map(item).collect(),
        buyer_limit: Some(4),
        ..NewSale::units(id(), 0)
    }
}

#[derive(Debug, Clone)]
enum Command {
    Attempt {
        buyer: u8,
        key: Option<u8>,
        lines: Vec<(u8, u32)>,
    },
    Change(prop::sample::Index, OrderChange),
    Total(u8, u32),
    Limit(Option<u32>),
    Create,
}

fn commands(max: usize) -> impl Strategy<Value = Vec<Command>> {
    let lines = prop::collection::vec((0..3_u8, 1..4_u32), 1..3);
    let attempt = (0..3_u8, prop::option::of(0..3_u8), lines);
    let change = prop_oneof![Just(OrderChange::Cancel), Just(OrderChange::Expire)];
    let command = prop_oneof![
        6 => attempt.prop_map(|(buyer, key, lines)| Command::Attempt { buyer, key, lines }),
        3 => (any::<prop::sample::Index>(), change).prop_map(|(at, change)| Command::Change(at, change)),
        1 => (0..3_u8, 0..7_u32).prop_map(|(item, total)| Command::Total(item, total)),
        1 => prop::option::of(1..6_u32).prop_map(Command::Limit),
        1 => Just(Command::Create),
    ];
    prop::collection::vec(command, 1..max)
}

/// A ledger with the stored orders beside it, as an engine has them.
#[derive(Default)]
struct Store {
    ledger: Ledger<u32>,
    claims: HashMap<Digest, KeyedClaim<u32>>,
    orders: Vec<StoredOrder>,
}

#[derive(Clone)]
struct StoredOrder {
    units: ClaimedUnits,
    names: Names,
    fingerprint: u64,
    state: OrderState,
}

impl Store {
    fn run(&mut self, command: &Command) {
        match command {
            Command::Attempt { buyer, key, lines } => self.attempt(*buyer, *key, lines),
            Command::Change(at, change) => {
                if self.orders.is_empty() {
                    return;
                }
                let at = at.index(self.orders.len());
                let order = &self.orders[at];
                let held = HeldOrder {
                    order_id: &(at as u32),
                    sale: &id(),
                    units: &order.units,
                    names: order.names,
                    fingerprint: order.fingerprint,
                    state: order.state,
                };
                if let Ok(Some(write)) = self.ledger.change_order(&held, *change).unwrap() {
                    self.orders[at].state = write.state;
                }
            }
            Command::Total(item, total) => {
                let change = SaleChange {
                    items: vec![ItemChange {
                        id: item_id(*item),
                        title: None,
                        total: Some(*total),
                        price: None,
                    }],
                    ..SaleChange::default()
                };
                drop(self.ledger.change_sale(&id(), &change));
            }
            Command::Limit(limit) => {
                let change = SaleChange {
                    buyer_limit: Some(*limit),
                    ..SaleChange::default()
                };
                drop(self.ledger.change_sale(&id(), &change));
            }
            Command::Create => {
                let name = format!("t{}", self.ledger.sales().len());
                let new = NewSale::units(SaleId::new(&name).unwrap(), 1);
                self.ledger.create_sale(new).unwrap();
            }
        }
    }

    fn attempt(&mut self, buyer: u8, key: Option<u8>, lines: &[(u8, u32)]) {
        let names = Names {
            buyer: (buyer > 0).then(|| buyer.into()),
            key: key.map(|key| 100 + u128::from(buyer) * 10 + u128::from(key)),
        };
        let attempt = Attempt {
            buyer: match buyer {
                0 => Buyer::anonymous(),
                n => Buyer::new(&n.to_string()).unwrap(),
            },
            key: key.map(|key| IdempotencyKey::new(&key.to_string()).unwrap()),
            lines: Lines::named(lines.iter().map(|&(item, quantity)| Line {
                item: item_id(item),
                quantity,
            })),
            ..Attempt::anonymous(id())
        };
        let order_id = self.orders.len() as u32;
        let claims = &self.claims;
        let outcome = self.ledger.attempt(&order_id, &attempt, names, claims, 0);
        if let Attempted::Claimed(claim) = outcome {
            self.orders.push(StoredOrder {
                units: claim.units,
                names,
                fingerprint: claim.fingerprint.unwrap_or(0),
                state: OrderState::Reserved,
            });
        }
    }

    fn commit(&mut self) {
        let claims = &mut self.claims;
        self.ledger.commit(|change| {
            if let Change::Claim(key, claim) = change {
                claims.insert(key, claim.clone());
            }
        });
    }

    fn rebuilt(&self) -> SaleLedger {
        let ledger = self.ledger.sale(&id()).unwrap();
        let mut rebuild = SaleRebuild::new(ledger.sale.clone());
        for order in &self.orders {
            for &unit in &order.units {
                let is_active = order.state.is_active();
                rebuild.unit(unit, is_active, order.names.buyer).unwrap();
            }
        }
        rebuild.event(ledger.sequence());
        rebuild.finish().unwrap()
    }
}

proptest! {
    /// After any commands, undoing restores everything, and the units are never sold twice.
    #[test]
    fn undoing_restores_the_last_commit(first in commands(30), second in commands(30)) {
        let mut store = Store::default();
        store.ledger.create_sale(new_sale()).unwrap();
        first.iter().for_each(|command| store.run(command));
        store.commit();
        prop_assert!(!store.ledger.is_changed());
        let before = (store.ledger.sales().to_vec(), store.orders.clone());
        second.iter().for_each(|command| store.run(command));
        let active = store.orders.iter().filter(|order| order.state.is_active());
        let units: Vec<(ItemNo, u32)> = active
            .flat_map(|order| order.units.iter().map(|unit| (unit.item, unit.unit.number)))
            .collect();
        let distinct: HashSet<_> = units.iter().copied().collect();
        prop_assert_eq!(distinct.len(), units.len());
        store.ledger.undo();
        prop_assert_eq!(store.ledger.sales(), &before.0[..]);
        store.orders = before.1;
        second.iter().for_each(|command| store.run(command));
    }

    /// A rebuild from the stored orders gives the same ledger, except that released units may be
    /// sold in another order.
    #[test]
    fn a_rebuild_gives_the_same_ledger(all in commands(60)) {
        let mut store = Store::default();
        store.ledger.create_sale(new_sale()).unwrap();
        all.iter().for_each(|command| store.run(command));
        store.commit();
        let (ledger, rebuilt) = (store.ledger.sale(&id()).unwrap(), store.rebuilt());
        prop_assert_eq!(ledger.free(), rebuilt.free());
        prop_assert_eq!(ledger.holdings(), rebuilt.holdings());
        prop_assert_eq!(ledger.sequence(), rebuilt.sequence());
        prop_assert_eq!(drained(ledger), drained(&rebuilt));
    }
}

/// All units that are still to be sold, by item.
fn drained(ledger: &SaleLedger) -> BTreeMap<usize, Vec<crate::Unit>> {
    let drain = |stock: &Stock| {
        let mut stock = stock.clone();
        let mut units: Vec<_> = std::iter::from_fn(|| stock.take())
            .map(|t| t.unit)
            .collect();
        units.sort_unstable();
        units
    };
    ledger.stocks().iter().map(drain).enumerate().collect()
}

#[test]
fn events_are_numbered_without_gaps() {
    let mut store = Store::default();
    let created = store.ledger.create_sale(new_sale()).unwrap();
    assert_eq!((created.sequence, created.number.get()), (1, 1));
    store.attempt(1, Some(1), &[(0, 1), (1, 2)]);
    let claimed = store.orders[0].clone();
    let slots: Vec<_> = claimed.units.iter().map(|unit| unit.slot).collect();
    assert_eq!(slots, [Some(1), Some(2), Some(3)]);
    assert_eq!(store.ledger.sales()[0].sequence(), 2);
    // A rejection has no event.
    store.attempt(1, None, &[(0, 2)]);
    assert_eq!(store.ledger.sales()[0].sequence(), 2);
    store.run(&Command::Limit(None));
    assert_eq!(store.ledger.sales()[0].sequence(), 3);
}

#[test]
fn what_is_published_last_is_the_stock() {
    let mut store = Store::default();
    store.ledger.create_sale(new_sale()).unwrap();
    store.commit();
    store.attempt(1, Some(1), &[(0, 1)]);
    let mut kinds = Vec::new();
    store.ledger.commit(|change| {
        kinds.push(match change {
            Change::Claim(..) => "claim",
            Change::Holding { .. } => "holding",
            Change::Sale { .. } => "sale",
        });
    });
    assert_eq!(kinds, ["claim", "holding", "sale"]);
}

/// Also if several sales are created between two commits.
#[test]
fn each_changed_sale_is_published_once_with_its_latest_state() {
    let mut store = Store::default();
    let published = |store: &mut Store| {
        let mut published = Vec::new();
        store.ledger.commit(|change| {
            if let Change::Sale {
                ledger,
                has_new_terms,
                ..
            } = change
            {
                let id = ledger.sale.id.to_string();
                published.push((id, has_new_terms, ledger.remaining(), ledger.sequence()));
            }
        });
        published
    };
    store.ledger.create_sale(new_sale()).unwrap();
    store.run(&Command::Create);
    let made = [("s".to_owned(), true, 12, 1), ("t1".to_owned(), true, 1, 1)];
    assert_eq!(published(&mut store), made);
    store.attempt(1, None, &[(0, 1)]);
    store.run(&Command::Create);
    store.run(&Command::Total(0, 6));
    store.attempt(1, None, &[(0, 1)]);
    let changed = [("s".to_owned(), true, 12, 4), ("t2".to_owned(), true, 1, 1)];
    assert_eq!(published(&mut store), changed);
    store.attempt(2, None, &[(0, 1)]);
    assert_eq!(published(&mut store), [("s".to_owned(), false, 11, 5)]);
}
