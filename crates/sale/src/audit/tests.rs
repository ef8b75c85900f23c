use super::*;
use crate::{NewSale, SaleId};

fn terms(total: u32) -> Sale {
    let mut new = NewSale::units(SaleId::new("s").unwrap(), total);
    new.buyer_limit = Some(2);
    new.validate().unwrap()
}

/// An auditor of one sale, and the number of the next event.
struct Audit(Auditor, u64);

fn auditor(total: u32) -> Audit {
    Audit(Auditor::new([terms(total)]), 2)
}

fn row(order_id: &str, number: u32, generation: u32) -> RowFacts<'_> {
    RowFacts {
        order_id,
        line: 1,
        lines: 1,
        sale: "s",
        item: ItemNo::FIRST,
        unit: Unit { number, generation },
        buyer: order_id,
        key: None,
        state: Some(OrderState::Reserved),
        sequence: None,
        integrity: RowIntegrity::Intact,
        is_edited: false,
    }
}

impl Audit {
    fn see(&mut self, row: &RowFacts<'_>) {
        let sequence = (row.line == 1).then(|| self.next());
        self.0.row(&RowFacts { sequence, ..*row });
    }

    fn next(&mut self) -> u64 {
        self.1 += 1;
        self.1 - 1
    }

    fn end(&mut self, order_id: &str, state: OrderState) {
        let sequence = self.next();
        self.0.event(&EventFacts {
            sale: "s",
            sequence,
            event: AuditedEvent::Order { order_id, state },
        });
    }

    fn confirmed(&mut self, order_id: &str, sale: Option<&str>, number: u32) {
        self.0.confirmed(&HistoryEntry {
            order_id: crate::OrderId::new(order_id).unwrap(),
            sale: sale.map(str::to_owned),
            units: vec![HistoryUnit {
                item: Some("default".into()),
                number,
                generation: None,
            }],
            buyer: None,
            key: None,
        });
    }

    fn finish(mut self) -> AuditReport {
        let sale = self.0.sales["s"].sale.clone();
        self.0.event(&EventFacts {
            sale: "s",
            sequence: 1,
            event: AuditedEvent::Created(&sale),
        });
        self.0.finish(0)
    }
}

fn broken(report: &AuditReport) -> Vec<Invariant> {
    report.violations.iter().map(|v| v.invariant).collect()
}

#[test]
fn a_consistent_store_is_clean() {
    let mut audit = auditor(3);
    audit.confirmed("a", Some("s"), 1);
    audit.0.gate_left("s", &[1]);
    audit.see(&RowFacts {
        state: Some(OrderState::Cancelled),
        ..row("b", 2, 1)
    });
    audit.see(&row("a", 1, 1));
    audit.see(&row("c", 2, 2));
    audit.end("b", OrderState::Cancelled);
    let report = audit.finish();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.store_rows, report.gate_left), (3, 1));
    assert_eq!((report.sales[0].active, report.events), (2, 5));
    let item = ItemReport {
        item: "default".into(),
        total: 3,
        active: 2,
        gate_left: 1,
    };
    assert_eq!(report.sales[0].items, [item]);
}

#[test]
fn every_kind_of_violation_is_reported() {
    let mut audit = auditor(2);
    audit.see(&row("a", 1, 1));
    audit.see(&row("b", 1, 2));
    let report = audit.finish();
    assert_eq!(broken(&report), [Invariant::NoOversell]);
    assert_eq!(report.violations[0].order_ids, ["a", "b"]);
    assert_eq!(report.oversold, 1);

    let mut audit = auditor(4);
    audit.0.gate_left("s", &[0]);
    audit.confirmed("lost", None, 2);
    audit.confirmed("a", Some("s"), 2);
    for number in [1, 2, 5] {
        audit.see(&RowFacts {
            integrity: RowIntegrity::ContentDiffers,
            ..row("a", number, 1)
        });
    }
    let found = broken(&audit.finish());
    for invariant in [
        Invariant::NoDuplicates,
        Invariant::NoPhantoms,
        Invariant::NoOversell,
        Invariant::LimitHolds,
        Invariant::ConfirmationKept,
        Invariant::NoUndersell,
    ] {
        assert!(found.contains(&invariant), "{invariant:?} not in {found:?}");
    }
}

