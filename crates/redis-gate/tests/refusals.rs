//! What a gate on a real Redis refuses, and that a refused call has no effect: by script and by
//! watch.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use seckill_cluster_codec::digest::Digester;
use seckill_cluster_codec::order_id;
use seckill_redis_gate::{
    Asked, Decided, Gate, GateKeys, GateOptions, GateReply, LoadedItem, Refusal, Strategy,
};
use seckill_sale::{
    Attempt, ItemId, Line, Lines, NewItem, NewSale, OrderId, Sale, SaleId, SaleLedger, SaleRebuild,
};
use seckill_testkit::servers::Urls;

const LEADER: &str = "leader";

struct Case {
    gate: Gate,
    keys: GateKeys,
    sale: Sale,
    link: MultiplexedConnection,
}

impl Case {
    /// An open gate of two items in epoch 3, with no released units.
    async fn open(strategy: Strategy, name: &str) -> Self {
        let url = Urls::up().unwrap().redis;
        let client = redis::Client::open(url.as_str()).unwrap();
        let options = GateOptions {
            url,
            ca: None,
            reply_wait: Duration::from_secs(5),
            strategy,
            conflicts_wait: Duration::from_secs(1),
            key_prefix: String::new(),
        };
        let key = format!("refusals:{}:{name}:{strategy:?}", std::process::id());
        let mut case = Self {
            gate: Gate::new(options).unwrap(),
            keys: GateKeys::new(&key, 2),
            sale: sale(),
            link: client.get_multiplexed_async_connection().await.unwrap(),
        };
        case.gate.forget(&case.keys).await.unwrap();
        case.fill(3).await;
        case
    }

    async fn fill(&mut self, epoch: u32) {
        let (gate, keys) = (&self.gate, &self.keys);
        gate.reset(keys, epoch, LEADER).await.unwrap().unwrap();
        let load = gate.load(keys, epoch, LEADER, false);
        let loaded = load.finish(empty(&self.sale)).await.unwrap().unwrap();
        let opened = gate.open(keys, epoch, LEADER, &self.sale, &loaded).await;
        opened.unwrap().unwrap();
    }

    async fn claim(&self, epoch: u32) -> GateReply<Vec<Decided>> {
        let attempt = Attempt {
            lines: Lines::named([Line {
                item: ItemId::new("M").unwrap(),
                quantity: 1,
            }]),
            ..Attempt::anonymous(self.sale.id.clone())
        };
        let id = order_id::from_bytes(&[7; 24]);
        let asked = Asked::new(id, attempt, &Digester::new(&[1; 16]), &self.sale).unwrap();
        let asked = [asked];
        let claimed = self.gate.claim(&self.keys, epoch, &self.sale, &asked);
        claimed.await.unwrap().map(|claims| claims.decided)
    }

    async fn redis(&mut self, command: &[&str]) {
        let key = |part: &str| part.replace('K', self.keys.stock());
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(
            command[1..]
                .iter()
                .map(|part| key(part))
                .collect::<Vec<_>>(),
        );
        cmd.exec_async(&mut self.link).await.unwrap();
    }
}

fn sale() -> Sale {
    let item = |id: &str| NewItem {
        id: ItemId::new(id).unwrap(),
        title: String::new(),
        total: 5,
        price: None,
    };
    let new = NewSale {
        items: vec![item("S"), item("M")],
        ..NewSale::units(SaleId::new("s").unwrap(), 0)
    };
    new.validate().unwrap()
}

fn empty(sale: &Sale) -> SaleLedger {
    SaleRebuild::new(sale.clone()).finish().unwrap()
}

