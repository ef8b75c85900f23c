//! Converts between the model and the types of the API. Nothing here decides, reads or sends.
//!
//! The model sells one unit an order and one item a sale; the API already has lines and items.

use std::borrow::Cow;
use std::fmt;

use seckill_api as api;
use seckill_engine::{Component, SaleStock};
use seckill_sale::{
    HistoryEntry, NewSale, Order, OrderId, OrderState, Sale, SaleChange, SaleId, Unit, WindowState,
};

/// A request of the API that cannot be passed to an engine, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRequest(String);

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidRequest {}

fn invalid(what: impl fmt::Display) -> InvalidRequest {
    InvalidRequest(what.to_string())
}

/// A sale as clients and operators see it.
pub fn sale(stock: &SaleStock, now_ms: i64) -> api::Sale {
    let SaleStock { sale, free } = stock;
    let Sale {
        id,
        title,
        total,
        buyer_limit,
        opens_at_ms,
        closes_at_ms,
        version,
    } = sale;
    let status = match sale.window(now_ms) {
        WindowState::NotOpen { .. } => api::SaleStatus::NotOpen,
        WindowState::Closed { .. } => api::SaleStatus::Closed,
        WindowState::Open if *free == 0 => api::SaleStatus::SoldOut,
        WindowState::Open => api::SaleStatus::Open,
    };
    let item = api::Item {
        id: api::DEFAULT_ITEM_ID.to_owned(),
        title: title.clone(),
        total: *total,
        remaining: *free,
        price: None,
    };
    api::Sale {
        id: id.to_string(),
        title: title.clone(),
        status,
        total: (*total).into(),
        remaining: (*free).into(),
        buyer_limit: *buyer_limit,
        opens_at: opens_at_ms.map(time),
        closes_at: closes_at_ms.map(time),
        version: *version,
        items: vec![item],
    }
}

pub fn new_sale(new: api::NewSale) -> Result<NewSale, InvalidRequest> {
    let api::NewSale {
        id,
        title,
        total,
        items,
        buyer_limit,
        opens_at_ms,
        closes_at_ms,
    } = new;
    let total = match (total, items) {
        (Some(total), None) => total,
        (None, None) => return Err(invalid("a new sale must have a total")),
        (_, Some(_)) => return Err(items_unsupported()),
    };
    Ok(NewSale {
        id: SaleId::new(&id).map_err(invalid)?,
        title,
        total,
        buyer_limit,
        opens_at_ms,
        closes_at_ms,
    })
}

pub fn sale_change(change: api::SaleChange) -> Result<SaleChange, InvalidRequest> {
    let api::SaleChange {
        if_version,
        title,
        total,
        items,
        buyer_limit,
        opens_at_ms,
        closes_at_ms,
    } = change;
    if !items.is_empty() {
        return Err(items_unsupported());
    }
    Ok(SaleChange {
        if_version,
        title,
        total,
        buyer_limit,
        opens_at_ms,
        closes_at_ms,
    })
}

fn items_unsupported() -> InvalidRequest {
    invalid("this version does not support `items`; give the sale's `total` instead")
}

/// The confirmations that clients recorded.
pub fn history(entries: Vec<api::HistoryEntry>) -> Result<Vec<HistoryEntry>, InvalidRequest> {
    entries.into_iter().map(history_entry).collect()
}

fn history_entry(entry: api::HistoryEntry) -> Result<HistoryEntry, InvalidRequest> {
    let is_default = |unit: &api::HistoryUnit| {
        unit.item
            .as_deref()
            .is_none_or(|id| id == api::DEFAULT_ITEM_ID)
    };
    match entry.units.as_slice() {
        [unit] if is_default(unit) => Ok(HistoryEntry {
            order_id: OrderId::new(&entry.order_id).map_err(invalid)?,
            unit: unit.unit,
            sale: entry.sale,
        }),
        _ => Err(invalid(format!(
            "order {} of the history does not have exactly one unit of the item `{}`; \
             this version sells no other orders",
            entry.order_id,
            api::DEFAULT_ITEM_ID
        ))),
    }
}

pub(crate) fn order(order: Order) -> api::Order {
    let unit = unit(order.unit);
    api::Order {
        order_id: order.order_id.to_string(),
        sale: order.sale.to_string(),
        unit: Some(unit.unit),
        generation: Some(unit.generation),
        units: vec![unit],
        buyer: (!order.buyer.is_anonymous()).then(|| order.buyer.to_string()),
        idempotency_key: order.idempotency_key.map(|key| key.to_string()),
        state: order_state(order.state),
        date: order.date,
        cancelled_at: order.cancelled_at,
    }
}

