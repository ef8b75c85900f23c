//! Reads the order log: a thread polls Kafka and delivers batches per partition, from the offsets
//! that the recorder requests. Must not store offsets: the recorder stores them with the orders.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::message::Message;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use rdkafka::{config::RDKafkaLogLevel, error::KafkaError};
use seckill_engine::{Cause, Fault};
use tokio::sync::oneshot;

use crate::client::{ClientEvents, client, fault};
use crate::condition::LogCondition;
use crate::inbox::Inbox;
use crate::options::LogOptions;
use crate::record::{FromLog, Record};

const POLL_WAIT: Duration = Duration::from_millis(20);
const BROKER_WAIT: Duration = Duration::from_secs(5);
/// Timeout for fetching the offset range of a partition. No partition is read in the meantime.
const ENDS_WAIT: Duration = Duration::from_secs(1);
/// How often a full inbox is checked again.
const FULL_PAUSE: Duration = Duration::from_millis(1);
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// A request to the log reader.
enum ToLog {
    /// Read this partition from this offset. Records read earlier have another serial.
    Begin { part: i32, offset: i64, serial: u64 },
    /// Fetch the first and the next offset of this partition.
    Ends {
        part: i32,
        reply: oneshot::Sender<Result<(i64, i64), String>>,
    },
}

#[derive(Default)]
struct Assignments {
    events: ClientEvents,
    assigned: Mutex<Vec<i32>>,
}

impl ClientContext for Assignments {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }
}

impl ConsumerContext for Assignments {
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let mut assigned = self
            .assigned
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match rebalance {
            Rebalance::Assign(parts) => {
                // Reading starts only once the store has supplied the offset.
                if let Err(error) = consumer.pause(parts) {
                    tracing::warn!(%error, "cannot pause a partition");
                }
                assigned.extend(
                    parts
                        .elements()
                        .iter()
                        .map(rdkafka::topic_partition_list::TopicPartitionListElem::partition),
                );
            }
            Rebalance::Revoke(_) | Rebalance::Error(_) => assigned.clear(),
        }
    }
}

/// Handle to the log reader, which runs on its own thread.
pub struct LogConsumer {
    to_log: std_mpsc::Sender<ToLog>,
    inbox: Arc<Inbox>,
    pub condition: LogCondition,
    serial: AtomicU64,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LogConsumer {
    /// Starts the thread and joins the consumer group of the recorders.
    pub fn start(options: &LogOptions) -> Result<Self, Fault> {
        let group = format!("seckill-record-{}", options.topic);
        let own = [
            ("group.id", group.as_str()),
            // A crashed recorder is replaced after this time. By default, brokers accept no shorter
            // timeout.
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "500"),
            ("fetch.wait.max.ms", "100"),
            ("fetch.error.backoff.ms", "100"),
            ("queued.max.messages.kbytes", "16384"),
        ];
        let fixed = [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
        ];
        let consumer: BaseConsumer<Assignments> = client(options, &own, &fixed)
            .create_with_context(Assignments::default())
            .map_err(|error| fault(options, &error, "; see cluster.kafka_properties"))?;
        consumer
            .subscribe(&[&options.topic])
            .map_err(|error| fault(options, &error, ""))?;
        let condition = consumer.client().context().events.0.clone();
        let (to_log, told) = std_mpsc::channel();
        let inbox = Arc::new(Inbox::default());
        let stop = Arc::new(AtomicBool::new(false));
        let poller = Poller {
            consumer,
            topic: options.topic.clone(),
            batch_max: options.batch_max,
            told,
            inbox: Arc::clone(&inbox),
            stop: Arc::clone(&stop),
            serials: HashMap::new(),
            probed: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("seckill-log".into())
            .spawn(move || poller.run())
            .map_err(|error| {
                Fault::without_effect(
                    Cause::Store,
                    format!("cannot start the log reader thread: {error}"),
                )
            })?;
        Ok(Self {
            to_log,
            inbox,
            condition,
            serial: AtomicU64::new(0),
            stop,
            thread: Some(thread),
        })
    }

    /// Waits for the next message. Returns `None` once the reader is stopped.
    pub async fn next(&self) -> Option<FromLog> {
        self.inbox.next().await
    }

    /// Reads a partition from this offset. Returns the serial that the resulting records have.
    pub fn begin(&self, part: i32, offset: i64) -> u64 {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        // The receiver is dropped only when the reader stops.
        let _ = self.to_log.send(ToLog::Begin {
            part,
            offset,
            serial,
        });
        serial
    }

    /// Fetches the first and the next offset of a partition.
    pub async fn ends(&self, part: i32) -> Result<(i64, i64), String> {
        let (reply, ends) = oneshot::channel();
        let _ = self.to_log.send(ToLog::Ends { part, reply });
        match tokio::time::timeout(2 * BROKER_WAIT, ends).await {
            Ok(Ok(ends)) => ends,
            Ok(Err(_)) => Err("the log reader has stopped".into()),
            Err(_) => Err("the broker did not return the offset range in time".into()),
        }
    }

    /// Leaves the group, so that another recorder can take over immediately.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        self.inbox.close();
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the log reader thread failed");
            }
        }
    }
}

