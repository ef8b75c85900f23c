//! What the log reader delivers: records, parsed as claims, and assigned partitions. No I/O.

use seckill_cluster_codec::message::ClaimMessage;

/// One record, parsed as a claim on the log reader thread to take this work off the recorder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    pub content: Result<ClaimMessage, Foreign>,
}

/// The payload of a record that is not a claim, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    pub payload: Vec<u8>,
    pub error: String,
}

impl Record {
    pub fn new(offset: i64, payload: &[u8]) -> Self {
        let content = ClaimMessage::read(payload).map_err(|error| Foreign {
            payload: payload.to_vec(),
            error: error.to_string(),
        });
        Self { offset, content }
    }

    pub fn claim(&self) -> Option<&ClaimMessage> {
        self.content.as_ref().ok()
    }
}

/// A message from the log reader.
#[derive(Debug)]
pub enum FromLog {
    /// These partitions are now assigned to this process. Each stays paused until its
    /// [`begin`](crate::LogConsumer::begin).
    Assigned(Vec<i32>),
    /// Records of one partition, in order, read since the `begin` with this serial.
    Records {
        part: i32,
        serial: u64,
        records: Vec<Record>,
    },
}
