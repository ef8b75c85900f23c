//! An order and its state transitions. Every engine checks a transition here before storing it.

use serde::{Deserialize, Serialize};

use crate::{Buyer, IdempotencyKey, OrderId, SaleId, Unit};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// The buyer has the unit and has not paid yet.
    Reserved,
    Paid,
    /// Not paid in time. The unit was released.
    Expired,
    /// Cancelled on request. The unit was released.
    Cancelled,
}

impl OrderState {
    pub const ALL: [Self; 4] = [Self::Reserved, Self::Paid, Self::Expired, Self::Cancelled];

    /// Whether the order holds its unit.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Reserved | Self::Paid)
    }

    /// The name of the state in stores and responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The inverse of [`OrderState::as_str`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// A requested change of an order's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderChange {
    /// Releases the unit.
    Cancel,
}

/// The order's state does not allow the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAllowed {
    /// The state that the order keeps.
    pub state: OrderState,
}

impl OrderChange {
    /// Returns the next state, or `None` if the change was already made: changes are idempotent.
    pub fn apply(self, state: OrderState) -> Result<Option<OrderState>, NotAllowed> {
        match (self, state) {
            (Self::Cancel, OrderState::Reserved) => Ok(Some(OrderState::Cancelled)),
            (Self::Cancel, OrderState::Cancelled) => Ok(None),
            (Self::Cancel, OrderState::Paid | OrderState::Expired) => Err(NotAllowed { state }),
        }
    }
}

/// A claim in the order store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub order_id: OrderId,
    pub sale: SaleId,
    /// The unit that the order holds, or held until it ended.
    #[serde(flatten)]
    pub unit: Unit,
    pub buyer: Buyer,
    pub idempotency_key: Option<IdempotencyKey>,
    pub state: OrderState,
    /// When the order was stored: UTC, RFC 3339, milliseconds.
    pub date: String,
    /// When the order was cancelled, in the same format.
    pub cancelled_at: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_order_ends_at_most_once() {
        for state in OrderState::ALL {
            match OrderChange::Cancel.apply(state) {
                Ok(Some(next)) => assert!(state.is_active() && !next.is_active()),
                Ok(None) => assert_eq!(state, OrderState::Cancelled),
                Err(refused) => assert_eq!(refused.state, state),
            }
            assert_eq!(OrderState::from_name(state.as_str()), Some(state));
        }
        assert_eq!(OrderState::from_name("Reserved"), None);
    }
}
