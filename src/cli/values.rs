//! The values of flags, and how they are read. An error says what to give instead.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use seckill_sale::{BUYER_LIMIT_MAX, ItemId, ORDER_UNITS_MAX};

/// A limit to set, or `None` to remove it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimitChange(pub(crate) Option<u32>);

/// A time to set, in Unix milliseconds, or `None` to remove it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MomentChange(pub(crate) Option<i64>);

/// Items and a total for each, each item once.
#[derive(Debug, Clone)]
pub(crate) struct ItemTotals(pub(crate) Vec<(ItemId, u32)>);

/// Items and a quantity for each, each item once, with at most [`ORDER_UNITS_MAX`] units in all.
#[derive(Debug, Clone)]
pub(crate) struct LinesArg(pub(crate) Vec<(String, u32)>);

/// Items, each once.
#[derive(Debug, Clone)]
pub(crate) struct ItemIds(pub(crate) Vec<String>);

/// A range of units of one order.
#[derive(Debug, Clone)]
pub(crate) struct QuantityArg(pub(crate) RangeInclusive<u32>);

#[derive(Debug, Clone)]
pub(crate) struct ItemTitle {
    pub(crate) item: ItemId,
    pub(crate) title: String,
}

/// A price in minor units, or `None` to remove it.
#[derive(Debug, Clone)]
pub(crate) struct ItemPrice {
    /// `None` for the only item of the sale.
    pub(crate) item: Option<ItemId>,
    pub(crate) amount: Option<u64>,
}

/// As it was given.
impl fmt::Display for ItemPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(item) = &self.item {
            write!(f, "{item}=")?;
        }
        match self.amount {
            Some(amount) => write!(f, "{amount}"),
            None => f.write_str(NO_PRICE),
        }
    }
}

/// The value that removes a price.
const NO_PRICE: &str = "none";

/// `ITEM=N` pairs, separated by commas.
fn pairs(text: &str, example: &str) -> Result<Vec<(ItemId, u32)>, String> {
    let mut pairs: Vec<(ItemId, u32)> = Vec::new();
    for part in text.split(',') {
        let wrong = || format!("{part:?}: give items with their units, such as {example}");
        let (item, number) = part.split_once('=').ok_or_else(wrong)?;
        let item = ItemId::new(item).map_err(|bad| bad.to_string())?;
        if pairs.iter().any(|(other, _)| *other == item) {
            return Err(named_twice(&item));
        }
        pairs.push((item, number.parse().map_err(|_| wrong())?));
    }
    Ok(pairs)
}

pub(super) fn totals(text: &str) -> Result<ItemTotals, String> {
    pairs(text, "S=40,M=40").map(ItemTotals)
}

pub(super) fn lines(text: &str) -> Result<LinesArg, String> {
    let pairs = pairs(text, "S=1,M=2")?;
    let units: u64 = pairs.iter().map(|(_, quantity)| u64::from(*quantity)).sum();
    let is_whole = pairs.iter().all(|(_, quantity)| *quantity > 0);
    if !is_whole || units > ORDER_UNITS_MAX.into() {
        return Err(format!(
            "give at least 1 unit of each item, and at most {ORDER_UNITS_MAX} in all"
        ));
    }
    let named = pairs
        .into_iter()
        .map(|(item, quantity)| (item.to_string(), quantity));
    Ok(LinesArg(named.collect()))
}

pub(super) fn quantity(text: &str) -> Result<QuantityArg, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 1 <= first && first <= last && last <= ORDER_UNITS_MAX => {
            Ok(QuantityArg(first..=last))
        }
        _ => Err(format!(
            "give a number from 1 to {ORDER_UNITS_MAX}, or a range such as 1-3"
        )),
    }
}

pub(super) fn item_ids(text: &str) -> Result<ItemIds, String> {
    let mut ids: Vec<String> = Vec::new();
    for part in text.split(',') {
        let item = ItemId::new(part).map_err(|bad| bad.to_string())?;
        if ids.iter().any(|other| *other == *item.as_str()) {
            return Err(named_twice(&item));
        }
        ids.push(item.to_string());
    }
    Ok(ItemIds(ids))
}

/// The message about an item that a list has twice.
pub(crate) fn named_twice(item: &ItemId) -> String {
    format!("the item {item} is named twice")
}

pub(super) fn item_title(text: &str) -> Result<ItemTitle, String> {
    let (item, title) = text
        .split_once('=')
        .ok_or("give an item and its title, such as S=Small")?;
    Ok(ItemTitle {
        item: ItemId::new(item).map_err(|bad| bad.to_string())?,
        title: title.to_owned(),
    })
}

/// The price of a new item.
pub(super) fn item_price(text: &str) -> Result<ItemPrice, String> {
    let (item, amount) = match text.split_once('=') {
        Some((item, amount)) => (Some(item), amount),
        None => (None, text),
    };
    let amount = amount.parse().map_err(|_| {
        "give an item and its price in minor units, such as S=1999, or for the only item the price alone"
            .to_owned()
    })?;
    let item = item.map(ItemId::new).transpose();
    Ok(ItemPrice {
        item: item.map_err(|bad| bad.to_string())?,
        amount: Some(amount),
    })
}

