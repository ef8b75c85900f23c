//! The expected side: the ledger, with the stored orders beside it, as an engine has them. It must
//! not use the gate's code to say what the gate stores.

use std::collections::{BTreeMap, HashMap};

use seckill_cluster_codec::digest::{self, Digester};
use seckill_cluster_codec::order_id::{self, ID_BYTES};
use seckill_redis_gate::{Asked, Decided, LoadedOrder};
use seckill_sale::{
    Attempt, Attempted, Buyer, Change, ClaimedUnit, ClaimedUnits, Digest, HeldOrder,
    IdempotencyKey, ItemNo, ItemUnits, KeyedClaim, Ledger, Names, OrderChange, OrderId, OrderState,
    Sale, SaleChange, SaleLedger, Unit,
};

use crate::history::{History, Index, Try, sale_id};
use crate::now_ms;

type Raw = BTreeMap<Vec<u8>, Vec<u8>>;

pub(crate) struct Model {
    pub(crate) ledger: Ledger<OrderId>,
    digester: Digester,
    claims: HashMap<Digest, KeyedClaim<OrderId>>,
    orders: Vec<StoredOrder>,
    /// Every attempt that was ever sent.
    sent: Vec<Asked>,
    /// The gates' claims, releases and changes of terms in this epoch.
    pub(crate) n: u64,
    /// The claims whose outbox entries have not been trimmed.
    pub(crate) outbox: Vec<(u64, OrderId, ClaimedUnits)>,
}

struct StoredOrder {
    order_id: OrderId,
    units: ClaimedUnits,
    names: Names,
    fingerprint: u64,
    state: OrderState,
    /// Whether the gate counts its units against a limit.
    is_counted: bool,
}

/// The raw contents of a gate's keys, without sentinels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) stock: u32,
    pub(crate) total_and_next: Vec<(u32, u32)>,
    pub(crate) claims: Raw,
    pub(crate) keys: Raw,
    /// The characters of each buyer who holds a unit, sorted.
    pub(crate) buyers: Raw,
    pub(crate) returned: Vec<Vec<String>>,
}

impl Model {
    pub(crate) fn new(history: &History) -> Self {
        let mut ledger = Ledger::default();
        ledger.create_sale(history.new_sale()).unwrap();
        let mut model = Self {
            ledger,
            digester: Digester::new(&[9; 16]),
            claims: HashMap::new(),
            orders: Vec::new(),
            sent: Vec::new(),
            n: 0,
            outbox: Vec::new(),
        };
        model.commit();
        model
    }

    pub(crate) fn sale_ledger(&self) -> &SaleLedger {
        &self.ledger.sales()[0]
    }

    pub(crate) fn sale(&self) -> &Sale {
        &self.sale_ledger().sale
    }

    /// The attempts of a batch, each with an order id of its own.
    pub(crate) fn asked(&mut self, tries: &[Try]) -> Vec<Asked> {
        let mut batch: Vec<Asked> = Vec::new();
        for one in tries {
            match one {
                Try::New { buyer, key, wants } => {
                    let attempt = Attempt {
                        buyer: match buyer {
                            0 => Buyer::anonymous(),
                            n => Buyer::new(&n.to_string()).unwrap(),
                        },
                        key: key.map(|key| IdempotencyKey::new(&key.to_string()).unwrap()),
                        lines: wants.lines(),
                        ..Attempt::anonymous(sale_id())
                    };
                    let id = order_id(self.sent.len());
                    let asked = Asked::new(id, attempt, &self.digester, self.sale()).unwrap();
                    self.sent.push(asked.clone());
                    batch.push(asked);
                }
                Try::Again(_) if self.sent.is_empty() => {}
                Try::Again(at) => {
                    let again = &self.sent[at.index(self.sent.len())];
                    if batch.iter().all(|asked| asked.order_id != again.order_id) {
                        batch.push(again.clone());
                    }
                }
            }
        }
        batch
    }

    /// What the ledger says to the attempts.
    pub(crate) fn decide(&mut self, batch: &[Asked]) -> Vec<Decided> {
        let known: Vec<Option<ItemUnits>> = batch
            .iter()
            .map(|asked| {
                let of = |order: &&StoredOrder| order.order_id == asked.order_id;
                let order = self.orders.iter().find(of)?;
                Some(order.units.iter().map(|unit| unit.item_unit()).collect())
            })
            .collect();
        let decided = batch.iter().zip(known).map(|(asked, known)| match known {
            Some(units) => Decided::ClaimedBefore { units },
            None => self.attempt(asked),
        });
        let decided = decided.collect();
        self.commit();
        decided
    }

    fn attempt(&mut self, asked: &Asked) -> Decided {
        let names = self.digester.names(&asked.attempt);
        let (id, attempt, claims) = (&asked.order_id, &asked.attempt, &self.claims);
        let said = self.ledger.attempt(id, attempt, names, claims, now_ms());
        match said {
            Attempted::Claimed(claim) => {
                self.n += 1;
                self.outbox
                    .push((self.n, asked.order_id.clone(), claim.units.clone()));
                self.orders.push(StoredOrder {
                    order_id: asked.order_id.clone(),
                    units: claim.units.clone(),
                    names,
                    fingerprint: asked.attempt.fingerprint(),
                    state: OrderState::Reserved,
                    is_counted: self.sale().buyer_limit.is_some(),
                });
                Decided::Claimed { units: claim.units }
            }
            Attempted::Repeat { claim, .. } => Decided::Repeat {
                order_id: claim.order_id,
                units: claim.units,
            },
            Attempted::Mismatch => Decided::Mismatch,
            Attempted::Rejected(rejection) => Decided::Rejected(rejection),
            Attempted::Invalid(invalid) => Decided::Invalid(invalid),
        }
    }

