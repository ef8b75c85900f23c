//! `seckill events`: prints a sale's feed, from the running service, the file or the store. It only
//! reads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use hyper::Method;
use seckill_api::{CONTROL_EVENTS_PATH, Event, EventData, ItemTerms, SaleTerms, Unit};
use seckill_engine::Engine;
use seckill_sale::{SaleId, SaleRefused};
use seckill_service::convert;

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::EventsArgs;
use crate::configuration::{Configuration, EngineKind};
use crate::control_client::{self, ControlError};
use crate::data_folder::{self, FolderUser};
use crate::output;
use crate::table::grouped;

/// The pause between two reads while there are no further events.
const FOLLOW_POLL: Duration = Duration::from_millis(200);
/// After this many pages without an event, the feed is compared with what was read before.
const QUIET_PAGES_MAX: u32 = 25;
/// The longest wait for a running service.
const CONTROL_WAIT: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &EventsArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load([])?.configuration;
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    runtime.block_on(async {
        let feed = Feed::open(&configuration)?;
        let mut reader = Reader::new(&feed, args);
        let printed = if args.follow {
            tokio::select! {
                printed = follow(args, &mut reader) => printed,
                interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for Ctrl-C"),
            }
        } else {
            print_all(args, &mut reader).await
        };
        feed.close().await;
        printed
    })?;
    Ok(CommandOutcome::Ok)
}

/// Where the events come from.
enum Feed {
    /// The data folder: its running service or, if none answers, its file.
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

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The running service with this process id.
    Service(u32),
    /// The file of a running service that cannot be reached.
    FileOf(u32),
    /// The file, while no service is running.
    File,
    Engine,
}

struct Page {
    events: Vec<Event>,
    source: Source,
    /// Why the running service was not asked.
    unreachable: Option<std::io::Error>,
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
        let (found, source, unreachable) = match self {
            Self::Folder(data) => {
                let (source, unreachable) = match FolderUser::of(data).await {
                    FolderUser::Service { owner, socket } => {
                        return Ok(Page {
                            events: of_service(&socket, sale, after).await?,
                            source: Source::Service(owner.pid),
                            unreachable: None,
                        });
                    }
                    FolderUser::Busy {
                        owner,
                        error: Some(error),
                    } => (Source::FileOf(owner.pid), Some(error)),
                    FolderUser::Busy { error: None, .. } | FolderUser::Nobody => {
                        (Source::File, None)
                    }
                };
                // Readers of the file see committed events only.
                let read = seckill_embedded::events_of_file(data, sale, after);
                let read = read.map_err(|error| FeedError::Passing(error.to_string()))?;
                (read, source, unreachable)
            }
            Self::Engine(engine) => {
                let read = engine.events(sale, after).await;
                let read = read.map_err(|fault| FeedError::Passing(fault.to_string()))?;
                (read, Source::Engine, None)
            }
        };
        let missing = || FeedError::Final(SaleRefused::NoSuchSale(sale.clone()).to_string());
        let events = found.ok_or_else(missing)?.into_iter().map(convert::event);
        Ok(Page {
            events: events.collect(),
            source,
            unreachable,
        })
    }
}

async fn of_service(socket: &Path, sale: &SaleId, after: u64) -> Result<Vec<Event>, FeedError> {
    let path = format!("{CONTROL_EVENTS_PATH}?sale={sale}&after={after}");
    let nothing = None::<&()>;
    let asked = control_client::ask(socket, Method::GET, &path, nothing, CONTROL_WAIT).await;
    asked.map_err(|error| match error {
        ControlError::Refused(detail) => FeedError::Final(detail),
        passing => FeedError::Passing(passing.to_string()),
    })
}

/// Reads a sale's events page by page. Fails if the feed is not the one that was read before, as
/// after a backup was restored: the next numbers would belong to other events.
struct Reader<'a> {
    feed: &'a Feed,
    sale: &'a SaleId,
    after: u64,
    /// The event with number `after`, unless nothing was read yet.
    seen: Option<Event>,
    /// Of the previous page; `None` before the first one and after an error.
    source: Option<Source>,
    /// Pages without an event since the feed was checked.
    quiet_pages: u32,
}

