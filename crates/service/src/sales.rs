//! A sale as clients and operators see it.

use seckill_engine::SaleStock;
use seckill_sale::{Sale, WindowState};
use serde::{Deserialize, Serialize};

use crate::responses::time;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaleStatus {
    NotOpen,
    Open,
    /// No unit is free now. It may become open again.
    SoldOut,
    Closed,
}

/// A sale's terms and its free units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaleView {
    pub id: String,
    pub title: String,
    pub status: SaleStatus,
    /// Units in total.
    pub total: u32,
    /// Free units.
    pub remaining: u32,
    /// Active orders that one buyer may hold; `None` means no limit.
    pub buyer_limit: Option<u32>,
    /// RFC 3339.
    pub opens_at: Option<String>,
    /// RFC 3339.
    pub closes_at: Option<String>,
    /// Each change adds one.
    pub version: u64,
}

impl SaleView {
    pub fn new(stock: &SaleStock, now_ms: i64) -> Self {
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
            WindowState::NotOpen { .. } => SaleStatus::NotOpen,
            WindowState::Closed { .. } => SaleStatus::Closed,
            WindowState::Open if *free == 0 => SaleStatus::SoldOut,
            WindowState::Open => SaleStatus::Open,
        };
        Self {
            id: id.to_string(),
            title: title.clone(),
            status,
            total: *total,
            remaining: *free,
            buyer_limit: *buyer_limit,
            opens_at: opens_at_ms.map(time),
            closes_at: closes_at_ms.map(time),
            version: *version,
        }
    }
}

/// Unix milliseconds, for display only. Decisions use the engine's clock.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