pub(crate) fn unit(unit: Unit) -> api::Unit<'static> {
    api::Unit {
        item: Cow::Borrowed(api::DEFAULT_ITEM_ID),
        unit: unit.number,
        generation: unit.generation,
    }
}

pub(crate) fn order_state(state: OrderState) -> api::OrderState {
    match state {
        OrderState::Reserved => api::OrderState::Reserved,
        OrderState::Paid => api::OrderState::Paid,
        OrderState::Expired => api::OrderState::Expired,
        OrderState::Cancelled => api::OrderState::Cancelled,
    }
}

pub(crate) fn readiness(components: Vec<Component>) -> api::Readiness {
    let states = components.into_iter().map(|component| api::ComponentState {
        component: component.name.to_owned(),
        ready: component.ready,
        detail: component.detail,
    });
    let components: Vec<_> = states.collect();
    api::Readiness {
        ready: components.iter().all(|component| component.ready),
        components,
    }
}

/// Unix milliseconds as RFC 3339 in UTC.
pub(crate) fn time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms)
        .map_or_else(|_| at_ms.to_string(), |at| format!("{at:.3}"))
}

/// Unix milliseconds, for display only. Decisions use the engine's clock.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sale_has_the_default_item() {
        let mut new = NewSale::units(SaleId::new("phone").unwrap(), 9);
        new.opens_at_ms = Some(0);
        let sale = new.validate().unwrap();
        let view = super::sale(&SaleStock { sale, free: 0 }, 1);
        assert_eq!(
            serde_json::to_string(&view).unwrap(),
            r#"{"id":"phone","title":"phone","status":"sold_out","total":9,"remaining":0,"buyer_limit":null,"opens_at":"1970-01-01T00:00:00.000Z","closes_at":null,"version":1,"items":[{"id":"default","title":"phone","total":9,"remaining":0,"price":null}]}"#
        );
    }

    #[test]
    fn an_anonymous_order_has_a_null_buyer() {
        let order = super::order(Order {
            order_id: OrderId::new("01a2").unwrap(),
            sale: SaleId::new("phone").unwrap(),
            unit: Unit {
                number: 7,
                generation: 2,
            },
            buyer: seckill_sale::Buyer::anonymous(),
            idempotency_key: None,
            state: OrderState::Reserved,
            date: "2026-11-24T21:48:53.088Z".into(),
            cancelled_at: None,
        });
        assert_eq!((order.unit, order.generation), (Some(7), Some(2)));
        assert_eq!(order.units.len(), 1);
        assert_eq!(order.buyer, None);
    }

    #[test]
    fn items_are_refused() {
        let new = api::NewSale {
            id: "phone".into(),
            items: Some(vec![api::NewItem::default()]),
            ..api::NewSale::default()
        };
        let refused = new_sale(new).unwrap_err().to_string();
        assert!(refused.contains("`items`"), "{refused}");
        let change = api::SaleChange {
            items: vec![api::ItemChange::default()],
            ..api::SaleChange::default()
        };
        assert!(sale_change(change).is_err());
        let no_total = api::NewSale {
            id: "phone".into(),
            ..api::NewSale::default()
        };
        assert!(new_sale(no_total).is_err());
        let bad_id = api::NewSale {
            id: "a b".into(),
            total: Some(1),
            ..api::NewSale::default()
        };
        let refused = new_sale(bad_id).unwrap_err().to_string();
        assert!(refused.contains("sale id"), "{refused}");
    }

    #[test]
    fn a_history_has_one_unit_an_order() {
        let entry = |item: Option<&str>, count| api::HistoryEntry {
            order_id: "01a2".into(),
            sale: None,
            units: vec![
                api::HistoryUnit {
                    item: item.map(str::to_owned),
                    unit: 7,
                    generation: None,
                };
                count
            ],
            buyer: None,
            key: None,
        };
        let both = vec![entry(Some("default"), 1), entry(None, 1)];
        let read = history(both).unwrap();
        assert_eq!((read[0].unit, read[1].unit), (7, 7));
        assert!(history(vec![entry(Some("default"), 2)]).is_err());
        assert!(history(vec![entry(Some("S"), 1)]).is_err());
    }
}
