//! An order and which state may follow which. Whoever stores orders asks here first.

use serde::{Deserialize, Serialize};

use crate::{Buyer, IdempotencyKey, OrderId, SaleId, Unit};

/// The state of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// The unit is the buyer's, not paid yet.
    Reserved,
    /// Paid for.
    Paid,
    /// Not paid in time; the unit went back on sale.
    Expired,
    /// Given back; the unit went back on sale.
    Cancelled,
}

impl OrderState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Reserved, Self::Paid, Self::Expired, Self::Cancelled];

    /// Whether the order holds its unit.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Reserved | Self::Paid)
    }

    /// The word for it in stores and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state that a word names.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// A change of an order's state that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderChange {
    /// Give the unit back.
    Cancel,
}

/// The order's state does not allow the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAllowed {
    /// The state it is in, and stays in.
    pub state: OrderState,
}

impl OrderChange {
    /// The state that follows, or `None` where the change was made before: asking twice does nothing twice.
    pub fn apply(self, state: OrderState) -> Result<Option<OrderState>, NotAllowed> {
        match (self, state) {
            (Self::Cancel, OrderState::Reserved) => Ok(Some(OrderState::Cancelled)),
            (Self::Cancel, OrderState::Cancelled) => Ok(None),
            (Self::Cancel, OrderState::Paid | OrderState::Expired) => Err(NotAllowed { state }),
        }
    }
}

/// A claim as it stands in the order store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its name.
    pub order_id: OrderId,
    /// The sale it came from.
    pub sale: SaleId,
    /// The unit it holds or held.
    #[serde(flatten)]
    pub unit: Unit,
    /// Whose it is.
    pub buyer: Buyer,
    /// The key of the attempt, where it had one.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Its state.
    pub state: OrderState,
    /// When it was stored: UTC, RFC 3339, milliseconds.
    pub date: String,
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
            assert_eq!(OrderState::from_word(state.as_str()), Some(state));
        }
        assert_eq!(OrderState::from_word("Reserved"), None);
    }
}
