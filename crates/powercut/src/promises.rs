//! Records what the engine told its clients, and checks whether a later answer contradicts it.
//! It sends no requests itself, and knows about the store only what answers contain.

use anyhow::{Context, bail, ensure};
use seckill_engine::{Effect, Fault, OrderRefused, Outcome};
use seckill_sale::{
    Attempt, Buyer, Claim, HistoryEntry, HistoryUnit, IdempotencyKey, Invalid, ItemId, Lines,
    NewSale, Order, OrderId, OrderState, OrderUnit, OrderUnits, Rejection, Sale, SaleId,
    SaleRefused, Verdict,
};

/// The most units that an attempt of the client wants.
pub(crate) const ATTEMPT_UNITS_MAX: u64 = 3;

/// Whether an order was cancelled, as far as the client can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cancel {
    No,
    /// Requested in this run of the engine, without a definite answer.
    Unknown(u32),
    Confirmed,
}

/// An order that the engine confirmed, in a verdict or in the answer to a query.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    pub(crate) order_id: OrderId,
    pub(crate) sale: SaleId,
    pub(crate) buyer: Buyer,
    pub(crate) key: Option<IdempotencyKey>,
    units: OrderUnits,
    cancel: Cancel,
    /// The run of the engine that first confirmed it.
    run: u32,
}

impl Promise {
    /// A repeat of the attempt that made the order, whose lines were these.
    pub(crate) fn attempt(&self, lines: Lines) -> Attempt {
        Attempt {
            buyer: self.buyer.clone(),
            key: self.key.clone(),
            lines,
            ..Attempt::anonymous(self.sale.clone())
        }
    }
}

/// An order in an answer.
struct Shown<'a> {
    order_id: &'a OrderId,
    sale: &'a SaleId,
    buyer: &'a Buyer,
    key: Option<&'a IdempotencyKey>,
    units: &'a OrderUnits,
    state: OrderState,
}

impl<'a> Shown<'a> {
    fn order(order: &'a Order) -> Self {
        Self {
            order_id: &order.order_id,
            sale: &order.sale,
            buyer: &order.buyer,
            key: order.idempotency_key.as_ref(),
            units: &order.units,
            state: order.state,
        }
    }
}

/// A sale that the client creates.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) terms: NewSale,
    /// Whether any answer showed that it exists.
    pub(crate) exists: bool,
}

/// A definite rejection, as the minimum number of units in orders that it implies.
///
/// "Sold out" means that each unit of the item had an active and durable order, "not enough left"
/// that all but the remaining ones had, and "limit reached" that the buyer had nearly as many as the
/// limit. Units of orders whose cancellation was confirmed earlier are added: they are durable as
/// well, but not active. Orders are never deleted, so the store must always contain at least that
/// many, in any state.
#[derive(Debug, Clone)]
struct Rejected {
    sale: SaleId,
    /// `None` if the rejection is about an item.
    buyer: Option<Buyer>,
    /// `None` if the rejection is about a buyer.
    item: Option<ItemId>,
    units_min: usize,
    run: u32,
}

impl Rejected {
    fn is_about(&self, sale: &SaleId, buyer: &Buyer) -> bool {
        self.sale == *sale && self.buyer.as_ref().is_none_or(|b| b == buyer)
    }

    fn count<'a>(&self, units: impl IntoIterator<Item = &'a OrderUnit>) -> usize {
        let is_meant = |unit: &&OrderUnit| self.item.as_ref().is_none_or(|i| *i == unit.item);
        units.into_iter().filter(is_meant).count()
    }
}

/// Everything that the clients of one round were told.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    /// The run of the engine that answers now.
    pub(crate) run: u32,
    pub(crate) offers: Vec<Offer>,
    pub(crate) confirmed: Vec<Promise>,
    /// Ids that may turn out to be orders.
    pub(crate) open: Vec<OrderId>,
    /// Ids that will never be orders.
    absent: Vec<OrderId>,
    rejected: Vec<Rejected>,
    /// Attempts that may have become orders although the answer had no order id.
    unnamed: u64,
}

