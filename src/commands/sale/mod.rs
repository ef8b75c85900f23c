//! `seckill sale`: creates, shows and changes sales through the running service, or through the
//! engine if no service is running.

mod tables;
mod terms;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use hyper::Method;
use seckill_api::{CONTROL_SALES_PATH, NewSale, Sale, SaleChange};
use seckill_embedded::DATABASE_FILE;
use seckill_engine::{Effect, Engine, SaleStock};
use seckill_sale::SaleId;
use seckill_service::convert;

use crate::CommandOutcome;
use crate::bootstrap;
use crate::cli::{SaleAction, SaleArgs};
use crate::commands::demo;
use crate::configuration::{Configuration, EngineKind};
use crate::control_client::{self, ControlError};
use crate::data_folder::FolderUser;
use crate::output;

use terms::Change;

/// The longest wait for a running service.
const CONTROL_WAIT: Duration = Duration::from_secs(30);

/// Where the sales are.
enum Sales {
    /// In the running service with this control socket.
    Service(PathBuf),
    /// In the engine that this process has opened.
    Here(Arc<dyn Engine>),
}

pub(crate) fn run(args: &SaleArgs) -> anyhow::Result<CommandOutcome> {
    let configuration = args.common.load([])?.configuration;
    let action = Action::new(&args.action)?;
    action.warn_of_a_past_closing();
    let runtime = bootstrap::runtime(configuration.service.threads.get())?;
    let views = runtime.block_on(async {
        let sales = find(&configuration, &action).await?;
        let views = sales.carry_out(&action).await;
        if configuration.engine == EngineKind::Embedded {
            demo::keep(&configuration.embedded.data)?;
        }
        if let Sales::Here(engine) = sales {
            engine.close().await;
        }
        views
    })?;
    let text = if args.json {
        let is_list = matches!(action, Action::List);
        let json = match views.first() {
            Some(view) if !is_list => serde_json::to_string_pretty(view)?,
            _ => serde_json::to_string_pretty(&views)?,
        };
        json + "\n"
    } else {
        match (&action, views.first()) {
            (Action::List, _) | (_, None) => tables::of_sales(&views),
            (_, Some(view)) => tables::of_sale(view),
        }
    };
    output::print(text)?;
    Ok(CommandOutcome::Ok)
}

/// The action, after its names were checked.
enum Action {
    Create(NewSale),
    List,
    Show(SaleId),
    Change(SaleId, Box<Change>),
}

impl Action {
    fn new(action: &SaleAction) -> anyhow::Result<Self> {
        Ok(match action {
            SaleAction::Create(args) => Self::Create(terms::new_sale(args)?),
            SaleAction::List => Self::List,
            SaleAction::Show { id } => Self::Show(SaleId::new(id)?),
            SaleAction::Change(args) => {
                Self::Change(SaleId::new(&args.id)?, Box::new(Change::new(args)?))
            }
        })
    }

    fn warn_of_a_past_closing(&self) {
        let closes_at_ms = match self {
            Self::Create(new) => new.closes_at_ms,
            Self::Change(_, change) => change.terms.closes_at_ms.flatten(),
            Self::List | Self::Show(_) => None,
        };
        // A second of tolerance: `--closes-at now` closes the sale on purpose.
        let a_second_ago_ms = jiff::Timestamp::now().as_millisecond() - 1_000;
        if closes_at_ms.is_some_and(|at_ms| at_ms < a_second_ago_ms) {
            eprintln!("seckill: --closes-at is in the past, so the sale is closed");
        }
    }
}

/// Tells how to safely repeat a change whose effect is unknown.
fn unknown(id: &SaleId, terms: &SaleChange, detail: &str) -> anyhow::Error {
    let version = terms.if_version.unwrap_or_default();
    anyhow!(
        "{detail}. `seckill sale show {id}` shows version {version} as long as the change has not been made. \
         With --if-version {version}, it is safe to repeat the command"
    )
}

