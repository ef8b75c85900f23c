//! The recorder: stores the order log, one transaction per batch. Any number may run: locks on the
//! offset row and the sales' rows serialize them. It never touches the gate.

mod commit;
mod memory;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use seckill_engine::{Cause, Fault};
use seckill_kafka_log::{FromLog, LogCondition, LogConsumer, Record};
use seckill_mysql_store::Store;
use seckill_mysql_store::recording::{self, Place};
use seckill_sale::OrderId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::commit::{Committed, Incoming};
use self::plan::Known;
use crate::options::ClusterOptions;
use crate::stop::stopped;

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The orders that one transaction stored.
pub(crate) type StoredOrders = Vec<OrderId>;

/// A recorder's counters since its start, and its condition.
#[derive(Debug, Default)]
pub(crate) struct RecorderState {
    pub(crate) records: AtomicU64,
    pub(crate) orders: AtomicU64,
    pub(crate) voids: AtomicU64,
    pub(crate) dead: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) failed_batches: AtomicU64,
    /// Why nothing can be stored at present.
    storing: LogCondition,
    /// Why some partition cannot be read at present.
    placing: LogCondition,
}

impl RecorderState {
    /// Why the recorder cannot work at present; `None` if it can.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.storing.trouble().or_else(|| self.placing.trouble())
    }
}

pub(crate) struct Recorder {
    pub(crate) options: Arc<ClusterOptions>,
    pub(crate) store: Arc<Store>,
    pub(crate) state: Arc<RecorderState>,
    /// Receives the orders of each commit, if claims in this process wait for them.
    pub(crate) stored: Option<mpsc::UnboundedSender<StoredOrders>>,
}

/// Where a partition is read from next. `check` is the mark that the record before must have.
#[derive(Debug, Clone)]
struct ReadPosition {
    place: Place,
    check: Option<String>,
    serial: u64,
}

