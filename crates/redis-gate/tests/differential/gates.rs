//! The gates under test, and the comparison with the model.

use anyhow::{Context, ensure};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use seckill_redis_gate::{Asked, Gate, GateKeys, GateReply, Head};
use seckill_sale::{ItemChange, OrderId, SaleChange};

use crate::history::{History, Step, Window, item_id};
use crate::model::{Contents, Model};
use crate::now_ms;

const LEADER: &str = "leader";
/// Far enough from now that Redis and the model are on the same side of it.
const FAR_MS: i64 = 3_600_000;

/// A gate that is called with its strategies in turn.
pub(crate) struct Tested {
    key: String,
    gates: Vec<Gate>,
    keys: GateKeys,
    epoch: u32,
    calls: usize,
}

pub(crate) struct Gates {
    link: MultiplexedConnection,
    tested: Vec<Tested>,
}

impl Tested {
    pub(crate) fn new(key: String, gates: Vec<Gate>) -> Self {
        Self {
            keys: GateKeys::new(&key, 1),
            key,
            gates,
            epoch: 0,
            calls: 0,
        }
    }

    fn gate(&self) -> &Gate {
        &self.gates[self.calls % self.gates.len()]
    }

    /// Fills the gate with the model's state, in a new epoch.
    async fn rebuild(&mut self, model: &mut Model) -> anyhow::Result<()> {
        self.epoch += 1;
        let (keys, epoch, gate) = (&self.keys, self.epoch, &self.gates[0]);
        done(gate.reset(keys, epoch, LEADER).await?)?;
        let has_limit = model.sale().buyer_limit.is_some();
        let mut load = gate.load(keys, epoch, LEADER, has_limit);
        for order in model.rebuild() {
            done(load.order(order).await?)?;
        }
        let loaded = done(load.finish(model.sale_ledger().clone()).await?)?;
        done(
            gate.open(keys, epoch, LEADER, model.sale(), &loaded)
                .await?,
        )
    }

    async fn batch(
        &mut self,
        asked: &[Asked],
        decided: &[seckill_redis_gate::Decided],
        model: &Model,
    ) -> anyhow::Result<()> {
        self.calls += 1;
        let claimed = self
            .gate()
            .claim(&self.keys, self.epoch, model.sale(), asked);
        let claims = done(claimed.await?)?;
        for (index, (said, expected)) in claims.decided.iter().zip(decided).enumerate() {
            ensure!(
                said == expected,
                "attempt {index}: {said:?}, not {expected:?}"
            );
        }
        ensure!(claims.decided.len() == decided.len());
        let is_claim = |decided| matches!(decided, &seckill_redis_gate::Decided::Claimed { .. });
        let entry = match decided.iter().any(is_claim) {
            true => format!("{}-{}", self.epoch, model.n),
            false => String::new(),
        };
        ensure!(claims.entry == entry, "entry {}, not {entry}", claims.entry);
        self.check_head(&claims.head, model)
    }

    fn check_head(&self, head: &Head, model: &Model) -> anyhow::Result<()> {
        let sale = model.sale();
        let expected = Head {
            epoch: self.epoch,
            version: sale.version,
            n: model.n,
            free: model.sale_ledger().free().into(),
            now_ms: head.now_ms,
            limit: sale.buyer_limit,
            opens_at_ms: sale.opens_at_ms,
            closes_at_ms: sale.closes_at_ms,
        };
        ensure!(*head == expected, "{head:?}, not {expected:?}");
        Ok(())
    }

    async fn give_back(&self, id: &OrderId, model: &Model) -> anyhow::Result<()> {
        let released = self.gate().give_back(&self.keys, self.epoch, id).await?;
        let (head, is_known) = done(released)?;
        ensure!(is_known, "the gate does not know {id}");
        ensure!(done(self.gate().knows(&self.keys, self.epoch, id).await?)?);
        self.check_head(&head, model)
    }

    /// Reads the outbox and trims it.
    async fn relay(&self, model: &Model) -> anyhow::Result<()> {
        let entries = self
            .gate()
            .outbox(&self.keys, None, usize::MAX >> 1)
            .await?;
        let claims = entries.iter().flat_map(|entry| &entry.claims);
        let claims: Vec<_> = claims
            .map(|claim| (claim.n, claim.order_id.clone(), claim.units.clone()))
            .collect();
        ensure!(
            claims == model.outbox,
            "outbox {claims:?}, not {:?}",
            model.outbox
        );
        let ids: Vec<String> = entries.into_iter().map(|entry| entry.id).collect();
        if !ids.is_empty() {
            done(self.gate().trim(&self.keys, self.epoch, &ids).await?)?;
        }
        let head = done(self.gate().peek(&self.keys, self.epoch).await?)?;
        self.check_head(&head, model)?;
        let stocks = model.sale_ledger().stocks().iter();
        for (offered, stock) in self
            .gate()
            .offered(&self.keys)
            .await?
            .into_iter()
            .zip(stocks)
        {
            let expected = stock.clone().into_parts();
            ensure!((offered.handed_out, offered.returned.into()) == expected);
        }
        Ok(())
    }

