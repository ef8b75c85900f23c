//! Reads the order log: a thread that polls Kafka and hands batches on, partition by partition, from where it is told to.
//! It keeps no offsets: the recorder's lie in the store, with the orders.

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

use super::inbox::Inbox;
use super::{LogCondition, Words};
use crate::codec::message::ClaimMessage;
use crate::options::ClusterOptions;

const POLL_WAIT: Duration = Duration::from_millis(20);
const BROKER_WAIT: Duration = Duration::from_secs(5);
/// How long a broker may take to say where a partition begins and ends; nothing of any partition is read meanwhile.
const ENDS_WAIT: Duration = Duration::from_secs(1);
/// How often a full inbox is looked at again.
const FULL_PAUSE: Duration = Duration::from_millis(1);
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// One record, read as a claim by the log's own thread, so that the recorder need not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) offset: i64,
    pub(crate) content: Result<ClaimMessage, Foreign>,
}

/// What a record has that is no claim, and why it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) payload: Vec<u8>,
    pub(crate) error: String,
}

impl Record {
    pub(crate) fn new(offset: i64, payload: &[u8]) -> Self {
        let content = ClaimMessage::read(payload).map_err(|error| Foreign {
            payload: payload.to_vec(),
            error: error.to_string(),
        });
        Self { offset, content }
    }

    /// The claim, if it is one.
    pub(crate) fn claim(&self) -> Option<&ClaimMessage> {
        self.content.as_ref().ok()
    }
}

/// What the log says.
#[derive(Debug)]
pub(crate) enum FromLog {
    /// These partitions are ours now; each waits for its [`ToLog::Begin`].
    Assigned(Vec<i32>),
    /// Records of one partition, in their order, as read since the `Begin` of this serial.
    Records {
        part: i32,
        serial: u64,
        records: Vec<Record>,
    },
}

/// What the log is told.
pub(crate) enum ToLog {
    /// Read this partition from here on; what was read before is of another serial.
    Begin { part: i32, offset: i64, serial: u64 },
    /// Where this partition begins and ends.
    Ends {
        part: i32,
        reply: oneshot::Sender<Result<(i64, i64), String>>,
    },
}

#[derive(Default)]
struct Assignments {
    words: Words,
    assigned: Mutex<Vec<i32>>,
}

impl ClientContext for Assignments {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.words.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.words.error(error, reason);
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
                // Nothing is read before the store has said from where.
                if let Err(error) = consumer.pause(parts) {
                    tracing::warn!(%error, "a partition could not be paused");
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

/// The reading end of the log, run by a thread of its own.
pub(crate) struct LogConsumer {
    to_log: std_mpsc::Sender<ToLog>,
    inbox: Arc<Inbox>,
    pub(crate) condition: LogCondition,
    serial: AtomicU64,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LogConsumer {
    /// Joins the group of recorders.
    pub(crate) fn start(options: &ClusterOptions) -> Result<Self, Fault> {
        let group = format!("seckill-record-{}", options.topic);
        let own = [
            ("group.id", group.as_str()),
            // A recorder that died is replaced this soon; the broker takes no less by default.
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
        let consumer: BaseConsumer<Assignments> = super::client(options, &own, &fixed)
            .create_with_context(Assignments::default())
            .map_err(|error| super::fault(options, &error, "; see cluster.kafka_properties"))?;
        consumer
            .subscribe(&[&options.topic])
            .map_err(|error| super::fault(options, &error, ""))?;
        let condition = consumer.client().context().words.0.clone();
        let (to_log, told) = std_mpsc::channel();
        let inbox = Arc::new(Inbox::default());
        let stop = Arc::new(AtomicBool::new(false));
        let poller = Poller {
            consumer,
            topic: options.topic.clone(),
            batch_max: options.record_batch_max,
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
                Fault::without_effect(Cause::Store, format!("no thread for the log: {error}"))
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

    /// What comes next; none once it was stopped.
    pub(crate) async fn next(&self) -> Option<FromLog> {
        self.inbox.next().await
    }

    /// Reads a partition from here on. The serial is that of the records that come of it.
    pub(crate) fn begin(&self, part: i32, offset: i64) -> u64 {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        // The thread is gone only when the process ends.
        let _ = self.to_log.send(ToLog::Begin {
            part,
            offset,
            serial,
        });
        serial
    }

    /// Where a partition begins and ends.
    pub(crate) async fn ends(&self, part: i32) -> Result<(i64, i64), String> {
        let (reply, ends) = oneshot::channel();
        let _ = self.to_log.send(ToLog::Ends { part, reply });
        match tokio::time::timeout(2 * BROKER_WAIT, ends).await {
            Ok(Ok(ends)) => ends,
            Ok(Err(_)) => Err("the log's reader has stopped".into()),
            Err(_) => Err("the broker did not say where it begins and ends".into()),
        }
    }

    /// Leaves the group, so that another recorder takes over at once.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        self.inbox.close();
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the log's reader ended badly");
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
            // After the poll: it is what runs the callback.
            let assigned = std::mem::take(&mut *self.assigned());
            if !assigned.is_empty() {
                for part in &assigned {
                    self.serials.remove(part);
                }
                self.inbox.assign(assigned);
            }
            for (part, records) in batch {
                // A partition that was not begun is paused; what it had fetched before that is not wanted.
                if let Some(serial) = self.serials.get(&part).copied() {
                    self.inbox.add(part, serial, records);
                }
            }
            // The recorder may ask or tell before it takes more, and it must be heard.
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

    /// After trouble, whether the broker is there again; where nothing is written no record would tell.
    fn probe(&mut self) {
        let condition = &self.consumer.client().context().words.0;
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

    /// Waits for a record and takes what has come with it, up to a batch.
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
                    self.consumer.client().context().words.0.fails(why);
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
            self.consumer.client().context().words.0.is_well();
        }
        batch
    }

    /// Tells the recorder of a partition once more, if it still is ours.
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
                // Whoever asked may have gone.
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
                    tracing::warn!(part, offset, %error, "the log could not be read from here");
                    self.assign_again(part);
                }
            }
        }
    }
}
