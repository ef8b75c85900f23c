//! One request to buy, and every verdict that the gate can return for it.
//! Nothing here decides an attempt; `rules` does.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::{
    Buyer, IdempotencyKey, ItemId, ORDER_UNITS_MAX, OrderId, OrderState, OrderUnits, SaleId,
};

/// One request to buy, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub sale: SaleId,
    pub buyer: Buyer,
    /// The client's identifier for this attempt. A repeat with the same key returns the same claim.
    pub key: Option<IdempotencyKey>,
    pub lines: Lines,
    /// The most units that an order may have at this time, at most [`ORDER_UNITS_MAX`]. A key that
    /// has a claim returns it regardless of this, so it is no part of the content.
    pub units_max: u32,
}

/// What an attempt wants. It is the content that a repeated key must match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lines {
    /// Units of the sale's only item.
    Quantity(u32),
    Named(NamedLines),
}

/// Lines by item id, at most one for each item, so that the order in which a client lists them
/// makes no difference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamedLines(Box<[Line]>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    pub item: ItemId,
    pub quantity: u32,
}

impl Lines {
    /// Adds up the quantities of lines of the same item.
    pub fn named(lines: impl IntoIterator<Item = Line>) -> Self {
        let mut sorted: Vec<Line> = lines.into_iter().collect();
        sorted.sort_by(|a, b| a.item.cmp(&b.item));
        sorted.dedup_by(|later, earlier| {
            let is_same = later.item == earlier.item;
            if is_same {
                earlier.quantity = earlier.quantity.saturating_add(later.quantity);
            }
            is_same
        });
        Self::Named(NamedLines(sorted.into()))
    }

    /// The number of units in all lines.
    pub fn quantity(&self) -> u32 {
        match self {
            Self::Quantity(quantity) => *quantity,
            Self::Named(lines) => {
                let add = |sum: u32, line: &Line| sum.saturating_add(line.quantity);
                lines.0.iter().fold(0, add)
            }
        }
    }
}

impl NamedLines {
    /// By ascending item id.
    pub fn iter(&self) -> std::slice::Iter<'_, Line> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a NamedLines {
    type Item = &'a Line;
    type IntoIter = std::slice::Iter<'a, Line>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Attempt {
    /// An attempt to buy one unit, without a buyer or a key, as the tutorial sends it.
    pub fn anonymous(sale: SaleId) -> Self {
        Self {
            sale,
            buyer: Buyer::anonymous(),
            key: None,
            lines: Lines::Quantity(1),
            units_max: ORDER_UNITS_MAX,
        }
    }

    /// A digest of the content (the lines), which a repeated key must
    /// match. It is SipHash-1-3 with a zero key over a versioned encoding. It is stored, so the
    /// algorithm must never change.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = SipHasher13::new();
        match &self.lines {
            Lines::Quantity(quantity) => {
                hasher.write(b"v1 quantity ");
                hasher.write(&quantity.to_le_bytes());
            }
            Lines::Named(lines) => {
                hasher.write(b"v2 lines ");
                for Line { item, quantity } in lines {
                    hasher.write(&(item.as_str().len() as u32).to_le_bytes());
                    hasher.write(item.as_str().as_bytes());
                    hasher.write(&quantity.to_le_bytes());
                }
            }
        }
        hasher.finish()
    }
}

/// The result of an attempt that received its units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub order_id: OrderId,
    /// In the order of the attempt's lines.
    pub units: OrderUnits,
    /// Free units of the sale right after the claim; for a repeat, at the time of the repeat.
    pub remaining: u32,
}

/// A definite negative answer. It is not stored, so the same key can be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// No unit is free of any item that the attempt names.
    SoldOut,
    /// Some units are free, but not all that the attempt wants.
    NotEnoughLeft {
        /// Of each item that the attempt names, in the order of its lines.
        remaining: Box<[ItemRemaining]>,
    },
    /// The buyer would hold more units than the sale allows.
    LimitReached { limit: u32 },
    NotOpen {
        /// Unix milliseconds.
        opens_at_ms: i64,
    },
    Closed {
        /// Unix milliseconds.
        closed_at_ms: i64,
    },
}

/// Free units of an item.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ItemRemaining {
    pub item: ItemId,
    pub remaining: u32,
}

/// Why an attempt cannot be decided, regardless of the stock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalid {
    NoSuchSale,
    /// The sale does not have this item.
    NoSuchItem {
        item: ItemId,
        /// The items that it has.
        items: Box<[ItemId]>,
    },
    /// The sale has several items, and the attempt names none.
    ItemRequired {
        items: Box<[ItemId]>,
    },
    /// The sale has a limit per buyer, but the attempt names no buyer.
    BuyerRequired,
    /// One order cannot have this quantity, or a line has none.
    Quantity {
        max: u32,
    },
}

/// The gate's answer to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The confirmation: the order is stored durably.
    Claimed(Claim),
    /// The key already has a claim with this content. `state` is the current state of its
    /// order; an order that has ended no longer holds its unit.
    Repeat {
        claim: Claim,
        state: OrderState,
    },
    /// The key already has a claim with different content. Nothing was done.
    Mismatch,
    Rejected(Rejection),
    Invalid(Invalid),
    /// The outcome is not known yet. Query the order by its id.
    Pending(OrderId),
    /// The gate made a claim, and the service does not wait for the store. The claim may still
    /// fail to become an order.
    Accepted(OrderId),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(item: &str, quantity: u32) -> Line {
        Line {
            item: ItemId::new(item).unwrap(),
            quantity,
        }
    }

    fn attempt(lines: Lines) -> Attempt {
        Attempt {
            lines,
            ..Attempt::anonymous(SaleId::new("counter").unwrap())
        }
    }

    #[test]
    fn the_fingerprint_depends_on_the_content_and_is_stable() {
        let one = Attempt::anonymous(SaleId::new("counter").unwrap());
        let two = attempt(Lines::Quantity(2));
        assert_ne!(one.fingerprint(), two.fingerprint());
        let named = attempt(Lines::named([line("S", 1), line("M", 2)]));
        let other = attempt(Lines::named([line("S", 2), line("M", 1)]));
        assert_ne!(named.fingerprint(), other.fingerprint());
        // Fingerprints are stored in files: if they changed, repeats would become mismatches.
        assert_eq!(one.fingerprint(), 12_353_984_810_082_321_686);
        assert_eq!(named.fingerprint(), 9_184_245_963_008_005_521);
    }

    #[test]
    fn lines_are_the_same_in_any_order_and_split() {
        let lines = Lines::named([line("S", 1), line("M", 1), line("S", 2)]);
        assert_eq!(lines, Lines::named([line("M", 1), line("S", 3)]));
        assert_eq!(lines.quantity(), 4);
        let many = Lines::named([line("S", u32::MAX), line("S", 1), line("T", 1)]);
        assert_eq!(many.quantity(), u32::MAX);
    }
}
