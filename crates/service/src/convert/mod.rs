//! Converts between the model and the types of the API. Nothing here decides, reads or sends.

mod audit;
mod events;
mod sales;

use std::borrow::Cow;
use std::fmt;

use seckill_api as api;
use seckill_engine::Component;
use seckill_sale::{Order, OrderState, OrderUnit, OrderUnits};

pub use audit::{audit_report, history};
pub use events::event;
pub use sales::{new_sale, sale, sale_change};

/// A request of the API that cannot be passed to an engine, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRequest(String);

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidRequest {}

fn invalid(what: impl fmt::Display) -> InvalidRequest {
    InvalidRequest(what.to_string())
}

pub(crate) fn order(order: Order) -> api::Order {
    let units = owned_units(&order.units);
    let single = api::single_unit(&units);
    api::Order {
        order_id: order.order_id.to_string(),
        sale: order.sale.to_string(),
        unit: single.map(|unit| unit.unit),
        generation: single.map(|unit| unit.generation),
        units,
        buyer: (!order.buyer.is_anonymous()).then(|| order.buyer.to_string()),
        idempotency_key: order.idempotency_key.map(|key| key.to_string()),
        state: order_state(order.state),
        date: order.date,
        cancelled_at: order.cancelled_at,
    }
}

/// The unit with a reference to its item's id.
pub(crate) fn unit(unit: &OrderUnit) -> api::Unit<'_> {
    api::Unit {
        item: Cow::Borrowed(unit.item.as_str()),
        unit: unit.unit.number,
        generation: unit.unit.generation,
    }
}

pub(crate) fn owned_units(units: &OrderUnits) -> Vec<api::Unit<'static>> {
    let owned = |unit: &OrderUnit| api::Unit {
        item: Cow::Owned(unit.item.to_string()),
        unit: unit.unit.number,
        generation: unit.unit.generation,
    };
    units.iter().map(owned).collect()
}

pub(crate) fn order_state(state: OrderState) -> api::OrderState {
    match state {
        OrderState::Reserved => api::OrderState::Reserved,
        OrderState::Paid => api::OrderState::Paid,
        OrderState::Expired => api::OrderState::Expired,
        OrderState::Cancelled => api::OrderState::Cancelled,
    }
}

pub(crate) fn readiness(components: Vec<Component>) -> api::Readiness {
    let states = components.into_iter().map(|component| api::ComponentState {
        component: component.name.to_owned(),
        ready: component.ready,
        detail: component.detail,
    });
    let components: Vec<_> = states.collect();
    api::Readiness {
        ready: components.iter().all(|component| component.ready),
        components,
    }
}

/// Unix milliseconds as RFC 3339 in UTC.
pub(crate) fn time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms)
        .map_or_else(|_| at_ms.to_string(), |at| format!("{at:.3}"))
}

/// Unix milliseconds, for display only. Decisions use the engine's clock.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_sale::{Buyer, ItemId, OrderId, SaleId, Unit};

    fn units(items: &[&str]) -> OrderUnits {
        let unit = Unit {
            number: 7,
            generation: 2,
        };
        let of_item = |id: &&str| OrderUnit {
            item: ItemId::new(id).unwrap(),
            unit,
        };
        items.iter().map(of_item).collect()
    }

    fn order_of(items: &[&str]) -> api::Order {
        order(Order {
            order_id: OrderId::new("01a2").unwrap(),
            sale: SaleId::new("phone").unwrap(),
            units: units(items),
            buyer: Buyer::anonymous(),
            idempotency_key: None,
            state: OrderState::Reserved,
            date: "2026-11-24T21:48:53.088Z".into(),
            cancelled_at: None,
        })
    }

    #[test]
    fn an_anonymous_order_has_a_null_buyer() {
        let one = order_of(&["default"]);
        assert_eq!((one.unit, one.generation), (Some(7), Some(2)));
        assert_eq!(one.units, [unit(&units(&["default"])[0])]);
        assert_eq!(one.buyer, None);
    }

    #[test]
    fn an_order_of_several_units_lists_them_only() {
        let two = order_of(&["S", "M"]);
        assert_eq!((two.unit, two.generation), (None, None));
        let items: Vec<&str> = two.units.iter().map(|unit| &*unit.item).collect();
        assert_eq!(items, ["S", "M"]);
    }
}
