//! The statements of a batch, as text. No I/O.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use seckill_cluster_codec::message::ClaimMessage;
use seckill_engine::Fault;
use seckill_sale::{ItemNo, SaleId};

use super::numbers::{Base, Numbers};
use super::{Batch, BatchEnd, of_part};
use crate::events::{POINTER, POINTER_EVERY_ROWS};
use crate::sales::{SaleRow, named};
use crate::sql::{order_id_into, order_id_list, order_id_literal, push_row, quote_into, quoted};

/// A row of `seckill` as text, without long names.
const ROW_BYTES: usize = 128;

/// A whole batch. Each guard sets a column to NULL, which cannot be NULL, unless its row is as the
/// recorder knows it. If a row is missing, the number of an event is NULL, which fails as well.
pub(super) fn at_once(batch: &Batch<'_>) -> Result<String, Fault> {
    // All recorders lock in the same order: first the position, then sales by id.
    let mut rows: Vec<&SaleRow> = batch.sales.clone();
    rows.sort_unstable_by(|a, b| a.sale.id.cmp(&b.sale.id));
    let mut numbers = Numbers::of_variables(rows.iter().copied());
    let orders = orders(batch.claims, &mut numbers)?;
    let (at, place) = (batch.at, batch.place);
    let mut sql = String::with_capacity(orders.len() + 512 + 256 * rows.len());
    let of_part = of_part(batch.topic, batch.part);
    let _ = write!(
        sql,
        "START TRANSACTION; UPDATE seckill_position SET next_offset = IF(log_gen = {} AND next_offset = {}, {}, NULL), \
         last_order_id = {} WHERE {of_part}; ",
        at.log_gen,
        at.next,
        place.next,
        quoted(batch.mark.as_bytes())
    );
    let mut variables = String::new();
    for (index, row) in rows.into_iter().enumerate() {
        let id = named(&row.sale.id);
        let count = numbers.of(&row.sale.id)?.count;
        let _ = write!(
            sql,
            "UPDATE seckill_sale SET last_sequence = IF(epoch = {} AND version = {} AND voids = {}, \
             last_sequence + {count}, NULL) WHERE id = {id}; ",
            row.epoch, row.sale.version, row.voids
        );
        // The first one also needs the row of the position.
        let (comma, and) = if index == 0 {
            ("SET ", format!(", seckill_position WHERE {of_part} AND"))
        } else {
            (", ", " WHERE".to_owned())
        };
        let _ = write!(
            variables,
            "{comma}@s{index} = (SELECT last_sequence - {count} FROM seckill_sale{and} id = {id})"
        );
    }
    let _ = write!(sql, "{variables}; {orders}; COMMIT");
    Ok(sql)
}

/// Inserts orders, with their keys and slots, and pointers to them.
pub(super) fn orders(claims: &[&ClaimMessage], numbers: &mut Numbers) -> Result<String, Fault> {
    let mut sql = String::with_capacity(128 + claims.len() * ROW_BYTES);
    // Most orders are one unit of a sale's only item, for which there are defaults.
    let is_simple =
        |claim: &&ClaimMessage| matches!(claim.units[..], [unit] if unit.item == ItemNo::FIRST);
    let are_simple = claims.iter().all(is_simple);
    sql.push_str(if are_simple {
        "INSERT INTO seckill (order_id, sale_num, unit, gen, buyer, epoch, sequence) VALUES "
    } else {
        "INSERT INTO seckill (order_id, line, line_count, item, sale_num, unit, gen, buyer, epoch, sequence) VALUES "
    });
    let (mut keys, mut slots) = (String::new(), String::new());
    for (index, claim) in claims.iter().enumerate() {
        let (num, sequence) = numbers.next(claim)?;
        let count = claim.units.len();
        for (claimed, line) in claim.units.iter().zip(1..) {
            let separator = if index == 0 && line == 1 { "(" } else { ",(" };
            sql.push_str(separator);
            order_id_into(&mut sql, &claim.order_id);
            if !are_simple {
                let _ = write!(sql, ",{line},{count},{}", claimed.item.get());
            }
            let unit = claimed.unit;
            let _ = write!(sql, ",{num},{},{},", unit.number, unit.generation);
            quote_into(&mut sql, claim.buyer.as_str().as_bytes());
            let _ = match line {
                1 => write!(sql, ",{},{sequence})", claim.epoch),
                _ => write!(sql, ",{},NULL)", claim.epoch),
            };
            if let Some(slot) = claimed.slot {
                begin_row(
                    &mut slots,
                    "seckill_slot (sale_num, buyer, slot, order_id, line)",
                );
                let _ = write!(slots, "({num},");
                quote_into(&mut slots, claim.buyer.as_str().as_bytes());
                let _ = write!(slots, ",{slot},");
                order_id_into(&mut slots, &claim.order_id);
                let _ = write!(slots, ",{line})");
            }
        }
        if let Some(key) = &claim.idem_key {
            begin_row(
                &mut keys,
                "seckill_key (sale_num, buyer, idem_key, order_id, fingerprint)",
            );
            let _ = write!(keys, "({num},");
            quote_into(&mut keys, claim.buyer.as_str().as_bytes());
            keys.push(',');
            quote_into(&mut keys, key.as_str().as_bytes());
            keys.push(',');
            order_id_into(&mut keys, &claim.order_id);
            let _ = write!(keys, ",{})", claim.fingerprint);
        }
    }
    sql.push_str(&keys);
    sql.push_str(&slots);
    pointers_into(&mut sql, claims);
    Ok(sql)
}

