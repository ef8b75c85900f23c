//! The command line: every flag with its meaning, unit and default. What a command does belongs in
//! its own file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use seckill_sale::BUYER_LIMIT_MAX;

use crate::configuration::{Flag, Loaded, load};

/// A flash-sale engine: sells a fixed number of units to far more buyers, never oversells, and
/// never loses a confirmed order
#[derive(Debug, Parser)]
#[command(name = "seckill", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  seckill demo                                   2,000 requests for 100 units
  seckill serve --units 500                      sell 500 units on http://127.0.0.1:3000
  curl -X POST http://127.0.0.1:3000/seckill     buy one unit
  seckill load --requests 10000                  send 10,000 requests to it
  seckill audit                                  check all stored data
  seckill backup copy.db                         copy the database while the service runs
  seckill demo --engine cluster                  the same on Redis, Kafka and MySQL";

/// The heading of flags that only the cluster engine reads.
const CLUSTER: &str = "Cluster engine";
/// The heading of flags that most commands have.
const GENERAL: &str = "General";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a sale, send 2,000 requests, audit, and show the result
    Demo(DemoArgs),
    /// Create what the cluster engine needs: tables, topic, default sale
    Init(InitArgs),
    /// Serve sales over HTTP
    Serve(ServeArgs),
    /// Forward claims from Redis to Kafka, as a separate process
    Relay(ComponentArgs),
    /// Store claims from Kafka in MySQL, as a separate process
    Record(ComponentArgs),
    /// Send requests to any HTTP target and show the results
    Load(LoadArgs),
    /// Check all stored data against the invariants
    Audit(AuditArgs),
    /// Create, show and change sales, even while a service is running
    Sale(SaleArgs),
    /// Back up the embedded engine's database, even while a service is running
    Backup(BackupArgs),
    /// Restore a backup into a data folder
    Restore(RestoreArgs),
    /// Show the configuration in effect, and where each value comes from
    Config(ConfigArgs),
}

/// The flags of most commands.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Configuration file [default: $SECKILL_CONFIG, or ./seckill.toml if it exists]
    #[arg(long, global = true, value_name = "FILE", help_heading = GENERAL)]
    config: Option<PathBuf>,
    /// Engine: embedded or cluster [default: embedded]
    #[arg(long, global = true, value_name = "NAME", help_heading = GENERAL)]
    engine: Option<String>,
    /// URL of Redis [default: redis://127.0.0.1:6379]
    #[arg(long, global = true, value_name = "URL", help_heading = CLUSTER)]
    redis: Option<String>,
    /// Kafka brokers [default: 127.0.0.1:9092]
    #[arg(long, global = true, value_name = "HOST:PORT,…", help_heading = CLUSTER)]
    kafka: Option<String>,
    /// URL of MySQL or MariaDB [default: mysql://root:seckill@127.0.0.1:3306/seckill]
    #[arg(long, global = true, value_name = "URL", help_heading = CLUSTER)]
    mysql: Option<String>,
    /// How the gate decides: script or watch [default: script]
    #[arg(long, global = true, value_name = "NAME", help_heading = CLUSTER)]
    gate: Option<String>,
    /// When to answer buyers: once the order is stored (store), or before (gate) [default: store]
    #[arg(long, global = true, value_name = "NAME", help_heading = CLUSTER)]
    confirm: Option<String>,
    /// Data folder of the embedded engine [default: seckill-data]
    #[arg(long, global = true, value_name = "DIR", help_heading = GENERAL)]
    data: Option<PathBuf>,
}

impl Common {
    /// Loads the configuration with these flags and those of a command.
    pub(crate) fn load(&self, more: impl IntoIterator<Item = Flag>) -> anyhow::Result<Loaded> {
        let mut flags: Vec<Flag> = more.into_iter().collect();
        let named = [
            ("--engine", "engine", &self.engine),
            ("--redis", "cluster.redis", &self.redis),
            ("--kafka", "cluster.kafka", &self.kafka),
            ("--mysql", "cluster.mysql", &self.mysql),
            ("--gate", "cluster.gate", &self.gate),
            ("--confirm", "cluster.confirm", &self.confirm),
        ];
        flags.extend(
            named
                .into_iter()
                .filter_map(|(name, key, value)| flag(name, key, value.clone())),
        );
        let data = self.data.as_ref().map(|dir| dir.display().to_string());
        flags.extend(flag("--data", "embedded.data", data));
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("SECKILL_"))
            .collect();
        Ok(load(self.config.as_deref(), environment, flags)?)
    }

    pub(crate) fn data(&self) -> Option<&PathBuf> {
        self.data.as_ref()
    }
}

