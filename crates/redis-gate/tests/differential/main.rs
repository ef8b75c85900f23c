//! Random histories through the ledger and through gates on a real Redis, by script, by watch, and
//! by both in turn. After each step, every verdict and the whole state must be equal.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

mod gates;
mod history;
mod model;

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use seckill_redis_gate::{Gate, GateOptions, Strategy};
use seckill_testkit::servers::Urls;

use self::gates::{Gates, Tested};
use self::history::{History, STEPS_MAX};

const COMMANDS: u32 = 4_000;
/// How many commands [`for_long`] runs.
const COMMANDS_VARIABLE: &str = "SECKILL_DIFFERENTIAL_COMMANDS";
const LONG_COMMANDS: u32 = 1_000_000;

#[test]
fn gates_and_ledger_agree() {
    agree(COMMANDS);
}

/// The number of commands is in `SECKILL_DIFFERENTIAL_COMMANDS`; 1,000,000 if it is not set.
#[test]
#[ignore = "takes minutes"]
fn for_long() {
    let commands = std::env::var(COMMANDS_VARIABLE);
    agree(commands.map_or(LONG_COMMANDS, |commands| commands.parse().unwrap()));
}

/// Runs histories of at least this many commands in total.
fn agree(commands: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut gates = runtime.block_on(connect());
    let done = Cell::new(0);
    let gates = std::cell::RefCell::new(&mut gates);
    while done.get() < commands {
        let cases = (commands - done.get()).div_ceil(STEPS_MAX as u32);
        let config = Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        };
        let run = TestRunner::new(config).run(&history::any(), |history: History| {
            done.set(done.get() + history.steps.len() as u32);
            let run = runtime.block_on(gates.borrow_mut().run(&history));
            run.map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        match run {
            Ok(()) => {}
            Err(TestError::Fail(reason, history)) => panic!("{reason}\n{history:#?}"),
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }
    }
    runtime.block_on(gates.borrow_mut().forget());
    println!("{} commands", done.get());
}

async fn connect() -> Gates {
    let url = Urls::up().unwrap().redis;
    let gate = |strategy| {
        let options = GateOptions {
            url: url.clone(),
            ca: None,
            reply_wait: Duration::from_secs(5),
            strategy,
            conflicts_wait: Duration::from_secs(1),
            key_prefix: String::new(),
        };
        Gate::new(options).unwrap()
    };
    let tested = |name: &str, strategies: &[Strategy]| {
        let key = format!("differential:{}:{name}", std::process::id());
        Tested::new(key, strategies.iter().copied().map(gate).collect())
    };
    let client = redis::Client::open(url.as_str()).unwrap();
    let link = client.get_multiplexed_async_connection().await.unwrap();
    let gates = vec![
        tested("script", &[Strategy::Script]),
        tested("watch", &[Strategy::Watch]),
        tested("both", &[Strategy::Script, Strategy::Watch]),
    ];
    Gates::new(link, gates)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_millis() as i64
}
