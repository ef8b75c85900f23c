//! Sales and their items as tables.

use seckill_api::{Item, Sale};

use crate::table::{self, grouped};

/// One line a sale.
pub(super) fn of_sales(views: &[Sale]) -> String {
    let none = || "-".to_owned();
    let row = |view: &Sale| {
        [
            view.id.clone(),
            view.status.to_string(),
            grouped(view.total),
            grouped(view.remaining),
            view.version.to_string(),
            view.buyer_limit
                .map_or_else(none, |limit| limit.to_string()),
            view.opens_at.clone().unwrap_or_else(none),
            view.closes_at.clone().unwrap_or_else(none),
            view.title.clone(),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    let heads = [
        "SALE", "STATUS", "UNITS", "LEFT", "VERSION", "LIMIT", "OPENS", "CLOSES", "TITLE",
    ];
    table::columns(heads, &rows)
}

/// One sale, and its items unless they say nothing more.
pub(super) fn of_sale(view: &Sale) -> String {
    let mut text = of_sales(std::slice::from_ref(view));
    if view.items.len() > 1 || view.items.iter().any(|item| item.price.is_some()) {
        text.push('\n');
        text.push_str(&of_items(&view.items));
    }
    text
}

fn of_items(items: &[Item]) -> String {
    let price = |item: &Item| match &item.price {
        Some(price) => format!("{} {}", grouped(price.amount), price.currency),
        None => "-".to_owned(),
    };
    let row = |item: &Item| {
        [
            item.id.clone(),
            grouped(item.total.into()),
            grouped(item.remaining.into()),
            price(item),
            item.title.clone(),
        ]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    let heads = ["ITEM", "UNITS", "LEFT", "PRICE IN MINOR UNITS", "TITLE"];
    table::columns(heads, &rows)
}