fn flag(name: &'static str, key: &'static str, value: Option<String>) -> Option<Flag> {
    value.map(|value| Flag { name, key, value })
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill demo
  seckill demo --units 10 --requests 50000 --ramp 2s
  seckill demo --engine cluster    on Redis, Kafka and MySQL
  seckill demo --keep              leave the service running; Ctrl-C stops it

`cargo xtask engines up` starts Redis, Kafka and MySQL.")]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Units for sale
    #[arg(long, default_value_t = 100)]
    pub(crate) units: u32,
    /// Requests in total
    #[arg(long, default_value_t = 2_000)]
    pub(crate) requests: u64,
    /// Time over which the requests are spread evenly; 0 sends them as fast as they are answered
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) ramp: Duration,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    /// Leave the service running afterwards
    #[arg(long)]
    pub(crate) keep: bool,
    /// Address and port of the service [default: 127.0.0.1:3000, or a free port if it is taken]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill init --engine cluster
  seckill init --engine cluster --units 500 --mysql mysql://shop:secret@db:3306/shop
  seckill init --engine cluster --reset    delete all sales and orders, and start over

It is safe to run this again: what exists is left unchanged.")]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Units of the default sale, if it does not exist yet [default: 100]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    units: Option<String>,
    /// First delete all sales, orders and records of the topic; never use it while a sale is open
    #[arg(long)]
    pub(crate) reset: bool,
}

