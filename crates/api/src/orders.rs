//! An order: the outcome of an attempt.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Unit;

/// The address of an order.
pub fn order_path(order_id: &str) -> String {
    format!("/v1/orders/{order_id}")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// The buyer has the units and has not paid yet.
    Reserved,
    Paid,
    /// Not paid in time. The units were released.
    Expired,
    /// Cancelled on request. The units were released.
    Cancelled,
}

impl OrderState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for OrderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer of `GET /v1/orders/{order_id}` and of `POST /v1/orders/{order_id}/cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub order_id: String,
    /// The sale's id.
    pub sale: String,
    /// The unit's number, only where the order has exactly one unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<u32>,
    /// The unit's generation, only where the order has exactly one unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The units that the order holds, or held until it ended.
    pub units: Vec<Unit<'static>>,
    /// Null for an anonymous order.
    pub buyer: Option<String>,
    pub idempotency_key: Option<String>,
    pub state: OrderState,
    /// When the order was stored.
    pub date: String,
    /// Null unless the state is `cancelled`.
    pub cancelled_at: Option<String>,
}

/// 202 from an order's address: the outcome of the attempt is not known yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOrder {
    pub order_id: String,
    pub state: PendingState,
}

/// The state of a claim that is not an order yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingState {
    Pending,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_json;

    #[test]
    fn an_order_of_one_unit_has_it_twice() {
        let unit = Unit {
            item: "default".into(),
            unit: 1,
            generation: 2,
        };
        let order = Order {
            order_id: "01a2".into(),
            sale: "phone".into(),
            unit: Some(1),
            generation: Some(2),
            units: vec![unit.clone()],
            buyer: Some("ann".into()),
            idempotency_key: None,
            state: OrderState::Reserved,
            date: "2026-11-24T21:48:53.088Z".into(),
            cancelled_at: None,
        };
        is_json(
            &order,
            r#"{"order_id":"01a2","sale":"phone","unit":1,"generation":2,"units":[{"item":"default","unit":1,"generation":2}],"buyer":"ann","idempotency_key":null,"state":"reserved","date":"2026-11-24T21:48:53.088Z","cancelled_at":null}"#,
        );
        let cancelled = Order {
            unit: None,
            generation: None,
            units: vec![unit.clone(), unit],
            buyer: None,
            idempotency_key: Some("cart-7".into()),
            state: OrderState::Cancelled,
            cancelled_at: Some("2026-11-24T21:50:02.417Z".into()),
            ..order
        };
        is_json(
            &cancelled,
            r#"{"order_id":"01a2","sale":"phone","units":[{"item":"default","unit":1,"generation":2},{"item":"default","unit":1,"generation":2}],"buyer":null,"idempotency_key":"cart-7","state":"cancelled","date":"2026-11-24T21:48:53.088Z","cancelled_at":"2026-11-24T21:50:02.417Z"}"#,
        );
    }

    #[test]
    fn states_have_the_same_name_in_json_and_in_texts() {
        for state in [
            OrderState::Reserved,
            OrderState::Paid,
            OrderState::Expired,
            OrderState::Cancelled,
        ] {
            is_json(&state, &format!("\"{state}\""));
        }
        let pending = PendingOrder {
            order_id: "01a2".into(),
            state: PendingState::Pending,
        };
        is_json(&pending, r#"{"order_id":"01a2","state":"pending"}"#);
    }
}
