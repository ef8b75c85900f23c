//! One thread's event loop: sends due requests on free connections and reads the answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use seckill_api::{Confirmation, HistoryEntry, HistoryUnit};

use crate::Progress;
use crate::connection::{Connection, Received, UnderWay};
use crate::outcome::outcome_of;
use crate::plan::{Pacing, Plan};
use crate::report::Tally;
use crate::response::{self, parse};
use crate::{Failure, Outcome};

const EVENTS_MAX: usize = 1_024;
/// How often deadlines are checked.
const SWEEP_MS: u64 = 50;
/// The shortest interval of the pacer, so that a high rate does not cost one wake-up per request.
const PACE_MIN_US: u64 = 200;
const WAKE: Token = Token(usize::MAX);

pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    progress: &'a Progress,
    started: Instant,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    /// Indexes into `connections` without a request in flight; those with an open connection last.
    free: Vec<usize>,
    busy: usize,
    uniform: Vec<u8>,
    tally: Tally,
    is_exhausted: bool,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        progress: &'a Progress,
        started: Instant,
        connections: usize,
    ) -> std::io::Result<Self> {
        let mut uniform = Vec::new();
        if plan.is_uniform() {
            plan.write_request(0, &mut uniform);
        }
        Ok(Self {
            plan,
            progress,
            started,
            poll: Poll::new()?,
            connections: std::iter::repeat_with(|| None).take(connections).collect(),
            free: (0..connections).rev().collect(),
            busy: 0,
            uniform,
            tally: Tally::new(),
            is_exhausted: false,
        })
    }

    pub(crate) fn run(mut self) -> std::io::Result<Tally> {
        let ended = Arc::new(AtomicBool::new(false));
        let pacer = self.start_pacer(&ended)?;
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut swept = Instant::now();
        let sweep = Duration::from_millis(SWEEP_MS);
        let ran = loop {
            self.send_due();
            if self.is_exhausted && self.busy == 0 {
                break Ok(());
            }
            match self.poll.poll(&mut events, Some(sweep)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => break Err(error),
                _ => {}
            }
            for event in &events {
                if event.token() != WAKE {
                    self.ready(event.token().0, event.is_read_closed());
                }
            }
            if swept.elapsed() >= sweep {
                swept = Instant::now();
                self.end_late(swept);
            }
        };
        ended.store(true, Ordering::Relaxed);
        if let Some(pacer) = pacer {
            pacer.thread().unpark();
            // The pacer only sleeps and wakes, so it cannot fail.
            drop(pacer.join());
        }
        ran.map(|()| self.tally)
    }

    /// Starts a thread that wakes the loop when the next request is due, because the poll's own
    /// timeout has a resolution of one millisecond.
    fn start_pacer(
        &self,
        ended: &Arc<AtomicBool>,
    ) -> std::io::Result<Option<std::thread::JoinHandle<()>>> {
        let Pacing::Over(whole) = self.plan.pacing else {
            return Ok(None);
        };
        let waker = Waker::new(self.poll.registry(), WAKE)?;
        let (requests, started) = (self.plan.requests.max(1), self.started);
        let ended = Arc::clone(ended);
        let gap = (whole / u32::try_from(requests).unwrap_or(u32::MAX))
            .max(Duration::from_micros(PACE_MIN_US));
        let pace = move || {
            let mut next = Duration::ZERO;
            while !ended.load(Ordering::Relaxed) && next <= whole {
                let now = started.elapsed();
                if now < next {
                    std::thread::park_timeout(next - now);
                }
                if waker.wake().is_err() {
                    return;
                }
                next = started.elapsed().max(next) + gap / 2;
            }
        };
        std::thread::Builder::new().spawn(pace).map(Some)
    }

    /// Starts every request that is due while connections are free.
    fn send_due(&mut self) {
        while !self.is_exhausted
            && let Some(&place) = self.free.last()
        {
            if self.progress.is_stopped() {
                self.is_exhausted = true;
                return;
            }
            let Some((index, from)) = self.claim_index() else {
                return;
            };
            self.free.pop();
            self.begin(place, index, from);
        }
    }

    /// Takes the next request from the counter that all threads share, if it is due, and the time
    /// that its latency counts from.
    fn claim_index(&mut self) -> Option<(u64, Instant)> {
        let next = &self.progress.begun;
        let mut index = next.load(Ordering::Relaxed);
        loop {
            if index >= self.plan.requests {
                self.is_exhausted = true;
                return None;
            }
            let due = self.started + self.plan.due(index);
            let now = Instant::now();
            if due > now {
                return None;
            }
            let from = match self.plan.pacing {
                Pacing::Closed => now,
                Pacing::Over(_) => due,
            };
            let claimed =
                next.compare_exchange_weak(index, index + 1, Ordering::Relaxed, Ordering::Relaxed);
            match claimed {
                Ok(_) => return Some((index, from)),
                Err(other) => index = other,
            }
        }
    }

    fn begin(&mut self, place: usize, index: u64, from: Instant) {
        self.tally.begun += 1;
        self.busy += 1;
        if self.connections[place].is_none() {
            match self.connect(place) {
                Ok(connection) => self.connections[place] = Some(connection),
                Err(_) => return self.fail(place, Failure::Connect),
            }
        }
        let deadline = Instant::now() + Duration::from_millis(self.plan.timeout_ms);
        let Some(connection) = &mut self.connections[place] else {
            return;
        };
        connection.under_way = Some(UnderWay {
            index,
            from,
            deadline,
        });
        connection.sent = 0;
        if self.plan.is_uniform() {
            if connection.out.is_empty() {
                connection.out.extend_from_slice(&self.uniform);
            }
        } else {
            connection.out.clear();
            self.plan.write_request(index, &mut connection.out);
        }
        if let Err(failure) = connection.send() {
            self.fail(place, failure);
        }
    }

    fn connect(&self, place: usize) -> std::io::Result<Connection> {
        let mut stream = TcpStream::connect(self.plan.target.address)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(place), both)?;
        Ok(Connection::new(stream))
    }

    /// Handles an event on a connection. `is_ended` means that the peer sends nothing more; no
    /// later event repeats this.
    fn ready(&mut self, place: usize, is_ended: bool) {
        let Some(connection) = self.connections.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        if !connection.is_connected {
            if let Ok(Some(_)) | Err(_) = connection.stream.take_error() {
                return self.fail(place, Failure::Connect);
            }
            if connection.stream.peer_addr().is_err() {
                return;
            }
            connection.is_connected = true;
            // Without it, a small request waits for the acknowledgement of the previous one.
            if connection.stream.set_nodelay(true).is_err() {
                return self.fail(place, Failure::Connect);
            }
        }
        if connection.sent < connection.out.len()
            && let Err(failure) = connection.send()
        {
            return self.fail(place, failure);
        }
        match connection.receive() {
            Ok(Received::Nothing) => {}
            Ok(Received::Some) => self.look(place, is_ended),
            Err(failure) => self.fail(place, failure),
        }
    }

    /// Checks whether the response is complete. If so, starts the next request that is due.
    fn look(&mut self, place: usize, is_ended: bool) {
        let Some(connection) = &mut self.connections[place] else {
            return;
        };
        let parsed = match parse(&connection.received) {
            response::Progress::Whole(parsed) => parsed,
            response::Progress::Partial if is_ended => {
                return self.fail(place, Failure::BrokenOff);
            }
            response::Progress::Partial => return,
            response::Progress::NotHttp => return self.fail(place, Failure::NotHttp),
        };
        let Some(under_way) = connection.under_way.take() else {
            return self.fail(place, Failure::NotHttp);
        };
        let outcome = outcome_of(parsed.status, parsed.is_replay, &parsed.body);
        self.tally
            .answered(parsed.status, outcome, under_way.from.elapsed());
        if self.plan.keep_confirmations && matches!(outcome, Outcome::Won | Outcome::Repeat) {
            let read = read_confirmation(self.plan, under_way.index, &parsed.body);
            // One that cannot be read does not have the units either.
            let units = read.as_ref().map_or(&[][..], |entry| &entry.units);
            let is_whole = self.plan.wanted(under_way.index).is_met_by(units);
            self.tally.confirmed(outcome, units.len() as u64, is_whole);
            self.progress.keep(read);
        }
        if outcome == Outcome::Refused {
            self.tally.refused(parsed.status, &parsed.body);
        }
        self.progress.answered.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Won | Outcome::Repeat => {
                self.progress.won.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::SoldOut => {
                self.progress.sold_out.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        let (keep_alive, length) = (parsed.keep_alive, parsed.length);
        connection.received.drain(..length);
        if !keep_alive || is_ended {
            self.connections[place] = None;
        }
        self.busy -= 1;
        self.free.push(place);
        self.send_due();
    }

    /// Closes a connection and fails its request in flight.
    fn fail(&mut self, place: usize, failure: Failure) {
        let was_idle = match self.connections[place].take() {
            Some(connection) => connection.under_way.is_none(),
            None => false,
        };
        if was_idle {
            // A server may close an idle connection; its index is in `free` already.
            return;
        }
        self.tally.failed(failure);
        self.progress.failed.fetch_add(1, Ordering::Relaxed);
        self.busy -= 1;
        self.free.push(place);
    }

    fn end_late(&mut self, now: Instant) {
        for place in 0..self.connections.len() {
            let is_late = self.connections[place]
                .as_ref()
                .and_then(|connection| connection.under_way)
                .is_some_and(|under_way| under_way.deadline <= now);
            if is_late {
                self.fail(place, Failure::TimedOut);
            }
        }
    }
}

/// `None` if the body is not a confirmation.
fn read_confirmation(plan: &Plan, index: u64, body: &[u8]) -> Option<HistoryEntry> {
    let won: Confirmation<'_> = serde_json::from_slice(body).ok()?;
    let path = (index % plan.paths.max(1)).to_string();
    let units = won.units.iter().map(|unit| HistoryUnit {
        item: Some(unit.item.to_string()),
        unit: unit.unit,
        generation: Some(unit.generation),
    });
    Some(HistoryEntry {
        units: units.collect(),
        order_id: won.order_id.into_owned(),
        sale: plan.target.sale().map(|sale| sale.replace("{}", &path)),
        buyer: plan.buyer(index),
        key: plan.key(index),
    })
}
