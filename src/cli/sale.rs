//! The flags of `seckill sale`.

use clap::{Args, Subcommand};
use seckill_sale::Currency;

use super::values::{
    LimitChange, MomentChange, item_price, item_price_or_none, item_title, limit_or_none, moment,
    moment_or_none, totals,
};
use super::{Common, ItemPrice, ItemTitle, ItemTotals};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill sale create phone --units 500 --limit 2 --opens-at 2026-11-11T00:00:00+08:00
  seckill sale create shirt --items S=40,M=40,L=20
  seckill sale list --json
  seckill sale show phone
  seckill sale change phone --units 600
  seckill sale change phone --limit none --closes-at now

A running service applies a change at once. The change is stored when the command returns.")]
pub(crate) struct SaleArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) action: SaleAction,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SaleAction {
    /// Create a sale
    Create(CreateArgs),
    /// Show all sales
    #[command(after_help = "Examples:
  seckill sale list
  seckill sale list --json")]
    List,
    /// Show one sale
    #[command(after_help = "Example:
  seckill sale show phone")]
    Show {
        /// Id of the sale
        id: String,
    },
    /// Change a sale; either all given changes are applied or none
    Change(ChangeArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill sale create phone --units 500
  seckill sale create phone --units 500 --limit 2 --title 'Phone, 256 GB'
  seckill sale create phone --units 500 --price 499900 --currency CNY
  seckill sale create shirt --items S=40,M=40,L=20 --item-title S=Small --item-title M=Medium
  seckill sale create shirt --items S=40,L=20 --price S=1999 --price L=2499 --currency CNY
  seckill sale create phone --units 500 --opens-at 2026-11-11T00:00:00+08:00

An order may have units of several items. It gets all of them or none.")]
pub(crate) struct CreateArgs {
    /// Id: 1 to 64 of A-Z a-z 0-9 _ . -
    pub(crate) id: String,
    /// Units in total, of a sale with one item
    #[arg(
        long,
        value_name = "N",
        required_unless_present = "items",
        conflicts_with = "items"
    )]
    pub(crate) units: Option<u32>,
    /// Items and their units, such as S=40,M=40,L=20. Items cannot be added or removed later
    #[arg(long, value_name = "ITEM=N,…", value_parser = totals)]
    pub(crate) items: Option<ItemTotals>,
    /// Title of an item; may be repeated [default: the item's id; with --units, the sale's title]
    #[arg(long, value_name = "ITEM=TITLE", value_parser = item_title)]
    pub(crate) item_title: Vec<ItemTitle>,
    /// Price of an item's unit in minor units of --currency, such as cents; may be repeated. The
    /// number alone is the price of the only item
    #[arg(long, value_name = "[ITEM=]N", value_parser = item_price, requires = "currency")]
    pub(crate) price: Vec<ItemPrice>,
    /// Currency of the prices: a code of ISO 4217 such as CNY
    #[arg(long, value_name = "CODE", value_parser = Currency::new, requires = "price")]
    pub(crate) currency: Option<Currency>,
    /// Title [default: the id]
    #[arg(long)]
    pub(crate) title: Option<String>,
    /// Limit of active units per buyer: 1 to 64, or none [default: none]
    #[arg(long, value_name = "N", value_parser = limit_or_none)]
    pub(crate) limit: Option<LimitChange>,
    /// Opening time: RFC 3339 such as 2026-11-11T00:00:00+08:00, or now [default: already open]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) opens_at: Option<i64>,
    /// Closing time: RFC 3339, or now [default: never]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) closes_at: Option<i64>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill sale change phone --units 600
  seckill sale change phone --add-units 100 --if-version 3
  seckill sale change shirt --items S=50,M=60
  seckill sale change shirt --price S=1799 --price L=none --currency CNY
  seckill sale change phone --limit none --closes-at now

The command reads the sale first, and its change is refused if the sale has changed since. On a \
cluster, the command returns once no server can still apply the old terms (see cluster.lease_ms).")]
pub(crate) struct ChangeArgs {
    /// Id of the sale
    pub(crate) id: String,
    /// Title
    #[arg(long)]
    pub(crate) title: Option<String>,
    /// Units in total, of a sale with one item; it may be lowered as long as no sold unit has a
    /// higher number
    #[arg(long, value_name = "N", conflicts_with_all = ["add_units", "items"])]
    pub(crate) units: Option<u32>,
    /// Units to add to the total of a sale with one item
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "items")]
    pub(crate) add_units: u32,
    /// Units in total of named items, such as S=50,M=60; other items keep theirs
    #[arg(long, value_name = "ITEM=N,…", value_parser = totals)]
    pub(crate) items: Option<ItemTotals>,
    /// Title of an item; may be repeated
    #[arg(long, value_name = "ITEM=TITLE", value_parser = item_title)]
    pub(crate) item_title: Vec<ItemTitle>,
    /// Price of an item's unit in minor units of --currency, or none; may be repeated. The number
    /// alone is the price of the only item
    #[arg(long, value_name = "[ITEM=]N", value_parser = item_price_or_none)]
    pub(crate) price: Vec<ItemPrice>,
    /// Currency of the prices: a code of ISO 4217 such as CNY
    #[arg(long, value_name = "CODE", value_parser = Currency::new, requires = "price")]
    pub(crate) currency: Option<Currency>,
    /// Limit of active units per buyer: 1 to 64, or none
    #[arg(long, value_name = "N", value_parser = limit_or_none)]
    pub(crate) limit: Option<LimitChange>,
    /// Opening time: RFC 3339, now, or none
    #[arg(long, value_name = "TIME", value_parser = moment_or_none)]
    pub(crate) opens_at: Option<MomentChange>,
    /// Closing time: RFC 3339, now, or none
    #[arg(long, value_name = "TIME", value_parser = moment_or_none)]
    pub(crate) closes_at: Option<MomentChange>,
    /// Change the sale only if it has this version [default: the version that the command reads]
    #[arg(long, value_name = "VERSION")]
    pub(crate) if_version: Option<u64>,
}
