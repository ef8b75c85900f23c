//! `seckill sale`: makes, shows and changes sales; through the running service where there is one, else in the file.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hyper::Method;
use seckill_embedded::DATABASE_FILE;
use seckill_engine::{Engine, SaleStock};
use seckill_sale::{NewSale, SaleChange, SaleId};
use seckill_service::{CONTROL_SALES_PATH, SaleView};

use crate::CommandOutcome;
use crate::cli::{SaleAction, SaleArgs};
use crate::commands::demo;
use crate::configuration::{Configuration, EngineKind};
use crate::table::{self, grouped};
use crate::{bootstrap, control_client};

/// Where sales are kept now.
enum Sales {
    /// In a service that runs.
    Service(PathBuf),
    /// In the engine that this process has opened.
    Here(std::sync::Arc<dyn Engine>),
}

pub(crate) fn run(args: &SaleArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load([])?.configuration;
    let action = Action::new(&args.action)?;
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    let views = runtime.block_on(async {
        let sales = find(&configuration, &action)?;
        let views = sales.carry_out(&action).await;
        if configuration.engine == EngineKind::Embedded {
            demo::keep(&configuration.embedded.data)?;
        }
        if let Sales::Here(engine) = sales {
            engine.close().await;
        }
        views
    })?;
    if args.json {
        let is_list = matches!(action, Action::List);
        let json = match views.first() {
            Some(view) if !is_list => serde_json::to_string_pretty(view)?,
            _ => serde_json::to_string_pretty(&views)?,
        };
        println!("{json}");
    } else {
        print!("{}", table_of(&views));
    }
    Ok(CommandOutcome::Ok)
}

/// The action with its names and terms checked.
enum Action {
    Create(NewSale),
    List,
    Show(SaleId),
    Change(SaleId, SaleChange),
}

impl Action {
    fn new(action: &SaleAction) -> anyhow::Result<Self> {
        Ok(match action {
            SaleAction::Create {
                id,
                units,
                title,
                limit,
                opens_at,
                closes_at,
            } => Self::Create(NewSale {
                id: SaleId::new(id)?,
                title: title.clone().unwrap_or_default(),
                total: *units,
                buyer_limit: *limit,
                opens_at_ms: *opens_at,
                closes_at_ms: *closes_at,
            }),
            SaleAction::List => Self::List,
            SaleAction::Show { id } => Self::Show(SaleId::new(id)?),
            SaleAction::Change {
                id,
                title,
                add_units,
                limit,
                opens_at,
                closes_at,
            } => Self::Change(
                SaleId::new(id)?,
                SaleChange {
                    title: title.clone(),
                    add_units: *add_units,
                    buyer_limit: limit.map(|change| change.0),
                    opens_at_ms: opens_at.map(|change| change.0),
                    closes_at_ms: closes_at.map(|change| change.0),
                },
            ),
        })
    }
}

fn find(configuration: &Configuration, action: &Action) -> anyhow::Result<Sales> {
    match configuration.engine {
        EngineKind::Embedded => {
            let data: &Path = &configuration.embedded.data;
            if let Some(owner) = seckill_embedded::lock_owner(data) {
                return match owner.control_socket {
                    Some(socket) => Ok(Sales::Service(socket)),
                    None => bail!(
                        "{} is in use by {owner}; try again when it has ended",
                        data.display()
                    ),
                };
            }
            let database = data.join(DATABASE_FILE);
            // Only making a sale may make a database; a mistyped folder must not become one.
            if !matches!(action, Action::Create(_)) && !database.exists() {
                bail!(
                    "there is no {}; `seckill serve` or `seckill sale create` makes one",
                    database.display()
                );
            }
            Ok(Sales::Here(bootstrap::engine(
                configuration,
                "sale".into(),
                None,
            )?))
        }
        EngineKind::Cluster => Ok(Sales::Here(bootstrap::engine(
            configuration,
            "sale".into(),
            None,
        )?)),
    }
}

impl Sales {
    async fn carry_out(&self, action: &Action) -> anyhow::Result<Vec<SaleView>> {
        match self {
            Self::Service(socket) => through_service(socket, action).await,
            Self::Here(engine) => in_engine(engine.as_ref(), action).await,
        }
    }
}

async fn through_service(socket: &Path, action: &Action) -> anyhow::Result<Vec<SaleView>> {
    let of = |id: &SaleId| format!("{CONTROL_SALES_PATH}/{id}");
    let nothing = None::<&()>;
    let one = match action {
        Action::List => return list_through_service(socket).await,
        Action::Show(id) => control_client::ask(socket, Method::GET, &of(id), nothing).await,
        Action::Create(new) => {
            control_client::ask(socket, Method::POST, CONTROL_SALES_PATH, Some(new)).await
        }
        Action::Change(id, change) => {
            control_client::ask(socket, Method::PATCH, &of(id), Some(change)).await
        }
    };
    one.map(|view| vec![view])
}

/// All pages of the list.
async fn list_through_service(socket: &Path) -> anyhow::Result<Vec<SaleView>> {
    let mut all: Vec<SaleView> = Vec::new();
    loop {
        let path = match all.last() {
            Some(last) => format!("{CONTROL_SALES_PATH}?after={}", last.id),
            None => CONTROL_SALES_PATH.to_owned(),
        };
        let page: Vec<SaleView> =
            control_client::ask(socket, Method::GET, &path, None::<&()>).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

async fn in_engine(engine: &dyn Engine, action: &Action) -> anyhow::Result<Vec<SaleView>> {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let view = |stock: &SaleStock| SaleView::new(stock, now_ms);
    let id = match action {
        Action::List => {
            let mut all: Vec<SaleStock> = Vec::new();
            loop {
                let after = all.last().map(|stock| stock.sale.id.clone());
                let page = engine.sales(after).await?;
                if page.is_empty() {
                    return Ok(all.iter().map(view).collect());
                }
                all.extend(page);
            }
        }
        Action::Show(id) => id.clone(),
        Action::Create(new) => engine.create_sale(new.clone()).await??.id,
        Action::Change(id, change) => engine.change_sale(id, change.clone()).await??.id,
    };
    let stock = engine.sale(&id).await?;
    let stock = stock.with_context(|| {
        format!("there is no sale {id}; `seckill sale list` shows those there are")
    })?;
    Ok(vec![view(&stock)])
}

fn table_of(views: &[SaleView]) -> String {
    let none = || "-".to_owned();
    let rows: Vec<[String; 8]> = views
        .iter()
        .map(|view| {
            let status = serde_json::to_value(view.status);
            [
                view.id.clone(),
                status
                    .ok()
                    .and_then(|word| word.as_str().map(str::to_owned))
                    .unwrap_or_else(none),
                grouped(view.total.into()),
                grouped(view.remaining.into()),
                view.buyer_limit
                    .map_or_else(none, |limit| limit.to_string()),
                view.opens_at.clone().unwrap_or_else(none),
                view.closes_at.clone().unwrap_or_else(none),
                view.title.clone(),
            ]
        })
        .collect();
    let heads = [
        "SALE", "STATUS", "UNITS", "LEFT", "LIMIT", "OPENS", "CLOSES", "TITLE",
    ];
    table::columns(heads, &rows)
}
