//! The audit: the confirmations that clients recorded, which it checks, and its verdict.

use std::fmt;

use serde::{Deserialize, Serialize};

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
pub struct HistoryUnit {
    /// The item's id; absent in a line of the older form, which did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    pub unit: u32,
    /// Absent in a line of the older form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

/// A line of either form: with `units`, or with `unit`, as it was when a sale had one item.
#[derive(Deserialize)]
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
pub struct Audited<R> {
    #[serde(flatten)]
    pub report: R,
    pub verdict: AuditVerdict,
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
        for text in ["{}", r#"{"order_id":"01a2"}"#, r#"{"unit":7}"#] {
            assert!(
                serde_json::from_str::<HistoryEntry>(text).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn the_verdict_is_one_more_member() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Report {
            store_rows: u64,
        }
        let audited = |is_clean| Audited {
            report: Report { store_rows: 3 },
            verdict: AuditVerdict::new(is_clean),
        };
        is_json(&audited(true), r#"{"store_rows":3,"verdict":"clean"}"#);
        is_json(&audited(false), r#"{"store_rows":3,"verdict":"broken"}"#);
        assert_eq!(AuditVerdict::Broken.to_string(), "broken");
    }
}
