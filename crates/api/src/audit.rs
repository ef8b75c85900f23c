//! The audit: the confirmations that clients recorded, which it checks, its report and its verdict.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::objects::{ObjectOnly, objects_only};

/// The audit on the control socket. The body of `POST` is a list of [`HistoryEntry`].
pub const CONTROL_AUDIT_PATH: &str = "/audit";

/// A confirmation that a client read: one line of a history file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "HistoryLine")]
pub struct HistoryEntry {
    pub order_id: String,
    /// Absent if the request named no sale, so that it went to the service's default sale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sale: Option<String>,
    /// At least one.
    pub units: Vec<HistoryUnit>,
    /// Absent if the request named no buyer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buyer: Option<String>,
    /// The idempotency key; absent if the request had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A unit as a client recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct HistoryUnit {
    /// The item's id; absent in a line of the older form, which did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    pub unit: u32,
    /// Absent in a line of the older form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

objects_only!(HistoryUnit);

/// A line of either form: with `units`, or with `unit`, as it was when a sale had one item.
#[derive(Deserialize)]
#[serde(remote = "Self")]
struct HistoryLine {
    order_id: String,
    #[serde(default)]
    sale: Option<String>,
    #[serde(default)]
    units: Vec<HistoryUnit>,
    #[serde(default)]
    unit: Option<u32>,
    #[serde(default)]
    buyer: Option<String>,
    #[serde(default)]
    key: Option<String>,
}

impl<'de> Deserialize<'de> for HistoryLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(ObjectOnly(deserializer))
    }
}

impl TryFrom<HistoryLine> for HistoryEntry {
    type Error = &'static str;

    fn try_from(line: HistoryLine) -> Result<Self, Self::Error> {
        let units = match (line.units, line.unit) {
            (units, None) if units.is_empty() => return Err("missing field `units`"),
            (units, Some(unit)) if units.is_empty() => vec![HistoryUnit {
                item: None,
                unit,
                generation: None,
            }],
            (units, _) => units,
        };
        Ok(Self {
            order_id: line.order_id,
            sale: line.sale,
            units,
            buyer: line.buyer,
            key: line.key,
        })
    }
}

/// The invariants that an audit can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invariant {
    /// Active units of an item ≤ its total, at most one active order per unit, units in 1..=total.
    NoOversell,
    /// Free + active = total, once no attempt is in progress.
    NoUndersell,
    /// Every confirmation has exactly one order with its content.
    ConfirmationKept,
    /// At most one order per order id, per key, and per unit and generation.
    NoDuplicates,
    /// Active units per buyer ≤ the sale's limit.
    LimitHolds,
    /// Every order belongs to a sale, and its row was not modified.
    NoPhantoms,
    /// An order has all of its lines, in the same state.
    AllOrNothing,
    /// Replaying a sale's events gives the store's state.
    FeedTellsAll,
}

/// The name in texts; JSON has it in snake case.
impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoOversell => "no oversell",
            Self::NoUndersell => "no undersell",
            Self::ConfirmationKept => "a confirmation is kept",
            Self::NoDuplicates => "no duplicates",
            Self::LimitHolds => "the limit holds",
            Self::NoPhantoms => "no phantoms",
            Self::AllOrNothing => "all or nothing",
            Self::FeedTellsAll => "the feed tells all",
        })
    }
}

/// One broken invariant and the orders that break it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    pub invariant: Invariant,
    /// Empty if the violation concerns no sale.
    pub sale: String,
    /// The item of the unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// The unit that the violation concerns; null if there is none.
    pub unit: Option<u32>,
    pub order_ids: Vec<String>,
    pub detail: String,
}

/// The numbers of one sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaleReport {
    pub sale: String,
    pub total: u32,
    /// Orders in any state.
    pub orders: u64,
    /// Units that orders hold.
    pub active: u64,
    /// Units that the gate still offers.
    pub gate_left: u32,
    pub items: Vec<ItemReport>,
}

/// The numbers of one item of a sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemReport {
    pub item: String,
    pub total: u32,
    /// Units that orders hold.
    pub active: u64,
    /// Units that the gate still offers.
    pub gate_left: u32,
}

