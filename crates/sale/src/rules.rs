//! How one attempt is decided, given what is known of its key, its buyer and the stock.
//! The same function serves answers from memory and the writer's decision. The caller takes the
//! unit.

use crate::{Attempt, Holding, Invalid, OrderId, OrderState, Rejection, Sale, Unit, WindowState};

/// A claim that was made under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedClaim {
    pub order_id: OrderId,
    pub unit: Unit,
    /// The digest of the attempt's content.
    pub fingerprint: u64,
    /// The present state of the order.
    pub state: OrderState,
}

/// What a decision depends on beside the attempt and the terms of the sale.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The claim made under the attempt's key.
    pub keyed: Option<KeyedClaim>,
    /// What the buyer holds. Only read where the sale has a limit.
    pub holding: Holding,
    /// Free units.
    pub free: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A unit may be taken, into this slot where the sale has a limit.
    Take {
        /// 1..=64.
        slot: Option<u8>,
    },
    /// The key has a claim with this content.
    Repeat(KeyedClaim),
    /// The key has a claim with other content.
    Mismatch,
    Rejected(Rejection),
    Invalid(Invalid),
}

/// The most units in one order.
const QUANTITY_MAX: u32 = 1;

/// Decides an attempt in this order: the key, the form, the window, the limit, the stock. A key
/// that has a claim returns it for ever, so nothing comes before it.
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
    fn a_key_comes_before_everything_else() {
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
    fn a_limit_needs_a_name() {
        let nobody = Attempt::anonymous(SaleId::new("s").unwrap());
        let answer = decide(&sale(), &nobody, &free(), 15);
        assert_eq!(answer, Decision::Invalid(Invalid::BuyerRequired));
    }
}