#[test]
fn a_gate_that_offers_sold_units_oversells() {
    let mut audit = auditor(1);
    audit.0.gate_left("s", &[1]);
    audit.see(&row("a", 1, 1));
    let report = audit.finish();
    assert_eq!((report.oversold, report.is_clean()), (1, false));
}

#[test]
fn one_key_has_one_claim() {
    let mut audit = auditor(2);
    for (order_id, number) in [("a", 1), ("b", 2)] {
        audit.see(&RowFacts {
            buyer: "ann",
            key: Some("k"),
            ..row(order_id, number, 1)
        });
    }
    assert_eq!(audit.finish().duplicates, 1);
}

#[test]
fn an_order_has_all_of_its_lines() {
    let lines = |audit: &mut Audit, found: &[u32], lines: u32| {
        for &line in found {
            audit.see(&RowFacts {
                line,
                lines,
                ..row("a", line, 1)
            });
        }
    };
    let mut audit = auditor(3);
    lines(&mut audit, &[1, 2], 2);
    assert!(audit.finish().is_clean());
    let mut audit = auditor(3);
    lines(&mut audit, &[1], 2);
    assert_eq!(broken(&audit.finish()), [Invariant::AllOrNothing]);
    let mut audit = auditor(3);
    lines(&mut audit, &[1], 2);
    audit.see(&RowFacts {
        line: 2,
        lines: 2,
        state: Some(OrderState::Cancelled),
        ..row("a", 2, 1)
    });
    assert_eq!(broken(&audit.finish()), [Invariant::AllOrNothing]);
}

#[test]
fn the_feed_must_lead_to_the_state() {
    let mut audit = auditor(3);
    audit.see(&RowFacts {
        state: Some(OrderState::Cancelled),
        ..row("a", 1, 1)
    });
    let found = audit.finish();
    assert_eq!(broken(&found), [Invariant::FeedTellsAll]);

    let mut audit = auditor(3);
    audit.see(&row("a", 1, 1));
    audit.next();
    audit.see(&row("b", 2, 1));
    let found = audit.finish();
    assert!(
        found.violations[0].detail.contains("such as 3"),
        "{found:?}"
    );

    let mut audit = auditor(3);
    audit.end("unknown", OrderState::Cancelled);
    assert_eq!(broken(&audit.finish()), [Invariant::FeedTellsAll]);

    let mut audit = auditor(3);
    audit.0.event(&EventFacts {
        sale: "s",
        sequence: 2,
        event: AuditedEvent::Changed(&terms(4)),
    });
    assert_eq!(broken(&audit.finish()), [Invariant::FeedTellsAll]);

    let mut audit = auditor(3);
    audit.see(&row("a", 1, 1));
    audit.0.row(&RowFacts {
        sequence: Some(2),
        ..row("b", 2, 1)
    });
    let found = audit.finish();
    assert!(found.violations[0].detail.contains("number 2"), "{found:?}");
}

/// A damaged number must neither stop the audit nor take much memory.
#[test]
fn a_damaged_number_is_reported() {
    let mut audit = auditor(3);
    audit.0.row(&RowFacts {
        sequence: Some(u64::MAX),
        integrity: RowIntegrity::ContentDiffers,
        ..row("a", 1, 1)
    });
    audit.see(&row("b", 2, 1));
    let found = broken(&audit.finish());
    assert!(found.contains(&Invariant::NoPhantoms), "{found:?}");
    let mut audit = auditor(3);
    audit.0.row(&RowFacts {
        sequence: Some(u64::MAX),
        ..row("a", 1, 1)
    });
    assert_eq!(broken(&audit.finish()), [Invariant::FeedTellsAll]);
}

#[test]
fn an_accepted_loss_is_not_reported() {
    let lost = |accepted| {
        let mut audit = auditor(3);
        audit.next();
        audit.end("lost", OrderState::Cancelled);
        audit.0.event(&EventFacts {
            sale: "s",
            sequence: 1,
            event: AuditedEvent::Created(&terms(3)),
        });
        broken(&audit.0.finish(accepted))
    };
    assert_eq!(lost(1), []);
    let both = [Invariant::FeedTellsAll, Invariant::FeedTellsAll];
    assert_eq!(lost(0), both);
}