/// Starts an INSERT with its first row, or separates its next row.
fn begin_row(sql: &mut String, table: &str) {
    if sql.is_empty() {
        let _ = write!(sql, "; INSERT INTO {table} VALUES ");
    } else {
        sql.push(',');
    }
}

/// Says in which row the first claim of each sale is, if that is far behind the latest entry.
fn pointers_into(sql: &mut String, claims: &[&ClaimMessage]) {
    let mut seen = HashSet::new();
    let first = claims.iter().filter(|claim| seen.insert(&claim.sale_id));
    let ids = order_id_list(first.map(|claim| &claim.order_id));
    let _ = write!(
        sql,
        "; INSERT INTO seckill_event (sale_num, sequence, row_id, type) \
         SELECT sale_num, sequence, id, '{POINTER}' FROM seckill AS claim FORCE INDEX (one_order) \
         WHERE order_id IN ({ids}) AND line = 1 AND id > {POINTER_EVERY_ROWS} + COALESCE((SELECT latest.row_id \
         FROM seckill_event AS latest WHERE latest.sale_num = claim.sale_num ORDER BY latest.sequence DESC LIMIT 1), 0)"
    );
}

/// Writes voids, dead records, suspicions, numbers and the position, then commits.
pub(super) fn end(end: &BatchEnd<'_>, numbers: &Numbers) -> Result<String, Fault> {
    let BatchEnd {
        topic, part, place, ..
    } = *end;
    let mut sql = String::new();
    let mut voids: HashMap<&SaleId, u32> = HashMap::new();
    for (index, (claim, reason)) in end.voids.iter().enumerate() {
        if index == 0 {
            sql.push_str("INSERT INTO seckill_void (order_id, sale_num, epoch, reason) VALUES ");
        }
        *voids.entry(&claim.sale_id).or_default() += 1;
        let (id, num) = (
            order_id_literal(&claim.order_id),
            numbers.of(&claim.sale_id)?.num,
        );
        push_row(
            &mut sql,
            index == 0,
            format_args!("({id},{num},{},'{reason}')", claim.epoch),
        );
    }
    if !end.voids.is_empty() {
        sql.push_str("; ");
    }
    dead_into(&mut sql, end);
    for (sale, numbers) in numbers.iter() {
        let mut changes = Vec::new();
        if let Base::Known(latest) = numbers.base
            && numbers.count > 0
        {
            changes.push(format!("last_sequence = {}", latest + numbers.count));
        }
        if let Some(count) = voids.get(sale) {
            changes.push(format!("voids = voids + {count}"));
        }
        if let Some((_, epoch)) = end.suspects.iter().find(|(suspect, _)| *suspect == sale) {
            changes.push(format!("suspect_epoch = {epoch}"));
        }
        if !changes.is_empty() {
            let (changes, num) = (changes.join(", "), numbers.num);
            let _ = write!(sql, "UPDATE seckill_sale SET {changes} WHERE num = {num}; ");
        }
    }
    let _ = write!(
        sql,
        "UPDATE seckill_position SET next_offset = {}, last_order_id = {} WHERE {}; COMMIT",
        place.next,
        quoted(end.mark.as_bytes()),
        of_part(topic, part)
    );
    Ok(sql)
}

fn dead_into(sql: &mut String, end: &BatchEnd<'_>) {
    const PAYLOAD_MAX_BYTES: usize = 4_096;
    const ERROR_MAX_CHARS: usize = 500;
    for (index, dead) in end.dead.iter().enumerate() {
        if index == 0 {
            sql.push_str("INSERT INTO seckill_dead (topic, log_gen, part, at_offset, payload, error) VALUES ");
        }
        let payload = &dead.payload[..dead.payload.len().min(PAYLOAD_MAX_BYTES)];
        let error: String = dead.error.chars().take(ERROR_MAX_CHARS).collect();
        push_row(
            sql,
            index == 0,
            format_args!(
                "({},{},{},{},{},CONVERT({} USING utf8mb4))",
                quoted(end.topic.as_bytes()),
                end.place.log_gen,
                end.part,
                dead.offset,
                quoted(payload),
                quoted(error.as_bytes())
            ),
        );
    }
    if !end.dead.is_empty() {
        sql.push_str("; ");
    }
}
