//! The terms that the flags of `seckill sale` ask for, as requests of the API. The engine checks
//! the values.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use seckill_api::{ItemChange, NewItem, NewSale, Price, Sale, SaleChange};
use seckill_sale::{Currency, ItemId, SaleId};

use crate::cli::{ChangeArgs, CreateArgs, ItemPrice};

/// The request to create a sale. Without titles and prices, a sale of one item is only a total.
pub(super) fn new_sale(args: &CreateArgs) -> anyhow::Result<NewSale> {
    let totals = match (&args.items, args.units) {
        (Some(items), _) => items.0.clone(),
        (None, units) => vec![(ItemId::default(), units.unwrap_or_default())],
    };
    let names_items = args.items.is_some() || !args.item_title.is_empty() || !args.price.is_empty();
    let mut items = Vec::new();
    for (id, total) in &totals {
        let title = args.item_title.iter().find(|title| title.item == *id);
        let price = args.price.iter().find(|price| price.item == *id);
        items.push(NewItem {
            id: id.to_string(),
            title: title.map(|title| title.title.clone()).unwrap_or_default(),
            total: *total,
            price: price.and_then(|price| of_item(price, args.currency)),
        });
    }
    let titles = args
        .item_title
        .iter()
        .map(|title| ("--item-title", &title.item));
    let prices = args.price.iter().map(|price| ("--price", &price.item));
    for (flag, item) in titles.chain(prices) {
        if !totals.iter().any(|(id, _)| id == item) {
            bail!("{flag} {item}=…: --items does not name the item {item}");
        }
    }
    Ok(NewSale {
        id: SaleId::new(&args.id)?.to_string(),
        title: args.title.clone().unwrap_or_default(),
        total: args.units.filter(|_| !names_items),
        items: names_items.then_some(items),
        buyer_limit: args.limit.and_then(|limit| limit.0),
        opens_at_ms: args.opens_at,
        closes_at_ms: args.closes_at,
    })
}

fn of_item(price: &ItemPrice, currency: Option<Currency>) -> Option<Price> {
    Some(Price {
        amount: price.amount?,
        currency: currency?.to_string(),
    })
}

/// A change whose total may depend on the current one.
pub(super) struct Change {
    pub(super) terms: SaleChange,
    add_units: u32,
}

impl Change {
    pub(super) fn new(args: &ChangeArgs) -> anyhow::Result<Self> {
        let mut items = BTreeMap::<&ItemId, ItemChange>::new();
        for (id, total) in args.items.iter().flat_map(|items| &items.0) {
            items.entry(id).or_default().total = Some(*total);
        }
        for title in &args.item_title {
            items.entry(&title.item).or_default().title = Some(title.title.clone());
        }
        for price in &args.price {
            let of_item = of_item(price, args.currency);
            if price.amount.is_some() && of_item.is_none() {
                bail!(
                    "--price {}=…: give --currency as well, such as CNY",
                    price.item
                );
            }
            items.entry(&price.item).or_default().price = Some(of_item);
        }
        let named = items.into_iter().map(|(id, change)| ItemChange {
            id: id.to_string(),
            ..change
        });
        Ok(Self {
            add_units: args.add_units,
            terms: SaleChange {
                if_version: args.if_version,
                title: args.title.clone(),
                total: args.units,
                items: named.collect(),
                buyer_limit: args.limit.map(|change| change.0),
                opens_at_ms: args.opens_at.map(|change| change.0),
                closes_at_ms: args.closes_at.map(|change| change.0),
            },
        })
    }

    /// The change for the version that was read, so that another change in between is detected.
    pub(super) fn of(&self, read: &Sale) -> anyhow::Result<SaleChange> {
        let mut terms = self.terms.clone();
        terms.if_version = terms.if_version.or(Some(read.version));
        let has_several = read.items.len() > 1;
        if has_several && (self.add_units > 0 || terms.total.is_some()) {
            let items: Vec<String> = read
                .items
                .iter()
                .map(|item| format!("{}={}", item.id, item.total))
                .collect();
            bail!(
                "the sale {} has several items: change their totals with --items, which are now {}",
                read.id,
                items.join(",")
            );
        }
        if self.add_units > 0 {
            let total = read.total.saturating_add(self.add_units.into());
            let too_many = || format!("--add-units {}: too many units", self.add_units);
            terms.total = Some(u32::try_from(total).with_context(too_many)?);
        }
        Ok(terms)
    }
}
