//! The HTTP service in front of an engine: checks requests, and turns verdicts into responses.
//! It makes no decisions about sales, and knows engines only through the port.

mod connections;
mod context;
mod control;
pub mod convert;
mod dispatch;
mod event_loop;
mod extract;
mod json;
mod metrics;
mod problem;
mod problem_extractors;
mod refusal;
mod responses;
mod routes;
mod workers;

use std::sync::Arc;

use seckill_engine::Engine;
use seckill_sale::{ORDER_UNITS_MAX, SaleId};

pub use control::{ControlSocket, connect_control};
pub use workers::Workers;

use crate::metrics::Metrics;

/// The limits of the service. Each limit has the name of its key in the configuration file.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// The sale that `POST /seckill` sells from.
    pub default_sale: SaleId,
    /// Threads that serve connections, at least 1.
    pub threads: usize,
    /// Connections served at once. Further ones get 503.
    pub max_connections: usize,
    /// The largest request head, in bytes. The HTTP library requires at least 8,192.
    pub head_max_bytes: usize,
    /// The longest wait for a whole request head, also on an idle connection, in milliseconds.
    pub head_wait_ms: u64,
    /// The largest request body, in bytes.
    pub body_max_bytes: usize,
    /// The longest wait for a whole request body, in milliseconds.
    pub body_wait_ms: u64,
    /// The most units in one order, at most [`ORDER_UNITS_MAX`]. Larger attempts are refused, unless
    /// their key has a claim.
    pub order_units_max: u32,
    /// The longest wait for open connections at shutdown, in milliseconds.
    pub shutdown_wait_ms: u64,
    /// The `Retry-After` of 202 and 503, in seconds.
    pub retry_after_s: u32,
}

impl ServiceOptions {
    pub fn new(default_sale: SaleId) -> Self {
        Self {
            default_sale,
            threads: 1,
            max_connections: 10_000,
            head_max_bytes: 16_384,
            head_wait_ms: 30_000,
            body_max_bytes: 16_384,
            body_wait_ms: 10_000,
            order_units_max: ORDER_UNITS_MAX,
            shutdown_wait_ms: 10_000,
            retry_after_s: 1,
        }
    }
}

/// The state that all requests share.
pub struct Service {
    engine: Arc<dyn Engine>,
    options: ServiceOptions,
    metrics: Metrics,
}

impl Service {
    pub fn new(engine: Arc<dyn Engine>, options: ServiceOptions) -> Self {
        let metrics = Metrics::new(Arc::clone(&engine), options.threads);
        Self {
            engine,
            options,
            metrics,
        }
    }
}