#[tokio::test]
async fn a_gate_that_another_client_changed_refuses() {
    // Each change with what reverts it.
    let changes: [(&[&str], &[&str]); 6] = [
        (&["INCR", "K"], &["DECR", "K"]),
        (&["RPUSH", "{K}:f2", "4:2"], &["RPOP", "{K}:f2"]),
        (&["DEL", "{K}:f2"], &["RPUSH", "{K}:f2", "-"]),
        (
            &["HSET", "{K}:m", "next2", "6"],
            &["HSET", "{K}:m", "next2", "0"],
        ),
        (
            &["HDEL", "{K}:m", "total2"],
            &["HSET", "{K}:m", "total2", "5"],
        ),
        (&["DEL", "{K}:k"], &["HSET", "{K}:k", "-", "-"]),
    ];
    for strategy in [Strategy::Script, Strategy::Watch] {
        let mut case = Case::open(strategy, "drift").await;
        for (change, revert) in changes {
            case.redis(change).await;
            let refused = case.claim(3).await;
            assert!(
                matches!(refused, Err(Refusal::Drift(_))),
                "{change:?}: {refused:?}"
            );
            case.redis(revert).await;
        }
        // The refused calls had no effect.
        let decided = case.claim(3).await.unwrap();
        assert!(
            matches!(decided[..], [Decided::Claimed { .. }]),
            "{decided:?}"
        );
        case.gate.forget(&case.keys).await.unwrap();
    }
}

#[tokio::test]
async fn a_gate_that_is_not_usable_refuses_with_the_reason() {
    for strategy in [Strategy::Script, Strategy::Watch] {
        let mut case = Case::open(strategy, "unusable").await;
        assert_eq!(case.claim(2).await, Err(Refusal::Epoch(3)));
        case.redis(&["HSET", "{K}:m", "run", "other"]).await;
        assert!(matches!(case.claim(3).await, Err(Refusal::Run(_))));
        case.fill(4).await;
        case.gate.close(&case.keys, 4).await.unwrap().unwrap();
        assert_eq!(case.claim(4).await, Err(Refusal::Rebuilding));
        case.redis(&["DEL", "{K}:f2"]).await;
        case.redis(&["SET", "{K}:f2", "of another application"])
            .await;
        assert!(matches!(case.claim(4).await, Err(Refusal::Type(_))));
        let reset = case.gate.reset(&case.keys, 5, LEADER).await.unwrap();
        assert!(matches!(reset, Err(Refusal::Type(_))));
        case.gate.forget(&case.keys).await.unwrap();
        assert!(matches!(case.claim(4).await, Err(Refusal::Gone(_))));
    }
}

#[tokio::test]
async fn only_the_leader_of_a_new_epoch_fills_a_gate() {
    let case = Case::open(Strategy::Script, "leader").await;
    let (gate, keys, sale) = (&case.gate, &case.keys, &case.sale);
    let old = gate.reset(keys, 3, LEADER).await.unwrap();
    assert_eq!(old, Err(Refusal::Epoch(3)));
    gate.reset(keys, 4, LEADER).await.unwrap().unwrap();
    let loaded = |returned| LoadedItem {
        handed_out: 0,
        returned,
    };
    let right = [loaded(0), loaded(0)];
    let other = gate.open(keys, 4, "other", sale, &right).await.unwrap();
    assert_eq!(other, Err(Refusal::Epoch(4)));
    let wrong = [loaded(0), loaded(1)];
    let missing = gate.open(keys, 4, LEADER, sale, &wrong).await.unwrap();
    assert!(matches!(missing, Err(Refusal::Drift(_))));
    gate.open(keys, 4, LEADER, sale, &right)
        .await
        .unwrap()
        .unwrap();
    let twice = gate.open(keys, 4, LEADER, sale, &right).await.unwrap();
    assert_eq!(twice, Err(Refusal::Rebuilding));
    gate.forget(keys).await.unwrap();
}

#[tokio::test]
async fn an_unknown_order_has_no_units_to_release() {
    let case = Case::open(Strategy::Script, "unknown").await;
    let (gate, keys) = (&case.gate, &case.keys);
    for id in ["x", "-", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let id = OrderId::new(id).unwrap();
        let (head, is_known) = gate.give_back(keys, 3, &id).await.unwrap().unwrap();
        assert!(!is_known && head.n == 0 && head.remaining() == 10);
        assert_eq!(gate.knows(keys, 3, &id).await.unwrap(), Ok(false));
    }
    assert_eq!(gate.order_of_key(keys, 3, 5).await.unwrap(), Ok(None));
    gate.forget(keys).await.unwrap();
}