impl<'a> Reader<'a> {
    fn new(feed: &'a Feed, args: &'a EventsArgs) -> Self {
        Self {
            feed,
            sale: &args.sale,
            after: args.after,
            seen: None,
            source: None,
            quiet_pages: 0,
        }
    }

    /// The next events; none if there are no more for now.
    async fn next(&mut self) -> Result<Page, FeedError> {
        let page = self.read().await;
        match &page {
            Ok(page) => {
                if let Some(error) = &page.unreachable
                    && self.source != Some(page.source)
                {
                    data_folder::note_unreachable(error);
                }
                self.source = Some(page.source);
                if let Some(last) = page.events.last() {
                    self.after = last.sequence;
                    self.seen = Some(last.clone());
                }
            }
            Err(_) => self.source = None,
        }
        page
    }

    async fn read(&mut self) -> Result<Page, FeedError> {
        let page = self.feed.page(self.sale, self.after).await?;
        self.quiet_pages += u32::from(page.events.is_empty());
        // Another process, or the file after a process has stopped, may have another feed.
        if self.source != Some(page.source) || self.quiet_pages >= QUIET_PAGES_MAX {
            self.check().await?;
            self.quiet_pages = 0;
        }
        Ok(page)
    }

    /// Checks that the feed still has what was read before.
    async fn check(&self) -> Result<(), FeedError> {
        const ADVICE: &str = "was a backup restored? start again with --after 0";
        let Some(before) = self.after.checked_sub(1) else {
            return Ok(());
        };
        let after = self.after;
        let events = self.feed.page(self.sale, before).await?.events;
        let Some(event) = events.first() else {
            let last = self.last().await?;
            return Err(FeedError::Final(format!(
                "the feed ends at event {last}, before {after}: {ADVICE}"
            )));
        };
        match &self.seen {
            Some(seen) if event.sequence == after && event != seen => Err(FeedError::Final(
                format!("event {after} is not the one that was read before: {ADVICE}"),
            )),
            // The event itself may be missing: rows were deleted, and an operator accepted that.
            _ => Ok(()),
        }
    }

    /// The number of the last event of a feed that ends before `after`; 0 if it is empty. Numbers
    /// only increase, so that a page is empty exactly after the last event.
    async fn last(&self) -> Result<u64, FeedError> {
        let (mut last, mut end) = (0, self.after);
        while end.saturating_sub(last) > 1 {
            let middle = last + (end - last) / 2;
            match self.feed.page(self.sale, middle - 1).await?.events.last() {
                Some(event) => last = event.sequence,
                None => end = middle,
            }
        }
        Ok(last)
    }
}

/// Prints the events that there are, page by page.
async fn print_all(args: &EventsArgs, reader: &mut Reader<'_>) -> anyhow::Result<()> {
    loop {
        let page = reader.next().await?;
        if page.events.is_empty() || !print(&page.events, args.json)? {
            return Ok(());
        }
    }
}

