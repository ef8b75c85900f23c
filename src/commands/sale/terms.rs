//! The terms that the flags of `seckill sale` ask for, as requests of the API. The engine checks
//! the values.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, bail};
use seckill_api::{ItemChange, NewItem, NewSale, Price, Sale, SaleChange};
use seckill_sale::{Currency, ItemId, SaleId};

use crate::cli::{ChangeArgs, CreateArgs, ItemPrice, named_twice};

/// The request to create a sale. Without titles and prices, a sale of one item is only a total.
pub(super) fn new_sale(args: &CreateArgs) -> anyhow::Result<NewSale> {
    let totals = match (&args.items, args.units) {
        (Some(items), _) => items.0.clone(),
        (None, units) => vec![(ItemId::default(), units.unwrap_or_default())],
    };
    let names_items = args.items.is_some() || !args.item_title.is_empty() || !args.price.is_empty();
    let new_item = |(id, total): &(ItemId, u32)| NewItem {
        id: id.to_string(),
        total: *total,
        ..NewItem::default()
    };
    let mut items: Vec<NewItem> = totals.iter().map(new_item).collect();
    let place = |item: &ItemId, given: String, instead: &str| {
        let place = totals.iter().position(|(id, _)| id == item);
        place.with_context(|| match &args.items {
            Some(_) => format!("{given}: --items does not name the item {item}"),
            None => format!(
                "{given}: with --units, the only item has no name; give {instead}, or --items instead of --units"
            ),
        })
    };
    refuse_repeated(
        "--item-title",
        args.item_title.iter().map(|title| &title.item),
    )?;
    for title in &args.item_title {
        let given = format!("--item-title {}={}", title.item, title.title);
        let place = place(&title.item, given, "--title")?;
        items[place].title.clone_from(&title.title);
    }
    let mut priced = Vec::new();
    for price in &args.price {
        let item = match (&price.item, &totals[..]) {
            (Some(item), _) | (None, [(item, _)]) => item,
            (None, _) => {
                let first = &totals[0].0;
                bail!(
                    "--price {price}: the sale has several items; name one, such as --price {first}={price}"
                );
            }
        };
        priced.push(item);
        let alone = ItemPrice {
            item: None,
            ..price.clone()
        };
        let instead = format!("--price {alone}");
        let place = place(item, format!("--price {price}"), &instead)?;
        items[place].price = price_of(price, args.currency)?;
    }
    refuse_repeated("--price", priced)?;
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

/// A flag that may be repeated names each item once: otherwise it would be unclear which value
/// counts.
fn refuse_repeated<'a>(
    flag: &str,
    items: impl IntoIterator<Item = &'a ItemId>,
) -> anyhow::Result<()> {
    let mut named = HashSet::new();
    match items.into_iter().find(|item| !named.insert(*item)) {
        Some(item) => bail!("{flag}: {}", named_twice(item)),
        None => Ok(()),
    }
}

/// `None` removes the price.
fn price_of(price: &ItemPrice, currency: Option<Currency>) -> anyhow::Result<Option<Price>> {
    let Some(amount) = price.amount else {
        return Ok(None);
    };
    let missing = || format!("--price {price}: give --currency as well, such as CNY");
    let currency = currency.with_context(missing)?.to_string();
    Ok(Some(Price { amount, currency }))
}

/// A change that may depend on the current terms.
pub(super) struct Change {
    pub(super) terms: SaleChange,
    add_units: u32,
    /// Of the only item.
    price: Option<(ItemPrice, Option<Price>)>,
}

impl Change {
    pub(super) fn new(args: &ChangeArgs) -> anyhow::Result<Self> {
        let mut items = BTreeMap::<&ItemId, ItemChange>::new();
        for (id, total) in args.items.iter().flat_map(|items| &items.0) {
            items.entry(id).or_default().total = Some(*total);
        }
        refuse_repeated(
            "--item-title",
            args.item_title.iter().map(|title| &title.item),
        )?;
        for title in &args.item_title {
            if title.title.is_empty() {
                bail!("--item-title {}=: give a title", title.item);
            }
            items.entry(&title.item).or_default().title = Some(title.title.clone());
        }
        let priced = args.price.iter().filter_map(|price| price.item.as_ref());
        refuse_repeated("--price", priced)?;
        let mut of_only_item = None;
        for price in &args.price {
            let value = price_of(price, args.currency)?;
            match &price.item {
                Some(item) => items.entry(item).or_default().price = Some(value),
                None if of_only_item.is_none() => of_only_item = Some((price.clone(), value)),
                None => bail!("--price {price}: the price of the only item is given twice"),
            }
        }
        let named = items.into_iter().map(|(id, change)| ItemChange {
            id: id.to_string(),
            ..change
        });
        Ok(Self {
            add_units: args.add_units,
            price: of_only_item,
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
        if let Some((given, price)) = &self.price {
            let [only] = &read.items[..] else {
                let items: Vec<&str> = read.items.iter().map(|item| item.id.as_str()).collect();
                bail!(
                    "--price {given}: the sale {} has several items; name one of {}",
                    read.id,
                    items.join(", ")
                );
            };
            let named = terms.items.iter().position(|item| item.id == only.id);
            let place = named.unwrap_or_else(|| {
                terms.items.push(ItemChange {
                    id: only.id.clone(),
                    ..ItemChange::default()
                });
                terms.items.len() - 1
            });
            let change = &mut terms.items[place];
            if change.price.replace(price.clone()).is_some() {
                bail!("--price {given}: the price of the only item is given twice");
            }
        }
        Ok(terms)
    }
}
