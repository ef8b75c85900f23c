//! The command line: every flag with its meaning, unit and default. What a command does belongs in
//! its own file.

mod sale;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use seckill_sale::SaleId;

use crate::configuration::{Flag, Loaded, load};

pub(crate) use sale::{ChangeArgs, CreateArgs, SaleAction, SaleArgs};
pub(crate) use values::{
    ItemIds, ItemPrice, ItemTitle, ItemTotals, LinesArg, QuantityArg, named_twice,
};
use values::{buyers, count, duration, item_ids, keys, lines, method, quantity, totals};

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
  seckill events --sale counter                  show what happened to its orders
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
    /// Show a sale's events, and those to come
    Events(EventsArgs),
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
  seckill demo --items S=40,M=40,L=20 --quantity 1-3
  seckill demo --engine cluster    on Redis, Kafka and MySQL
  seckill demo --keep              leave the service running; Ctrl-C stops it

With --quantity or --items, each request asks for random lines, all or nothing. The verdict is \
clean only if each confirmation has the units that its request asked for, and if units sold and \
units left add up.

`cargo xtask engines up` starts Redis, Kafka and MySQL.")]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Units for sale
    #[arg(long, default_value_t = 100, conflicts_with = "items")]
    pub(crate) units: u32,
    /// Items and their units, such as S=40,M=40,L=20; each request asks for random ones
    #[arg(long, value_name = "ITEM=N,…", value_parser = totals)]
    pub(crate) items: Option<ItemTotals>,
    /// Units that a request asks for: a number, or a range for random ones, such as 1-3
    #[arg(long, value_name = "N[-M]", default_value = "1", value_parser = quantity)]
    pub(crate) quantity: QuantityArg,
    /// Seed of the random lines: the same seed, the same requests
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
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
  seckill load http://127.0.0.1:3000/v1/sales/shirt/orders --lines S=1,M=2
  seckill load http://127.0.0.1:3000/v1/sales/shirt/orders --items S,M,L --quantity 1-3

With --ramp or --rate, latency is measured from the time at which a request was due, otherwise \
from the time at which it was sent. Ctrl-C stops the load and shows the results so far. The exit \
code is 1 if a request got no answer, if every answer was an error, or, with --history, if a \
confirmation cannot be read or does not have the units that were asked for.")]
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
    /// Lines that each request asks for, such as S=1,M=2: item and units
    #[arg(long, value_name = "ITEM=N,…", conflicts_with_all = ["quantity", "items"], value_parser = lines)]
    pub(crate) lines: Option<LinesArg>,
    /// Units that each request asks for: a number, or a range for random ones, such as 1-3
    /// [default: 1]
    #[arg(long, value_name = "N[-M]", value_parser = quantity)]
    pub(crate) quantity: Option<QuantityArg>,
    /// Items from which --quantity takes random ones, such as S,M,L [default: the only item]
    #[arg(long, value_name = "ITEM,…", requires = "quantity", value_parser = item_ids)]
    pub(crate) items: Option<ItemIds>,
    /// Seed of the random lines: the same seed, the same requests. A request that repeats a key
    /// repeats its lines
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
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
  seckill events --sale counter
  seckill events --sale counter --after 1000 --json
  seckill events --sale counter --follow

A line has the event's time, its number, its type, the order, the buyer and the units: S:7 is unit 7 \
of the item S, S:7@2 the same unit at generation 2, after it was released once. Events of a sale are \
numbered from 1, without gaps. With --json, each line is an event in the format of CloudEvents 1.0.

The events come from the running service, or from its file if no service can be asked; on a cluster, \
from MySQL. Ctrl-C ends --follow; to go on later, give the last number with --after. If a backup was \
restored, start over with --after 0: its numbers are used again for other events. The exit code is 2 \
if the feed ends before the number of --after.")]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Id of the sale
    #[arg(long, value_name = "ID", value_parser = SaleId::new)]
    pub(crate) sale: SaleId,
    /// Start after the event with this number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) after: u64,
    /// Then wait for further events and print them as they come
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
