//! The confirmations that an audit checks, and its report. The engine compares and judges.

use seckill_api as api;
use seckill_sale::{
    AuditReport, HistoryEntry, HistoryUnit, Invariant, ItemReport, OrderId, SaleReport, Violation,
};

use super::{InvalidRequest, invalid};

/// The confirmations that clients recorded.
pub fn history(entries: Vec<api::HistoryEntry>) -> Result<Vec<HistoryEntry>, InvalidRequest> {
    entries.into_iter().map(history_entry).collect()
}

fn history_entry(entry: api::HistoryEntry) -> Result<HistoryEntry, InvalidRequest> {
    let units = entry.units.into_iter().map(|unit| HistoryUnit {
        item: unit.item,
        number: unit.unit,
        generation: unit.generation,
    });
    Ok(HistoryEntry {
        order_id: OrderId::new(&entry.order_id).map_err(invalid)?,
        sale: entry.sale,
        units: units.collect(),
        buyer: entry.buyer,
        key: entry.key,
    })
}

pub fn audit_report(report: AuditReport) -> api::AuditReport {
    let AuditReport {
        sales,
        store_rows,
        events,
        log_records,
        in_flight,
        gate_left,
        oversold,
        undersold,
        duplicates,
        confirmations_checked,
        violations,
        violation_count,
        notes,
    } = report;
    api::AuditReport {
        sales: sales.into_iter().map(sale_report).collect(),
        store_rows,
        events,
        log_records,
        in_flight,
        gate_left,
        oversold,
        undersold,
        duplicates,
        confirmations_checked,
        violations: violations.into_iter().map(violation).collect(),
        violation_count,
        notes,
    }
}

fn sale_report(report: SaleReport) -> api::SaleReport {
    let SaleReport {
        sale,
        total,
        orders,
        active,
        gate_left,
        items,
    } = report;
    api::SaleReport {
        sale,
        total,
        orders,
        active,
        gate_left,
        items: items.into_iter().map(item_report).collect(),
    }
}

fn item_report(report: ItemReport) -> api::ItemReport {
    let ItemReport {
        item,
        total,
        active,
        gate_left,
    } = report;
    api::ItemReport {
        item,
        total,
        active,
        gate_left,
    }
}

fn violation(violation: Violation) -> api::Violation {
    let Violation {
        invariant,
        sale,
        item,
        unit,
        order_ids,
        detail,
    } = violation;
    api::Violation {
        invariant: match invariant {
            Invariant::NoOversell => api::Invariant::NoOversell,
            Invariant::NoUndersell => api::Invariant::NoUndersell,
            Invariant::ConfirmationKept => api::Invariant::ConfirmationKept,
            Invariant::NoDuplicates => api::Invariant::NoDuplicates,
            Invariant::LimitHolds => api::Invariant::LimitHolds,
            Invariant::NoPhantoms => api::Invariant::NoPhantoms,
            Invariant::AllOrNothing => api::Invariant::AllOrNothing,
            Invariant::FeedTellsAll => api::Invariant::FeedTellsAll,
        },
        sale,
        item,
        unit,
        order_ids,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_keeps_every_unit_and_its_names() {
        let entry = |order_id: &str| api::HistoryEntry {
            order_id: order_id.into(),
            sale: Some("phone".into()),
            units: vec![
                api::HistoryUnit {
                    item: Some("S".into()),
                    unit: 7,
                    generation: Some(2),
                },
                api::HistoryUnit {
                    item: None,
                    unit: 8,
                    generation: None,
                },
            ],
            buyer: Some("ann".into()),
            key: Some("k".into()),
        };
        let read = history(vec![entry("01a2")]).unwrap();
        let unit = |item: Option<&str>, number, generation| HistoryUnit {
            item: item.map(str::to_owned),
            number,
            generation,
        };
        let expected = [unit(Some("S"), 7, Some(2)), unit(None, 8, None)];
        assert_eq!(read[0].units, expected);
        let names = (read[0].buyer.as_deref(), read[0].key.as_deref());
        assert_eq!(names, (Some("ann"), Some("k")));
        assert!(history(vec![entry("01a2"), entry("../x")]).is_err());
    }

    #[test]
    fn a_report_keeps_every_number() {
        let report = AuditReport {
            sales: vec![SaleReport {
                sale: "phone".into(),
                total: 20,
                orders: 21,
                active: 22,
                gate_left: 23,
                items: vec![ItemReport {
                    item: "S".into(),
                    total: 24,
                    active: 25,
                    gate_left: 26,
                }],
            }],
            store_rows: 1,
            events: 2,
            log_records: Some(3),
            in_flight: 4,
            gate_left: 5,
            oversold: 6,
            undersold: 7,
            duplicates: 8,
            confirmations_checked: 9,
            violations: vec![Violation {
                invariant: Invariant::LimitHolds,
                sale: "phone".into(),
                item: Some("S".into()),
                unit: Some(30),
                order_ids: vec!["01a2".into()],
                detail: "three of two".into(),
            }],
            violation_count: 10,
            notes: vec!["not checked".into()],
        };
        let expected = api::AuditReport {
            sales: vec![api::SaleReport {
                sale: "phone".into(),
                total: 20,
                orders: 21,
                active: 22,
                gate_left: 23,
                items: vec![api::ItemReport {
                    item: "S".into(),
                    total: 24,
                    active: 25,
                    gate_left: 26,
                }],
            }],
            store_rows: 1,
            events: 2,
            log_records: Some(3),
            in_flight: 4,
            gate_left: 5,
            oversold: 6,
            undersold: 7,
            duplicates: 8,
            confirmations_checked: 9,
            violations: vec![api::Violation {
                invariant: api::Invariant::LimitHolds,
                sale: "phone".into(),
                item: Some("S".into()),
                unit: Some(30),
                order_ids: vec!["01a2".into()],
                detail: "three of two".into(),
            }],
            violation_count: 10,
            notes: vec!["not checked".into()],
        };
        assert_eq!(audit_report(report), expected);
    }
}
