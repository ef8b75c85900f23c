//! The client of one round: sends random requests to an engine and records every answer.
//! It does not check answers itself; `promises` does.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use seckill_embedded::EmbeddedEngine;
use seckill_engine::{Engine, Outcome};
use seckill_sale::{
    Attempt, Buyer, IdempotencyKey, Line, Lines, NewSale, Order, OrderChange, OrderId, SaleId,
    Verdict,
};
use tokio::runtime::Runtime;

use crate::promises::{ATTEMPT_UNITS_MAX, Promise, Promises};
use crate::rng::Rng;

const BUYERS: [&str; 4] = ["ann", "bob", "cat", "dan"];
const BATCH_MAX: u64 = 6;
/// The longest time to wait for a definite answer of an undisturbed engine.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Which requests a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Mostly attempts.
    Selling,
    /// Mostly queries about known orders.
    Restarted,
    /// Only requests that write nothing.
    Asking,
}

pub(crate) struct Client<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) engine: &'a EmbeddedEngine,
    pub(crate) promises: &'a mut Promises,
    pub(crate) rng: &'a mut Rng,
}

impl Client<'_> {
    /// Sends one random request.
    pub(crate) fn step(&mut self, mix: Mix) -> anyhow::Result<()> {
        let mut offers = self.promises.offers.iter();
        if let Some(offer) = offers.find(|offer| !offer.exists && mix != Mix::Asking) {
            let terms = offer.terms.clone();
            return self.create(terms);
        }
        let known_percent = match mix {
            Mix::Selling => 25,
            Mix::Restarted => 60,
            Mix::Asking => 100,
        };
        if self.rng.below(100) >= known_percent {
            return self.attempt();
        }
        let known = self.pick(self.promises.confirmed.len());
        let Some(promise) = known.map(|index| self.promises.confirmed[index].clone()) else {
            return self.attempt_allowed_by(mix);
        };
        match self.rng.below(6) {
            0 | 1 if mix != Mix::Asking => self.cancel(&promise.order_id),
            0..=2 => self.order(&promise.order_id),
            3 => match self.pick(self.promises.open.len()) {
                Some(index) => self.order(&self.promises.open[index].clone()),
                None => self.order(&promise.order_id),
            },
            4 => self.order_of_key(&promise),
            _ if promise.key.is_some() => self.repeat(&promise),
            _ => self.attempt_allowed_by(mix),
        }
    }

    /// Asks about everything whose outcome is unknown, which writes nothing. An engine must not
    /// answer from what a killed process left until it has made that durable.
    pub(crate) fn ask_open(&mut self) -> anyhow::Result<()> {
        let offers = self.promises.offers.iter();
        let sales: Vec<SaleId> = offers.map(|offer| offer.terms.id.clone()).collect();
        for id in sales {
            if let Ok(found) = self.runtime.block_on(self.engine.sale(&id)) {
                let sale = found.as_ref().map(|stock| &stock.sale);
                self.promises.sale(&id, sale)?;
            }
        }
        for id in self.promises.open.clone() {
            self.order(&id)?;
        }
        Ok(())
    }

    /// A random attempt; for [`Mix::Asking`], only if memory can answer it.
    fn attempt_allowed_by(&mut self, mix: Mix) -> anyhow::Result<()> {
        if mix != Mix::Asking {
            return self.attempt();
        }
        let attempt = self.random_attempt()?;
        match self.engine.answer_from_memory(&attempt) {
            Some(verdict) => self.promises.verdict(&attempt, &Ok(verdict)),
            None => Ok(()),
        }
    }

    fn pick(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.rng.below(len as u64) as usize)
    }

    fn create(&mut self, terms: NewSale) -> anyhow::Result<()> {
        let id = terms.id.clone();
        let answer = self.runtime.block_on(self.engine.create_sale(terms));
        self.promises.created(&id, &answer)
    }

    /// Several attempts in one call, or a single one, as from an HTTP request.
    fn attempt(&mut self) -> anyhow::Result<()> {
        if self.rng.one_in(4) {
            let attempt = self.random_attempt()?;
            return self.decide_one(&attempt);
        }
        let count = self.rng.between(1, BATCH_MAX);
        let attempts = (0..count).map(|_| self.random_attempt());
        let attempts = attempts.collect::<anyhow::Result<Vec<Attempt>>>()?;
        let call = self.engine.decide(attempts.clone());
        let verdicts = self.runtime.block_on(call);
        ensure!(
            verdicts.len() == attempts.len(),
            "{attempts:?} got {verdicts:?}"
        );
        for (attempt, verdict) in attempts.iter().zip(&verdicts) {
            self.promises.verdict(attempt, verdict)?;
        }
        Ok(())
    }

    fn random_attempt(&mut self) -> anyhow::Result<Attempt> {
        let index = self.rng.below(self.promises.offers.len() as u64) as usize;
        let terms = &self.promises.offers[index].terms;
        let (sale, limited) = (terms.id.clone(), terms.buyer_limit.is_some());
        let mut attempt = Attempt::anonymous(sale);
        if limited || !self.rng.one_in(5) {
            let name = BUYERS[self.rng.below(BUYERS.len() as u64) as usize];
            attempt.buyer = Buyer::new(name)?;
        }
        // Some keys are reused while the outcome of their first attempt is unknown.
        let key = match self.rng.below(5) {
            0 | 1 => None,
            2 => Some(format!("again-{}", self.rng.below(3))),
            _ => Some(format!("once-{:x}", self.rng.next_u64())),
        };
        attempt.key = key.map(|key| IdempotencyKey::new(&key)).transpose()?;
        let terms = &self.promises.offers[index].terms;
        attempt.lines = match &attempt.key {
            Some(key) => lines_of_key(terms, key),
            None => lines(terms, self.rng.next_u64()),
        };
        Ok(attempt)
    }

    fn repeat(&mut self, promise: &Promise) -> anyhow::Result<()> {
        let attempt = self.repeated_attempt(promise)?;
        self.decide_one(&attempt)
    }

    fn repeated_attempt(&self, promise: &Promise) -> anyhow::Result<Attempt> {
        let mut offers = self.promises.offers.iter();
        let offer = offers.find(|offer| offer.terms.id == promise.sale);
        let terms = &offer.context("a sale that no one offers")?.terms;
        let key = promise.key.as_ref().context("an order without a key")?;
        Ok(promise.attempt(lines_of_key(terms, key)))
    }

    fn decide_one(&mut self, attempt: &Attempt) -> anyhow::Result<()> {
        let verdict = match self.engine.answer_from_memory(attempt) {
            Some(verdict) => Ok(verdict),
            None => self
                .runtime
                .block_on(self.engine.decide_one(attempt.clone())),
        };
        self.promises.verdict(attempt, &verdict)
    }

    fn cancel(&mut self, id: &OrderId) -> anyhow::Result<()> {
        let call = self.engine.change_order(id, OrderChange::Cancel);
        let answer = self.runtime.block_on(call);
        self.promises.cancelled(id, &answer)
    }

    fn order(&mut self, id: &OrderId) -> anyhow::Result<()> {
        match self.runtime.block_on(self.engine.order(id)) {
            Ok(outcome) => self.promises.outcome(id, &outcome),
            Err(_) => Ok(()),
        }
    }

    fn order_of_key(&mut self, promise: &Promise) -> anyhow::Result<()> {
        let Some(key) = &promise.key else {
            return self.order(&promise.order_id);
        };
        let (sale, buyer) = (&promise.sale, &promise.buyer);
        let call = self.engine.order_of_key(sale, buyer, key);
        match self.runtime.block_on(call) {
            Ok(outcome) => self.promises.outcome_of_key(promise, &outcome),
            Err(_) => Ok(()),
        }
    }

    /// Asks an undisturbed engine about everything, and compares the answers.
    pub(crate) fn check_all(&mut self) -> anyhow::Result<()> {
        let engine = self.engine;
        wait_for("readiness", || {
            let ready = engine.components().iter().all(|component| component.ready);
            Ok(ready.then_some(()))
        })?;
        self.check_sales()?;
        let orders = self.all_orders()?;
        for promise in self.promises.confirmed.clone() {
            if promise.key.is_some() {
                self.check_repeat(&promise)?;
            }
            self.order_of_key(&promise)?;
        }
        self.promises.check_rejections(&orders)?;
        let (runtime, history) = (self.runtime, self.promises.history());
        let report = wait_for("the audit", || {
            Ok(runtime.block_on(engine.audit(history.clone())).ok())
        })?;
        ensure!(report.is_clean(), "the audit: {:#?}", report.violations);
        self.promises.check_rows(report.store_rows, &orders)
    }

    fn check_sales(&mut self) -> anyhow::Result<()> {
        let (runtime, engine) = (self.runtime, self.engine);
        let offers = self.promises.offers.iter();
        let ids: Vec<_> = offers.map(|offer| offer.terms.id.clone()).collect();
        for id in ids {
            let found = wait_for("a sale", || Ok(runtime.block_on(engine.sale(&id)).ok()))?;
            let sale = found.as_ref().map(|stock| &stock.sale);
            self.promises.sale(&id, sale)?;
        }
        Ok(())
    }

    /// Every order whose id the client ever received.
    fn all_orders(&mut self) -> anyhow::Result<Vec<Order>> {
        let (runtime, engine) = (self.runtime, self.engine);
        let confirmed = self.promises.confirmed.iter();
        let mut ids: Vec<OrderId> = confirmed.map(|promise| promise.order_id.clone()).collect();
        for id in &self.promises.open {
            if !ids.contains(id) {
                ids.push(id.clone());
            }
        }
        let mut orders = Vec::new();
        for id in ids {
            let outcome = wait_for("an order", || {
                let answer = runtime.block_on(engine.order(&id));
                Ok(answer.ok().filter(|outcome| *outcome != Outcome::Pending))
            })?;
            self.promises.outcome(&id, &outcome)?;
            if let Outcome::Order(order) = outcome {
                orders.push(order);
            }
        }
        Ok(orders)
    }

    fn check_repeat(&mut self, promise: &Promise) -> anyhow::Result<()> {
        let (runtime, engine) = (self.runtime, self.engine);
        let attempt = self.repeated_attempt(promise)?;
        let repeat = wait_for("a repeat", || {
            let verdict = runtime.block_on(engine.decide_one(attempt.clone()));
            Ok(verdict.ok().filter(|v| !matches!(v, Verdict::Pending(_))))
        })?;
        let is_repeat = matches!(repeat, Verdict::Repeat { .. });
        ensure!(is_repeat, "{promise:?} was repeated, but got {repeat:?}");
        self.promises.verdict(&attempt, &Ok(repeat))
    }
}