impl Drop for LogConsumer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.inbox.close();
    }
}

struct Poller {
    consumer: BaseConsumer<Assignments>,
    topic: String,
    batch_max: usize,
    told: std_mpsc::Receiver<ToLog>,
    inbox: Arc<Inbox>,
    stop: Arc<AtomicBool>,
    /// The serial of the latest `Begin` of each partition.
    serials: HashMap<i32, u64>,
    probed: Instant,
}

impl Poller {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            while let Ok(told) = self.told.try_recv() {
                self.obey(told);
            }
            let batch = self.poll();
            // Must follow the poll, which runs the rebalance callback.
            let assigned = std::mem::take(&mut *self.assigned());
            if !assigned.is_empty() {
                for part in &assigned {
                    self.serials.remove(part);
                }
                self.inbox.assign(assigned);
            }
            for (part, records) in batch {
                // A partition without a serial is paused. Records fetched before the pause are
                // discarded.
                if let Some(serial) = self.serials.get(&part).copied() {
                    self.inbox.add(part, serial, records);
                }
            }
            // Keep serving requests: the recorder may send one before it takes more records.
            while self.inbox.count() >= self.batch_max && !self.stop.load(Ordering::Acquire) {
                if let Ok(told) = self.told.recv_timeout(FULL_PAUSE) {
                    self.obey(told);
                }
            }
            self.probe();
        }
    }

    fn assigned(&self) -> std::sync::MutexGuard<'_, Vec<i32>> {
        let context = self.consumer.client().context();
        context
            .assigned
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// After a failure, checks whether the broker is reachable again. Without new records, nothing
    /// else would clear the condition.
    fn probe(&mut self) {
        let condition = &self.consumer.client().context().events.0;
        if condition.trouble().is_none() || self.probed.elapsed() < PROBE_PAUSE {
            return;
        }
        self.probed = Instant::now();
        if self
            .consumer
            .fetch_watermarks(&self.topic, 0, PROBE_PAUSE)
            .is_ok()
        {
            condition.is_well();
        }
    }

    /// Waits for a record, then takes further available records up to the batch size.
    fn poll(&self) -> BTreeMap<i32, Vec<Record>> {
        let mut batch: BTreeMap<i32, Vec<Record>> = BTreeMap::new();
        let (mut wait, mut count) = (POLL_WAIT, 0);
        let began = Instant::now();
        while count < self.batch_max {
            let record = match self.consumer.poll(wait) {
                None => break,
                Some(Ok(record)) => record,
                Some(Err(error)) => {
                    let why = error
                        .rdkafka_error_code()
                        .map_or_else(|| error.to_string(), |code| code.to_string());
                    self.consumer.client().context().events.0.fails(why);
                    break;
                }
            };
            let payload = record.payload().unwrap_or_default();
            batch
                .entry(record.partition())
                .or_default()
                .push(Record::new(record.offset(), payload));
            count += 1;
            wait = Duration::ZERO;
            if began.elapsed() > POLL_WAIT * 5 {
                break;
            }
        }
        if count > 0 {
            self.consumer.client().context().events.0.is_well();
        }
        batch
    }

    /// Announces a partition to the recorder again if it is still assigned to this process.
    fn assign_again(&self, part: i32) {
        let ours = self
            .consumer
            .assignment()
            .is_ok_and(|parts| parts.find_partition(&self.topic, part).is_some());
        if ours {
            self.assigned().push(part);
        }
    }

    fn obey(&mut self, told: ToLog) {
        match told {
            ToLog::Ends { part, reply } => {
                let ends = self.consumer.fetch_watermarks(&self.topic, part, ENDS_WAIT);
                // The caller may have timed out.
                let _ = reply.send(ends.map_err(|error| error.to_string()));
            }
            ToLog::Begin {
                part,
                offset,
                serial,
            } => {
                self.serials.insert(part, serial);
                let mut parts = TopicPartitionList::new();
                let listed = parts.add_partition_offset(&self.topic, part, Offset::Offset(offset));
                let begun = listed
                    .and_then(|()| {
                        self.consumer
                            .seek(&self.topic, part, Offset::Offset(offset), BROKER_WAIT)
                    })
                    .and_then(|()| self.consumer.resume(&parts));
                if let Err(error) = begun {
                    tracing::warn!(part, offset, %error, "cannot read the log from this offset");
                    self.assign_again(part);
                }
            }
        }
    }
}
