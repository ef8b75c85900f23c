//! Gives the claims of a batch the numbers of their events. A number is given once, in the order of
//! the rows, so that the feed of a sale has no gaps. No I/O.

use std::collections::BTreeMap;
use std::fmt;

use seckill_cluster_codec::message::ClaimMessage;
use seckill_engine::{Cause, Fault};
use seckill_sale::SaleId;

use crate::sales::SaleRow;

/// The numbers of a batch, by sale.
#[derive(Debug, Clone)]
pub struct Numbers {
    by_sale: BTreeMap<SaleId, SaleNumbers>,
}

#[derive(Debug, Clone)]
pub(crate) struct SaleNumbers {
    pub(crate) num: u32,
    /// The latest number before the batch.
    pub(crate) base: Base,
    /// How many numbers the batch has used.
    pub(crate) count: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Base {
    /// Read under the sale's lock.
    Known(u64),
    /// The SQL variable with this index, which is set under the sale's lock.
    Variable(usize),
}

impl Numbers {
    /// The numbers after the latest ones of these rows, which must be locked.
    pub fn after<'a>(rows: impl IntoIterator<Item = &'a SaleRow>) -> Self {
        Self::new(rows, |_, row| Base::Known(row.last_sequence))
    }

    /// Numbers that the server adds to variables.
    pub(crate) fn of_variables<'a>(rows: impl IntoIterator<Item = &'a SaleRow>) -> Self {
        Self::new(rows, |index, _| Base::Variable(index))
    }

    fn new<'a>(
        rows: impl IntoIterator<Item = &'a SaleRow>,
        base: impl Fn(usize, &SaleRow) -> Base,
    ) -> Self {
        let numbers = |(index, row): (usize, &'a SaleRow)| {
            let numbers = SaleNumbers {
                num: row.num,
                base: base(index, row),
                count: 0,
            };
            (row.sale.id.clone(), numbers)
        };
        Self {
            by_sale: rows.into_iter().enumerate().map(numbers).collect(),
        }
    }

    pub(crate) fn of(&self, sale: &SaleId) -> Result<&SaleNumbers, Fault> {
        self.by_sale.get(sale).ok_or_else(|| unknown(sale))
    }

    /// The number of the claim's sale, and the next number for its event.
    pub(crate) fn next(&mut self, claim: &ClaimMessage) -> Result<(u32, Sequence), Fault> {
        let numbers = self.by_sale.get_mut(&claim.sale_id);
        let numbers = numbers.ok_or_else(|| unknown(&claim.sale_id))?;
        numbers.count += 1;
        Ok((numbers.num, Sequence(numbers.base, numbers.count)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&SaleId, &SaleNumbers)> {
        self.by_sale.iter()
    }
}

fn unknown(sale: &SaleId) -> Fault {
    let detail = format!("sale {sale} of a batch was not read");
    Fault::without_effect(Cause::Store, detail)
}

/// A number as SQL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence(Base, u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(base, count) = self;
        match base {
            Base::Known(latest) => write!(f, "{}", latest + count),
            Base::Variable(index) => write!(f, "@s{index}+{count}"),
        }
    }
}
