//! The feed's events, as CloudEvents 1.0.

use serde::{Deserialize, Serialize};

use crate::{SaleTerms, Unit};

/// The feed on the control socket. `GET` answers a page of a sale's events, oldest first; an empty
/// one means that there are no more for now.
pub const CONTROL_EVENTS_PATH: &str = "/events";

/// The query of the control socket's feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// The sale's id.
    pub sale: String,
    /// The page starts after the event with this sequence; 0 or absent for the first page.
    #[serde(default)]
    pub after: u64,
}

/// One thing that happened to an order or a sale. `seckill events --json` prints one a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub specversion: SpecVersion,
    /// The sale's id, `/` and the sequence.
    pub id: String,
    /// The sale's address.
    pub source: String,
    /// The order's id; absent for an event of the sale itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    pub time: String,
    /// 1 for a sale's first event. Increases by one with each event, without gaps.
    pub sequence: u64,
    /// The members `type` and `data`.
    #[serde(flatten)]
    pub data: EventData,
}

/// The version of the CloudEvents specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpecVersion {
    #[serde(rename = "1.0")]
    V1,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum EventData {
    #[serde(rename = "order.reserved")]
    OrderReserved(ReservedOrder),
    #[serde(rename = "order.paid")]
    OrderPaid(ChangedOrder),
    #[serde(rename = "order.expired")]
    OrderExpired(ChangedOrder),
    #[serde(rename = "order.cancelled")]
    OrderCancelled(ChangedOrder),
    #[serde(rename = "sale.created")]
    SaleCreated(SaleTerms),
    #[serde(rename = "sale.changed")]
    SaleChanged(SaleTerms),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedOrder {
    pub order_id: String,
    /// Null for an anonymous order.
    pub buyer: Option<String>,
    pub idempotency_key: Option<String>,
    pub units: Vec<Unit<'static>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedOrder {
    pub order_id: String,
    /// The order's units; an order that has expired or was cancelled has released them.
    pub units: Vec<Unit<'static>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ItemTerms;
    use crate::testing::is_json;

    fn event(subject: Option<&str>, data: EventData) -> Event {
        Event {
            specversion: SpecVersion::V1,
            id: "counter/17".into(),
            source: "/v1/sales/counter".into(),
            subject: subject.map(str::to_owned),
            time: "2026-11-25T01:02:03.004Z".into(),
            sequence: 17,
            data,
        }
    }

    #[test]
    fn a_page_starts_at_the_first_event_by_default() {
        let query: EventsQuery = serde_json::from_str(r#"{"sale":"counter"}"#).unwrap();
        assert_eq!(query.after, 0);
        let misspelt = r#"{"sale":"counter","from":1}"#;
        assert!(serde_json::from_str::<EventsQuery>(misspelt).is_err());
    }

    #[test]
    fn events_of_an_order_name_it() {
        let units = vec![Unit {
            item: "default".into(),
            unit: 7,
            generation: 1,
        }];
        let reserved = EventData::OrderReserved(ReservedOrder {
            order_id: "01a2".into(),
            buyer: Some("ann".into()),
            idempotency_key: None,
            units: units.clone(),
        });
        is_json(
            &event(Some("01a2"), reserved),
            r#"{"specversion":"1.0","id":"counter/17","source":"/v1/sales/counter","subject":"01a2","time":"2026-11-25T01:02:03.004Z","sequence":17,"type":"order.reserved","data":{"order_id":"01a2","buyer":"ann","idempotency_key":null,"units":[{"item":"default","unit":7,"generation":1}]}}"#,
        );
        let changed = ChangedOrder {
            order_id: "01a2".into(),
            units,
        };
        for (name, data) in [
            ("paid", EventData::OrderPaid(changed.clone())),
            ("expired", EventData::OrderExpired(changed.clone())),
            ("cancelled", EventData::OrderCancelled(changed)),
        ] {
            let head = r#"{"specversion":"1.0","id":"counter/17","source":"/v1/sales/counter","subject":"01a2","time":"2026-11-25T01:02:03.004Z","sequence":17"#;
            let data_text = r#""data":{"order_id":"01a2","units":[{"item":"default","unit":7,"generation":1}]}}"#;
            let text = format!(r#"{head},"type":"order.{name}",{data_text}"#);
            is_json(&event(Some("01a2"), data), &text);
        }
    }

    #[test]
    fn events_of_a_sale_have_its_terms() {
        let item = ItemTerms {
            id: "default".into(),
            title: "Default".into(),
            total: 100,
            price: None,
        };
        let terms = SaleTerms {
            id: "counter".into(),
            title: "Counter".into(),
            items: vec![item],
            buyer_limit: None,
            opens_at: None,
            closes_at: None,
            version: 1,
        };
        let data = r#""data":{"id":"counter","title":"Counter","items":[{"id":"default","title":"Default","total":100,"price":null}],"buyer_limit":null,"opens_at":null,"closes_at":null,"version":1}}"#;
        let head = r#"{"specversion":"1.0","id":"counter/17","source":"/v1/sales/counter","time":"2026-11-25T01:02:03.004Z","sequence":17,"type":"#;
        is_json(
            &event(None, EventData::SaleCreated(terms.clone())),
            &format!(r#"{head}"sale.created",{data}"#),
        );
        is_json(
            &event(None, EventData::SaleChanged(terms)),
            &format!(r#"{head}"sale.changed",{data}"#),
        );
    }
}