impl InitArgs {
    pub(crate) fn flags(&self) -> Vec<Flag> {
        flag("--units", "sale.units", self.units.clone())
            .into_iter()
            .collect()
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill serve --engine cluster --no-relay --no-record
  seckill relay --engine cluster
  seckill record --engine cluster

Any number of each may run at the same time.")]
pub(crate) struct ComponentArgs {
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill serve
  seckill serve --listen 0.0.0.0:8080 --data /var/lib/seckill --units 500
  seckill serve --engine cluster --no-record    next to `seckill record`")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Address and port [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Units of the default sale, if it does not exist yet; for a cluster, see `seckill init`
    /// [default: 100]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    units: Option<String>,
    /// Do not forward claims from Redis to Kafka; `seckill relay` does
    #[arg(long, help_heading = CLUSTER)]
    pub(crate) no_relay: bool,
    /// Do not store claims from Kafka in MySQL; `seckill record` does
    #[arg(long, help_heading = CLUSTER)]
    pub(crate) no_record: bool,
}

impl ServeArgs {
    pub(crate) fn flags(&self) -> Vec<Flag> {
        let listen = flag("--listen", "service.listen", self.listen.clone());
        let units = flag("--units", "sale.units", self.units.clone());
        listen.into_iter().chain(units).collect()
    }

    pub(crate) fn names_units(&self) -> bool {
        self.units.is_some()
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill load                                  2,000 requests within 5 seconds
  seckill load --requests 60000 --rate 2000     2,000 requests per second
  seckill load --requests 1000000 --ramp 0      as fast as they are answered
  seckill load http://127.0.0.1:3000/v1/sales/phone/orders --buyers 5000 --keys 5

With --ramp or --rate, latency is measured from the time at which a request was due, otherwise \
from the time at which it was sent. Ctrl-C stops the load and shows the results so far. The exit \
code is 1 if a request got no answer, or if every answer was an error.")]
pub(crate) struct LoadArgs {
    /// URL of the target
    #[arg(default_value = "http://127.0.0.1:3000/seckill")]
    pub(crate) url: String,
    /// HTTP method
    #[arg(long, default_value = "POST", value_parser = method)]
    pub(crate) method: String,
    /// Requests in total
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) requests: u64,
    /// Time over which the requests are spread evenly; 0 sends them as fast as they are answered
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) ramp: Duration,
    /// Requests per second, instead of --ramp
    #[arg(long, value_name = "N", conflicts_with = "ramp", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// Maximum number of connections, which are opened as needed
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub(crate) connections: usize,
    /// Number of threads that send requests
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub(crate) threads: usize,
    /// Buyers: anonymous, unique (a new one per request), or a number of buyers that take turns
    #[arg(long, default_value = "anonymous", value_parser = buyers)]
    pub(crate) buyers: seckill_loadgen::Buyers,
    /// Idempotency keys: none, unique (a new one per request), or a number of keys per buyer
    #[arg(long, default_value = "none", value_parser = keys)]
    pub(crate) keys: seckill_loadgen::Keys,
    /// Number of sales: {} in the URL becomes 0 to N - 1 in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) paths: u64,
    /// Longest wait for an answer, in milliseconds
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout_ms: u64,
    /// New file for the confirmations, one JSON object per line, for `seckill audit --history`
    #[arg(long, value_name = "FILE")]
    pub(crate) history: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill audit
  seckill audit --data /var/lib/seckill --json
  seckill load --history won.jsonl && seckill audit --history won.jsonl
  seckill audit --engine cluster    compare gate, log and store, unit by unit

If a service is running, the audit uses its control socket, and also compares what the service \
offers with what is stored. The exit code is 1 if an invariant is broken, 2 if the audit could not \
be run.")]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// File of confirmations that clients have received, as `seckill load --history` writes it:
    /// each must have its order
    #[arg(long, value_name = "FILE")]
    pub(crate) history: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill sale create phone --units 500 --limit 2 --opens-at 2026-11-11T00:00:00+08:00
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
    #[command(after_help = "Examples:
  seckill sale create phone --units 500
  seckill sale create phone --units 500 --limit 2 --title 'Phone, 256 GB'
  seckill sale create phone --units 500 --opens-at 2026-11-11T00:00:00+08:00")]
    Create {
        /// Id: 1 to 64 of A-Z a-z 0-9 _ . -
        id: String,
        /// Units in total
        #[arg(long)]
        units: u32,
        /// Title [default: the id]
        #[arg(long)]
        title: Option<String>,
        /// Limit of active orders per buyer: 1 to 64, or none [default: none]
        #[arg(long, value_name = "N", value_parser = limit_or_none)]
        limit: Option<LimitChange>,
        /// Opening time: RFC 3339 such as 2026-11-11T00:00:00+08:00, or now [default: already open]
        #[arg(long, value_name = "TIME", value_parser = moment)]
        opens_at: Option<i64>,
        /// Closing time: RFC 3339, or now [default: never]
        #[arg(long, value_name = "TIME", value_parser = moment)]
        closes_at: Option<i64>,
    },
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
  seckill sale change phone --units 600
  seckill sale change phone --add-units 100 --if-version 3
  seckill sale change phone --limit none --closes-at now

The command reads the sale first, and its change is refused if the sale has changed since. On a \
cluster, the command returns once no server can still apply the old terms (see cluster.lease_ms).")]
pub(crate) struct ChangeArgs {
    /// Id of the sale
    pub(crate) id: String,
    /// Title
    #[arg(long)]
    pub(crate) title: Option<String>,
    /// Units in total; it may be lowered as long as no sold unit has a higher number
    #[arg(long, value_name = "N", conflicts_with = "add_units")]
    pub(crate) units: Option<u32>,
    /// Units to add to the total
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) add_units: u32,
    /// Limit of active orders per buyer: 1 to 64, or none
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

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill backup /backup/seckill-$(date +%F).db
  seckill backup copy.db --data /var/lib/seckill

The backup is consistent, even while a service is selling, and is audited before it appears under \
its name.")]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// File to create
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill restore copy.db --data /var/lib/seckill

The backup is audited first. The data folder must not contain a database, and no process may be \
using the folder.")]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// File that `seckill backup` created
    pub(crate) file: PathBuf,
    /// Also accept a copy that another tool made of a running service, such as sqlite3's .backup
    #[arg(long)]
    pub(crate) accept_live_copy: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  seckill config
  seckill config --default > seckill.toml
  SECKILL_SERVICE__LISTEN=0.0.0.0:3000 seckill config")]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Print the default configuration file, with comments on every key
    #[arg(long)]
    pub(crate) default: bool,
    /// Print JSON instead of a table
    #[arg(long, conflicts_with = "default")]
    pub(crate) json: bool,
}

/// A limit to set, or `None` to remove it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimitChange(pub(crate) Option<u32>);

/// A time to set, in Unix milliseconds, or `None` to remove it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MomentChange(pub(crate) Option<i64>);

fn duration(text: &str) -> Result<Duration, String> {
    let right = || "give a time such as 5s, 500ms or 2m; a bare number counts seconds".to_owned();
    let seconds = text.parse::<f64>().ok();
    let parsed = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| right())?,
        None => {
            let span: jiff::SignedDuration = text.parse().map_err(|_| right())?;
            Duration::try_from(span).map_err(|_| right())?
        }
    };
    const MAX: Duration = Duration::from_secs(86_400);
    if parsed > MAX {
        return Err("give at most a day, such as 24h".into());
    }
    Ok(parsed)
}

