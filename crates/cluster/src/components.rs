//! Starts the components that a process runs and reports their condition. Their own logic does not
//! belong here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use seckill_engine::{Component, Sample};
use seckill_kafka_log::{LogCondition, LogConsumer, LogProducer};
use seckill_mysql_store::Store;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use crate::options::{ClusterOptions, InvalidOptions};
use crate::record::{Recorder, RecorderState, StoredOrders};
use crate::relay::{Inputs, Relay, RelayState};
use crate::serve::deciding::Waiting;
use crate::serve::{confirming, deciding, refresh};
use crate::shared::{Core, Outputs};
use crate::stop::stopped;
use crate::{hints, rebuild, servers};

/// Outbox entries buffered between the gate and the relay.
const OFFERS_MAX: usize = 4_096;
const SETTLED_MAX: usize = 4_096;

/// Which components a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Serve,
    Relay,
}

/// The components whose condition is reported.
pub(crate) struct Components {
    relay: Option<Arc<RelayState>>,
    recorder: Option<(Arc<RecorderState>, LogCondition)>,
    /// Each task runs as long as the process, under the name of its component.
    tasks: Vec<(&'static str, AbortHandle)>,
}

/// The running components of a process.
pub(crate) struct Started {
    pub(crate) core: Arc<Core>,
    pub(crate) parts: Components,
    pub(crate) attempts: mpsc::UnboundedSender<Waiting>,
    pub(crate) tasks: Vec<JoinHandle<()>>,
}

pub(crate) fn start(
    options: ClusterOptions,
    role: Role,
    stop: &watch::Receiver<bool>,
) -> Result<Started, InvalidOptions> {
    if options.rebuild_lease_ms < 2 * options.lease_ms {
        return Err(InvalidOptions::Lease {
            rebuild_lease_ms: options.rebuild_lease_ms,
            lease_ms: options.lease_ms,
        });
    }
    let options = Arc::new(options);
    let (store, gate) = (
        Arc::new(servers::store(&options)?),
        Arc::new(servers::gate(&options)?),
    );
    let (stored, hear_stored) = mpsc::unbounded_channel();
    let (waiters, waiting) = mpsc::unbounded_channel();
    let (rebuilds, to_rebuild) = mpsc::unbounded_channel();
    let (offers, offered) = mpsc::channel(OFFERS_MAX);
    let (settled, hear_settled) = mpsc::channel(SETTLED_MAX);
    let is_relay = options.relays;
    let outputs = Outputs {
        offers: is_relay.then(|| offers.clone()),
        hints: (!is_relay).then(|| offers.clone()),
        settled: is_relay.then(|| settled.clone()),
        rebuilds,
    };
    let core = Arc::new(Core::new(
        Arc::clone(&options),
        Arc::clone(&store),
        gate,
        waiters,
        outputs,
    ));
    // `ClusterOptions::queue_max` bounds it.
    let (attempts, asked) = mpsc::unbounded_channel();
    let mut tasks = vec![
        (
            "store",
            tokio::spawn(refresh::run(Arc::clone(&core), stop.clone())),
        ),
        (
            "gate",
            tokio::spawn(refresh::give_backs(Arc::clone(&core), stop.clone())),
        ),
        (
            "gate",
            tokio::spawn(rebuild::run(Arc::clone(&core), to_rebuild, stop.clone())),
        ),
    ];
    if role == Role::Serve {
        let inputs = confirming::Inputs {
            waiters: waiting,
            stored: hear_stored,
        };
        let deciding = until(stop, deciding::run(Arc::clone(&core), asked));
        tasks.push(("gate", tokio::spawn(deciding)));
        let confirming = until(stop, confirming::run(Arc::clone(&core), inputs));
        tasks.push(("store", tokio::spawn(confirming)));
    }
    let mut parts = Components {
        relay: None,
        recorder: None,
        tasks: Vec::new(),
    };
    if is_relay {
        let (producer, deliveries) = LogProducer::new(&servers::log(&options))
            .map_err(|fault| InvalidOptions::Kafka(fault.detail))?;
        let state = Arc::new(RelayState::new(producer.condition.clone()));
        let relay = Relay {
            core: Arc::clone(&core),
            state: Arc::clone(&state),
            producer: Arc::new(producer),
            checked: settled,
        };
        let inputs = Inputs {
            offers: offered,
            settled: hear_settled,
            deliveries,
        };
        tasks.push(("relay", tokio::spawn(relay.run(inputs, stop.clone()))));
        parts.relay = Some(state);
        if role == Role::Relay {
            let hints = hints::read(Arc::clone(&core), offers, stop.clone());
            tasks.push(("relay", tokio::spawn(hints)));
        }
    } else {
        let hints = until(stop, hints::write(Arc::clone(&core), offered));
        tasks.push(("gate", tokio::spawn(hints)));
    }
    if options.records {
        let (state, condition, task) = record(
            &options,
            store,
            (role == Role::Serve).then_some(stored),
            stop,
        )?;
        parts.recorder = Some((state, condition));
        tasks.push(("recorder", task));
    }
    let handle = |(name, task): &(_, JoinHandle<()>)| (*name, task.abort_handle());
    parts.tasks = tasks.iter().map(handle).collect();
    Ok(Started {
        core,
        parts,
        attempts,
        tasks: tasks.into_iter().map(|(_, task)| task).collect(),
    })
}

type Recording = (Arc<RecorderState>, LogCondition, JoinHandle<()>);

pub(crate) fn record(
    options: &Arc<ClusterOptions>,
    store: Arc<Store>,
    stored: Option<mpsc::UnboundedSender<StoredOrders>>,
    stop: &watch::Receiver<bool>,
) -> Result<Recording, InvalidOptions> {
    let log = LogConsumer::start(&servers::log(options))
        .map_err(|fault| InvalidOptions::Kafka(fault.detail))?;
    let (state, condition) = (Arc::new(RecorderState::default()), log.condition.clone());
    let recorder = Recorder {
        options: Arc::clone(options),
        store,
        state: Arc::clone(&state),
        stored,
    };
    Ok((
        state,
        condition,
        tokio::spawn(recorder.run(log, stop.clone())),
    ))
}

/// Runs the future until it completes or `stop` is set.
fn until(
    stop: &watch::Receiver<bool>,
    run: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let mut stop = stop.clone();
    async move {
        tokio::select! {
            () = run => {}
            () = stopped(&mut stop) => {}
        }
    }
}

pub(crate) fn part(name: &'static str, trouble: Option<String>) -> Component {
    Component {
        name,
        ready: trouble.is_none(),
        detail: trouble.unwrap_or_default(),
    }
}

impl Components {
    pub(crate) fn all(&self, core: &Core, is_stopping: bool) -> Vec<Component> {
        let store = core.store_condition.trouble().or_else(|| {
            (!core.sale_cache.is_fresh())
                .then(|| "the sales have not been read from MySQL recently".to_owned())
        });
        let stopping = || is_stopping.then(|| "the engine is stopping".to_owned());
        let mut parts = vec![
            part("store", stopping().or(store)),
            part(
                "gate",
                core.gate_condition.trouble().or_else(|| core.all_closed()),
            ),
        ];
        if let Some(relay) = &self.relay {
            parts.push(part("relay", relay.condition.trouble()));
        }
        if let Some((recorder, log)) = &self.recorder {
            parts.push(part(
                "recorder",
                recorder.trouble().or_else(|| log.trouble()),
            ));
        }
        let ended = |name| {
            let mut tasks = self.tasks.iter();
            !is_stopping && tasks.any(|(of, task)| *of == name && task.is_finished())
        };
        for each in &mut parts {
            if ended(each.name) {
                *each = part(
                    each.name,
                    Some(
                        "a task stopped unexpectedly: see the log, and restart this process".into(),
                    ),
                );
            }
        }
        parts
    }

