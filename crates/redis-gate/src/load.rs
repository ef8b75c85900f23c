//! Fills the gate of a sale for a rebuild: orders page by page, then what follows from all of them,
//! then it opens. When each step is allowed is up to the caller and the script.

use std::collections::HashMap;
use std::mem;

use redis::Cmd;
use seckill_cluster_codec::digest;
use seckill_cluster_codec::order_id::ID_BYTES;
use seckill_engine::Fault;
use seckill_sale::{ClaimedUnit, ItemNo, Names, Sale, SaleLedger};

use crate::gate::{ENTRIES_MAX, Gate, push_terms};
use crate::keys::GateKeys;
use crate::reply::GateReply;
use crate::stored::{stored_claim, stored_holding, stored_key, unit_text};

/// An order for the gate.
#[derive(Debug, Clone, Copy)]
pub struct LoadedOrder<'a> {
    pub id: [u8; ID_BYTES],
    pub units: &'a [ClaimedUnit],
    /// Of the order's buyer and key.
    pub names: Names,
    /// Of an order with a key.
    pub fingerprint: Option<u64>,
    pub is_active: bool,
}

/// How many units of an item a gate was loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedItem {
    /// The highest unit number handed out.
    pub handed_out: u32,
    /// How many units up to that number are free.
    pub returned: usize,
}

/// The key that entries are loaded into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Target {
    Claims,
    Keys,
    Buyers,
    Returned(ItemNo),
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::Claims => "c".into(),
            Self::Keys => "k".into(),
            Self::Buyers => "b".into(),
            Self::Returned(item) => item.get().to_string(),
        }
    }
}

/// Loads a sale into a closed gate, in an epoch that the leader started with [`Gate::reset`].
pub struct GateLoad<'a> {
    gate: &'a Gate,
    keys: &'a GateKeys,
    epoch: u32,
    leader: &'a str,
    has_limit: bool,
    /// What the next call for each key sends: fields and values, or units.
    pending: HashMap<Target, Vec<Vec<u8>>>,
}

impl Gate {
    /// `has_limit` is whether the sale has a limit per buyer. If that changes before the gate
    /// opens, it must be loaded again.
    pub fn load<'a>(
        &'a self,
        keys: &'a GateKeys,
        epoch: u32,
        leader: &'a str,
        has_limit: bool,
    ) -> GateLoad<'a> {
        GateLoad {
            gate: self,
            keys,
            epoch,
            leader,
            has_limit,
            pending: HashMap::new(),
        }
    }

    /// Opens a loaded gate.
    pub async fn open(
        &self,
        keys: &GateKeys,
        epoch: u32,
        leader: &str,
        sale: &Sale,
        loaded: &[LoadedItem],
    ) -> Result<GateReply<()>, Fault> {
        let more = |command: &mut Cmd| {
            command.arg(leader);
            push_terms(command, sale);
            for item in loaded {
                command.arg(item.handed_out).arg(item.returned);
            }
        };
        Ok(self.run("open", keys, epoch, more).await?.map(|_| ()))
    }
}

impl GateLoad<'_> {
    /// Adds an order, in any order.
    pub async fn order(&mut self, order: LoadedOrder<'_>) -> Result<GateReply<()>, Fault> {
        if let (Some(key), Some(fingerprint)) = (order.names.key, order.fingerprint) {
            let value = stored_key(&order.id, fingerprint);
            let key = digest::to_bytes(key).to_vec();
            if let Err(refusal) = self.add(Target::Keys, [key, value]).await? {
                return Ok(Err(refusal));
            }
        }
        let buyer = order.names.buyer.filter(|_| self.has_limit);
        let value = stored_claim(order.units, buyer, order.is_active);
        self.add(Target::Claims, [order.id.to_vec(), value]).await
    }

    /// Adds what the orders leave: what each buyer holds, and the free units.
    pub async fn finish(mut self, ledger: SaleLedger) -> Result<GateReply<Vec<LoadedItem>>, Fault> {
        if self.has_limit {
            for (buyer, holding) in ledger.holdings() {
                let buyer = digest::to_bytes(*buyer).to_vec();
                let entry = [buyer, stored_holding(*holding)];
                if let Err(refusal) = self.add(Target::Buyers, entry).await? {
                    return Ok(Err(refusal));
                }
            }
        }
        let mut loaded = Vec::new();
        for (index, stock) in ledger.into_stocks().into_iter().enumerate() {
            let (handed_out, returned) = stock.into_parts();
            loaded.push(LoadedItem {
                handed_out,
                returned: returned.len(),
            });
            let Some(item) = ItemNo::of_index(index) else {
                continue;
            };
            for unit in returned {
                let unit = [unit_text(unit).into_bytes()];
                if let Err(refusal) = self.add(Target::Returned(item), unit).await? {
                    return Ok(Err(refusal));
                }
            }
        }
        for (target, entries) in mem::take(&mut self.pending) {
            if let Err(refusal) = self.send(target, &entries).await? {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(loaded))
    }

    async fn add<const N: usize>(
        &mut self,
        target: Target,
        entry: [Vec<u8>; N],
    ) -> Result<GateReply<()>, Fault> {
        let pending = self.pending.entry(target).or_default();
        pending.extend(entry);
        if pending.len() + N <= ENTRIES_MAX {
            return Ok(Ok(()));
        }
        let entries = mem::take(pending);
        self.send(target, &entries).await
    }

    async fn send(&self, target: Target, entries: &[Vec<u8>]) -> Result<GateReply<()>, Fault> {
        if entries.is_empty() {
            return Ok(Ok(()));
        }
        let more = |command: &mut Cmd| {
            command.arg(self.leader).arg(target.text()).arg(entries);
        };
        let sent = self.gate.run("load", self.keys, self.epoch, more).await?;
        Ok(sent.map(|_| ()))
    }
}
