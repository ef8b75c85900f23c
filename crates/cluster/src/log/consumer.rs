//! Reads the order log: a thread that polls Kafka and hands batches on, partition by partition, from where it is told to.
//! It keeps no offsets: the recorder's lie in the store, with the orders.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::message::Message;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use rdkafka::{config::RDKafkaLogLevel, error::KafkaError};
use seckill_engine::{Cause, Fault};
use tokio::sync::{mpsc, oneshot};

use super::{LogCondition, Words};
use crate::options::ClusterOptions;

const POLL_WAIT: Duration = Duration::from_millis(20);
const BROKER_WAIT: Duration = Duration::from_secs(5);
/// Batches that wait for the recorder; the next one grows meanwhile.
const BATCHES_MAX: usize = 1;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) offset: i64,
    pub(crate) payload: Vec<u8>,
}

/// What the log says.
#[derive(Debug)]
pub(crate) enum FromLog {
    /// These partitions are ours now; each waits for its [`ToLog::Begin`].
    Assigned(Vec<i32>),
    /// Records of one partition, in their order.
    Records { part: i32, records: Vec<Record> },
}

/// What the log is told.
pub(crate) enum ToLog {
    /// Read this partition from here on.
    Begin { part: i32, offset: i64 },
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
    pub(crate) from_log: mpsc::Receiver<FromLog>,
    pub(crate) condition: LogCondition,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LogConsumer {
    /// Joins the group of recorders.
    pub(crate) fn start(options: &ClusterOptions) -> Result<Self, Fault> {
        let consumer: BaseConsumer<Assignments> = super::client(options)
            .set("group.id", format!("seckill-record-{}", options.topic))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            // A recorder that died is replaced this soon; the broker takes no less by default.
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "1000")
            .set("fetch.wait.max.ms", "100")
            .set("fetch.error.backoff.ms", "100")
            .set("queued.max.messages.kbytes", "16384")
            .create_with_context(Assignments::default())
            .map_err(|error| super::fault(options, &error, "; see cluster.kafka_properties"))?;
        consumer
            .subscribe(&[&options.topic])
            .map_err(|error| super::fault(options, &error, ""))?;
        let condition = consumer.client().context().words.0.clone();
        let (to_log, told) = std_mpsc::channel();
        let (sender, from_log) = mpsc::channel(BATCHES_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let poller = Poller {
            consumer,
            topic: options.topic.clone(),
            batch_max: options.record_batch_max,
            told,
            sender,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("seckill-log".into())
            .spawn(move || poller.run())
            .map_err(|error| {
                Fault::without_effect(Cause::Store, format!("no thread for the log: {error}"))
            })?;
        Ok(Self {
            to_log,
            from_log,
            condition,
            stop,
            thread: Some(thread),
        })
    }

    /// Reads a partition from here on.
    pub(crate) fn begin(&self, part: i32, offset: i64) {
        // The thread is gone only when the process ends.
        let _ = self.to_log.send(ToLog::Begin { part, offset });
    }

    /// Where a partition begins and ends.
    pub(crate) async fn ends(&self, part: i32) -> Result<(i64, i64), String> {
        let (reply, ends) = oneshot::channel();
        let _ = self.to_log.send(ToLog::Ends { part, reply });
        ends.await
            .unwrap_or_else(|_| Err("the log's reader has stopped".into()))
    }

    /// Leaves the group, so that another recorder takes over at once.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        self.from_log.close();
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
    }
}

struct Poller {
    consumer: BaseConsumer<Assignments>,
    topic: String,
    batch_max: usize,
    told: std_mpsc::Receiver<ToLog>,
    sender: mpsc::Sender<FromLog>,
    stop: Arc<AtomicBool>,
}

impl Poller {
    fn run(self) {
        while !self.stop.load(Ordering::Acquire) {
            while let Ok(told) = self.told.try_recv() {
                self.obey(told);
            }
            let batch = self.poll();
            // After the poll: it is what runs the callback.
            let assigned = {
                let context = self.consumer.client().context();
                std::mem::take(
                    &mut *context
                        .assigned
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner),
                )
            };
            let assigned = (!assigned.is_empty()).then_some(FromLog::Assigned(assigned));
            let records = batch
                .into_iter()
                .map(|(part, records)| FromLog::Records { part, records });
            for said in assigned.into_iter().chain(records) {
                if self.sender.blocking_send(said).is_err() {
                    return;
                }
            }
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
            self.consumer.client().context().words.0.is_well();
            batch.entry(record.partition()).or_default().push(Record {
                offset: record.offset(),
                payload: record.payload().unwrap_or_default().to_vec(),
            });
            count += 1;
            wait = Duration::ZERO;
            if began.elapsed() > POLL_WAIT * 5 {
                break;
            }
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
            let context = self.consumer.client().context();
            context
                .assigned
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(part);
        }
    }

    fn obey(&self, told: ToLog) {
        match told {
            ToLog::Ends { part, reply } => {
                let ends = self
                    .consumer
                    .fetch_watermarks(&self.topic, part, BROKER_WAIT);
                // Whoever asked may have gone.
                let _ = reply.send(ends.map_err(|error| error.to_string()));
            }
            ToLog::Begin { part, offset } => {
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
