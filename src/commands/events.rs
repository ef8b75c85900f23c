//! `seckill events`: prints a sale's feed, from the running service, the file or the store. It only
//! reads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use hyper::Method;
use seckill_api::{CONTROL_EVENTS_PATH, Event, EventData, SaleTerms, Unit};
use seckill_embedded::CONTROL_SOCKET_FILE;
use seckill_engine::Engine;
use seckill_sale::{SaleId, SaleRefused};
use seckill_service::convert;

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::EventsArgs;
use crate::configuration::{Configuration, EngineKind};
use crate::control_client::{self, ControlError};
use crate::output;
use crate::table::grouped;

/// The pause between two reads while there are no further events.
const FOLLOW_POLL: Duration = Duration::from_millis(200);
/// The longest wait for a running service.
const CONTROL_WAIT: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &EventsArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load([])?.configuration;
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    runtime.block_on(async {
        let feed = Feed::open(&configuration)?;
        let printed = if args.follow {
            tokio::select! {
                printed = follow(args, &feed) => printed,
                interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for Ctrl-C"),
            }
        } else {
            print_all(args, &feed).await
        };
        feed.close().await;
        printed
    })?;
    Ok(CommandOutcome::Ok)
}

/// Where the events come from.
enum Feed {
    /// The data folder: its running service or, if there is none, its file.
    Folder(PathBuf),
    Engine(Arc<dyn Engine>),
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    /// Repeating the request does not help.
    #[error("{0}")]
    Final(String),
    /// It may work later.
    #[error("{0}")]
    Passing(String),
}

/// A page of events, and whether a running service answered.
struct Page {
    events: Vec<Event>,
    is_served: bool,
}

impl Feed {
    fn open(configuration: &Configuration) -> anyhow::Result<Self> {
        Ok(match configuration.engine {
            EngineKind::Embedded => Self::Folder(configuration.embedded.data.clone()),
            EngineKind::Cluster => Self::Engine(bootstrap::engine(configuration, "events")?),
        })
    }

    async fn close(self) {
        if let Self::Engine(engine) = self {
            engine.close().await;
        }
    }

    async fn page(&self, sale: &SaleId, after: u64) -> Result<Page, FeedError> {
        let (found, is_served) = match self {
            Self::Folder(data) => {
                let is_served =
                    seckill_embedded::lock_owner(data).is_some_and(|owner| owner.takes_commands);
                if is_served {
                    let events = of_service(data, sale, after).await?;
                    return Ok(Page { events, is_served });
                }
                let read = seckill_embedded::events_of_file(data, sale, after);
                (
                    read.map_err(|error| FeedError::Passing(error.to_string()))?,
                    false,
                )
            }
            Self::Engine(engine) => {
                let read = engine.events(sale, after).await;
                (
                    read.map_err(|fault| FeedError::Passing(fault.to_string()))?,
                    true,
                )
            }
        };
        let missing = || FeedError::Final(SaleRefused::NoSuchSale(sale.clone()).to_string());
        let events = found.ok_or_else(missing)?.into_iter().map(convert::event);
        Ok(Page {
            events: events.collect(),
            is_served,
        })
    }
}

async fn of_service(data: &Path, sale: &SaleId, after: u64) -> Result<Vec<Event>, FeedError> {
    let socket = data.join(CONTROL_SOCKET_FILE);
    let path = format!("{CONTROL_EVENTS_PATH}?sale={sale}&after={after}");
    let nothing = None::<&()>;
    let asked = control_client::ask(&socket, Method::GET, &path, nothing, CONTROL_WAIT).await;
    asked.map_err(|error| match error {
        ControlError::Refused(detail) => FeedError::Final(detail),
        passing => FeedError::Passing(passing.to_string()),
    })
}

/// Prints the events that there are, page by page.
async fn print_all(args: &EventsArgs, feed: &Feed) -> anyhow::Result<()> {
    let mut after = args.after;
    loop {
        let page = feed.page(&args.sale, after).await?;
        let Some(last) = page.events.last() else {
            return Ok(());
        };
        after = last.sequence;
        if !print(&page.events, args.json)? {
            return Ok(());
        }
    }
}

