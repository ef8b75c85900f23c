//! The feed: everything that happens to an order or a sale is an event, committed with the change
//! itself. Events are numbered from 1 within a sale, without gaps. Nothing here stores them.

use std::collections::HashMap;

use crate::{Buyer, IdempotencyKey, Item, OrderId, OrderState, OrderUnits, Sale, SaleId, Unit};

/// An entry of a sale's feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub sale: SaleId,
    /// From 1, without gaps.
    pub sequence: u64,
    /// Unix milliseconds.
    pub at_ms: i64,
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    SaleCreated(Box<Sale>),
    SaleChanged(Box<Sale>),
    /// A claim was stored.
    OrderReserved {
        order_id: OrderId,
        buyer: Buyer,
        idempotency_key: Option<IdempotencyKey>,
        units: OrderUnits,
    },
    /// The order has another state. If it has ended, its units are free at their next generations.
    OrderChanged {
        order_id: OrderId,
        state: OrderState,
        units: OrderUnits,
    },
}

impl EventKind {
    /// The type of the event, as in CloudEvents.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SaleCreated(_) => "sale.created",
            Self::SaleChanged(_) => "sale.changed",
            Self::OrderReserved { .. } => "order.reserved",
            Self::OrderChanged { state, .. } => match state {
                OrderState::Reserved => "order.reserved",
                OrderState::Paid => "order.paid",
                OrderState::Expired => "order.expired",
                OrderState::Cancelled => "order.cancelled",
            },
        }
    }

    pub fn order_id(&self) -> Option<&OrderId> {
        match self {
            Self::OrderReserved { order_id, .. } | Self::OrderChanged { order_id, .. } => {
                Some(order_id)
            }
            Self::SaleCreated(_) | Self::SaleChanged(_) => None,
        }
    }
}

/// Why events do not tell a consistent story.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayFault {
    #[error("event {found} follows event {latest}")]
    Gap { latest: u64, found: u64 },
    #[error("event {sequence}: the first event of a sale, and no other, creates it")]
    NotCreatedFirst { sequence: u64 },
    #[error("event {sequence}: order {order_id} was reserved before")]
    ReservedTwice { sequence: u64, order_id: OrderId },
    #[error("event {sequence}: order {order_id} is not active")]
    NotActive { sequence: u64, order_id: OrderId },
    #[error("event {sequence}: unit {} of item {item} at generation {} is not the one that is free", unit.number, unit.generation)]
    NotFree {
        sequence: u64,
        item: String,
        unit: Unit,
    },
}

/// An order as the events tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayedOrder {
    pub buyer: Buyer,
    pub idempotency_key: Option<IdempotencyKey>,
    pub units: OrderUnits,
    pub state: OrderState,
}

/// The state of a sale that its events, from the first on, lead to.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    sale: Option<Sale>,
    sequence: u64,
    orders: HashMap<OrderId, ReplayedOrder>,
    /// The generation of each unit that was ever sold, and whether an order holds it.
    units: HashMap<(String, u32), (u32, bool)>,
}

