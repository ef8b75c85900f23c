//! Decides one attempt, given the claim of its key, the holding of its buyer and the stock.
//! Answers from memory and the writer use the same function. It changes nothing: the caller takes
//! the unit.

use crate::{Attempt, Holding, Invalid, OrderId, OrderState, Rejection, Sale, Unit, WindowState};

/// A claim that was made with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedClaim {
    pub order_id: OrderId,
    pub unit: Unit,
    /// From [`Attempt::fingerprint`].
    pub fingerprint: u64,
    /// The current state of the order.
    pub state: OrderState,
}

/// What a decision depends on, in addition to the attempt and the terms of the sale.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The claim that was made with the attempt's key.
    pub keyed: Option<KeyedClaim>,
    /// What the buyer holds. Only read if the sale has a limit.
    pub holding: Holding,
    pub free: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A unit may be taken. If the sale has a limit, the order occupies this slot.
    Take {
        /// 1..=64.
        slot: Option<u8>,
    },
    /// The key has a claim with this content.
    Repeat(KeyedClaim),
    /// The key has a claim with different content.
    Mismatch,
    Rejected(Rejection),
    Invalid(Invalid),
}

/// The maximum number of units in one order.
const QUANTITY_MAX: u32 = 1;

/// Decides an attempt. The checks are, in order: the key, validity, the window, the limit, the
/// stock. A key that has a claim always returns it, so the key is checked first.
pub fn decide(sale: &Sale, attempt: &Attempt, context: &Context, now_ms: i64) -> Decision {
    if let Some(claim) = &context.keyed {
        return if claim.fingerprint == attempt.fingerprint() {
            Decision::Repeat(claim.clone())
        } else {
            Decision::Mismatch
        };
    }
    if attempt.quantity == 0 || attempt.quantity > QUANTITY_MAX {
        return Decision::Invalid(Invalid::Quantity { max: QUANTITY_MAX });
    }
    if sale.buyer_limit.is_some() && attempt.buyer.is_anonymous() {
        return Decision::Invalid(Invalid::BuyerRequired);
    }
    match sale.window(now_ms) {
        WindowState::Open => {}
        WindowState::NotOpen { opens_at_ms } => {
            return Decision::Rejected(Rejection::NotOpen { opens_at_ms });
        }
        WindowState::Closed { closed_at_ms } => {
            return Decision::Rejected(Rejection::Closed { closed_at_ms });
        }
    }
    let mut slot = None;
    if let Some(limit) = sale.buyer_limit {
        if context.holding.held >= limit {
            return Decision::Rejected(Rejection::LimitReached { limit });
        }
        slot = context.holding.slots.lowest_free();
    }
    if context.free == 0 {
        return Decision::Rejected(Rejection::SoldOut);
    }
    Decision::Take { slot }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buyer, NewSale, SaleId, Slots};

    fn sale() -> Sale {
        let mut new = NewSale::units(SaleId::new("s").unwrap(), 1);
        new.buyer_limit = Some(2);
        new.opens_at_ms = Some(10);
        new.closes_at_ms = Some(20);
        new.validate().unwrap()
    }

    fn ann() -> Attempt {
        Attempt {
            buyer: Buyer::new("ann").unwrap(),
            ..Attempt::anonymous(SaleId::new("s").unwrap())
        }
    }

    fn free() -> Context {
        Context {
            free: 1,
            ..Context::default()
        }
    }

    #[test]
    fn each_rejection_has_its_reason() {
        let sale = sale();
        let rejection = |context: &Context, now| match decide(&sale, &ann(), context, now) {
            Decision::Rejected(rejection) => rejection,
            other => panic!("not a rejection: {other:?}"),
        };
        assert_eq!(
            rejection(&free(), 9),
            Rejection::NotOpen { opens_at_ms: 10 }
        );
        assert_eq!(
            rejection(&free(), 20),
            Rejection::Closed { closed_at_ms: 20 }
        );
        assert_eq!(rejection(&Context::default(), 15), Rejection::SoldOut);
        let full = Context {
            holding: Holding::of_slots(Slots::default().with(1).unwrap().with(2).unwrap()),
            ..free()
        };
        assert_eq!(rejection(&full, 15), Rejection::LimitReached { limit: 2 });
        let taken = decide(&sale, &ann(), &free(), 15);
        assert_eq!(taken, Decision::Take { slot: Some(1) });
    }

    #[test]
    fn a_key_is_checked_first() {
        let claim = KeyedClaim {
            order_id: OrderId::new("o").unwrap(),
            unit: Unit {
                number: 1,
                generation: 1,
            },
            fingerprint: ann().fingerprint(),
            state: OrderState::Cancelled,
        };
        let context = Context {
            keyed: Some(claim.clone()),
            ..Context::default()
        };
        let closed = decide(&sale(), &ann(), &context, 99);
        assert_eq!(closed, Decision::Repeat(claim));
        let two = Attempt {
            quantity: 2,
            ..ann()
        };
        assert_eq!(decide(&sale(), &two, &context, 15), Decision::Mismatch);
        let invalid = decide(&sale(), &two, &free(), 15);
        assert_eq!(invalid, Decision::Invalid(Invalid::Quantity { max: 1 }));
    }

    #[test]
    fn a_limit_requires_a_named_buyer() {
        let anonymous = Attempt::anonymous(SaleId::new("s").unwrap());
        let decision = decide(&sale(), &anonymous, &free(), 15);
        assert_eq!(decision, Decision::Invalid(Invalid::BuyerRequired));
    }
}