impl Recorder {
    /// Records until `stop` is set.
    pub(crate) async fn run(self, log: LogConsumer, mut stop: watch::Receiver<bool>) {
        let mut parts: HashMap<i32, ReadPosition> = HashMap::new();
        let mut unplaced: BTreeMap<i32, Retry> = BTreeMap::new();
        let mut known = Known::default();
        // No records are read during a try, and a failing one may be slow: leave time to read.
        let mut not_before = Instant::now();
        loop {
            let next_try = unplaced
                .values()
                .map(|retry| retry.at.max(not_before))
                .min();
            let said = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                () = tokio::time::sleep_until(next_try.unwrap_or_else(Instant::now)), if next_try.is_some() => {
                    // One per round: a failing partition must not keep the others from being read.
                    let due = unplaced.iter().min_by_key(|(_, retry)| retry.at).map(|(part, _)| *part);
                    if let Some(part) = due {
                        let began = Instant::now();
                        self.place(&log, part, &mut parts, &mut unplaced).await;
                        if unplaced.contains_key(&part) {
                            not_before = Instant::now() + 2 * began.elapsed();
                        }
                    }
                    continue;
                }
                said = log.next() => match said {
                    Some(said) => said,
                    None => break,
                },
            };
            match said {
                FromLog::Assigned(assigned) => {
                    for part in assigned {
                        parts.remove(&part);
                        unplaced.insert(part, Retry::now());
                    }
                }
                FromLog::Records {
                    part,
                    serial,
                    records,
                } => {
                    // Skip records that were read before the latest `begin`.
                    if parts
                        .get(&part)
                        .is_none_or(|reading| reading.serial != serial)
                    {
                        continue;
                    }
                    let Some(reading) = parts.remove(&part) else {
                        continue;
                    };
                    let batch = (part, reading, records);
                    match self.records(&log, &stop, batch, &mut known).await {
                        Some(next) => drop(parts.insert(part, next)),
                        None => drop(unplaced.insert(part, Retry::now())),
                    }
                }
            }
        }
        log.stop().await;
    }

    /// Tries to find where to resume a partition. If that fails, schedules another try.
    async fn place(
        &self,
        log: &LogConsumer,
        part: i32,
        parts: &mut HashMap<i32, ReadPosition>,
        unplaced: &mut BTreeMap<i32, Retry>,
    ) {
        match self.position(log, part).await {
            Ok(reading) => {
                unplaced.remove(&part);
                parts.insert(part, reading);
                if unplaced.is_empty() {
                    self.state.placing.is_well();
                }
            }
            Err(fault) => {
                self.failed(&self.state.placing, fault);
                unplaced.entry(part).or_insert_with(Retry::now).later();
            }
        }
    }

    /// Counts, logs and reports a failure.
    fn failed(&self, condition: &LogCondition, fault: Fault) {
        self.state.failed_batches.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%fault, "the recorder failed and will retry");
        condition.fails(fault.detail);
    }

    /// Finds where to resume a partition, and starts reading there. A log that does not contain
    /// that offset was replaced.
    async fn position(&self, log: &LogConsumer, part: i32) -> Result<ReadPosition, Fault> {
        let (mut place, mut mark) =
            recording::place(&self.store, &self.options.topic, part).await?;
        let (low, high) = log.ends(part).await.map_err(|why| {
            Fault::without_effect(Cause::Store, format!("the log's partition {part}: {why}"))
        })?;
        if high < place.next || low > place.next {
            tracing::warn!(
                part,
                low,
                high,
                next = place.next,
                "the log does not contain the store's next offset"
            );
            place = recording::begin_generation(&self.store, &self.options.topic, part, place, low)
                .await?;
            mark = None;
        }
        let check = mark.filter(|_| place.next > low);
        let from = if check.is_some() {
            place.next - 1
        } else {
            place.next
        };
        let serial = log.begin(part, from);
        Ok(ReadPosition {
            place,
            check,
            serial,
        })
    }

    /// Restarts at the beginning of a log that is not the one read before. Records that are already
    /// stored are skipped there.
    async fn replaced(&self, log: &LogConsumer, part: i32, place: Place) -> Result<(), Fault> {
        tracing::warn!(
            part,
            next = place.next,
            "the last stored record is not in the log: the log was replaced"
        );
        let (low, _) = log
            .ends(part)
            .await
            .map_err(|why| Fault::without_effect(Cause::Store, why))?;
        recording::begin_generation(&self.store, &self.options.topic, part, place, low)
            .await
            .map(|_| ())
    }

    /// Stores records of one partition. Returns where to read next, or `None` if that must be
    /// determined again or the process is stopping.
    async fn records(
        &self,
        log: &LogConsumer,
        stop: &watch::Receiver<bool>,
        (part, mut reading, mut records): (i32, ReadPosition, Vec<Record>),
        known: &mut Known,
    ) -> Option<ReadPosition> {
        if let Some(mark) = reading.check.take() {
            let is_before = |first: &Record| {
                first.offset == reading.place.next - 1 && plan::mark(first) == mark
            };
            if !records.first().is_some_and(is_before) {
                // After that, `position` finds no mark and starts where the log does.
                if let Err(fault) = self.replaced(log, part, reading.place).await {
                    self.failed(&self.state.placing, fault);
                }
                return None;
            }
        }
        if records
            .first()
            .is_some_and(|first| first.offset + 1 < reading.place.next)
        {
            // The library reset the reader: the log was truncated or replaced.
            return None;
        }
        records.retain(|record| record.offset >= reading.place.next);
        // While a batch was stored, more records may have arrived than one statement should hold.
        for batch in plan::batches(&records, self.options.record_batch_max) {
            let incoming = Incoming {
                topic: &self.options.topic,
                part,
                at: reading.place,
                records: batch,
            };
            reading.place = self.store(stop, incoming, known).await?;
        }
        Some(reading)
    }

    /// Stores one batch, retrying until that succeeds or the process stops. Returns the place after
    /// it, or `None` if the store's position has moved: another recorder stored the batch, or a
    /// commit whose reply was lost succeeded after all.
    async fn store(
        &self,
        stop: &watch::Receiver<bool>,
        incoming: Incoming<'_>,
        known: &mut Known,
    ) -> Option<Place> {
        let mut stop = stop.clone();
        let mut retry = Retry::now();
        let committed = loop {
            match commit::commit(&self.store, incoming, known).await {
                Ok(committed) => break committed,
                Err(fault) => self.failed(&self.state.storing, fault),
            }
            retry.later();
            tokio::select! {
                () = tokio::time::sleep_until(retry.at) => {}
                () = stopped(&mut stop) => return None,
            }
        };
        self.state.storing.is_well();
        let Committed::Stored(done) = committed else {
            return None;
        };
        let state = &self.state;
        state
            .records
            .fetch_add(incoming.records.len() as u64, Ordering::Relaxed);
        state
            .orders
            .fetch_add(done.orders.len() as u64, Ordering::Relaxed);
        state.voids.fetch_add(done.voids, Ordering::Relaxed);
        state.dead.fetch_add(done.dead, Ordering::Relaxed);
        state.batches.fetch_add(1, Ordering::Relaxed);
        if let Some(stored) = &self.stored {
            // The receiver is dropped only at shutdown.
            let _ = stored.send(done.orders);
        }
        Some(done.place)
    }
}

/// When a failed operation is tried again, with exponential backoff.
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Retry {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            pause: PAUSE_MIN,
        }
    }

    fn later(&mut self) {
        self.at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}
