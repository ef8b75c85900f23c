//! The recorder: carries the order log into the store, one transaction a batch. Any number may run; the offset row and the
//! sales' locks make what they do one after the other. It never touches the gate.

mod commit;
pub(crate) mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use seckill_engine::{Cause, Fault};
use seckill_sale::{OrderId, Unit};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::commit::{Committed, Place};
use crate::log::LogCondition;
use crate::log::consumer::{FromLog, LogConsumer, Record};
use crate::options::ClusterOptions;
use crate::stop::stopped;
use crate::store::Store;

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Orders that a commit has made rows of.
pub(crate) type StoredOrders = Vec<(Unit, OrderId)>;

/// What a recorder has done since it started, and what ails it.
#[derive(Debug, Default)]
pub(crate) struct RecorderState {
    pub(crate) records: AtomicU64,
    pub(crate) orders: AtomicU64,
    pub(crate) voids: AtomicU64,
    pub(crate) dead: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) failed_batches: AtomicU64,
    /// Why nothing is stored now.
    storing: LogCondition,
    /// Why some partition is not read.
    placing: LogCondition,
}

impl RecorderState {
    /// What ails it now.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.storing.trouble().or_else(|| self.placing.trouble())
    }
}

/// The recorder of one process.
pub(crate) struct Recorder {
    pub(crate) options: Arc<ClusterOptions>,
    pub(crate) store: Arc<Store>,
    pub(crate) state: Arc<RecorderState>,
    /// Told after each commit which orders are rows now, where somebody in this process waits for them.
    pub(crate) stored: Option<mpsc::UnboundedSender<StoredOrders>>,
}

/// Where a partition is read from next; `check` is what the record before must be.
#[derive(Debug, Clone)]
struct Sample {
    place: Place,
    check: Option<String>,
    serial: u64,
}

impl Recorder {
    /// Records until `stop` says so.
    pub(crate) async fn run(self, log: LogConsumer, mut stop: watch::Receiver<bool>) {
        let mut parts: HashMap<i32, Sample> = HashMap::new();
        let mut unplaced: BTreeMap<i32, Retry> = BTreeMap::new();
        // A try that fails may take its time, in which nothing is read: most of the time must be left for reading.
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
                    // One of them: what ails it must not keep the others from being recorded.
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
                    // What was read before the latest beginning is not what comes next.
                    if parts
                        .get(&part)
                        .is_none_or(|reading| reading.serial != serial)
                    {
                        continue;
                    }
                    let Some(reading) = parts.remove(&part) else {
                        continue;
                    };
                    match self.records(&log, &stop, part, reading, records).await {
                        Some(next) => drop(parts.insert(part, next)),
                        None => drop(unplaced.insert(part, Retry::now())),
                    }
                }
            }
        }
        log.stop().await;
    }

    /// Tries to find where a partition goes on; where that fails it is tried again later.
    async fn place(
        &self,
        log: &LogConsumer,
        part: i32,
        parts: &mut HashMap<i32, Sample>,
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

    /// Shows what went wrong.
    fn failed(&self, condition: &LogCondition, fault: Fault) {
        self.state.failed_batches.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%fault, "the recorder tries again");
        condition.fails(fault.detail);
    }

    /// Finds where a partition goes on, and begins to read there. A log that ends before that place was replaced.
    async fn position(&self, log: &LogConsumer, part: i32) -> Result<Sample, Fault> {
        let (mut place, mut mark) = commit::place(&self.store, &self.options.topic, part).await?;
        let (low, high) = log.ends(part).await.map_err(|why| {
            Fault::without_effect(Cause::Store, format!("the log's partition {part}: {why}"))
        })?;
        if high < place.next || low > place.next {
            tracing::warn!(
                part,
                low,
                high,
                next = place.next,
                "the log does not reach to where the store goes on"
            );
            place = commit::begin_generation(&self.store, &self.options.topic, part, place, low)
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
        Ok(Sample {
            place,
            check,
            serial,
        })
    }

    /// The log is not the one that was read before: from its beginning. What is stored already is skipped there.
    async fn replaced(&self, log: &LogConsumer, part: i32, place: Place) -> Result<(), Fault> {
        tracing::warn!(
            part,
            next = place.next,
            "the last record that was stored is not in the log: it was replaced"
        );
        let (low, _) = log
            .ends(part)
            .await
            .map_err(|why| Fault::without_effect(Cause::Store, why))?;
        commit::begin_generation(&self.store, &self.options.topic, part, place, low)
            .await
            .map(|_| ())
    }

    /// Stores records of one partition. Gives where to go on; nothing where that has to be found anew, or at the end.
    async fn records(
        &self,
        log: &LogConsumer,
        stop: &watch::Receiver<bool>,
        part: i32,
        mut reading: Sample,
        mut records: Vec<Record>,
    ) -> Option<Sample> {
        if let Some(mark) = reading.check.take() {
            let is_before = |first: &Record| {
                first.offset == reading.place.next - 1 && plan::mark(first) == mark
            };
            if !records.first().is_some_and(is_before) {
                // The next position finds no mark any more, and begins where the log does.
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
            // The reader was set back behind our back: the log is shorter than it was, or another one.
            return None;
        }
        records.retain(|record| record.offset >= reading.place.next);
        // More may have come while a batch was stored than one statement should have.
        for batch in records.chunks(self.options.record_batch_max) {
            reading.place = self.store(stop, part, reading.place, batch).await?;
        }
        Some(reading)
    }

    /// Stores one batch, until that works or the process stops. Gives the place behind it; nothing where the store goes on
    /// elsewhere: another recorder had it, or a commit whose answer was lost was done after all.
    async fn store(
        &self,
        stop: &watch::Receiver<bool>,
        part: i32,
        place: Place,
        batch: &[Record],
    ) -> Option<Place> {
        let mut stop = stop.clone();
        let mut retry = Retry::now();
        let committed = loop {
            match commit::commit(&self.store, &self.options.topic, part, place, batch).await {
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
            .fetch_add(batch.len() as u64, Ordering::Relaxed);
        state
            .orders
            .fetch_add(done.orders.len() as u64, Ordering::Relaxed);
        state.voids.fetch_add(done.voids, Ordering::Relaxed);
        state.dead.fetch_add(done.dead, Ordering::Relaxed);
        state.batches.fetch_add(1, Ordering::Relaxed);
        if let Some(stored) = &self.stored {
            // Whoever waited is gone only when the process ends.
            let _ = stored.send(done.orders);
        }
        Some(done.place)
    }
}

/// When something that failed is tried again, ever later.
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