    /// Ends an order, unless it has ended. Returns its id.
    pub(crate) fn end(&mut self, at: Index, change: OrderChange) -> Option<OrderId> {
        if self.orders.is_empty() {
            return None;
        }
        let at = at.index(self.orders.len());
        let order = &mut self.orders[at];
        let sale = sale_id();
        let held = HeldOrder {
            order_id: &order.order_id,
            sale: &sale,
            units: &order.units,
            names: order.names,
            fingerprint: order.fingerprint,
            state: order.state,
        };
        if let Ok(Some(write)) = self.ledger.change_order(&held, change).unwrap() {
            order.state = write.state;
            self.n += 1;
        }
        let id = order.order_id.clone();
        self.commit();
        Some(id)
    }

    /// Changes the terms. `None` if the change was refused; otherwise whether the gates have to be
    /// filled again, as for a change of the limit, and where units become or cease to be for sale
    /// that were sold before.
    pub(crate) fn change(&mut self, change: &SaleChange) -> Option<bool> {
        let before = self.sale().clone();
        self.ledger.change_sale(&sale_id(), change).ok()?;
        self.commit();
        let now = self.sale();
        let highest = |item: ItemNo| {
            let units = self.orders.iter().flat_map(|order| &order.units);
            let of_item = units.filter(|unit| unit.item == item);
            of_item.map(|unit| unit.unit.number).max().unwrap_or(0)
        };
        let moves_sold_units = before.numbered_items().zip(&now.items).any(|(was, now)| {
            let (item, was) = was;
            now.total < was.total || (now.total > was.total && highest(item) > was.total)
        });
        Some(moves_sold_units || before.buyer_limit != now.buyer_limit)
    }

    /// The orders for a rebuild, which starts an epoch.
    pub(crate) fn rebuild(&mut self) -> Vec<LoadedOrder<'_>> {
        (self.n, self.outbox) = (0, Vec::new());
        let has_limit = self.sale().buyer_limit.is_some();
        for order in &mut self.orders {
            order.is_counted = has_limit;
        }
        let loaded = self.orders.iter().map(|order| LoadedOrder {
            id: order_id::to_bytes(&order.order_id).unwrap(),
            units: &order.units,
            names: order.names,
            fingerprint: Some(order.fingerprint),
            is_active: order.state.is_active(),
        });
        loaded.collect()
    }

    /// What the keys of a gate must contain.
    pub(crate) fn contents(&self) -> Contents {
        let ledger = self.sale_ledger();
        let mut contents = Contents {
            stock: ledger.remaining(),
            ..Contents::default()
        };
        for stock in ledger.stocks() {
            let total = stock.total();
            let (next, returned) = stock.clone().into_parts();
            contents.total_and_next.push((total, next));
            contents
                .returned
                .push(returned.into_iter().map(unit_text).collect());
        }
        for order in &self.orders {
            let id = order_id::to_bytes(&order.order_id).unwrap();
            let mut value: Vec<u8> = Vec::new();
            if !order.state.is_active() {
                value.push(b'-');
            }
            let units: Vec<String> = order.units.iter().map(claimed_text).collect();
            value.extend(units.join(",").into_bytes());
            if let Some(buyer) = order.names.buyer.filter(|_| order.is_counted) {
                value.push(b'|');
                value.extend(digest::to_bytes(buyer));
            }
            contents.claims.insert(id.to_vec(), value);
            if let Some(key) = order.names.key {
                let claim = [&id[..], &order.fingerprint.to_be_bytes()].concat();
                contents.keys.insert(digest::to_bytes(key).into(), claim);
            }
        }
        if ledger.sale.buyer_limit.is_some() {
            for (buyer, holding) in ledger.holdings() {
                let mut held: Vec<u8> = holding.slots.iter().map(|slot| b'0' + slot).collect();
                held.resize(holding.held as usize, b'/');
                held.sort_unstable();
                contents
                    .buyers
                    .insert(digest::to_bytes(*buyer).into(), held);
            }
        }
        contents
    }

    fn commit(&mut self) {
        let claims = &mut self.claims;
        self.ledger.commit(|change| {
            if let Change::Claim(key, claim) = change {
                claims.insert(key, claim.clone());
            }
        });
    }
}

/// An id with all kinds of bytes.
fn order_id(index: usize) -> OrderId {
    let mut id = [0; ID_BYTES];
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = (index * 29 + at * 31) as u8;
    }
    id[..4].copy_from_slice(&(index as u32).to_be_bytes());
    order_id::from_bytes(&id)
}

fn unit_text(unit: Unit) -> String {
    match (unit.number, unit.generation) {
        (number, 1) => format!("{number}"),
        (number, generation) => format!("{number}:{generation}"),
    }
}

fn claimed_text(claimed: &ClaimedUnit) -> String {
    let item = match claimed.item {
        ItemNo::FIRST => String::new(),
        item => format!("{}/", item.get()),
    };
    let slot = claimed
        .slot
        .map_or_else(String::new, |slot| format!("@{slot}"));
    format!("{item}{}{slot}", unit_text(claimed.unit))
}
