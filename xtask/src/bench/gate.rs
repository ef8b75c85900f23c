//! The gate alone: the cluster engine's claims, without relay and recorder, against redis-benchmark
//! calling the same script with the same batch size. Both have one call in flight at a time.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use seckill_cluster::{ClusterEngine, ClusterOptions, Confirm};
use seckill_engine::Engine;
use seckill_sale::{Attempt, DEFAULT_SALE_ID, SaleId, Verdict};
use seckill_testkit::servers::Urls;

const SCRIPT: &str = include_str!("../../../crates/redis-gate/src/gate.lua");
/// redis-benchmark replaces each occurrence with a random number.
const RANDOM: &str = "__rand_int__";
/// The largest bound that redis-benchmark accepts for its random numbers.
const RANDOM_BELOW: &str = "2147483647";
/// redis-benchmark prints its whole command again and again, so errors show only the end.
const SHOWN_MAX_CHARS: usize = 200;

/// Claims per second of the engine. Two callers alternate, so that the next batch is already
/// waiting when one has been decided.
pub(crate) fn engine_per_s(urls: &Urls, claims: u32, batch: u32) -> anyhow::Result<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let options = ClusterOptions {
            confirm: Confirm::Gate,
            relays: false,
            records: false,
            ..ClusterOptions::new(&urls.redis, &urls.kafka, &urls.mysql)
        };
        let engine = Arc::new(ClusterEngine::start(options)?);
        let sale = SaleId::new(DEFAULT_SALE_ID)?;
        let attempts = vec![Attempt::anonymous(sale); batch as usize];
        let decide = |calls: u32| {
            let (engine, attempts) = (Arc::clone(&engine), attempts.clone());
            async move {
                for _ in 0..calls {
                    for verdict in engine.decide(attempts.clone()).await {
                        ensure!(
                            matches!(verdict, Ok(Verdict::Accepted(_))),
                            "not claimed: {verdict:?}"
                        );
                    }
                }
                Ok(())
            }
        };
        let began = Instant::now();
        while decide(1).await.is_err() {
            ensure!(began.elapsed().as_secs() < 30, "the gate did not open");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let calls = claims / batch / 2;
        let began = Instant::now();
        let (one, other) = (tokio::spawn(decide(calls)), tokio::spawn(decide(calls)));
        one.await??;
        other.await??;
        let per_s = f64::from(2 * calls * batch) / began.elapsed().as_secs_f64();
        engine.close().await;
        Ok(per_s)
    })
}

/// Claims per second of redis-benchmark on the same sale.
pub(crate) fn bare_per_s(
    urls: &Urls,
    redis_server: &Path,
    claims: u32,
    batch: u32,
) -> anyhow::Result<f64> {
    let program = redis_server.with_file_name("redis-benchmark");
    let sale = urls
        .mysql(&format!(
            "SELECT CONCAT(epoch, ' ', stock_key) FROM seckill_sale WHERE id = '{DEFAULT_SALE_ID}'"
        ))?
        .pop()
        .context("there is no default sale")?;
    let (epoch, stock) = sale.split_once(' ').context("not an epoch and a key")?;
    let left = || -> anyhow::Result<u32> {
        let said = urls.redis(&format!("GET {stock}"))?;
        let number = said.lines().nth(1).and_then(|number| number.parse().ok());
        number.with_context(|| format!("GET {stock}: {said}"))
    };
    let before = left()?;
    let port = urls.redis.rsplit(':').next().unwrap_or_default();
    let calls = (claims / batch).to_string();
    let mut command = Command::new(&program);
    command.args(["-h", "127.0.0.1", "-p", port, "-c", "1", "-n", &calls]);
    command.args(["-r", RANDOM_BELOW, "-q", "EVALSHA"]);
    let sha = sha1_smol::Sha1::from(SCRIPT).digest().to_string();
    command.args([&sha, "7", stock]);
    for key in ["m", "c", "k", "b", "f", "o"] {
        command.arg(format!("{{{stock}}}:{key}"));
    }
    command.args(["claim", epoch]);
    for attempt in 0..batch {
        // The same size as the engine's attempts: an id of 24 bytes, whose text has 32 characters,
        // no buyer, no key, one unit.
        let id = format!("{attempt:012}{RANDOM}");
        let text = format!("{attempt:020}{RANDOM}");
        let digest = "0123456789abcdef";
        let part =
            format!(r#""order_id":"{text}","buyer":"","idem_key":null,"fingerprint":"{digest}""#);
        command.args([id.as_str(), "", "", "", "1", &part]);
    }
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let said = String::from_utf8_lossy(&done.stdout);
    // It ignores Redis's replies. A few of its random ids collide, and the gate treats those as
    // repeats.
    let taken = before - left()?;
    ensure!(
        done.status.success() && f64::from(taken) > 0.99 * f64::from(claims / batch * batch),
        "redis-benchmark claimed {taken} units: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    let Some((before, _)) = said.rsplit_once(" requests per second") else {
        bail!("unexpected output of redis-benchmark: {}", shown(&said));
    };
    let calls_per_s: f64 = before
        .rsplit(|c: char| !(c.is_ascii_digit() || c == '.'))
        .next()
        .unwrap_or_default()
        .parse()?;
    Ok(calls_per_s * f64::from(batch))
}

fn shown(said: &str) -> String {
    let skipped = said.chars().count().saturating_sub(SHOWN_MAX_CHARS);
    said.chars().skip(skipped).collect()
}
