//! Random histories of a sale. It knows neither the ledger nor the gate.

use proptest::prelude::{Just, Strategy, any as arbitrary, prop};
use proptest::prop_oneof;
use seckill_sale::{ItemId, Line, Lines, NewItem, NewSale, OrderChange, SaleId};

pub(crate) const STEPS_MAX: usize = 60;
const BATCH_MAX: usize = 8;

pub(crate) type Index = prop::sample::Index;

#[derive(Debug, Clone)]
pub(crate) struct History {
    /// Of each item.
    pub(crate) totals: Vec<u32>,
    pub(crate) limit: Option<u32>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Batch(Vec<Try>),
    End(Index, OrderChange),
    Total(u8, u32),
    Limit(Option<u32>),
    Window(Window),
    /// The gates are filled again, with the same terms.
    Rebuild,
    /// The outbox is read and trimmed.
    Relay,
}

#[derive(Debug, Clone)]
pub(crate) enum Try {
    /// Buyer 0 is anonymous.
    New {
        buyer: u8,
        key: Option<u8>,
        wants: Wants,
    },
    /// An earlier attempt is sent again, as if its reply had been lost.
    Again(Index),
}

#[derive(Debug, Clone)]
pub(crate) enum Wants {
    Quantity(u32),
    Lines(Vec<(u8, u32)>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Window {
    Always,
    NotOpen,
    Open,
    Closed,
}

pub(crate) fn sale_id() -> SaleId {
    SaleId::new("s").unwrap()
}

/// The last one is of no sale.
pub(crate) fn item_id(index: u8) -> ItemId {
    ItemId::new(["S", "M", "L", "XL"][usize::from(index)]).unwrap()
}

impl History {
    pub(crate) fn new_sale(&self) -> NewSale {
        let item = |(index, total): (usize, &u32)| NewItem {
            id: item_id(index as u8),
            title: String::new(),
            total: *total,
            price: None,
        };
        NewSale {
            items: self.totals.iter().enumerate().map(item).collect(),
            buyer_limit: self.limit,
            ..NewSale::units(sale_id(), 0)
        }
    }
}

impl Wants {
    pub(crate) fn lines(&self) -> Lines {
        match self {
            Self::Quantity(quantity) => Lines::Quantity(*quantity),
            Self::Lines(lines) => Lines::named(lines.iter().map(|&(item, quantity)| Line {
                item: item_id(item),
                quantity,
            })),
        }
    }
}

pub(crate) fn any() -> impl Strategy<Value = History> {
    let totals = prop_oneof![
        prop::collection::vec(0..9_u32, 1),
        prop::collection::vec(0..9_u32, 2..4),
    ];
    let steps = prop::collection::vec(step(), 1..STEPS_MAX);
    (totals, limit(), steps).prop_map(|(totals, limit, steps)| History {
        totals,
        limit,
        steps,
    })
}

fn limit() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![Just(None), (1..8_u32).prop_map(Some), Just(Some(64))]
}

fn step() -> impl Strategy<Value = Step> {
    let batch = prop::collection::vec(one_try(), 1..=BATCH_MAX);
    let change = prop_oneof![Just(OrderChange::Cancel), Just(OrderChange::Expire)];
    let window = prop_oneof![
        3 => Just(Window::Open),
        2 => Just(Window::Always),
        1 => Just(Window::NotOpen),
        1 => Just(Window::Closed),
    ];
    prop_oneof![
        20 => batch.prop_map(Step::Batch),
        16 => (arbitrary::<Index>(), change).prop_map(|(at, change)| Step::End(at, change)),
        2 => (0..3_u8, 0..20_u32).prop_map(|(item, total)| Step::Total(item, total)),
        1 => limit().prop_map(Step::Limit),
        2 => window.prop_map(Step::Window),
        1 => Just(Step::Rebuild),
        2 => Just(Step::Relay),
    ]
}

fn one_try() -> impl Strategy<Value = Try> {
    let quantity = prop_oneof![6 => 1..4_u32, 1 => 0..20_u32];
    let item = prop_oneof![20 => 0..3_u8, 1 => Just(3)];
    let lines = prop::collection::vec((item, quantity.clone()), 0..4);
    let wants = prop_oneof![
        2 => Just(Wants::Quantity(1)),
        1 => quantity.prop_map(Wants::Quantity),
        3 => lines.prop_map(Wants::Lines),
    ];
    let new = (0..4_u8, prop::option::of(0..3_u8), wants);
    prop_oneof![
        10 => new.prop_map(|(buyer, key, wants)| Try::New { buyer, key, wants }),
        1 => arbitrary::<Index>().prop_map(Try::Again),
    ]
}