/// What an attempt with this key wants, so that its repeats have the same content.
fn lines_of_key(terms: &NewSale, key: &IdempotencyKey) -> Lines {
    let mut hasher = DefaultHasher::new();
    key.as_str().hash(&mut hasher);
    lines(terms, hasher.finish())
}

/// Lines that depend on the number alone: 1 to 3 units, of one item or of all.
fn lines(terms: &NewSale, number: u64) -> Lines {
    let quantity = 1 + (number % ATTEMPT_UNITS_MAX) as u32;
    if terms.items.len() == 1 {
        return Lines::Quantity(quantity);
    }
    let wants_all = number % 7 < 3;
    let one = (number >> 8) as usize % terms.items.len();
    let items = terms.items.iter().enumerate();
    let wanted = items.filter(|(index, _)| wants_all || *index == one);
    Lines::named(wanted.map(|(_, item)| Line {
        item: item.id.clone(),
        quantity: if wants_all { 1 } else { quantity },
    }))
}

/// Asks until there is an answer.
fn wait_for<T>(
    subject: &str,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        if let Some(answer) = ask().context(subject.to_owned())? {
            return Ok(answer);
        }
        let in_time = Instant::now() < deadline;
        ensure!(in_time, "{subject}: no answer within {ANSWER_MAX:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