    pub(crate) fn samples(&self, core: &Core) -> Vec<Sample> {
        let counter = |name, help, value: u64| Sample {
            name,
            help,
            is_counter: true,
            value: value as f64,
        };
        let gauge = |name, help, value: usize| Sample {
            name,
            help,
            is_counter: false,
            value: value as f64,
        };
        let (deciding, confirming) = (&core.deciding, &core.confirming);
        let load = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
        let mut samples = vec![
            gauge(
                "gate_waiting",
                "Attempts waiting for the gate",
                deciding.waiting.load(Ordering::Relaxed),
            ),
            counter("gate_calls", "Calls to the gate", load(&deciding.calls)),
            counter(
                "gate_attempts",
                "Attempts decided by the gate",
                load(&deciding.attempts),
            ),
            Sample {
                name: "gate_call_seconds",
                help: "Total duration of calls to the gate, in seconds",
                is_counter: true,
                value: load(&deciding.call_us) as f64 / 1e6,
            },
            counter(
                "gate_failed_calls",
                "Calls to the gate that got no reply",
                load(&deciding.failed_calls),
            ),
            gauge(
                "confirm_waiting",
                "Claims waiting for the order store",
                confirming.waiting.load(Ordering::Relaxed),
            ),
            counter(
                "confirm_queries",
                "Queries to the order store for waiting claims",
                load(&confirming.queries),
            ),
            counter(
                "confirm_settled",
                "Claims decided by the order store",
                load(&confirming.settled),
            ),
        ];
        if let Some(relay) = &self.relay {
            samples.extend([
                counter(
                    "relay_entries",
                    "Outbox entries picked up by the relay",
                    load(&relay.entries),
                ),
                counter(
                    "relay_produced",
                    "Records sent to the log",
                    load(&relay.produced),
                ),
                counter(
                    "relay_produced_again",
                    "Records sent to the log again",
                    load(&relay.produced_again),
                ),
                counter(
                    "relay_trimmed",
                    "Outbox entries removed",
                    load(&relay.trimmed),
                ),
                gauge(
                    "relay_tracked_claims",
                    "Undecided claims tracked by the relay",
                    load(&relay.in_view) as usize,
                ),
            ]);
        }
        if let Some((recorder, _)) = &self.recorder {
            samples.extend([
                counter(
                    "record_records",
                    "Records read from the log",
                    load(&recorder.records),
                ),
                counter("record_orders", "Orders stored", load(&recorder.orders)),
                counter(
                    "record_voids",
                    "Claims voided by the recorder",
                    load(&recorder.voids),
                ),
                counter(
                    "record_dead",
                    "Records that are not valid claims",
                    load(&recorder.dead),
                ),
                counter(
                    "record_batches",
                    "Transactions committed",
                    load(&recorder.batches),
                ),
                counter(
                    "record_failed_batches",
                    "Failures after which the recorder tried again",
                    load(&recorder.failed_batches),
                ),
            ]);
        }
        samples
    }
}