/// Prints the events that there are and those to come, also those of a service that was restarted.
/// Ends only if nobody reads the output any more.
async fn follow(args: &EventsArgs, reader: &mut Reader<'_>) -> anyhow::Result<()> {
    let mut was_served = None;
    let mut trouble = String::new();
    loop {
        let after = reader.after;
        match reader.next().await {
            Ok(page) => {
                if !trouble.is_empty() {
                    trouble.clear();
                    eprintln!("seckill: following again, from event {after} on");
                }
                let is_served = page.source != Source::File;
                match was_served.replace(is_served) {
                    Some(true) if !is_served => {
                        eprintln!("seckill: the service has stopped; waiting until it runs again");
                    }
                    Some(false) if is_served => {
                        eprintln!(
                            "seckill: the service is running, following from event {after} on"
                        );
                    }
                    _ => {}
                }
                if !page.events.is_empty() {
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
        if output::is_closed() {
            return Ok(());
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

/// In the place of a value that an event does not have.
const NONE: &str = "-";

/// A value that people can tell from the columns beside it.
fn column(value: &str) -> String {
    let is_plain = |c: char| !c.is_whitespace() && c != '"';
    if value != NONE && value.chars().all(is_plain) {
        value.to_owned()
    } else {
        format!("{value:?}")
    }
}

/// An event for people.
fn line(event: &Event) -> String {
    let (name, buyer, what) = match &event.data {
        EventData::OrderReserved(order) => (
            "order.reserved",
            order.buyer.as_deref(),
            units(&order.units),
        ),
        EventData::OrderPaid(order) => ("order.paid", None, units(&order.units)),
        EventData::OrderExpired(order) => ("order.expired", None, units(&order.units)),
        EventData::OrderCancelled(order) => ("order.cancelled", None, units(&order.units)),
        EventData::SaleCreated(sale) => ("sale.created", None, terms(sale)),
        EventData::SaleChanged(sale) => ("sale.changed", None, terms(sale)),
    };
    let buyer = buyer.map_or_else(|| NONE.to_owned(), column);
    let subject = event.subject.as_deref().unwrap_or(NONE);
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

/// All that a change may change, as far as it is set: limit, window, prices and titles.
fn terms(sale: &SaleTerms) -> String {
    let of_items = |value: &dyn Fn(&ItemTerms) -> Option<String>| {
        let item = |item: &ItemTerms| Some(format!("{}={}", item.id, value(item)?));
        let items: Vec<String> = sale.items.iter().filter_map(item).collect();
        (!items.is_empty()).then(|| items.join(" "))
    };
    let price = |item: &ItemTerms| {
        let price = item.price.as_ref()?;
        Some(format!("{} {}", grouped(price.amount), price.currency))
    };
    // A title that nobody chose says nothing.
    let title = |item: &ItemTerms| {
        let is_own = item.title != item.id && item.title != sale.title;
        is_own.then(|| format!("{:?}", item.title))
    };
    let parts = [
        ("version", Some(sale.version.to_string())),
        ("units", of_items(&|item| Some(grouped(item.total.into())))),
        ("prices", of_items(&price)),
        ("limit", sale.buyer_limit.map(|limit| limit.to_string())),
        ("opens", sale.opens_at.clone()),
        ("closes", sale.closes_at.clone()),
        (
            "title",
            (sale.title != sale.id).then(|| format!("{:?}", sale.title)),
        ),
        ("item titles", of_items(&title)),
    ];
    let part = |(name, value): (&str, Option<String>)| Some(format!("{name} {}", value?));
    let parts: Vec<String> = parts.into_iter().filter_map(part).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_api::{Price, ReservedOrder, SpecVersion};

    #[test]
    fn a_line_of_a_sale_has_all_terms_that_are_set() {
        let item = |id: &str, title: &str, price: Option<u64>| ItemTerms {
            id: id.into(),
            title: title.into(),
            total: 1_000,
            price: price.map(|amount| Price {
                amount,
                currency: "CNY".into(),
            }),
        };
        let plain = SaleTerms {
            id: "shirt".into(),
            title: "shirt".into(),
            items: vec![item("S", "S", None), item("M", "M", None)],
            buyer_limit: None,
            opens_at: None,
            closes_at: None,
            version: 1,
        };
        assert_eq!(terms(&plain), "version 1, units S=1,000 M=1,000");
        let all = SaleTerms {
            title: "A shirt".into(),
            items: vec![item("S", "Small", Some(1_999)), item("M", "M", None)],
            buyer_limit: Some(2),
            opens_at: Some("2026-11-25T01:02:03.004Z".into()),
            closes_at: Some("2026-11-26T01:02:03.004Z".into()),
            version: 2,
            ..plain
        };
        assert_eq!(
            terms(&all),
            "version 2, units S=1,000 M=1,000, prices S=1,999 CNY, limit 2, \
             opens 2026-11-25T01:02:03.004Z, closes 2026-11-26T01:02:03.004Z, title \"A shirt\", \
             item titles S=\"Small\""
        );
    }

    #[test]
    fn a_buyer_with_spaces_is_quoted() {
        assert_eq!(column("ann"), "ann");
        assert_eq!(column("ann lee"), r#""ann lee""#);
        assert_eq!(column("-"), r#""-""#);
        assert_eq!(column(r#"a"b"#), r#""a\"b""#);
    }

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
