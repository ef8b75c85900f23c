//! Decides what a batch of log records means for the store: each becomes a row, a void, a dead
//! record or nothing new. The protocol fixes the order of the checks. Plain code, no I/O.

use std::collections::{BTreeSet, HashMap, HashSet};

use seckill_cluster_codec::message::ClaimMessage;
use seckill_cluster_codec::order_id::{self, Mac};
use seckill_kafka_log::Record;
use seckill_mysql_store::recording::{Content, Dead, KnownSale};
use seckill_sale::{BUYER_LIMIT_MAX, ClaimedUnit, OrderId, Sale, SaleId};

/// The store's contents, read under the sales' locks.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) sales: HashMap<SaleId, KnownSale>,
    pub(crate) orders: HashMap<OrderId, Content>,
    /// Void claims, in addition to those of the sales.
    pub(crate) voids: HashSet<OrderId>,
}

/// What to write, all or nothing.
#[derive(Debug, Default)]
pub(crate) struct Plan<'a> {
    pub(crate) orders: Vec<&'a ClaimMessage>,
    /// Claims that can no longer be stored, with the reason.
    pub(crate) voids: Vec<(&'a ClaimMessage, &'static str)>,
    pub(crate) dead: Vec<Dead>,
    /// Sales whose gate made a claim that a correct gate never makes.
    pub(crate) suspects: BTreeSet<SaleId>,
    /// Why nothing may be written at all.
    pub(crate) halt: Option<String>,
}

impl Plan<'_> {
    /// Whether there are claims to store and nothing else.
    pub(crate) fn has_only_orders(&self) -> bool {
        let has_others = !self.voids.is_empty() || !self.dead.is_empty();
        !self.orders.is_empty() && !has_others && self.suspects.is_empty() && self.halt.is_none()
    }
}

/// Whether a correct gate can give these units to a claim.
fn are_possible(sale: &Sale, units: &[ClaimedUnit]) -> bool {
    let is_possible = |(index, claimed): (usize, &ClaimedUnit)| {
        let total = sale.items.get(claimed.item.index()).map(|item| item.total);
        let earlier = units[..index].iter();
        (1..=total.unwrap_or(0)).contains(&claimed.unit.number)
            && claimed.unit.generation > 0
            && claimed
                .slot
                .is_none_or(|slot| (1..=BUYER_LIMIT_MAX).contains(&slot.into()))
            && earlier
                .clone()
                .all(|other| (other.item, other.unit.number) != (claimed.item, claimed.unit.number))
    };
    units.iter().enumerate().all(is_possible)
}

/// Divides records into batches with up to `rows_max` rows each, or one record.
pub(crate) fn batches(mut records: &[Record], rows_max: usize) -> impl Iterator<Item = &[Record]> {
    std::iter::from_fn(move || {
        let mut rows = 0;
        let fits = |record: &&Record| {
            rows += record.claim().map_or(1, |claim| claim.units.len().max(1));
            rows <= rows_max
        };
        let count = records.iter().take_while(fits).count().max(1);
        let (batch, rest) = records.split_at_checked(count)?;
        records = rest;
        Some(batch)
    })
}

/// Decides a batch. `mac` verifies that this cluster made an order id.
pub(crate) fn plan<'a>(records: &'a [Record], known: &Known, mac: &Mac) -> Plan<'a> {
    let mut plan = Plan::default();
    let mut in_batch: HashMap<&OrderId, &ClaimMessage> = HashMap::with_capacity(records.len());
    for record in records {
        let claim = match &record.content {
            Ok(claim) => claim,
            Err(foreign) => {
                plan.dead.push(Dead {
                    offset: record.offset,
                    payload: foreign.payload.clone(),
                    error: foreign.error.clone(),
                });
                continue;
            }
        };
        let dead = |error: &str| Dead {
            offset: record.offset,
            payload: claim.record().into_bytes(),
            error: error.to_owned(),
        };
        let Some(sale) = known.sales.get(&claim.sale_id) else {
            plan.dead.push(dead("no such sale"));
            continue;
        };
        let (row, id) = (&sale.row, &claim.order_id);
        let stored_is_same = known
            .orders
            .get(id)
            .map(|stored| *stored == Content::of(claim));
        let seen_is_same = in_batch
            .get(id)
            .map(|seen| Content::of(seen) == Content::of(claim));
        if let Some(is_same) = stored_is_same.or(seen_is_same) {
            if !is_same {
                plan.dead.push(dead("the order has different content"));
                plan.suspects.insert(claim.sale_id.clone());
            }
            continue;
        }
        if sale.voids.contains(id) || known.voids.contains(id) {
            if claim.epoch == row.epoch {
                // The gate granted a unit to a claim that was given up. A rebuild frees the unit.
                plan.suspects.insert(claim.sale_id.clone());
            }
            continue;
        }
        // Checked before the halt, because another cluster's epochs mean nothing here. Claims of
        // past epochs are voided either way, if there can be an order with this id.
        let is_ours = if claim.epoch >= row.epoch {
            let made_for = (row.num, claim.epoch);
            mac.read(id)
                .is_some_and(|named| (named.sale_num, named.epoch) == made_for)
        } else {
            order_id::to_bytes(id).is_some()
        };
        if !is_ours {
            // Well-formed, but from another cluster or fabricated.
            plan.dead.push(dead(
                "the order id was not made for this sale by this cluster",
            ));
            continue;
        }
        if claim.epoch > row.epoch {
            plan.halt = Some(format!(
                "order {id} is from epoch {} of sale {}, but MySQL has the sale in epoch {}: MySQL's data is older than the log",
                claim.epoch, claim.sale_id, row.epoch
            ));
            return plan;
        }
        in_batch.insert(id, claim);
        if claim.epoch < row.epoch {
            plan.voids.push((claim, "stale"));
        } else if !are_possible(&row.sale, &claim.units) {
            plan.suspects.insert(claim.sale_id.clone());
            plan.voids.push((claim, "no such unit"));
        } else {
            plan.orders.push(claim);
        }
    }
    plan
}

