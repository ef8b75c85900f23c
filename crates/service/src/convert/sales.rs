//! Sales, and the operators' requests to create and change them. The engine checks the values.

use seckill_api as api;
use seckill_engine::SaleStock;
use seckill_sale::{
    Currency, Item, ItemChange, ItemId, NewItem, NewSale, Price, Sale, SaleChange, SaleId,
    WindowState,
};

use super::{InvalidRequest, invalid, time};

/// A sale as clients and operators see it.
pub fn sale(stock: &SaleStock, now_ms: i64) -> api::Sale {
    let SaleStock { sale, free } = stock;
    let status = match sale.window(now_ms) {
        WindowState::NotOpen { .. } => api::SaleStatus::NotOpen,
        WindowState::Closed { .. } => api::SaleStatus::Closed,
        WindowState::Open if stock.remaining() == 0 => api::SaleStatus::SoldOut,
        WindowState::Open => api::SaleStatus::Open,
    };
    let item = |(index, item): (usize, &Item)| api::Item {
        id: item.id.to_string(),
        title: item.title.clone(),
        total: item.total,
        remaining: free.get(index).copied().unwrap_or(0),
        price: item.price.map(price),
    };
    api::Sale {
        id: sale.id.to_string(),
        title: sale.title.clone(),
        status,
        total: sale.total().into(),
        remaining: stock.remaining().into(),
        buyer_limit: sale.buyer_limit,
        opens_at: sale.opens_at_ms.map(time),
        closes_at: sale.closes_at_ms.map(time),
        version: sale.version,
        items: sale.items.iter().enumerate().map(item).collect(),
    }
}

/// A sale without its stock.
pub(super) fn terms(sale: Sale) -> api::SaleTerms {
    let item = |item: Item| api::ItemTerms {
        id: item.id.to_string(),
        title: item.title,
        total: item.total,
        price: item.price.map(price),
    };
    api::SaleTerms {
        id: sale.id.to_string(),
        title: sale.title,
        items: sale.items.into_iter().map(item).collect(),
        buyer_limit: sale.buyer_limit,
        opens_at: sale.opens_at_ms.map(time),
        closes_at: sale.closes_at_ms.map(time),
        version: sale.version,
    }
}

fn price(price: Price) -> api::Price {
    api::Price {
        amount: price.amount,
        currency: price.currency.to_string(),
    }
}

fn read_price(price: &api::Price) -> Result<Price, InvalidRequest> {
    Ok(Price {
        amount: price.amount,
        currency: Currency::new(&price.currency).map_err(invalid)?,
    })
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
    let id = SaleId::new(&id).map_err(invalid)?;
    let items = match (total, items) {
        (Some(total), None) => NewSale::units(id.clone(), total).items,
        (None, Some(items)) => items.into_iter().map(new_item).collect::<Result<_, _>>()?,
        (None, None) => return Err(invalid("a new sale must have a total or items")),
        (Some(_), Some(_)) => {
            return Err(invalid(
                "a new sale cannot have both a total and items: the total is the sum of the items'",
            ));
        }
    };
    Ok(NewSale {
        id,
        title,
        items,
        buyer_limit,
        opens_at_ms,
        closes_at_ms,
    })
}