#[test]
fn histories_of_both_forms_name_the_same_confirmation() {
    let mut audit = auditor(3);
    let entry = |item: Option<&str>, generation| HistoryEntry {
        order_id: crate::OrderId::new("a").unwrap(),
        sale: Some("s".into()),
        units: vec![HistoryUnit {
            item: item.map(str::to_owned),
            number: 1,
            generation,
        }],
        buyer: None,
        key: None,
    };
    audit.0.confirmed(&entry(None, None));
    audit.0.confirmed(&entry(Some("default"), Some(1)));
    audit.0.confirmed(&entry(None, None));
    audit.see(&row("a", 1, 1));
    let report = audit.finish();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.confirmations_checked, 3);
}

#[test]
fn confirmations_name_all_units_of_an_order() {
    let unit = |item: &str, number| HistoryUnit {
        item: Some(item.into()),
        number,
        generation: Some(1),
    };
    let check = |units: Vec<HistoryUnit>| {
        let mut audit = auditor(3);
        audit.0.confirmed(&HistoryEntry {
            order_id: crate::OrderId::new("a").unwrap(),
            sale: None,
            units,
            buyer: None,
            key: None,
        });
        for line in [1, 2] {
            audit.see(&RowFacts {
                line,
                lines: 2,
                ..row("a", line, 1)
            });
        }
        broken(&audit.finish())
    };
    assert_eq!(check(vec![unit("default", 2), unit("default", 1)]), []);
    let kept = [Invariant::ConfirmationKept];
    assert_eq!(check(vec![unit("default", 1)]), kept);
    assert_eq!(check(vec![unit("default", 1), unit("other", 2)]), kept);
}

/// The buyer and the key in a line of a history.
type Names<'a> = (Option<&'a str>, Option<&'a str>);

#[test]
fn confirmations_name_buyer_and_key() {
    let check = |names: &[Names<'_>], key: Option<&str>| {
        let mut audit = auditor(3);
        for (buyer, key) in names {
            audit.0.confirmed(&HistoryEntry {
                order_id: crate::OrderId::new("a").unwrap(),
                sale: Some("s".into()),
                units: vec![HistoryUnit {
                    item: Some("default".into()),
                    number: 1,
                    generation: Some(1),
                }],
                buyer: buyer.map(str::to_owned),
                key: key.map(str::to_owned),
            });
        }
        audit.see(&RowFacts {
            buyer: "ann",
            key,
            ..row("a", 1, 1)
        });
        let report = audit.finish();
        let found = report.violations.into_iter();
        found.map(|found| found.detail).collect::<Vec<_>>()
    };
    let kept: [(&[Names<'_>], Option<&str>); 4] = [
        (&[(Some("ann"), Some("k"))], Some("k")),
        (&[(None, None)], Some("k")),
        (&[(Some("ann"), None)], None),
        (&[(None, Some("k")), (Some("ann"), None)], Some("k")),
    ];
    for (names, key) in kept {
        assert_eq!(check(names, key), [""; 0], "{names:?}");
    }
    let promised = "a client received a confirmation for unit 1 (generation 1) of item default of \
                    sale s";
    for (buyer, key, stored_key, difference) in [
        (
            Some("bob"),
            None,
            None,
            "to buyer \"bob\", but the order has the buyer \"ann\"",
        ),
        (
            None,
            Some("j"),
            Some("k"),
            "with key \"j\", but the order has the key \"k\"",
        ),
        (
            None,
            Some("j"),
            None,
            "with key \"j\", but the order has no key",
        ),
    ] {
        let expected = format!("{promised} {difference}");
        assert_eq!(check(&[(buyer, key)], stored_key), [expected]);
    }
    // What only a later line has is compared as well.
    let names = [(Some("ann"), None), (None, Some("j"))];
    assert_eq!(check(&names, Some("k")).len(), 1);
    let names = [(Some("ann"), None), (Some("bob"), None)];
    assert_eq!(check(&names, None).len(), 1);
}