/// What the offset row stores of the last record, to detect a log that was replaced.
pub(crate) fn mark(record: &Record) -> String {
    use std::hash::Hasher;
    match &record.content {
        Ok(claim) => claim.order_id.to_string(),
        Err(foreign) => {
            let mut hasher = siphasher::sip::SipHasher13::new();
            hasher.write(&foreign.payload);
            format!("dead-{:016x}", hasher.finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_cluster_codec::message::{OutboxClaim, attempt_part, whole};
    use seckill_cluster_codec::order_id::{Named, OrderIds, SECRET_BYTES};
    use seckill_mysql_store::sales::SaleRow;
    use seckill_sale::{Attempt, ItemNo, NewSale, Unit};

    const SECRET: [u8; SECRET_BYTES] = [7; SECRET_BYTES];
    const SALE_NUM: u32 = 1;

    /// An order id like those of claims in `epoch`.
    fn id(epoch: u32) -> OrderId {
        let named = Named {
            sale_num: SALE_NUM,
            epoch,
            at_ms: 1,
        };
        OrderIds::new(&SECRET).next(named).unwrap()
    }

    fn unit(item: u8, number: u32, generation: u32) -> ClaimedUnit {
        ClaimedUnit {
            item: ItemNo::new(item).unwrap(),
            unit: Unit { number, generation },
            slot: None,
        }
    }

    fn record(offset: i64, id: &OrderId, epoch: u32, number: u32) -> Record {
        record_of(offset, id, epoch, &[unit(1, number, 1)])
    }

    fn record_of(offset: i64, id: &OrderId, epoch: u32, units: &[ClaimedUnit]) -> Record {
        let attempt = Attempt::anonymous(SaleId::new("s").unwrap());
        let claim = OutboxClaim {
            order_id: id.clone(),
            part: attempt_part(id, &attempt),
            n: 1,
            units: units.iter().copied().collect(),
        };
        Record::new(offset, whole(&attempt.sale, epoch, 1, &claim).as_bytes())
    }

    fn known() -> Known {
        let id = SaleId::new("s").unwrap();
        let row = SaleRow {
            num: SALE_NUM,
            sale: NewSale::units(id.clone(), 10).validate().unwrap(),
            stock_key: "s".into(),
            epoch: 3,
            is_open: true,
            suspect_epoch: None,
            lease_is_over: true,
            last_sequence: 1,
            voids: 0,
        };
        let sale = KnownSale {
            row,
            voids: HashSet::new(),
            has_all_voids: true,
        };
        Known {
            sales: HashMap::from([(id, sale)]),
            ..Known::default()
        }
    }

    /// Leaks the records, so that the plan can borrow them.
    fn planned(records: &[Record], known: &Known) -> Plan<'static> {
        plan(Vec::leak(records.to_vec()), known, &Mac::new(&SECRET))
    }

    #[test]
    fn a_repeated_claim_becomes_one_order() {
        let (a, b) = (id(3), id(3));
        let batch = [
            record(0, &a, 3, 1),
            record(1, &a, 3, 1),
            record(2, &b, 3, 2),
        ];
        let plan = planned(&batch, &known());
        assert_eq!(plan.orders.len(), 2);
        assert!(plan.voids.is_empty() && plan.dead.is_empty() && plan.suspects.is_empty());
    }

    #[test]
    fn a_stored_or_voided_claim_is_left_as_it_is() {
        let (mut known, a, b) = (known(), id(3), id(3));
        let first = record(0, &a, 3, 1);
        let stored = first.claim().unwrap();
        known.orders.insert(a.clone(), Content::of(stored));
        known.voids.insert(b.clone());
        let plan = planned(&[record(0, &a, 3, 1), record(1, &b, 3, 2)], &known);
        assert!(plan.orders.is_empty() && plan.voids.is_empty() && plan.dead.is_empty());
        // The gate counts a unit as taken that no order has.
        assert_eq!(plan.suspects.len(), 1);
        let other = planned(&[record(0, &a, 3, 7)], &known);
        assert_eq!((other.dead.len(), other.suspects.len()), (1, 1));
        let more = [unit(1, 1, 1), unit(1, 2, 1)];
        let other = planned(&[record_of(0, &a, 3, &more)], &known);
        assert_eq!((other.dead.len(), other.suspects.len()), (1, 1));
        // A void that the recorder remembers.
        let sale = known.sales.values_mut().next().unwrap();
        sale.voids.insert(a.clone());
        known.orders.clear();
        let void = planned(&[record(0, &a, 3, 1)], &known);
        assert!(void.orders.is_empty() && void.suspects.len() == 1);
    }

    #[test]
    fn epochs_decide_what_can_still_be_stored() {
        let stale = planned(&[record(0, &id(2), 2, 1)], &known());
        assert_eq!(stale.voids.len(), 1);
        assert!(stale.orders.is_empty() && stale.suspects.is_empty());
        let made_up = OrderId::new("made-up").unwrap();
        let stale = planned(&[record(0, &made_up, 2, 1)], &known());
        assert_eq!((stale.voids.len(), stale.dead.len()), (0, 1));
        let ahead = planned(&[record(0, &id(4), 4, 1)], &known());
        assert!(ahead.halt.is_some_and(|why| why.contains("epoch 4")));
    }

    #[test]
    fn a_claim_with_a_foreign_order_id_is_dead() {
        let other_sale = Named {
            sale_num: SALE_NUM + 1,
            epoch: 3,
            at_ms: 1,
        };
        let ours = OrderIds::new(&SECRET);
        let theirs = OrderIds::new(&[8; SECRET_BYTES]);
        let foreign = [
            OrderId::new("made-up").unwrap(),
            ours.next(other_sale).unwrap(),
            id(2),
            theirs
                .next(Named {
                    sale_num: SALE_NUM,
                    ..other_sale
                })
                .unwrap(),
        ];
        // Also if the claim names an epoch ahead of the store's.
        for epoch in [3, 4] {
            let batch: Vec<Record> = foreign.iter().map(|id| record(0, id, epoch, 1)).collect();
            let plan = planned(&batch, &known());
            assert!(plan.orders.is_empty() && plan.voids.is_empty() && plan.suspects.is_empty());
            assert!(plan.halt.is_none());
            assert_eq!(plan.dead.len(), foreign.len());
        }
    }

    #[test]
    fn impossible_units_make_the_gate_suspect() {
        let in_slot = |slot| ClaimedUnit {
            slot: Some(slot),
            ..unit(1, 1, 1)
        };
        let impossible: [&[ClaimedUnit]; 7] = [
            &[unit(1, 11, 1)],
            &[unit(1, 0, 1)],
            &[unit(1, 1, 0)],
            &[unit(2, 1, 1)],
            &[unit(1, 1, 1), unit(1, 11, 1)],
            &[unit(1, 1, 1), unit(1, 1, 2)],
            &[in_slot(65)],
        ];
        for units in impossible {
            let plan = planned(&[record_of(0, &id(3), 3, units)], &known());
            assert!(plan.orders.is_empty(), "{units:?}");
            assert_eq!((plan.voids.len(), plan.suspects.len()), (1, 1), "{units:?}");
        }
        let possible = [in_slot(64), unit(1, 10, 3)];
        let plan = planned(&[record_of(0, &id(3), 3, &possible)], &known());
        assert!(plan.has_only_orders());
    }

    #[test]
    fn a_record_that_is_not_a_claim_is_dead() {
        let (foreign, a) = (Record::new(5, b"hello"), id(3));
        let batch = [foreign.clone(), record(6, &a, 3, 1)];
        let plan = planned(&batch, &known());
        assert_eq!(plan.orders.len(), 1);
        assert_eq!(
            (plan.dead[0].offset, &plan.dead[0].payload),
            (5, &b"hello".to_vec())
        );
        assert_ne!(mark(&foreign), mark(&Record::new(5, b"other")));
        assert_eq!(mark(&record(6, &a, 3, 1)), a.as_str());
    }

    #[test]
    fn batches_have_a_bounded_number_of_rows() {
        let records: Vec<Record> = [1, 3, 2, 5, 1, 1, 1]
            .into_iter()
            .zip(0..)
            .map(|(units, offset)| {
                let units: Vec<_> = (1..=units).map(|number| unit(1, number, 1)).collect();
                record_of(offset, &id(3), 3, &units)
            })
            .chain([Record::new(7, b"no claim")])
            .collect();
        let offsets = |rows_max| {
            let offsets = |batch: &[Record]| batch.iter().map(|record| record.offset).collect();
            batches(&records, rows_max)
                .map(offsets)
                .collect::<Vec<Vec<i64>>>()
        };
        // A record is never divided.
        assert_eq!(offsets(4), [vec![0, 1], vec![2], vec![3], vec![4, 5, 6, 7]]);
        assert_eq!(offsets(100), [(0..8).collect::<Vec<i64>>()]);
        assert_eq!(offsets(1).len(), 8);
        assert_eq!(batches(&[], 4).count(), 0);
    }
}