impl Replay {
    pub fn apply(&mut self, event: Event) -> Result<(), ReplayFault> {
        let sequence = event.sequence;
        if sequence != self.sequence + 1 {
            return Err(ReplayFault::Gap {
                latest: self.sequence,
                found: sequence,
            });
        }
        self.sequence = sequence;
        let creates = matches!(event.kind, EventKind::SaleCreated(_));
        if creates != (sequence == 1) {
            return Err(ReplayFault::NotCreatedFirst { sequence });
        }
        match event.kind {
            EventKind::SaleCreated(sale) | EventKind::SaleChanged(sale) => self.sale = Some(*sale),
            EventKind::OrderReserved {
                order_id,
                buyer,
                idempotency_key,
                units,
            } => {
                self.take(sequence, &units)?;
                let order = ReplayedOrder {
                    buyer,
                    idempotency_key,
                    units,
                    state: OrderState::Reserved,
                };
                if self.orders.insert(order_id.clone(), order).is_some() {
                    return Err(ReplayFault::ReservedTwice { sequence, order_id });
                }
            }
            EventKind::OrderChanged {
                order_id,
                state,
                units,
            } => {
                let order = self.orders.get_mut(&order_id);
                let Some(order) =
                    order.filter(|order| order.state.is_active() && order.units == units)
                else {
                    return Err(ReplayFault::NotActive { sequence, order_id });
                };
                order.state = state;
                for unit in units.into_iter().filter(|_| !state.is_active()) {
                    let key = (unit.item.to_string(), unit.unit.number);
                    self.units.insert(key, (unit.unit.generation, false));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, sequence: u64, units: &OrderUnits) -> Result<(), ReplayFault> {
        for unit in units {
            let key = (unit.item.to_string(), unit.unit.number);
            let (latest, is_held) = self.units.get(&key).copied().unwrap_or_default();
            if is_held || unit.unit.generation != latest + 1 {
                return Err(ReplayFault::NotFree {
                    sequence,
                    item: unit.item.to_string(),
                    unit: unit.unit,
                });
            }
            self.units.insert(key, (unit.unit.generation, true));
        }
        Ok(())
    }

    /// The number of the latest event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The terms after the latest event.
    pub fn sale(&self) -> Option<&Sale> {
        self.sale.as_ref()
    }

    pub fn orders(&self) -> &HashMap<OrderId, ReplayedOrder> {
        &self.orders
    }

    /// The free units of an item.
    pub fn free(&self, item: &Item) -> u32 {
        let held = self.units.iter();
        let held = held.filter(|((id, _), (_, is_held))| *is_held && *id == item.id.as_str());
        item.total - held.count() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ItemId, NewSale, OrderUnit};

    fn sale() -> Sale {
        let new = NewSale::units(SaleId::new("s").unwrap(), 2);
        new.validate().unwrap()
    }

    fn units(number: u32, generation: u32) -> OrderUnits {
        let unit = Unit { number, generation };
        let item = ItemId::default();
        [OrderUnit { item, unit }].into_iter().collect()
    }

    fn reserved(order_id: &str, units: OrderUnits) -> EventKind {
        EventKind::OrderReserved {
            order_id: OrderId::new(order_id).unwrap(),
            buyer: Buyer::anonymous(),
            idempotency_key: None,
            units,
        }
    }

    fn cancelled(order_id: &str, units: OrderUnits) -> EventKind {
        EventKind::OrderChanged {
            order_id: OrderId::new(order_id).unwrap(),
            state: OrderState::Cancelled,
            units,
        }
    }

    fn replay(kinds: Vec<EventKind>) -> Result<Replay, ReplayFault> {
        let mut replay = Replay::default();
        let created = EventKind::SaleCreated(Box::new(sale()));
        for (kind, sequence) in std::iter::once(created).chain(kinds).zip(1..) {
            let sale = SaleId::new("s").unwrap();
            replay.apply(Event {
                sale,
                sequence,
                at_ms: 0,
                kind,
            })?;
        }
        Ok(replay)
    }

    #[test]
    fn events_lead_to_the_state() {
        let replay = replay(vec![
            reserved("a", units(1, 1)),
            reserved("b", units(2, 1)),
            cancelled("a", units(1, 1)),
            reserved("c", units(1, 2)),
            cancelled("b", units(2, 1)),
        ]);
        let replay = replay.unwrap();
        let order = |id: &str| &replay.orders()[&OrderId::new(id).unwrap()];
        assert_eq!(order("a").state, OrderState::Cancelled);
        assert_eq!(order("c").state, OrderState::Reserved);
        assert_eq!(replay.free(&sale().items[0]), 1);
        assert_eq!(replay.sequence(), 6);
    }

    #[test]
    fn contradictions_are_refused() {
        let twice = replay(vec![reserved("a", units(1, 1)), reserved("b", units(1, 1))]);
        assert!(matches!(twice, Err(ReplayFault::NotFree { .. })));
        let skipped = replay(vec![reserved("a", units(1, 2))]);
        assert!(matches!(skipped, Err(ReplayFault::NotFree { .. })));
        let unknown = replay(vec![cancelled("a", units(1, 1))]);
        assert!(matches!(unknown, Err(ReplayFault::NotActive { .. })));
        let again = replay(vec![EventKind::SaleCreated(Box::new(sale()))]);
        assert!(matches!(again, Err(ReplayFault::NotCreatedFirst { .. })));
        let mut gap = replay(Vec::new()).unwrap();
        let gap = gap.apply(Event {
            sale: SaleId::new("s").unwrap(),
            sequence: 3,
            at_ms: 0,
            kind: reserved("a", units(1, 1)),
        });
        let expected = ReplayFault::Gap {
            latest: 1,
            found: 3,
        };
        assert_eq!(gap, Err(expected));
    }
}
