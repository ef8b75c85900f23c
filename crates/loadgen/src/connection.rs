//! One connection with at most one request under way. It reads and writes what it can and never blocks.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use mio::net::TcpStream;

use crate::outcome::Failure;

/// The largest response that is read.
const RESPONSE_MAX_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 4_096;

/// The request under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnderWay {
    pub(crate) index: u64,
    /// The moment that latency counts from.
    pub(crate) from: Instant,
    /// The moment by which the answer must be there.
    pub(crate) deadline: Instant,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) is_connected: bool,
    pub(crate) under_way: Option<UnderWay>,
    /// What is to be sent, and how much of it has been.
    pub(crate) out: Vec<u8>,
    pub(crate) sent: usize,
    /// What has been received of the response.
    pub(crate) received: Vec<u8>,
}

/// What reading led to.
pub(crate) enum Received {
    /// There is something new to look at.
    Some,
    /// Nothing now.
    Nothing,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            is_connected: false,
            under_way: None,
            out: Vec::new(),
            sent: 0,
            received: Vec::with_capacity(READ_BYTES),
        }
    }

    /// Sends what is left; a full socket buffer is no failure.
    pub(crate) fn send(&mut self) -> Result<(), Failure> {
        if !self.is_connected {
            return Ok(());
        }
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(Failure::BrokenOff),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Failure::BrokenOff),
            }
        }
        Ok(())
    }

    /// Takes in what has arrived. A read that does not fill its room has emptied the socket (epoll(7), edge-triggered
    /// use), which saves the read that would only say so.
    pub(crate) fn receive(&mut self) -> Result<Received, Failure> {
        let before = self.received.len();
        loop {
            let filled = self.received.len();
            if filled > RESPONSE_MAX_BYTES {
                return Err(Failure::NotHttp);
            }
            self.received.resize(filled + READ_BYTES, 0);
            let read = self.stream.read(&mut self.received[filled..]);
            let count = *read.as_ref().unwrap_or(&0);
            self.received.truncate(filled + count);
            match read {
                Ok(0) => return Err(Failure::BrokenOff),
                Ok(READ_BYTES) => {}
                Ok(_) => return Ok(Received::Some),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let has_new = self.received.len() > before;
                    return Ok(if has_new {
                        Received::Some
                    } else {
                        Received::Nothing
                    });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Failure::BrokenOff),
            }
        }
    }
}