/// The result of an audit, as the control socket answers it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    pub sales: Vec<SaleReport>,
    /// Rows in the order store, one for each unit of an order.
    pub store_rows: u64,
    /// Events in the feeds of all sales.
    pub events: u64,
    /// Messages in the order log; null if the engine has no log.
    pub log_records: Option<u64>,
    /// Claims that are neither stored nor void yet, which is not a violation.
    pub in_flight: u64,
    /// Units that the gates still offer, over all sales.
    pub gate_left: u64,
    /// Active orders beyond the first of each unit, and sold units that the gate still offers.
    pub oversold: u64,
    /// Units that are neither sold nor offered.
    pub undersold: u64,
    /// Duplicate orders, by order id, by key, or by unit and generation.
    pub duplicates: u64,
    /// Confirmations from the clients' history that were checked.
    pub confirmations_checked: u64,
    /// The first violations, up to a limit.
    pub violations: Vec<Violation>,
    /// The number of all violations, including those that are not listed.
    pub violation_count: u64,
    /// What could not be checked, and why.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl AuditReport {
    pub fn verdict(&self) -> AuditVerdict {
        AuditVerdict::new(self.violation_count == 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditVerdict {
    /// Every invariant holds.
    Clean,
    Broken,
}

impl AuditVerdict {
    pub fn new(is_clean: bool) -> Self {
        if is_clean { Self::Clean } else { Self::Broken }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Broken => "broken",
        }
    }
}

impl fmt::Display for AuditVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The output of `seckill audit --json`: the members of the report, and its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audited {
    #[serde(flatten)]
    pub report: AuditReport,
    pub verdict: AuditVerdict,
}

impl From<AuditReport> for Audited {
    fn from(report: AuditReport) -> Self {
        Self {
            verdict: report.verdict(),
            report,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_json;

    fn entry(units: Vec<HistoryUnit>) -> HistoryEntry {
        HistoryEntry {
            order_id: "01a2".into(),
            sale: Some("phone".into()),
            units,
            buyer: None,
            key: None,
        }
    }

    #[test]
    fn a_line_of_a_history_lists_units() {
        let unit = |item: &str, unit| HistoryUnit {
            item: Some(item.into()),
            unit,
            generation: Some(1),
        };
        let two = entry(vec![unit("S", 7), unit("M", 1)]);
        is_json(
            &two,
            r#"{"order_id":"01a2","sale":"phone","units":[{"item":"S","unit":7,"generation":1},{"item":"M","unit":1,"generation":1}]}"#,
        );
        let named = HistoryEntry {
            sale: None,
            buyer: Some("ann".into()),
            key: Some("k1".into()),
            ..entry(vec![unit("default", 7)])
        };
        is_json(
            &named,
            r#"{"order_id":"01a2","units":[{"item":"default","unit":7,"generation":1}],"buyer":"ann","key":"k1"}"#,
        );
    }

    #[test]
    fn a_line_of_the_older_form_is_read() {
        let old: HistoryEntry =
            serde_json::from_str(r#"{"order_id":"01a2","sale":"phone","unit":7}"#).unwrap();
        let unit = HistoryUnit {
            item: None,
            unit: 7,
            generation: None,
        };
        assert_eq!(old, entry(vec![unit]));
        for text in [
            "{}",
            r#"{"order_id":"01a2"}"#,
            r#"{"unit":7}"#,
            r#"["01a2","phone",[],7]"#,
            r#"{"order_id":"01a2","units":[["S",7]]}"#,
        ] {
            assert!(
                serde_json::from_str::<HistoryEntry>(text).is_err(),
                "{text}"
            );
        }
    }

    fn violation() -> Violation {
        Violation {
            invariant: Invariant::NoOversell,
            sale: "phone".into(),
            item: Some("S".into()),
            unit: Some(7),
            order_ids: vec!["01a2".into(), "01a3".into()],
            detail: "sold twice".into(),
        }
    }

    fn report(violations: Vec<Violation>) -> AuditReport {
        AuditReport {
            sales: vec![SaleReport {
                sale: "phone".into(),
                total: 10,
                orders: 3,
                active: 2,
                gate_left: 8,
                items: vec![ItemReport {
                    item: "default".into(),
                    total: 10,
                    active: 2,
                    gate_left: 8,
                }],
            }],
            store_rows: 3,
            events: 5,
            log_records: None,
            in_flight: 0,
            gate_left: 8,
            oversold: 0,
            undersold: 0,
            duplicates: 0,
            confirmations_checked: 1,
            violation_count: violations.len() as u64,
            violations,
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_verdict_is_one_more_member() {
        let clean = Audited::from(report(Vec::new()));
        assert_eq!(clean.verdict, AuditVerdict::Clean);
        is_json(
            &clean,
            r#"{"sales":[{"sale":"phone","total":10,"orders":3,"active":2,"gate_left":8,"items":[{"item":"default","total":10,"active":2,"gate_left":8}]}],"store_rows":3,"events":5,"log_records":null,"in_flight":0,"gate_left":8,"oversold":0,"undersold":0,"duplicates":0,"confirmations_checked":1,"violations":[],"violation_count":0,"notes":[],"verdict":"clean"}"#,
        );
        let broken = Audited::from(report(vec![violation()]));
        assert_eq!(broken.verdict, AuditVerdict::Broken);
        is_json(&broken.verdict, r#""broken""#);
        assert_eq!(broken.verdict.to_string(), "broken");
    }

    #[test]
    fn a_violation_names_only_the_item_that_it_has() {
        is_json(
            &violation(),
            r#"{"invariant":"no_oversell","sale":"phone","item":"S","unit":7,"order_ids":["01a2","01a3"],"detail":"sold twice"}"#,
        );
        let of_the_file = Violation {
            invariant: Invariant::NoPhantoms,
            sale: String::new(),
            item: None,
            unit: None,
            order_ids: Vec::new(),
            detail: "page 3".into(),
        };
        is_json(
            &of_the_file,
            r#"{"invariant":"no_phantoms","sale":"","unit":null,"order_ids":[],"detail":"page 3"}"#,
        );
    }

    #[test]
    fn invariants_are_written_in_snake_case() {
        for (invariant, name) in [
            (Invariant::NoUndersell, "no_undersell"),
            (Invariant::ConfirmationKept, "confirmation_kept"),
            (Invariant::NoDuplicates, "no_duplicates"),
            (Invariant::LimitHolds, "limit_holds"),
            (Invariant::AllOrNothing, "all_or_nothing"),
            (Invariant::FeedTellsAll, "feed_tells_all"),
        ] {
            is_json(&invariant, &format!("\"{name}\""));
        }
    }
}