pub(super) fn item_price_or_none(text: &str) -> Result<ItemPrice, String> {
    let item = match text.rsplit_once('=') {
        Some((item, NO_PRICE)) => Some(ItemId::new(item).map_err(|bad| bad.to_string())?),
        None if text == NO_PRICE => None,
        _ => return item_price(text).map_err(|wrong| format!("{wrong}, or {NO_PRICE}")),
    };
    Ok(ItemPrice { item, amount: None })
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let right = || "give a time such as 5s, 500ms or 2m; a bare number counts seconds".to_owned();
    let seconds = text.parse::<f64>().ok();
    let parsed = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| right())?,
        None => {
            let span: jiff::SignedDuration = text.parse().map_err(|_| right())?;
            Duration::try_from(span).map_err(|_| right())?
        }
    };
    const MAX: Duration = Duration::from_secs(86_400);
    if parsed > MAX {
        return Err("give at most a day, such as 24h".into());
    }
    Ok(parsed)
}

pub(super) fn moment(text: &str) -> Result<i64, String> {
    if text == "now" {
        return Ok(jiff::Timestamp::now().as_millisecond());
    }
    const RIGHT: &str = "give a time with its offset, such as 2026-11-11T00:00:00+08:00, or now";
    // The parser would turn a leap second into the second before it.
    if text.contains(":60") {
        return Err(format!("second 60 does not exist; {RIGHT}"));
    }
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    parsed
        .map(jiff::Timestamp::as_millisecond)
        .map_err(|error| format!("{error}; {RIGHT}"))
}

pub(super) fn moment_or_none(text: &str) -> Result<MomentChange, String> {
    match text {
        "none" => Ok(MomentChange(None)),
        _ => moment(text).map(|at_ms| MomentChange(Some(at_ms))),
    }
}

pub(super) fn limit_or_none(text: &str) -> Result<LimitChange, String> {
    match text {
        "none" => Ok(LimitChange(None)),
        _ => match text.parse() {
            Ok(limit @ 1..=BUYER_LIMIT_MAX) => Ok(LimitChange(Some(limit))),
            _ => Err(format!(
                "give a number from 1 to {BUYER_LIMIT_MAX}, or none"
            )),
        },
    }
}

pub(super) fn method(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err("give a method such as POST or GET".into());
    }
    Ok(text.to_owned())
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    const MAX: usize = 60_000;
    match text.parse() {
        Ok(count) if (1..=MAX).contains(&count) => Ok(count),
        _ => Err(format!("give a number from 1 to {MAX}")),
    }
}

pub(super) fn buyers(text: &str) -> Result<seckill_loadgen::Buyers, String> {
    use seckill_loadgen::Buyers;
    match (text, text.parse()) {
        ("anonymous", _) => Ok(Buyers::Anonymous),
        ("unique", _) => Ok(Buyers::Unique),
        (_, Ok(count)) if count > 0 => Ok(Buyers::Repeating(count)),
        _ => Err("give anonymous, unique, or a number of buyers".into()),
    }
}

pub(super) fn keys(text: &str) -> Result<seckill_loadgen::Keys, String> {
    use seckill_loadgen::Keys;
    match (text, text.parse()) {
        ("none", _) => Ok(Keys::None),
        ("unique", _) => Ok(Keys::Unique),
        (_, Ok(count)) if count > 0 => Ok(Keys::PerBuyer(count)),
        _ => Err("give none, unique, or a number of keys per buyer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert!(duration("soon").is_err() && duration("-1s").is_err() && duration("2d").is_err());
        assert_eq!(moment("1970-01-01T08:00:01+08:00"), Ok(1_000));
        assert!(moment("2026-11-11").is_err());
        assert!(moment("2026-02-30T00:00:00Z").unwrap_err().contains("day"));
        assert!(moment("2026-11-11T00:00:60Z").unwrap_err().contains("60"));
    }

    #[test]
    fn items_are_parsed() {
        let item = |id: &str| ItemId::new(id).unwrap();
        assert_eq!(
            totals("S=40,M=0").unwrap().0,
            [(item("S"), 40), (item("M"), 0)]
        );
        for bad in ["", "S", "S=", "S=x", "S=1,S=2", "a b=1", "S=1,"] {
            assert!(totals(bad).is_err(), "{bad}");
        }
        assert_eq!(
            lines("S=1,M=2").unwrap().0,
            [("S".into(), 1), ("M".into(), 2)]
        );
        assert!(lines("S=0").is_err() && lines("S=16,M=1").is_err());
        assert_eq!(item_ids("S,M").unwrap().0, ["S", "M"]);
        for bad in ["", "S,", "S,a b", "S,M,S"] {
            assert!(item_ids(bad).is_err(), "{bad}");
        }
        assert_eq!(quantity("2").unwrap().0, 2..=2);
        assert_eq!(quantity("1-3").unwrap().0, 1..=3);
        for bad in ["0", "3-1", "17", "1-17", "x", "1-"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
        for (text, of_item, amount) in [
            ("S=1999", Some(item("S")), Some(1_999)),
            ("1999", None, Some(1_999)),
            ("S=none", Some(item("S")), None),
            ("none", None, None),
        ] {
            let price = item_price_or_none(text).unwrap();
            assert_eq!(price.to_string(), text);
            assert_eq!((&price.item, price.amount), (&of_item, amount));
            assert_eq!(item_price(text).is_ok(), amount.is_some(), "{text}");
        }
        for bad in ["S=19.99", "=1", "a b=none", "S=", ""] {
            assert!(item_price_or_none(bad).is_err(), "{bad}");
        }
        assert_eq!(item_title("S=a=b").unwrap().title, "a=b");
    }
}
