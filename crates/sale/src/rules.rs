//! Decides one attempt, given the claim of its key, the holding of its buyer and the free units.
//! Answers from memory and the ledger use the same function. It changes nothing: the caller takes
//! the units.

use smallvec::SmallVec;

use crate::{
    Attempt, Holding, Invalid, ItemNo, ItemRemaining, ItemUnits, Lines, ORDER_UNITS_MAX,
    OrderState, Rejection, Sale, Slots, WindowState,
};

/// A claim that was made with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedClaim<Id> {
    pub order_id: Id,
    pub units: ItemUnits,
    /// From [`Attempt::fingerprint`].
    pub fingerprint: u64,
    /// The current state of the order.
    pub state: OrderState,
}

/// What a decision depends on, in addition to the attempt and the terms of the sale.
#[derive(Debug, Clone)]
pub struct Context<'a, Id> {
    /// The claim that was made with the attempt's key.
    pub keyed: Option<KeyedClaim<Id>>,
    /// What the buyer holds. Only read if the sale has a limit.
    pub holding: Holding,
    /// The free units of each item.
    pub free: &'a [u32],
}

/// What a claim takes: units of items, in the order of the attempt's lines.
pub type TakenLines = SmallVec<[(ItemNo, u32); 1]>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<Id> {
    /// All units may be taken. If the sale has a limit, each occupies one of these slots.
    Take {
        lines: TakenLines,
        slots: Option<Slots>,
    },
    /// The key has a claim with this content.
    Repeat(KeyedClaim<Id>),
    /// The key has a claim with different content.
    Mismatch,
    Rejected(Rejection),
    Invalid(Invalid),
}

/// Decides an attempt. The checks are, in order: the key, validity, the window, the limit, the
/// stock. A key that has a claim always returns it, so the key is checked first.
pub fn decide<Id>(
    sale: &Sale,
    attempt: &Attempt,
    context: Context<'_, Id>,
    now_ms: i64,
) -> Decision<Id> {
    if let Some(claim) = context.keyed {
        return if claim.fingerprint == attempt.fingerprint() {
            Decision::Repeat(claim)
        } else {
            Decision::Mismatch
        };
    }
    let lines = match resolve_lines(sale, attempt) {
        Ok(lines) => lines,
        Err(invalid) => return Decision::Invalid(invalid),
    };
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
    let mut slots = None;
    if let Some(limit) = sale.buyer_limit {
        let quantity = attempt.lines.quantity();
        if context.holding.held + quantity > limit {
            return Decision::Rejected(Rejection::LimitReached { limit });
        }
        // A limit is at most the number of slots, so there are enough.
        slots = context.holding.slots.lowest_free_of(quantity);
    }
    let free = |item: ItemNo| context.free.get(item.index()).copied().unwrap_or(0);
    if lines.iter().all(|&(item, _)| free(item) == 0) {
        return Decision::Rejected(Rejection::SoldOut);
    }
    if lines.iter().any(|&(item, quantity)| free(item) < quantity) {
        let remaining = lines.iter().filter_map(|&(item, _)| {
            Some(ItemRemaining {
                item: sale.items.get(item.index())?.id.clone(),
                remaining: free(item),
            })
        });
        let remaining = remaining.collect();
        return Decision::Rejected(Rejection::NotEnoughLeft { remaining });
    }
    Decision::Take { lines, slots }
}

