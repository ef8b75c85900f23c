//! HTTP in front of an engine: what is let in, and how each verdict is said.
//! It decides nothing about a sale and knows no engine but the port.

mod connections;
mod control;
mod dispatch;
mod extract;
mod listen;
mod metrics;
mod problem;
mod responses;
mod routes;
mod sales;

use std::sync::Arc;

use seckill_engine::Engine;
use seckill_sale::SaleId;

pub use control::{CONTROL_SALES_PATH, ControlSocket};
pub use listen::serve;
pub use problem::{PROBLEM_TYPE_PREFIX, Problem};
pub use sales::{SaleStatus, SaleView};

use crate::metrics::Metrics;

/// The bounds of the service. Each is named as in the configuration file.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// The sale that `POST /seckill` sells from.
    pub default_sale: SaleId,
    /// Connections served at once; more wait to be accepted.
    pub max_connections: usize,
    /// The largest request head, in bytes; 8,192 is the least that the HTTP library takes.
    pub head_max_bytes: usize,
    /// The longest wait for a whole request head, also on an idle connection, in milliseconds.
    pub head_wait_ms: u64,
    /// The largest request body, in bytes.
    pub body_max_bytes: usize,
    /// The longest wait for a whole request body, in milliseconds.
    pub body_wait_ms: u64,
    /// The longest wait for open connections at the end, in milliseconds.
    pub shutdown_wait_ms: u64,
    /// What `Retry-After` says on a 503, in seconds.
    pub retry_after_s: u32,
}

impl ServiceOptions {
    /// The defaults, selling from this sale.
    pub fn new(default_sale: SaleId) -> Self {
        Self {
            default_sale,
            max_connections: 10_000,
            head_max_bytes: 16_384,
            head_wait_ms: 30_000,
            body_max_bytes: 16_384,
            body_wait_ms: 10_000,
            shutdown_wait_ms: 10_000,
            retry_after_s: 1,
        }
    }
}

/// What every request of a service shares.
pub struct Service {
    engine: Arc<dyn Engine>,
    options: ServiceOptions,
    metrics: Metrics,
}

impl Service {
    /// A service over this engine.
    pub fn new(engine: Arc<dyn Engine>, options: ServiceOptions) -> Self {
        let metrics = Metrics::new(Arc::clone(&engine));
        Self {
            engine,
            options,
            metrics,
        }
    }
}