fn moment(text: &str) -> Result<i64, String> {
    if text == "now" {
        return Ok(jiff::Timestamp::now().as_millisecond());
    }
    const RIGHT: &str = "give a time with its offset, such as 2026-11-11T00:00:00+08:00, or now";
    // The parser would turn a leap second into the second before it.
    if text.contains(":60") {
        return Err(format!("second 60 does not exist; {RIGHT}"));
    }
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    parsed
        .map(jiff::Timestamp::as_millisecond)
        .map_err(|error| format!("{error}; {RIGHT}"))
}

fn moment_or_none(text: &str) -> Result<MomentChange, String> {
    match text {
        "none" => Ok(MomentChange(None)),
        _ => moment(text).map(|at_ms| MomentChange(Some(at_ms))),
    }
}

fn limit_or_none(text: &str) -> Result<LimitChange, String> {
    match text {
        "none" => Ok(LimitChange(None)),
        _ => match text.parse() {
            Ok(limit @ 1..=BUYER_LIMIT_MAX) => Ok(LimitChange(Some(limit))),
            _ => Err(format!(
                "give a number from 1 to {BUYER_LIMIT_MAX}, or none"
            )),
        },
    }
}

fn method(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err("give a method such as POST or GET".into());
    }
    Ok(text.to_owned())
}

fn count(text: &str) -> Result<usize, String> {
    const MAX: usize = 60_000;
    match text.parse() {
        Ok(count) if (1..=MAX).contains(&count) => Ok(count),
        _ => Err(format!("give a number from 1 to {MAX}")),
    }
}

fn buyers(text: &str) -> Result<seckill_loadgen::Buyers, String> {
    use seckill_loadgen::Buyers;
    match (text, text.parse()) {
        ("anonymous", _) => Ok(Buyers::Anonymous),
        ("unique", _) => Ok(Buyers::Unique),
        (_, Ok(count)) if count > 0 => Ok(Buyers::Repeating(count)),
        _ => Err("give anonymous, unique, or a number of buyers".into()),
    }
}

fn keys(text: &str) -> Result<seckill_loadgen::Keys, String> {
    use seckill_loadgen::Keys;
    match (text, text.parse()) {
        ("none", _) => Ok(Keys::None),
        ("unique", _) => Ok(Keys::Unique),
        (_, Ok(count)) if count > 0 => Ok(Keys::PerBuyer(count)),
        _ => Err("give none, unique, or a number of keys per buyer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_parsed() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert!(duration("soon").is_err() && duration("-1s").is_err() && duration("2d").is_err());
        assert_eq!(moment("1970-01-01T08:00:01+08:00"), Ok(1_000));
        assert!(moment("2026-11-11").is_err());
        assert!(moment("2026-02-30T00:00:00Z").unwrap_err().contains("day"));
        assert!(moment("2026-11-11T00:00:60Z").unwrap_err().contains("60"));
    }
}
