//! Buffers records between the log reader and the recorder. It fills while a batch is being stored,
//! so batch size adapts to the load. The lock must never be held across I/O.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::record::{FromLog, Record};

#[derive(Default)]
pub(crate) struct Inbox {
    held: Mutex<Held>,
    came: Notify,
}

#[derive(Default)]
struct Held {
    assigned: Vec<i32>,
    parts: BTreeMap<i32, (u64, Vec<Record>)>,
    count: usize,
    /// The partition served last. The next call starts with the partition after it.
    last: i32,
    is_closed: bool,
}

impl Inbox {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds newly assigned partitions and discards records read from them before.
    pub(crate) fn assign(&self, parts: Vec<i32>) {
        let mut held = self.held();
        for part in &parts {
            if let Some((_, records)) = held.parts.remove(part) {
                held.count -= records.len();
            }
        }
        held.assigned.extend(parts);
        drop(held);
        self.came.notify_one();
    }

    /// Adds records of one partition and discards those with another serial.
    pub(crate) fn add(&self, part: i32, serial: u64, records: Vec<Record>) {
        let mut held = self.held();
        held.count += records.len();
        match held.parts.get_mut(&part) {
            Some((of, known)) if *of == serial => known.extend(records),
            _ => {
                if let Some((_, older)) = held.parts.insert(part, (serial, records)) {
                    held.count -= older.len();
                }
            }
        }
        drop(held);
        self.came.notify_one();
    }

    /// Number of buffered records.
    pub(crate) fn count(&self) -> usize {
        self.held().count
    }

    /// Makes all later calls of [`Inbox::next`] return `None`.
    pub(crate) fn close(&self) {
        self.held().is_closed = true;
        self.came.notify_one();
    }

    /// Waits for and takes new assignments or else the records of one partition. Returns `None`
    /// once the inbox is closed.
    pub(crate) async fn next(&self) -> Option<FromLog> {
        loop {
            {
                let mut held = self.held();
                if held.is_closed {
                    return None;
                }
                if !held.assigned.is_empty() {
                    return Some(FromLog::Assigned(std::mem::take(&mut held.assigned)));
                }
                let behind = held.parts.range(held.last + 1..).next();
                let part = behind
                    .or_else(|| held.parts.iter().next())
                    .map(|(part, _)| *part);
                if let Some(part) = part
                    && let Some((serial, records)) = held.parts.remove(&part)
                {
                    held.count -= records.len();
                    held.last = part;
                    return Some(FromLog::Records {
                        part,
                        serial,
                        records,
                    });
                }
            }
            self.came.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64) -> Record {
        Record::new(offset, b"")
    }

    #[tokio::test]
    async fn buffered_records_are_taken_together_and_partitions_take_turns() {
        let inbox = Inbox::default();
        inbox.add(0, 1, vec![record(0)]);
        inbox.add(1, 1, vec![record(7)]);
        inbox.add(0, 1, vec![record(1), record(2)]);
        assert_eq!(inbox.count(), 4);
        let mut taken = Vec::new();
        for _ in 0..2 {
            if let Some(FromLog::Records { part, records, .. }) = inbox.next().await {
                taken.push((part, records.len()));
            }
        }
        taken.sort_unstable();
        assert_eq!(taken, [(0, 3), (1, 1)]);
        assert_eq!(inbox.count(), 0);
    }

    #[tokio::test]
    async fn records_with_an_older_serial_are_dropped() {
        let inbox = Inbox::default();
        inbox.add(0, 1, vec![record(0)]);
        inbox.add(0, 2, vec![record(5)]);
        inbox.assign(vec![1]);
        assert!(matches!(inbox.next().await, Some(FromLog::Assigned(parts)) if parts == [1]));
        let taken = inbox.next().await;
        assert!(
            matches!(taken, Some(FromLog::Records { serial: 2, records, .. }) if records[0].offset == 5)
        );
        inbox.close();
        assert!(inbox.next().await.is_none());
    }
}
