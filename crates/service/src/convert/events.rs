//! Events of the feed as CloudEvents.

use seckill_api::{self as api, EventData, SpecVersion};
use seckill_sale::{Event, EventKind, OrderState};

use super::{owned_units, sales, time};

pub fn event(event: Event) -> api::Event {
    let Event {
        sale,
        sequence,
        at_ms,
        kind,
    } = event;
    api::Event {
        specversion: SpecVersion::V1,
        id: format!("{sale}/{sequence}"),
        source: format!("/v1/sales/{sale}"),
        subject: kind.order_id().map(ToString::to_string),
        time: time(at_ms),
        sequence,
        data: data(kind),
    }
}

fn data(kind: EventKind) -> EventData {
    match kind {
        EventKind::SaleCreated(sale) => EventData::SaleCreated(sales::terms(*sale)),
        EventKind::SaleChanged(sale) => EventData::SaleChanged(sales::terms(*sale)),
        EventKind::OrderReserved {
            order_id,
            buyer,
            idempotency_key,
            units,
        } => EventData::OrderReserved(api::ReservedOrder {
            order_id: order_id.to_string(),
            buyer: (!buyer.is_anonymous()).then(|| buyer.to_string()),
            idempotency_key: idempotency_key.map(|key| key.to_string()),
            units: owned_units(&units),
        }),
        EventKind::OrderChanged {
            order_id,
            state,
            units,
        } => {
            let order_id = order_id.to_string();
            let units = owned_units(&units);
            match state {
                OrderState::Paid => EventData::OrderPaid(api::ChangedOrder { order_id, units }),
                OrderState::Expired => {
                    EventData::OrderExpired(api::ChangedOrder { order_id, units })
                }
                OrderState::Cancelled => {
                    EventData::OrderCancelled(api::ChangedOrder { order_id, units })
                }
                // No change leads to this state; an event that says so keeps its name.
                OrderState::Reserved => EventData::OrderReserved(api::ReservedOrder {
                    order_id,
                    buyer: None,
                    idempotency_key: None,
                    units,
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_sale::{Buyer, IdempotencyKey, ItemId, NewSale, OrderId, OrderUnit, SaleId, Unit};

    fn text_of(kind: EventKind) -> String {
        let event = super::event(Event {
            sale: SaleId::new("counter").unwrap(),
            sequence: 17,
            at_ms: 1_795_568_523_004,
            kind,
        });
        serde_json::to_string(&event).unwrap()
    }

    #[test]
    fn events_are_cloud_events() {
        let units = [OrderUnit {
            item: ItemId::new("S").unwrap(),
            unit: Unit {
                number: 7,
                generation: 1,
            },
        }];
        let order_id = OrderId::new("01a2").unwrap();
        let head = r#"{"specversion":"1.0","id":"counter/17","source":"/v1/sales/counter","subject":"01a2","time":"2026-11-25T01:02:03.004Z","sequence":17"#;
        let units_text = r#""units":[{"item":"S","unit":7,"generation":1}]"#;
        let reserved = EventKind::OrderReserved {
            order_id: order_id.clone(),
            buyer: Buyer::anonymous(),
            idempotency_key: Some(IdempotencyKey::new("k").unwrap()),
            units: units.clone().into_iter().collect(),
        };
        assert_eq!(
            text_of(reserved),
            format!(
                r#"{head},"type":"order.reserved","data":{{"order_id":"01a2","buyer":null,"idempotency_key":"k",{units_text}}}}}"#
            )
        );
        for state in [OrderState::Paid, OrderState::Expired, OrderState::Cancelled] {
            let changed = EventKind::OrderChanged {
                order_id: order_id.clone(),
                state,
                units: units.clone().into_iter().collect(),
            };
            let name = changed.name();
            assert_eq!(
                text_of(changed),
                format!(r#"{head},"type":"{name}","data":{{"order_id":"01a2",{units_text}}}}}"#)
            );
        }
        let sale = NewSale::units(SaleId::new("counter").unwrap(), 100);
        let created = EventKind::SaleCreated(Box::new(sale.validate().unwrap()));
        assert_eq!(
            text_of(created),
            r#"{"specversion":"1.0","id":"counter/17","source":"/v1/sales/counter","time":"2026-11-25T01:02:03.004Z","sequence":17,"type":"sale.created","data":{"id":"counter","title":"counter","items":[{"id":"default","title":"counter","total":100,"price":null}],"buyer_limit":null,"opens_at":null,"closes_at":null,"version":1}}"#
        );
    }
}