fn new_item(new: api::NewItem) -> Result<NewItem, InvalidRequest> {
    Ok(NewItem {
        id: ItemId::new(&new.id).map_err(invalid)?,
        title: new.title,
        total: new.total,
        price: new.price.as_ref().map(read_price).transpose()?,
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
    Ok(SaleChange {
        if_version,
        title,
        total,
        items: items
            .into_iter()
            .map(item_change)
            .collect::<Result<_, _>>()?,
        buyer_limit,
        opens_at_ms,
        closes_at_ms,
    })
}

fn item_change(change: api::ItemChange) -> Result<ItemChange, InvalidRequest> {
    let price = match change.price {
        Some(Some(price)) => Some(Some(read_price(&price)?)),
        Some(None) => Some(None),
        None => None,
    };
    Ok(ItemChange {
        id: ItemId::new(&change.id).map_err(invalid)?,
        title: change.title,
        total: change.total,
        price,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cny(amount: u64) -> api::Price {
        api::Price {
            amount,
            currency: "CNY".into(),
        }
    }

    fn item(id: &str, total: u32, price: Option<api::Price>) -> api::NewItem {
        api::NewItem {
            id: id.into(),
            title: String::new(),
            total,
            price,
        }
    }

    fn shirt() -> api::NewSale {
        api::NewSale {
            id: "shirt".into(),
            items: Some(vec![item("S", 4, Some(cny(1_999))), item("M", 5, None)]),
            ..api::NewSale::default()
        }
    }

    #[test]
    fn a_sale_of_one_item_has_the_default_item() {
        let mut new = NewSale::units(SaleId::new("phone").unwrap(), 9);
        new.opens_at_ms = Some(0);
        let sale = new.validate().unwrap();
        let view = super::sale(
            &SaleStock {
                sale,
                free: vec![0],
            },
            1,
        );
        assert_eq!(
            serde_json::to_string(&view).unwrap(),
            r#"{"id":"phone","title":"phone","status":"sold_out","total":9,"remaining":0,"buyer_limit":null,"opens_at":"1970-01-01T00:00:00.000Z","closes_at":null,"version":1,"items":[{"id":"default","title":"phone","total":9,"remaining":0,"price":null}]}"#
        );
    }

    #[test]
    fn totals_of_a_sale_are_sums_over_its_items() {
        let sale = new_sale(shirt()).unwrap().validate().unwrap();
        let free = vec![0, 2];
        let view = super::sale(&SaleStock { sale, free }, 1);
        assert_eq!((view.total, view.remaining), (9, 2));
        assert_eq!(view.status, api::SaleStatus::Open);
        let items: Vec<_> = view
            .items
            .iter()
            .map(|item| (&*item.id, item.remaining))
            .collect();
        assert_eq!(items, [("S", 0), ("M", 2)]);
        assert_eq!(view.items[0].price, Some(cny(1_999)));
    }

    #[test]
    fn a_new_sale_has_either_a_total_or_items() {
        let both = api::NewSale {
            total: Some(1),
            ..shirt()
        };
        assert!(new_sale(both).unwrap_err().to_string().contains("both"));
        let none = api::NewSale {
            items: None,
            ..shirt()
        };
        assert!(
            new_sale(none)
                .unwrap_err()
                .to_string()
                .contains("total or items")
        );
        for (bad, expected) in [
            (item("a b", 1, None), "item id"),
            (
                item(
                    "S",
                    1,
                    Some(api::Price {
                        currency: "yuan".into(),
                        ..cny(1)
                    }),
                ),
                "ISO 4217",
            ),
        ] {
            let new = api::NewSale {
                items: Some(vec![bad]),
                ..shirt()
            };
            let refused = new_sale(new).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        let bad_id = api::NewSale {
            id: "a b".into(),
            ..shirt()
        };
        let refused = new_sale(bad_id).unwrap_err().to_string();
        assert!(refused.contains("sale id"), "{refused}");
    }

    #[test]
    fn a_change_names_items() {
        let change = api::SaleChange {
            items: vec![
                api::ItemChange {
                    id: "S".into(),
                    total: Some(5),
                    price: Some(None),
                    ..api::ItemChange::default()
                },
                api::ItemChange {
                    id: "M".into(),
                    price: Some(Some(cny(5))),
                    ..api::ItemChange::default()
                },
            ],
            ..api::SaleChange::default()
        };
        let read = sale_change(change).unwrap();
        assert_eq!(
            (read.items[0].total, read.items[0].price),
            (Some(5), Some(None))
        );
        let price = read.items[1].price.flatten().map(|price| price.amount);
        assert_eq!((read.items[1].total, price), (None, Some(5)));
    }
}
