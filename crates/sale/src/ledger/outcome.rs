//! What goes into the ledger and what comes out of it, as values.

use super::{Digest, SaleLedger, SaleNo};
use crate::{
    ClaimedUnit, ClaimedUnits, Holding, Invalid, ItemNo, KeyedClaim, OrderState, OrderUnits,
    Rejection, Sale, SaleId,
};

/// The digests of an attempt's names.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names {
    /// `None` for the anonymous buyer.
    pub buyer: Option<Digest>,
    pub key: Option<Digest>,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempted<Id> {
    /// To be stored, then confirmed.
    Claimed(NewClaim),
    /// The key already has a claim with this content.
    Repeat {
        claim: KeyedClaim<Id>,
        units: OrderUnits,
        /// Free units of the sale.
        remaining: u32,
    },
    Mismatch,
    Rejected(Rejection),
    Invalid(Invalid),
}

/// What an attempt takes, which becomes an order once it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewClaim {
    pub sale: SaleNo,
    pub units: ClaimedUnits,
    /// The same units for the answer.
    pub order_units: OrderUnits,
    /// Of an attempt with a key.
    pub fingerprint: Option<u64>,
    /// The number of its event in the sale's feed.
    pub sequence: u64,
    /// Free units of the sale right after the claim.
    pub remaining: u32,
}

/// A stored order, for a change of its state.
#[derive(Debug, Clone, Copy)]
pub struct HeldOrder<'a, Id> {
    pub order_id: &'a Id,
    pub sale: &'a SaleId,
    pub units: &'a [ClaimedUnit],
    pub names: Names,
    pub fingerprint: u64,
    pub state: OrderState,
}

/// A change of an order's state, to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderWrite {
    pub sale: SaleNo,
    pub state: OrderState,
    /// The number of its event in the sale's feed.
    pub sequence: u64,
}

/// Terms of a sale, to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleWrite {
    pub number: SaleNo,
    pub sale: Sale,
    /// The number of its event in the sale's feed.
    pub sequence: u64,
}

/// An order that does not fit the ledger: the store contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    #[error("its sale is missing")]
    NoSuchSale,
    #[error("its sale has no item {}", .0.get())]
    NoSuchItem(ItemNo),
    #[error("its buyer holds {held} units, fewer than the order has")]
    NotHeld { held: u32 },
}

/// What became durable by a commit, for those who publish it.
#[derive(Debug)]
pub enum Change<'a, Id> {
    Claim(Digest, &'a KeyedClaim<Id>),
    Holding {
        sale: &'a SaleLedger,
        buyer: Digest,
        holding: Holding,
    },
    /// The free units of a sale, and its terms if they changed.
    Sale {
        number: SaleNo,
        ledger: &'a SaleLedger,
        has_new_terms: bool,
    },
}