/// Finds the items of an attempt's lines, and checks the quantities. The result does not depend on
/// the stock, and only on the items of the sale, which never change.
pub fn resolve_lines(sale: &Sale, attempt: &Attempt) -> Result<TakenLines, Invalid> {
    let max = attempt.units_max.min(ORDER_UNITS_MAX);
    let items = || sale.items.iter().map(|item| item.id.clone()).collect();
    let mut found = TakenLines::new();
    match &attempt.lines {
        Lines::Quantity(quantity) => {
            if sale.items.len() != 1 {
                return Err(Invalid::ItemRequired { items: items() });
            }
            found.push((ItemNo::FIRST, *quantity));
        }
        Lines::Named(lines) => {
            for line in lines {
                let Some(item) = sale.item_no(&line.item) else {
                    return Err(Invalid::NoSuchItem {
                        item: line.item.clone(),
                        items: items(),
                    });
                };
                found.push((item, line.quantity));
            }
        }
    }
    let has_empty_line = found.is_empty() || found.iter().any(|&(_, quantity)| quantity == 0);
    if has_empty_line || attempt.lines.quantity() > max {
        return Err(Invalid::Quantity { max });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buyer, ItemId, ItemUnit, Line, NewItem, NewSale, SaleId, Unit};

    fn sale() -> Sale {
        let mut new = NewSale::units(SaleId::new("s").unwrap(), 1);
        new.buyer_limit = Some(2);
        new.opens_at_ms = Some(10);
        new.closes_at_ms = Some(20);
        new.validate().unwrap()
    }

    fn ann(quantity: u32) -> Attempt {
        Attempt {
            buyer: Buyer::new("ann").unwrap(),
            lines: Lines::Quantity(quantity),
            ..Attempt::anonymous(SaleId::new("s").unwrap())
        }
    }

    fn free(free: &[u32]) -> Context<'_, u8> {
        Context {
            keyed: None,
            holding: Holding::default(),
            free,
        }
    }

    #[test]
    fn each_rejection_has_its_reason() {
        let sale = sale();
        let rejection = |context: Context<'_, u8>, now| match decide(&sale, &ann(1), context, now) {
            Decision::Rejected(rejection) => rejection,
            other => panic!("not a rejection: {other:?}"),
        };
        let opens = Rejection::NotOpen { opens_at_ms: 10 };
        assert_eq!(rejection(free(&[1]), 9), opens);
        let closed = Rejection::Closed { closed_at_ms: 20 };
        assert_eq!(rejection(free(&[1]), 20), closed);
        assert_eq!(rejection(free(&[0]), 15), Rejection::SoldOut);
        let full = Context {
            holding: Holding::of_slots(Slots::default().lowest_free_of(2).unwrap()),
            ..free(&[1])
        };
        assert_eq!(rejection(full, 15), Rejection::LimitReached { limit: 2 });
        let taken = decide(&sale, &ann(1), free(&[1]), 15);
        let expected = Decision::Take {
            lines: [(ItemNo::FIRST, 1)].into_iter().collect(),
            slots: Slots::default().with(1),
        };
        assert_eq!(taken, expected);
    }

    #[test]
    fn the_limit_counts_units() {
        let sale = sale();
        let one_held = || Context {
            holding: Holding::of_slots(Slots::default().with(2).unwrap()),
            ..free(&[9])
        };
        let two = decide(&sale, &ann(2), one_held(), 15);
        let reached = Decision::Rejected(Rejection::LimitReached { limit: 2 });
        assert_eq!(two, reached);
        let one = decide(&sale, &ann(1), one_held(), 15);
        assert!(matches!(one, Decision::Take { slots, .. } if slots == Slots::default().with(1)));
    }

    #[test]
    fn a_key_is_checked_first() {
        let unit = ItemUnit {
            item: ItemNo::FIRST,
            unit: Unit {
                number: 1,
                generation: 1,
            },
        };
        let claim = KeyedClaim {
            order_id: 1,
            units: [unit].into_iter().collect(),
            fingerprint: ann(1).fingerprint(),
            state: OrderState::Cancelled,
        };
        let context = || Context {
            keyed: Some(claim.clone()),
            ..free(&[0])
        };
        let closed = decide(&sale(), &ann(1), context(), 99);
        assert_eq!(closed, Decision::Repeat(claim.clone()));
        let mismatch = decide(&sale(), &ann(2), context(), 15);
        assert_eq!(mismatch, Decision::Mismatch);
        // Even if an order of so many units would not be sold any more.
        let none_sold = Attempt {
            units_max: 0,
            ..ann(1)
        };
        let repeat = decide(&sale(), &none_sold, context(), 15);
        assert_eq!(repeat, Decision::Repeat(claim));
    }

    #[test]
    fn an_order_has_1_to_16_units() {
        let max = ORDER_UNITS_MAX;
        for quantity in [0, max + 1, u32::MAX] {
            let invalid = decide(&sale(), &ann(quantity), free(&[100]), 15);
            assert_eq!(invalid, Decision::Invalid(Invalid::Quantity { max }));
        }
        for (units_max, max) in [(1, 1), (u32::MAX, 16)] {
            let attempt = Attempt {
                units_max,
                ..ann(max + 1)
            };
            let invalid = decide(&sale(), &attempt, free(&[100]), 15);
            assert_eq!(invalid, Decision::Invalid(Invalid::Quantity { max }));
        }
    }

    #[test]
    fn a_limit_requires_a_named_buyer() {
        let anonymous = Attempt::anonymous(SaleId::new("s").unwrap());
        let decision = decide(&sale(), &anonymous, free(&[1]), 15);
        assert_eq!(decision, Decision::Invalid(Invalid::BuyerRequired));
    }

    #[test]
    fn all_lines_are_taken_or_none() {
        let item = |id: &str| ItemId::new(id).unwrap();
        let new_item = |id: &str| NewItem {
            id: item(id),
            title: String::new(),
            total: 5,
            price: None,
        };
        let sale = NewSale {
            items: vec![new_item("S"), new_item("M")],
            ..NewSale::units(SaleId::new("s").unwrap(), 0)
        };
        let sale = sale.validate().unwrap();
        let wants = |lines: &[(&str, u32)]| Attempt {
            lines: Lines::named(lines.iter().map(|&(id, quantity)| Line {
                item: item(id),
                quantity,
            })),
            ..Attempt::anonymous(SaleId::new("s").unwrap())
        };
        let decide = |lines: &[(&str, u32)], left: &[u32]| {
            super::decide(&sale, &wants(lines), free(left), 0)
        };
        let (small, medium) = (ItemNo::FIRST, ItemNo::new(2).unwrap());
        let taken = Decision::Take {
            lines: [(medium, 2), (small, 1)].into_iter().collect(),
            slots: None,
        };
        assert_eq!(decide(&[("S", 1), ("M", 2)], &[1, 2]), taken);
        let remaining = |id: &str, remaining| ItemRemaining {
            item: item(id),
            remaining,
        };
        let short = Decision::Rejected(Rejection::NotEnoughLeft {
            remaining: Box::new([remaining("M", 1), remaining("S", 4)]),
        });
        assert_eq!(decide(&[("S", 1), ("M", 2)], &[4, 1]), short);
        let sold_out = Decision::Rejected(Rejection::SoldOut);
        assert_eq!(decide(&[("M", 1)], &[4, 0]), sold_out);
        let items: Box<[ItemId]> = Box::new([item("S"), item("M")]);
        let missing = Decision::Invalid(Invalid::NoSuchItem {
            item: item("XL"),
            items: items.clone(),
        });
        assert_eq!(decide(&[("XL", 1)], &[1, 1]), missing);
        let unnamed = super::decide(&sale, &ann(1), free(&[1, 1]), 0);
        assert_eq!(unnamed, Decision::Invalid(Invalid::ItemRequired { items }));
        let none = Decision::Invalid(Invalid::Quantity { max: 16 });
        assert_eq!(decide(&[], &[1, 1]), none);
        assert_eq!(decide(&[("S", 1), ("M", 0)], &[1, 1]), none);
        assert_eq!(decide(&[("S", 9), ("M", 8)], &[9, 9]), none);
    }
}