/// Prints the events that there are and those to come, also those of a service that was restarted.
/// Ends only if nobody reads the output any more.
async fn follow(args: &EventsArgs, feed: &Feed) -> anyhow::Result<()> {
    let mut after = args.after;
    let mut was_served = None;
    let mut trouble = String::new();
    loop {
        match feed.page(&args.sale, after).await {
            Ok(page) => {
                if !trouble.is_empty() {
                    trouble.clear();
                    eprintln!("seckill: following again, from event {after} on");
                }
                match was_served.replace(page.is_served) {
                    Some(true) if !page.is_served => {
                        eprintln!("seckill: the service has stopped; waiting until it runs again");
                    }
                    Some(false) if page.is_served => {
                        eprintln!(
                            "seckill: the service is running, following from event {after} on"
                        );
                    }
                    _ => {}
                }
                if let Some(last) = page.events.last() {
                    after = last.sequence;
                    if !print(&page.events, args.json)? {
                        return Ok(());
                    }
                    continue;
                }
            }
            Err(FeedError::Passing(detail)) if was_served.is_some() => {
                if detail != trouble {
                    eprintln!("seckill: {detail}; trying again until it works");
                    trouble = detail;
                }
            }
            Err(error) => return Err(anyhow!(error)),
        }
        tokio::time::sleep(FOLLOW_POLL).await;
    }
}

fn print(events: &[Event], json: bool) -> anyhow::Result<bool> {
    let mut text = String::new();
    for event in events {
        if json {
            text.push_str(&serde_json::to_string(event)?);
        } else {
            text.push_str(&line(event));
        }
        text.push('\n');
    }
    output::print_more(text)
}

/// An event for people.
fn line(event: &Event) -> String {
    let (name, buyer, what) = match &event.data {
        EventData::OrderReserved(order) => {
            let buyer = order.buyer.as_deref().unwrap_or("-");
            ("order.reserved", buyer, units(&order.units))
        }
        EventData::OrderPaid(order) => ("order.paid", "-", units(&order.units)),
        EventData::OrderExpired(order) => ("order.expired", "-", units(&order.units)),
        EventData::OrderCancelled(order) => ("order.cancelled", "-", units(&order.units)),
        EventData::SaleCreated(sale) => ("sale.created", "-", terms(sale)),
        EventData::SaleChanged(sale) => ("sale.changed", "-", terms(sale)),
    };
    let subject = event.subject.as_deref().unwrap_or("-");
    format!(
        "{}  {:>7}  {name:<15}  {subject:<32}  {buyer}  {what}",
        event.time, event.sequence
    )
}

/// `S:7` is unit 7 of item S, `S:7@2` the same unit at generation 2.
fn units(units: &[Unit<'_>]) -> String {
    let text = |unit: &Unit<'_>| match unit.generation {
        1 => format!("{}:{}", unit.item, unit.unit),
        generation => format!("{}:{}@{generation}", unit.item, unit.unit),
    };
    units.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn terms(sale: &SaleTerms) -> String {
    let item =
        |item: &seckill_api::ItemTerms| format!("{}={}", item.id, grouped(item.total.into()));
    let items: Vec<_> = sale.items.iter().map(item).collect();
    format!("version {}, units {}", sale.version, items.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_api::{ReservedOrder, SpecVersion};

    #[test]
    fn a_line_has_the_units_of_an_order() {
        let unit = |item: &str, unit, generation| Unit {
            item: item.to_owned().into(),
            unit,
            generation,
        };
        let event = Event {
            specversion: SpecVersion::V1,
            id: "shirt/17".into(),
            source: "/v1/sales/shirt".into(),
            subject: Some("01a20f887de07026aaaea5f2f81f92d9".into()),
            time: "2026-11-25T01:02:03.004Z".into(),
            sequence: 17,
            data: EventData::OrderReserved(ReservedOrder {
                order_id: "01a20f887de07026aaaea5f2f81f92d9".into(),
                buyer: Some("ann".into()),
                idempotency_key: None,
                units: vec![unit("S", 7, 1), unit("M", 3, 2)],
            }),
        };
        assert_eq!(
            line(&event),
            "2026-11-25T01:02:03.004Z       17  order.reserved   01a20f887de07026aaaea5f2f81f92d9  ann  S:7 M:3@2"
        );
    }
}
