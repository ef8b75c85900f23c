//! An order and its state transitions. Every engine checks a transition here before storing it.

use crate::{Buyer, IdempotencyKey, OrderId, OrderUnits, SaleId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    pub const ALL: [Self; 4] = [Self::Reserved, Self::Paid, Self::Expired, Self::Cancelled];

    /// Whether the order holds its units.
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
    /// Releases the units.
    Cancel,
    /// The time to pay has passed. Releases the units.
    Expire,
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
            (Self::Expire, OrderState::Reserved) => Ok(Some(OrderState::Expired)),
            (Self::Cancel, OrderState::Cancelled) | (Self::Expire, OrderState::Expired) => Ok(None),
            (Self::Cancel, OrderState::Paid | OrderState::Expired)
            | (Self::Expire, OrderState::Paid | OrderState::Cancelled) => Err(NotAllowed { state }),
        }
    }
}

/// A claim in the order store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub order_id: OrderId,
    pub sale: SaleId,
    /// The units that the order holds, or held until it ended.
    pub units: OrderUnits,
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
            for change in [OrderChange::Cancel, OrderChange::Expire] {
                match change.apply(state) {
                    Ok(Some(next)) => {
                        assert!(state.is_active() && !next.is_active());
                        assert_eq!(change.apply(next), Ok(None));
                    }
                    Ok(None) => assert!(!state.is_active()),
                    Err(refused) => assert_eq!(refused.state, state),
                }
            }
            assert_eq!(OrderState::from_name(state.as_str()), Some(state));
        }
        assert_eq!(OrderState::from_name("Reserved"), None);
    }
}
