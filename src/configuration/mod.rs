//! The configuration: a TOML file, overridden by the environment, overridden by flags.
//! Anything invalid must be refused here, before anything starts.

mod cluster;
mod layers;
mod values;

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;

use seckill_cluster::ClusterOptions;
use seckill_embedded::{EmbeddedOptions, LockOwner};
use seckill_sale::{ORDER_UNITS_MAX, SALE_TOTAL_MAX, SaleId};
use seckill_service::ServiceOptions;
use serde::Deserialize;

use cluster::ClusterSection;
pub(crate) use layers::{Flag, Loaded, load};
use values::{Between, address};

/// The default file, with a comment on every key.
pub(crate) const DEFAULT_FILE: &str = include_str!("default.toml");

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum EngineKind {
    Embedded,
    Cluster,
}

impl TryFrom<String> for EngineKind {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        match name.as_str() {
            "embedded" => Ok(Self::Embedded),
            "cluster" => Ok(Self::Cluster),
            _ => Err("it must be embedded or cluster"),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configuration {
    pub(crate) engine: EngineKind,
    pub(crate) service: ServiceSection,
    pub(crate) sale: SaleSection,
    pub(crate) embedded: EmbeddedSection,
    cluster: ClusterSection,
}

const HOUR_MS: u64 = 3_600_000;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceSection {
    #[serde(deserialize_with = "address")]
    pub(crate) listen: SocketAddr,
    pub(crate) threads: Between<0, 1_024>,
    max_connections: Between<1, 1_000_000>,
    backlog: Between<1, 65_535>,
    head_max_bytes: Between<8_192, 1_048_576>,
    body_max_bytes: Between<256, 1_048_576>,
    head_wait_ms: Between<10, HOUR_MS>,
    body_wait_ms: Between<10, HOUR_MS>,
    order_units_max: Between<1, { ORDER_UNITS_MAX as u64 }>,
    shutdown_wait_ms: Between<0, HOUR_MS>,
    retry_after_s: Between<1, 3_600>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaleSection {
    pub(crate) id: SaleId,
    units: Between<0, { SALE_TOTAL_MAX as u64 }>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddedSection {
    pub(crate) data: PathBuf,
    queue_max: Between<1, 10_000_000>,
    batch_max: Between<1, 100_000>,
    answer_wait_ms: Between<10, HOUR_MS>,
    busy_wait_ms: Between<0, 60_000>,
    rebuild_pause_max_ms: Between<50, HOUR_MS>,
    cache_kib: Between<1_024, 67_108_864>,
    checkpoint_pages: Between<16, 1_000_000>,
}

impl Configuration {
    pub(crate) fn units(&self) -> u32 {
        // Bounded by SALE_TOTAL_MAX, which is a u32.
        self.sale.units.get() as u32
    }

    pub(crate) fn backlog(&self) -> u32 {
        // Bounded by 65,535.
        self.service.backlog.get() as u32
    }

    pub(crate) fn service_options(&self) -> ServiceOptions {
        let service = &self.service;
        ServiceOptions {
            default_sale: self.sale.id.clone(),
            threads: match service.threads.get() {
                0 => std::thread::available_parallelism().map_or(1, NonZero::get),
                threads => threads as usize,
            },
            max_connections: service.max_connections.get() as usize,
            head_max_bytes: service.head_max_bytes.get() as usize,
            head_wait_ms: service.head_wait_ms.get(),
            body_max_bytes: service.body_max_bytes.get() as usize,
            body_wait_ms: service.body_wait_ms.get(),
            order_units_max: service.order_units_max.get() as u32,
            shutdown_wait_ms: service.shutdown_wait_ms.get(),
            retry_after_s: service.retry_after_s.get() as u32,
        }
    }

    pub(crate) fn cluster_options(&self) -> ClusterOptions {
        self.cluster.options()
    }

    pub(crate) fn embedded_options(&self, owner: LockOwner) -> EmbeddedOptions {
        let embedded = &self.embedded;
        EmbeddedOptions {
            owner,
            queue_max: embedded.queue_max.get() as usize,
            batch_max: embedded.batch_max.get() as usize,
            answer_wait_ms: embedded.answer_wait_ms.get(),
            busy_wait_ms: embedded.busy_wait_ms.get() as u32,
            rebuild_pause_max_ms: embedded.rebuild_pause_max_ms.get(),
            cache_kib: embedded.cache_kib.get() as u32,
            checkpoint_pages: embedded.checkpoint_pages.get() as u32,
            ..EmbeddedOptions::new(&embedded.data)
        }
    }
}
