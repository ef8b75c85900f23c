//! The gate alone: the cluster engine's claims, with nothing behind the gate, against redis-benchmark calling the same script
//! with as many attempts a call. Both have one call out at a time.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use seckill_cluster::{ClusterEngine, ClusterOptions, Confirm};
use seckill_engine::Engine;
use seckill_sale::{Attempt, DEFAULT_SALE_ID, SaleId, Verdict};
use seckill_testkit::servers::Urls;

const SCRIPT: &str = include_str!("../../../crates/cluster/src/gate/gate.lua");
/// What redis-benchmark puts in place of each of these words.
const RANDOM: &str = "__rand_int__";
/// The most that it takes for the random words' bound.
const RANDOM_BELOW: &str = "2147483647";
/// What it says is a line of its whole command, again and again.
const SHOWN_MAX_CHARS: usize = 200;

/// Claims a second of the engine: two callers take turns, so that the next batch waits when one has been decided.
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
                            "no claim: {verdict:?}"
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

/// Claims a second of redis-benchmark on the same sale.
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
        .context("the default sale")?;
    let (epoch, stock) = sale.split_once(' ').context("an epoch and a key")?;
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
        // Each as long as the engine's own: a name of 32 characters, no buyer, no key, a digest, one unit.
        let id = format!("{attempt:020}{RANDOM}");
        let digest = "0123456789abcdef";
        let part =
            format!(r#""order_id":"{id}","buyer":"","idem_key":null,"fingerprint":"{digest}""#);
        command.args([id.as_str(), "", "", digest, "1", &part]);
    }
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let said = String::from_utf8_lossy(&done.stdout);
    // It does not look at what Redis replies. A few of its random names meet, which are repeats then.
    let taken = before - left()?;
    ensure!(
        done.status.success() && f64::from(taken) > 0.99 * f64::from(claims / batch * batch),
        "redis-benchmark took {taken} units: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    let Some((before, _)) = said.rsplit_once(" requests per second") else {
        bail!("redis-benchmark said {}", shown(&said));
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