impl Promises {
    pub(crate) fn new(terms: Vec<NewSale>) -> Self {
        let offer = |terms| Offer {
            terms,
            exists: false,
        };
        Self {
            offers: terms.into_iter().map(offer).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn confirmations(&self) -> usize {
        self.confirmed.len()
    }

    /// Confirmations of runs before this one.
    pub(crate) fn confirmations_before(&self, run: u32) -> usize {
        let earlier = self.confirmed.iter().filter(|promise| promise.run < run);
        earlier.count()
    }

    pub(crate) fn rejections(&self) -> usize {
        self.rejected.len()
    }

    pub(crate) fn rejections_before(&self, run: u32) -> usize {
        let earlier = self.rejected.iter().filter(|rejected| rejected.run < run);
        earlier.count()
    }

    /// The confirmations in the form that the audit expects.
    pub(crate) fn history(&self) -> Vec<HistoryEntry> {
        let entry = |promise: &Promise| HistoryEntry {
            order_id: promise.order_id.clone(),
            sale: Some(promise.sale.to_string()),
            units: promise.units.iter().map(history_unit).collect(),
            buyer: Some(promise.buyer.to_string()),
            key: promise.key.as_ref().map(ToString::to_string),
        };
        self.confirmed.iter().map(entry).collect()
    }

    fn offer(&mut self, sale: &SaleId) -> anyhow::Result<&mut Offer> {
        let mut offers = self.offers.iter_mut();
        let offer = offers.find(|offer| offer.terms.id == *sale);
        offer.with_context(|| format!("an answer names sale {sale}, which no request named"))
    }

    fn confirmed_by_key(&self, attempt: &Attempt) -> Option<&Promise> {
        let key = attempt.key.as_ref()?;
        self.confirmed.iter().find(|promise| {
            promise.key.as_ref() == Some(key)
                && promise.sale == attempt.sale
                && promise.buyer == attempt.buyer
        })
    }

    fn may_exist(&mut self, order_id: &OrderId) {
        if !self.open.contains(order_id) {
            self.open.push(order_id.clone());
        }
    }

    pub(crate) fn created(
        &mut self,
        id: &SaleId,
        answer: &Result<Result<Sale, SaleRefused>, Fault>,
    ) -> anyhow::Result<()> {
        let offer = self.offer(id)?;
        let sale: &Sale = match answer {
            Ok(Ok(sale)) => {
                ensure!(!offer.exists, "sale {id} existed, but was created again");
                sale
            }
            Ok(Err(SaleRefused::Exists(sale))) => sale,
            Ok(Err(refused)) => bail!("sale {id} was refused: {refused}"),
            Err(_) => return Ok(()),
        };
        same_terms(&offer.terms, sale)?;
        offer.exists = true;
        Ok(())
    }

    pub(crate) fn verdict(
        &mut self,
        attempt: &Attempt,
        verdict: &Result<Verdict, Fault>,
    ) -> anyhow::Result<()> {
        let known = self
            .confirmed_by_key(attempt)
            .map(|promise| promise.order_id.clone());
        let shown = |claim, state| shown_claim(attempt, claim, state);
        let checked = match verdict {
            Ok(Verdict::Claimed(claim)) => {
                let is_new = known.is_none() && self.confirmed_by_id(&claim.order_id).is_none();
                ensure!(
                    is_new,
                    "{claim:?} is not a new order: the key has {known:?}"
                );
                self.shown(&shown(claim, OrderState::Reserved))
            }
            Ok(Verdict::Repeat { claim, state }) => {
                let is_same = known.as_ref().is_none_or(|known| *known == claim.order_id);
                ensure!(
                    is_same,
                    "the key has {known:?}, but its repeat got {claim:?}"
                );
                self.shown(&shown(claim, *state))
            }
            Ok(Verdict::Rejected(rejection)) => {
                ensure!(known.is_none(), "{rejection:?}, but the key has {known:?}");
                self.rejected(attempt, rejection)
            }
            Ok(Verdict::Pending(order_id) | Verdict::Accepted(order_id)) => {
                self.may_exist(order_id);
                Ok(())
            }
            Ok(Verdict::Invalid(Invalid::NoSuchSale)) => {
                ensure!(!self.offer(&attempt.sale)?.exists, "the sale is gone");
                Ok(())
            }
            Ok(other @ (Verdict::Mismatch | Verdict::Invalid(_))) => bail!("{other:?}"),
            Err(fault) => {
                self.unnamed += u64::from(fault.effect != Effect::None);
                Ok(())
            }
        };
        checked.with_context(|| format!("the verdict on {attempt:?}"))
    }

    fn confirmed_by_id(&self, order_id: &OrderId) -> Option<&Promise> {
        let mut confirmed = self.confirmed.iter();
        confirmed.find(|promise| promise.order_id == *order_id)
    }

    /// Records an order from an answer, or compares it with earlier answers.
    fn shown(&mut self, shown: &Shown<'_>) -> anyhow::Result<()> {
        let (id, run) = (shown.order_id, self.run);
        ensure!(
            !self.absent.contains(id),
            "order {id} exists, but an earlier answer denied that"
        );
        self.offer(shown.sale)?.exists = true;
        let mut confirmed = self.confirmed.iter_mut();
        let Some(promise) = confirmed.find(|promise| promise.order_id == *id) else {
            // Only confirmed orders are ever cancelled.
            ensure!(
                shown.state == OrderState::Reserved,
                "order {id} is {}, which was not requested",
                shown.state.as_str()
            );
            self.confirmed.push(Promise {
                order_id: id.clone(),
                sale: shown.sale.clone(),
                buyer: shown.buyer.clone(),
                key: shown.key.cloned(),
                units: shown.units.clone(),
                cancel: Cancel::No,
                run,
            });
            return Ok(());
        };
        let is_same = promise.sale == *shown.sale
            && promise.buyer == *shown.buyer
            && promise.key.as_ref() == shown.key
            && promise.units == *shown.units;
        ensure!(is_same, "order {id} changed; it was {promise:?}");
        promise.cancel = match (promise.cancel, shown.state) {
            (Cancel::No, OrderState::Reserved) => Cancel::No,
            (Cancel::Confirmed | Cancel::Unknown(_), OrderState::Cancelled) => Cancel::Confirmed,
            // The run that was asked to cancel it is over: it did not, and never will.
            (Cancel::Unknown(asked), OrderState::Reserved) if asked < run => Cancel::No,
            (Cancel::Unknown(asked), OrderState::Reserved) => Cancel::Unknown(asked),
            (cancel, state) => bail!(
                "order {id} is {}, but its cancellation is {cancel:?}",
                state.as_str()
            ),
        };
        Ok(())
    }

    fn rejected(&mut self, attempt: &Attempt, rejection: &Rejection) -> anyhow::Result<()> {
        let run = self.run;
        let offer = self.offer(&attempt.sale)?;
        offer.exists = true;
        let terms = &offer.terms;
        let total = |id: &ItemId| {
            let item = terms.items.iter().find(|item| item.id == *id);
            item.map(|item| item.total as usize)
                .context("the rejection names no item of the sale")
        };
        let mut about = Vec::new();
        match rejection {
            Rejection::SoldOut => {
                for item in named_items(terms, &attempt.lines) {
                    about.push((None, Some(item.clone()), total(&item)?));
                }
            }
            Rejection::NotEnoughLeft { remaining } => {
                for left in remaining {
                    let sold = total(&left.item)?.checked_sub(left.remaining as usize);
                    let sold = sold.context("more units are left than the item has")?;
                    about.push((None, Some(left.item.clone()), sold));
                }
            }
            &Rejection::LimitReached { limit } => {
                let terms = terms.buyer_limit;
                ensure!(terms == Some(limit), "the limit is {terms:?}, not {limit}");
                let held = (limit + 1).saturating_sub(attempt.lines.quantity());
                about.push((Some(attempt.buyer.clone()), None, held as usize));
            }
            other @ (Rejection::NotOpen { .. } | Rejection::Closed { .. }) => bail!("{other:?}"),
        }
        for (buyer, item, active) in about {
            let mut rejected = Rejected {
                sale: attempt.sale.clone(),
                buyer,
                item,
                units_min: active,
                run,
            };
            let cancelled = self.confirmed.iter().filter(|promise| {
                promise.cancel == Cancel::Confirmed
                    && rejected.is_about(&promise.sale, &promise.buyer)
            });
            rejected.units_min += rejected.count(cancelled.flat_map(|promise| &promise.units));
            self.rejected.push(rejected);
        }
        Ok(())
    }

    /// Checks an answer about an order id.
    pub(crate) fn outcome(&mut self, id: &OrderId, outcome: &Outcome) -> anyhow::Result<()> {
        match outcome {
            Outcome::Order(order) => {
                ensure!(order.order_id == *id, "asked for {id}, got {order:?}");
                self.shown(&Shown::order(order))
            }
            Outcome::Pending => Ok(()),
            Outcome::None => {
                let promise = self.confirmed_by_id(id);
                ensure!(promise.is_none(), "the order is lost: {promise:?}");
                if !self.absent.contains(id) {
                    self.absent.push(id.clone());
                }
                Ok(())
            }
        }
    }

    /// Checks an answer about the key of a confirmed order.
    pub(crate) fn outcome_of_key(
        &mut self,
        promise: &Promise,
        outcome: &Outcome,
    ) -> anyhow::Result<()> {
        match outcome {
            Outcome::Order(_) => self.outcome(&promise.order_id, outcome),
            Outcome::Pending => Ok(()),
            Outcome::None => bail!("the key is lost: {promise:?}"),
        }
    }

    /// Checks the answer to the cancellation of a confirmed order.
    pub(crate) fn cancelled(
        &mut self,
        id: &OrderId,
        answer: &Result<Result<Order, OrderRefused>, Fault>,
    ) -> anyhow::Result<()> {
        let run = self.run;
        let may_be_done = match answer {
            Ok(Ok(_)) => true,
            Ok(Err(OrderRefused::Pending)) => false,
            Ok(Err(refused)) => bail!("order {id} was not cancelled: {refused:?}"),
            Err(fault) => fault.effect != Effect::None,
        };
        let promise = self.confirmed.iter_mut().find(|p| p.order_id == *id);
        let promise = promise.context("only confirmed orders are cancelled")?;
        if may_be_done && promise.cancel != Cancel::Confirmed {
            promise.cancel = Cancel::Unknown(run);
        }
        if let Ok(Ok(order)) = answer {
            ensure!(
                order.state == OrderState::Cancelled && order.order_id == *id,
                "the cancellation of {id} returned {order:?}"
            );
            self.shown(&Shown::order(order))?;
        }
        Ok(())
    }

    pub(crate) fn sale(&mut self, id: &SaleId, found: Option<&Sale>) -> anyhow::Result<()> {
        let offer = self.offer(id)?;
        match found {
            Some(sale) => {
                same_terms(&offer.terms, sale)?;
                offer.exists = true;
                Ok(())
            }
            None if offer.exists => bail!("sale {id} is gone"),
            None => Ok(()),
        }
    }

    /// Checks every rejection against all orders in the store, in any state.
    pub(crate) fn check_rejections(&self, orders: &[Order]) -> anyhow::Result<()> {
        for rejected in &self.rejected {
            let orders = orders.iter();
            let about = orders.filter(|order| rejected.is_about(&order.sale, &order.buyer));
            let found = rejected.count(about.flat_map(|order| &order.units));
            ensure!(
                found >= rejected.units_min,
                "{rejected:?} was wrong: there are only {found} units in orders"
            );
        }
        Ok(())
    }

    /// Compares the number of rows in the store with the known orders: no row may be unexplained.
    pub(crate) fn check_rows(&self, rows: u64, orders: &[Order]) -> anyhow::Result<()> {
        let known: usize = orders.iter().map(|order| order.units.len()).sum();
        let (known, unnamed) = (known as u64, self.unnamed * ATTEMPT_UNITS_MAX);
        ensure!(
            rows >= known && rows <= known + unnamed,
            "the store has {rows} rows; {known} are known, and at most {unnamed} more are possible"
        );
        Ok(())
    }
}

fn shown_claim<'a>(attempt: &'a Attempt, claim: &'a Claim, state: OrderState) -> Shown<'a> {
    Shown {
        order_id: &claim.order_id,
        sale: &attempt.sale,
        buyer: &attempt.buyer,
        key: attempt.key.as_ref(),
        units: &claim.units,
        state,
    }
}

fn history_unit(unit: &OrderUnit) -> HistoryUnit {
    HistoryUnit {
        item: Some(unit.item.to_string()),
        number: unit.unit.number,
        generation: Some(unit.unit.generation),
    }
}

/// The items that an attempt wants.
fn named_items(terms: &NewSale, lines: &Lines) -> Vec<ItemId> {
    match lines {
        Lines::Quantity(_) => terms.items.iter().map(|item| item.id.clone()).collect(),
        Lines::Named(lines) => lines.iter().map(|line| line.item.clone()).collect(),
    }
}

fn same_terms(terms: &NewSale, sale: &Sale) -> anyhow::Result<()> {
    let totals = terms.items.iter().map(|item| (&item.id, item.total));
    let is_same = totals.eq(sale.items.iter().map(|item| (&item.id, item.total)))
        && terms.buyer_limit == sale.buyer_limit;
    ensure!(is_same, "{terms:?} became {sale:?}");
    Ok(())
}
