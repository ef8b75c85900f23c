//! How one attempt is decided, given what is known of its key, its buyer and the stock.
//! The same function serves an answer from memory and the writer's decision; taking the unit is the caller's.

use crate::{Attempt, Invalid, OrderId, Rejection, Sale, Slots, Unit, WindowState};

/// A claim that was made under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedClaim {
    /// The claim's name.
    pub order_id: OrderId,
    /// The unit it was given.
    pub unit: Unit,
    /// The content of the attempt.
    pub fingerprint: u64,
}

/// What is known where an attempt is decided.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The claim made under the attempt's key, if any.
    pub keyed: Option<KeyedClaim>,
    /// The slots that the buyer's active orders take. Only read where the sale has a limit.
    pub slots: Slots,
    /// Free units.
    pub free: u32,
}

/// What the rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A unit may be taken, into this slot where the sale has a limit.
    Take {
        /// The buyer's slot, 1..=64.
        slot: Option<u8>,
    },
    /// The key has a claim with this content.
    Repeat(KeyedClaim),
    /// The key has a claim with other content.
    Mismatch,
    /// A definite no.
    Rejected(Rejection),
    /// Not an attempt that can be decided.
    Invalid(Invalid),
}

/// The most units in one order.
const QUANTITY_MAX: u32 = 1;

/// Decides an attempt, in this order: the key, the form, the window, the limit, the stock. A key that has a claim gives
/// it for ever, so nothing comes before it.
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
        if context.slots.count() >= limit {
            return Decision::Rejected(Rejection::LimitReached { limit });
        }
        slot = context.slots.lowest_free();
    }
    if context.free == 0 {
        return Decision::Rejected(Rejection::SoldOut);
    }
    Decision::Take { slot }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buyer, NewSale, SaleId};

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
    fn each_no_has_its_reason() {
        let sale = sale();
        let no = |context: &Context, now| match decide(&sale, &ann(), context, now) {
            Decision::Rejected(no) => no,
            other => panic!("not a no: {other:?}"),
        };
        assert_eq!(no(&free(), 9), Rejection::NotOpen { opens_at_ms: 10 });
        assert_eq!(no(&free(), 20), Rejection::Closed { closed_at_ms: 20 });
        assert_eq!(no(&Context::default(), 15), Rejection::SoldOut);
        let full = Context {
            slots: Slots::default().with(1).unwrap().with(2).unwrap(),
            ..free()
        };
        assert_eq!(no(&full, 15), Rejection::LimitReached { limit: 2 });
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
