//! One connection with at most one request in flight. Reads and writes what it can; never blocks.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use mio::net::TcpStream;

use crate::Failure;

/// A larger response is a failure.
const RESPONSE_MAX_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 4_096;

/// The request in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnderWay {
    pub(crate) index: u64,
    /// Latency counts from this time.
    pub(crate) from: Instant,
    /// The answer must arrive by this time.
    pub(crate) deadline: Instant,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) is_connected: bool,
    pub(crate) under_way: Option<UnderWay>,
    /// The request, of which `sent` bytes have been written.
    pub(crate) out: Vec<u8>,
    pub(crate) sent: usize,
    /// The part of the response that has arrived.
    pub(crate) received: Vec<u8>,
}

/// The result of reading from the socket.
pub(crate) enum Received {
    /// New bytes have arrived.
    Some,
    /// No new bytes.
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

    /// Sends the rest of the request. A full socket buffer is not a failure.
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

    /// Reads what has arrived. A read that does not fill the buffer has drained the socket (see
    /// epoll(7) on edge-triggered use), which saves another read that would return `WouldBlock`.
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