    async fn contents(
        &self,
        link: &mut MultiplexedConnection,
        items: usize,
    ) -> anyhow::Result<Contents> {
        let key = |suffix: &str| format!("{{{}}}:{suffix}", self.key);
        let numbered = |name: &str, item: usize| match item {
            1 => name.to_owned(),
            item => format!("{name}{item}"),
        };
        let mut pipeline = Pipeline::new();
        pipeline.cmd("GET").arg(&self.key);
        pipeline.cmd("HMGET").arg(key("m"));
        for item in 1..=items {
            pipeline
                .arg(numbered("total", item))
                .arg(numbered("next", item));
        }
        for hash in ["c", "k", "b"] {
            pipeline.cmd("HGETALL").arg(key(hash));
        }
        for item in 1..=items {
            let list = key(&numbered("f", item));
            pipeline.cmd("LRANGE").arg(list).arg(0).arg(-1);
        }
        let replies: Vec<Value> = pipeline.query_async(link).await?;
        let [stock, terms, claims, keys, buyers, lists @ ..] = &replies[..] else {
            anyhow::bail!("{replies:?}");
        };
        let terms: Vec<u32> = redis::from_redis_value_ref(terms)?;
        let map = |value: &Value| -> anyhow::Result<_> {
            let mut map: std::collections::BTreeMap<Vec<u8>, Vec<u8>> =
                redis::from_redis_value_ref(value)?;
            map.remove(&b"-"[..]).context("no sentinel")?;
            Ok(map)
        };
        let mut buyers = map(buyers)?;
        buyers.retain(|_, held| !held.is_empty());
        buyers.values_mut().for_each(|held| held.sort_unstable());
        let returned = lists.iter().map(|list| -> anyhow::Result<_> {
            let mut units: Vec<String> = redis::from_redis_value_ref(list)?;
            ensure!(
                units.first().is_some_and(|first| first == "-"),
                "no sentinel"
            );
            units.remove(0);
            Ok(units)
        });
        Ok(Contents {
            stock: redis::from_redis_value_ref(stock)?,
            total_and_next: terms
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect(),
            claims: map(claims)?,
            keys: map(keys)?,
            buyers,
            returned: returned.collect::<anyhow::Result<_>>()?,
        })
    }
}

impl Gates {
    pub(crate) fn new(link: MultiplexedConnection, tested: Vec<Tested>) -> Self {
        Self { link, tested }
    }

    pub(crate) async fn run(&mut self, history: &History) -> anyhow::Result<()> {
        let mut model = Model::new(history);
        let items = history.totals.len();
        for tested in &mut self.tested {
            tested.gate().forget(&tested.keys).await?;
            tested.keys = GateKeys::new(&tested.key, items);
            tested.rebuild(&mut model).await?;
        }
        for (index, step) in history.steps.iter().enumerate() {
            let run = self.step(step, &mut model).await;
            run.with_context(|| format!("step {index}: {step:?}"))?;
            let expected = model.contents();
            for tested in &self.tested {
                let contents = tested.contents(&mut self.link, items).await?;
                ensure!(
                    contents == expected,
                    "{} after step {index}: {contents:#?}, not {expected:#?}",
                    tested.key
                );
            }
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step, model: &mut Model) -> anyhow::Result<()> {
        let change = match step {
            Step::Batch(tries) => {
                let asked = model.asked(tries);
                if asked.is_empty() {
                    return Ok(());
                }
                let decided = model.decide(&asked);
                for tested in &mut self.tested {
                    let run = tested.batch(&asked, &decided, model).await;
                    run.with_context(|| tested.key.clone())?;
                }
                return Ok(());
            }
            Step::End(at, change) => {
                if let Some(id) = model.end(*at, *change) {
                    for tested in &self.tested {
                        let run = tested.give_back(&id, model).await;
                        run.with_context(|| tested.key.clone())?;
                    }
                }
                return Ok(());
            }
            Step::Rebuild => return self.rebuild(model).await,
            Step::Relay => {
                for tested in &self.tested {
                    tested.relay(model).await?;
                }
                model.outbox.clear();
                return Ok(());
            }
            Step::Total(item, total) => SaleChange {
                items: vec![ItemChange {
                    id: item_id(*item),
                    title: None,
                    total: Some(*total),
                    price: None,
                }],
                ..SaleChange::default()
            },
            Step::Limit(limit) => SaleChange {
                buyer_limit: Some(*limit),
                ..SaleChange::default()
            },
            Step::Window(window) => window_change(*window),
        };
        match model.change(&change) {
            None => Ok(()),
            Some(true) => self.rebuild(model).await,
            Some(false) => {
                model.n += 1;
                for tested in &self.tested {
                    // The second one has no effect.
                    for _ in 0..2 {
                        let synced = tested.gate().sync(&tested.keys, tested.epoch, model.sale());
                        tested.check_head(&done(synced.await?)?, model)?;
                    }
                }
                Ok(())
            }
        }
    }

    async fn rebuild(&mut self, model: &mut Model) -> anyhow::Result<()> {
        for tested in &mut self.tested {
            let closed = tested.gate().close(&tested.keys, tested.epoch).await?;
            done(closed)?;
            tested.rebuild(model).await?;
        }
        Ok(())
    }

    pub(crate) async fn forget(&mut self) {
        for tested in &self.tested {
            tested.gate().forget(&tested.keys).await.unwrap();
        }
    }
}

fn window_change(window: Window) -> SaleChange {
    let now = now_ms();
    let (opens, closes) = match window {
        Window::Always => (None, None),
        Window::NotOpen => (Some(now + FAR_MS), None),
        Window::Open => (Some(now - FAR_MS), Some(now + FAR_MS)),
        Window::Closed => (Some(now - 2 * FAR_MS), Some(now - FAR_MS)),
    };
    SaleChange {
        opens_at_ms: Some(opens),
        closes_at_ms: Some(closes),
        ..SaleChange::default()
    }
}

fn done<T>(reply: GateReply<T>) -> anyhow::Result<T> {
    reply.map_err(|refusal| anyhow::anyhow!("refused: {refusal}"))
}
