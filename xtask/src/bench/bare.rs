//! The baseline of claims: what SQLite achieves without the product.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::time::{ClockId, clock_gettime};
use seckill_embedded::{EmbeddedEngine, EmbeddedOptions};
use seckill_engine::Engine;
use seckill_sale::{Attempt, NewSale, SaleId, Verdict};
use serde_json::json;

/// The engine's claims and a bare loop's inserts, alternating, in batches of the same size.
pub(crate) fn claims(rows: u32, batch: u32, rounds: u32, dir: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let (mut engine_per_s, mut engine_cpu_us) = (vec![], vec![]);
    let (mut bare_per_s, mut bare_cpu_us, mut without_feed_cpu_us) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        let place = dir.join(format!("engine-{round}"));
        let (per_s, cpu_us) = runtime.block_on(engine_claims(&place, rows, batch))?;
        engine_per_s.push(per_s);
        engine_cpu_us.push(cpu_us);
        // The bare loop writes the engine's rows into the engine's schema.
        let orders = place.join(seckill_embedded::DATABASE_FILE);
        let bare = |name: &str, has_feed| {
            let file = dir.join(format!("{name}-{round}.db"));
            bare_commits(&orders, &file, batch, has_feed)
        };
        // Which goes first alternates.
        let without_first = round % 2 == 1;
        let early = without_first.then(|| bare("without", false)).transpose()?;
        let (per_s, cpu_us) = bare("bare", true)?;
        bare_per_s.push(per_s);
        bare_cpu_us.push(cpu_us);
        without_feed_cpu_us.push(match early {
            Some((_, cpu_us)) => cpu_us,
            None => bare("without", false)?.1,
        });
    }
    println!(
        "{}",
        json!({
            "engine_per_s": engine_per_s,
            "engine_cpu_us": engine_cpu_us,
            "bare_per_s": bare_per_s,
            "bare_cpu_us": bare_cpu_us,
            "without_feed_cpu_us": without_feed_cpu_us,
        })
    );
    Ok(())
}

/// Two callers alternate, so that the next call is already waiting when one has been committed, as
/// under load. Each call is one commit. Returns the claims per second, and the CPU time of one in
/// microseconds.
async fn engine_claims(dir: &Path, rows: u32, batch: u32) -> anyhow::Result<(f64, f64)> {
    let engine = Arc::new(EmbeddedEngine::open(EmbeddedOptions {
        batch_max: 1,
        ..EmbeddedOptions::new(dir)
    })?);
    let sale = SaleId::new("counter")?;
    engine
        .create_sale(NewSale::units(sale.clone(), rows))
        .await??;
    let (began, cpu_began) = (Instant::now(), process_cpu());
    let caller = || {
        let (engine, sale) = (Arc::clone(&engine), sale.clone());
        tokio::spawn(async move {
            for _ in 0..rows / batch / 2 {
                let attempts = vec![Attempt::anonymous(sale.clone()); batch as usize];
                for verdict in engine.decide(attempts).await {
                    ensure!(
                        matches!(verdict, Ok(Verdict::Claimed(_))),
                        "not claimed: {verdict:?}"
                    );
                }
            }
            Ok(())
        })
    };
    let (one, other) = (caller(), caller());
    one.await??;
    other.await??;
    let claims = f64::from(rows / batch / 2 * 2 * batch);
    let per_s = claims / began.elapsed().as_secs_f64();
    let cpu = process_cpu().saturating_sub(cpu_began);
    engine.close().await;
    Ok((per_s, cpu.as_secs_f64() * 1e6 / claims))
}

/// User and system time of all threads of this process.
fn process_cpu() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec as u32)
}

struct BareRow {
    date_ms: i64,
    order_id: Vec<u8>,
    unit: u32,
    sequence: Option<i64>,
    checksum: i64,
}

/// Rows of one statement, as many as the engine's.
const BARE_GROUP: usize = 16;

/// Inserts the rows of an engine. Without the feed, they have no numbers of events. Returns the rows
/// per second, and the CPU time of one in microseconds.
fn bare_commits(
    orders: &Path,
    bare: &Path,
    batch: u32,
    has_feed: bool,
) -> anyhow::Result<(f64, f64)> {
    let source = rusqlite::Connection::open(orders)?;
    let target = rusqlite::Connection::open(bare)?;
    target.pragma_update(None, "journal_mode", "WAL")?;
    target.pragma_update(None, "synchronous", "FULL")?;
    target.pragma_update(None, "cache_size", -65_536)?;
    target.pragma_update(None, "wal_autocheckpoint", 4_096)?;
    let mut schema =
        source.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")?;
    for sql in schema.query_map((), |row| row.get::<_, String>(0))? {
        target.execute_batch(&sql?)?;
    }
    let columns = "SELECT date, order_id, unit, sequence, checksum FROM seckill ORDER BY id";
    let mut read = source.prepare(columns)?;
    let rows = read.query_map((), |row| {
        Ok(BareRow {
            date_ms: row.get(0)?,
            order_id: row.get(1)?,
            unit: row.get(2)?,
            sequence: row.get::<_, Option<i64>>(3)?.filter(|_| has_feed),
            checksum: row.get(4)?,
        })
    })?;
    let rows: Vec<BareRow> = rows.collect::<Result<_, _>>()?;
    let insert = |rows: usize| {
        let row = "(?, ?, 1, 1, 1, 1, ?, 1, ?, ?, '')";
        let rows = vec![row; rows].join(", ");
        target.prepare(&format!(
            "INSERT INTO seckill (date, order_id, line, lines, sale, item, unit, generation, sequence, checksum, \
             buyer) VALUES {rows}"
        ))
    };
    let (mut group, mut single) = (insert(BARE_GROUP)?, insert(1)?);
    let (began, cpu_began) = (Instant::now(), process_cpu());
    for part in rows.chunks(batch as usize) {
        target.execute_batch("BEGIN IMMEDIATE")?;
        let groups = part.chunks_exact(BARE_GROUP);
        for row in groups.remainder() {
            bare_insert(&mut single, std::slice::from_ref(row))?;
        }
        for rows in groups {
            bare_insert(&mut group, rows)?;
        }
        target.execute_batch("COMMIT")?;
    }
    let cpu = process_cpu().saturating_sub(cpu_began);
    let count = rows.len() as f64;
    let per_s = count / began.elapsed().as_secs_f64();
    Ok((per_s, cpu.as_secs_f64() * 1e6 / count))
}

fn bare_insert(insert: &mut rusqlite::Statement<'_>, rows: &[BareRow]) -> rusqlite::Result<()> {
    for (row, index) in rows.iter().zip(0..) {
        let first = index * 5 + 1;
        insert.raw_bind_parameter(first, row.date_ms)?;
        insert.raw_bind_parameter(first + 1, &row.order_id)?;
        insert.raw_bind_parameter(first + 2, row.unit)?;
        insert.raw_bind_parameter(first + 3, row.sequence)?;
        insert.raw_bind_parameter(first + 4, row.checksum)?;
    }
    insert.raw_execute()?;
    Ok(())
}
