//! How one attempt is decided, given what is known of its key, its buyer and the stock.
//! The same function serves an answer from memory and the writer's decision; taking the unit is the caller's.

use crate::{Attempt, Invalid, No, OrderId, Sale, Slots, Unit, WindowState};

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
pub struct Standing {
    /// The claim made under the attempt's key, if any.
    pub keyed: Option<KeyedClaim>,
    /// The slots that the buyer's active orders take. Only read where the sale has a limit.
    pub slots: Slots,
    /// Free units.
    pub free: u32,
}

/// What the rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Screened {
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
    No(No),
    /// Not an attempt that can be decided.
    Invalid(Invalid),
}

/// The most units in one order.
const QUANTITY_MAX: u32 = 1;

/// Decides an attempt, in this order: the key, the form, the window, the limit, the stock. A key that has a claim gives
/// it for ever, so nothing comes before it.
pub fn screen(sale: &Sale, attempt: &Attempt, standing: &Standing, now_ms: i64) -> Screened {
    if let Some(claim) = &standing.keyed {
        return if claim.fingerprint == attempt.fingerprint() {
            Screened::Repeat(claim.clone())
        } else {
            Screened::Mismatch
        };
    }
    if attempt.quantity == 0 || attempt.quantity > QUANTITY_MAX {
        return Screened::Invalid(Invalid::Quantity { max: QUANTITY_MAX });
    }
    if sale.buyer_limit.is_some() && attempt.buyer.is_anonymous() {
        return Screened::Invalid(Invalid::BuyerRequired);
    }
    match sale.window(now_ms) {
        WindowState::Open => {}
        WindowState::NotOpen { opens_at_ms } => return Screened::No(No::NotOpen { opens_at_ms }),
        WindowState::Closed { closed_at_ms } => return Screened::No(No::Closed { closed_at_ms }),
    }
    let mut slot = None;
    if let Some(limit) = sale.buyer_limit {
        if standing.slots.count() >= limit {
            return Screened::No(No::LimitReached { limit });
        }
        slot = standing.slots.lowest_free();
    }
    if standing.free == 0 {
        return Screened::No(No::SoldOut);
    }
    Screened::Take { slot }
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

    fn free() -> Standing {
        Standing {
            free: 1,
            ..Standing::default()
        }
    }

    #[test]
    fn each_no_has_its_reason() {
        let sale = sale();
        let no = |standing: &Standing, now| match screen(&sale, &ann(), standing, now) {
            Screened::No(no) => no,
            other => panic!("not a no: {other:?}"),
        };
        assert_eq!(no(&free(), 9), No::NotOpen { opens_at_ms: 10 });
        assert_eq!(no(&free(), 20), No::Closed { closed_at_ms: 20 });
        assert_eq!(no(&Standing::default(), 15), No::SoldOut);
        let full = Standing {
            slots: Slots::default().with(1).unwrap().with(2).unwrap(),
            ..free()
        };
        assert_eq!(no(&full, 15), No::LimitReached { limit: 2 });
        let taken = screen(&sale, &ann(), &free(), 15);
        assert_eq!(taken, Screened::Take { slot: Some(1) });
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
        let standing = Standing {
            keyed: Some(claim.clone()),
            ..Standing::default()
        };
        let closed = screen(&sale(), &ann(), &standing, 99);
        assert_eq!(closed, Screened::Repeat(claim));
        let two = Attempt {
            quantity: 2,
            ..ann()
        };
        assert_eq!(screen(&sale(), &two, &standing, 15), Screened::Mismatch);
        let invalid = screen(&sale(), &two, &free(), 15);
        assert_eq!(invalid, Screened::Invalid(Invalid::Quantity { max: 1 }));
    }

    #[test]
    fn a_limit_needs_a_name() {
        let nobody = Attempt::anonymous(SaleId::new("s").unwrap());
        let answer = screen(&sale(), &nobody, &free(), 15);
        assert_eq!(answer, Screened::Invalid(Invalid::BuyerRequired));
    }
}