async fn find(configuration: &Configuration, action: &Action) -> anyhow::Result<Sales> {
    if configuration.engine == EngineKind::Embedded {
        let data: &Path = &configuration.embedded.data;
        match FolderUser::of(data).await {
            FolderUser::Nobody => {}
            FolderUser::Service { socket, .. } => return Ok(Sales::Service(socket)),
            FolderUser::Busy { owner, error } => {
                let why = error
                    .map(|error| format!(", whose control socket cannot be reached ({error})"));
                bail!(
                    "{} is in use by {owner}{}; try again when that process has stopped",
                    data.display(),
                    why.unwrap_or_default()
                );
            }
        }
        let database = data.join(DATABASE_FILE);
        // Only `sale create` may create a database: the other actions must not do so in a mistyped
        // folder.
        if !matches!(action, Action::Create(_)) && !database.exists() {
            bail!(
                "there is no {}; `seckill serve` or `seckill sale create` creates it",
                database.display()
            );
        }
    }
    Ok(Sales::Here(bootstrap::engine(configuration, "sale")?))
}

impl Sales {
    async fn carry_out(&self, action: &Action) -> anyhow::Result<Vec<Sale>> {
        match self {
            Self::Service(socket) => through_service(socket, action).await,
            Self::Here(engine) => in_engine(engine.as_ref(), action).await,
        }
    }
}

async fn through_service(socket: &Path, action: &Action) -> anyhow::Result<Vec<Sale>> {
    let of = |id: &SaleId| format!("{CONTROL_SALES_PATH}/{id}");
    let show = async |id: &SaleId| {
        let nothing = None::<&()>;
        control_client::ask::<Sale>(socket, Method::GET, &of(id), nothing, CONTROL_WAIT).await
    };
    let one = match action {
        Action::List => return list_through_service(socket).await,
        Action::Show(id) => show(id).await?,
        Action::Create(new) => {
            let (path, body) = (CONTROL_SALES_PATH, Some(new));
            control_client::ask(socket, Method::POST, path, body, CONTROL_WAIT).await?
        }
        Action::Change(id, change) => {
            let terms = change.of(&show(id).await?)?;
            let (path, body) = (of(id), Some(&terms));
            match control_client::ask(socket, Method::PATCH, &path, body, CONTROL_WAIT).await {
                Err(ControlError::Unknown(detail)) => return Err(unknown(id, &terms, &detail)),
                changed => changed?,
            }
        }
    };
    Ok(vec![one])
}

/// Reads all pages of the list.
async fn list_through_service(socket: &Path) -> anyhow::Result<Vec<Sale>> {
    let mut all: Vec<Sale> = Vec::new();
    loop {
        let path = match all.last() {
            Some(last) => format!("{CONTROL_SALES_PATH}?after={}", last.id),
            None => CONTROL_SALES_PATH.to_owned(),
        };
        let nothing = None::<&()>;
        let page: Vec<Sale> =
            control_client::ask(socket, Method::GET, &path, nothing, CONTROL_WAIT).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

async fn in_engine(engine: &dyn Engine, action: &Action) -> anyhow::Result<Vec<Sale>> {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let view = |stock: &SaleStock| convert::sale(stock, now_ms);
    let show = async |id: &SaleId| {
        let stock = engine.sale(id).await?;
        let missing = || anyhow!("there is no sale {id}; `seckill sale list` shows all sales");
        Ok::<_, anyhow::Error>(view(&stock.with_context(missing)?))
    };
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
        Action::Create(new) => {
            engine
                .create_sale(convert::new_sale(new.clone())?)
                .await??
                .id
        }
        Action::Change(id, change) => {
            let terms = change.of(&show(id).await?)?;
            match engine
                .change_sale(id, convert::sale_change(terms.clone())?)
                .await
            {
                Err(fault) if fault.effect == Effect::Unknown => {
                    return Err(unknown(id, &terms, &fault.to_string()));
                }
                changed => changed??.id,
            }
        }
    };
    Ok(vec![show(&id).await?])
}
