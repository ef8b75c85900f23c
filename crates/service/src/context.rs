//! What the connections of one event loop share. Nothing of it is written by another loop, so that
//! loops on different cores do not slow each other down.

use std::sync::Arc;

use axum::Router;
use seckill_engine::{Engine, Mailbox};
use seckill_sale::SaleId;
use tokio::runtime::Handle;

use crate::metrics::ResponseCounts;
use crate::{Service, ServiceOptions};

pub(crate) struct LoopContext {
    pub(crate) service: Arc<Service>,
    /// The loop's own copy of the default sale's id, since each attempt clones it.
    pub(crate) default_sale: SaleId,
    pub(crate) counts: Arc<ResponseCounts>,
    /// Where the engine posts the verdicts for the loop.
    pub(crate) mailbox: Mailbox,
    pub(crate) routes: Router,
    /// Runs the routes: they may take long, and would delay the attempts of the loop.
    pub(crate) background: Handle,
}

impl LoopContext {
    pub(crate) fn options(&self) -> &ServiceOptions {
        &self.service.options
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        self.service.engine.as_ref()
    }
}
