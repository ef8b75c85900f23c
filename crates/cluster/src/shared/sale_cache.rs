//! What this server knows of each sale, how long it may trust that, and which sales are sold out:
//! the basis of answers from memory. Filled by `refresh`; nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use seckill_mysql_store::sales::SaleRow;
use seckill_redis_gate::{GateKeys, Head};
use seckill_sale::{SaleId, TakenLines};

/// The keys of a sale's gate.
pub(crate) fn keys_of(row: &SaleRow) -> GateKeys {
    GateKeys::new(&row.stock_key, row.sale.items.len())
}

/// Whether two rows say the same of what a server depends on. The latest event does not matter: it
/// changes with each claim.
fn is_same(a: &SaleRow, b: &SaleRow) -> bool {
    let SaleRow {
        num,
        sale,
        stock_key,
        epoch,
        is_open,
        suspect_epoch,
        lease_is_over,
        last_sequence: _,
        voids: _,
    } = a;
    (num, epoch, is_open, suspect_epoch, lease_is_over)
        == (
            &b.num,
            &b.epoch,
            &b.is_open,
            &b.suspect_epoch,
            &b.lease_is_over,
        )
        && (sale, stock_key) == (&b.sale, &b.stock_key)
}

/// One sale as last read from the store.
#[derive(Debug)]
pub(crate) struct CachedSale {
    pub(crate) row: SaleRow,
    pub(crate) keys: GateKeys,
    /// The sold-out mark of each item: the gate's `n` + 1 at which no unit was free; 0 if one may
    /// be. It lives only as long as this entry: a restock creates a new one.
    sold_out_n: Box<[AtomicU64]>,
    /// The highest `n` that the gate has reported.
    heard_n: AtomicU64,
    /// Requested since the last refresh.
    used: AtomicBool,
}

impl CachedSale {
    fn new(row: SaleRow) -> Self {
        let items = row.sale.items.len();
        Self {
            keys: keys_of(&row),
            row,
            sold_out_n: (0..items).map(|_| AtomicU64::new(0)).collect(),
            heard_n: AtomicU64::new(0),
            used: AtomicBool::new(false),
        }
    }

    /// Updates the sold-out marks from the state that the gate reported.
    pub(crate) fn heard(&self, head: &Head) {
        // Replies may arrive out of order.
        if self.heard_n.fetch_max(head.n, Ordering::AcqRel) > head.n {
            return;
        }
        let is_current = head.version == self.row.sale.version;
        for (mark, &free) in self.sold_out_n.iter().zip(&head.free) {
            let is_sold_out = is_current && free == 0;
            // A new mark must survive the next round, which clears the marks of unused sales.
            self.used.fetch_or(is_sold_out, Ordering::Relaxed);
            mark.store(if is_sold_out { head.n + 1 } else { 0 }, Ordering::Release);
        }
    }

    /// Clears the sold-out marks.
    pub(crate) fn doubt(&self) {
        for mark in &self.sold_out_n {
            mark.store(0, Ordering::Release);
        }
    }

    /// Whether no item of these lines has a free unit.
    pub(crate) fn is_sold_out(&self, lines: &TakenLines) -> bool {
        self.used.store(true, Ordering::Relaxed);
        // Replies race: a mark counts only while the gate has reported no later state.
        let heard = self.heard_n.load(Ordering::Acquire) + 1;
        lines.iter().all(|(item, _)| {
            let mark = self.sold_out_n.get(item.index());
            mark.is_some_and(|mark| mark.load(Ordering::Acquire) == heard)
        })
    }

    /// Whether the sale was requested since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }
}

pub(crate) struct SaleCache {
    sales: papaya::HashMap<SaleId, Arc<CachedSale>>,
    began: Instant,
    lease: Duration,
    /// When the latest complete read of the sales started, in milliseconds after `began`, + 1; 0
    /// before the first.
    read_ms: AtomicU64,
}

impl SaleCache {
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            sales: papaya::HashMap::new(),
            began: Instant::now(),
            lease,
            read_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn get(&self, id: &SaleId) -> Option<Arc<CachedSale>> {
        self.sales.pin().get(id).cloned()
    }

    /// Runs on a cached sale without cloning its `Arc`.
    pub(crate) fn with<T>(&self, id: &SaleId, run: impl FnOnce(&CachedSale) -> T) -> Option<T> {
        self.sales.pin().get(id).map(|cached| run(cached))
    }

    pub(crate) fn all(&self) -> Vec<Arc<CachedSale>> {
        self.sales.pin().values().cloned().collect()
    }

    /// Whether the latest read is recent enough to base a rejection on it.
    pub(crate) fn is_fresh(&self) -> bool {
        let read_ms = self.read_ms.load(Ordering::Acquire);
        read_ms > 0 && self.began.elapsed() < Duration::from_millis(read_ms - 1) + self.lease
    }

    /// Whether a rejection in the epoch of `cached` may be sent.
    pub(crate) fn is_fresh_for(&self, cached: &CachedSale) -> bool {
        let is_current = |now: &CachedSale| now.row.epoch == cached.row.epoch && now.row.is_open;
        self.is_fresh() && self.with(&cached.row.sale.id, is_current) == Some(true)
    }

    /// Records that a complete read, started at `began`, is in the cache.
    pub(crate) fn read_since(&self, began: Instant) {
        let at_ms = began.saturating_duration_since(self.began).as_millis() as u64;
        self.read_ms.fetch_max(at_ms + 1, Ordering::AcqRel);
    }

    /// Caches a row unless a later one is cached. A sale whose row has not changed keeps its mark.
    pub(crate) fn take(&self, row: SaleRow) -> Arc<CachedSale> {
        let sales = self.sales.pin();
        let age = |row: &SaleRow| (row.epoch, row.sale.version);
        let id = row.sale.id.clone();
        let fresh = Arc::new(CachedSale::new(row));
        let taken = sales.compute(id, |known| match known {
            Some((_, cached))
                if age(&cached.row) > age(&fresh.row) || is_same(&cached.row, &fresh.row) =>
            {
                papaya::Operation::Abort(Arc::clone(cached))
            }
            _ => papaya::Operation::Insert(Arc::clone(&fresh)),
        });
        match taken {
            papaya::Compute::Aborted(cached) => cached,
            _ => fresh,
        }
    }

    /// Removes the sales that are not among these.
    pub(crate) fn keep_only(&self, ids: &std::collections::HashSet<SaleId>) {
        self.sales.pin().retain(|id, _| ids.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_sale::{ItemNo, NewSale};

    fn row(epoch: u32, version: u64) -> SaleRow {
        let id = SaleId::new("s").unwrap();
        let mut sale = NewSale::units(id, 10).validate().unwrap();
        sale.version = version;
        SaleRow {
            num: 1,
            sale,
            stock_key: "s".into(),
            epoch,
            is_open: true,
            suspect_epoch: None,
            lease_is_over: true,
            last_sequence: u64::from(epoch),
            voids: 0,
        }
    }

    #[test]
    fn a_mark_lasts_until_the_sale_changes_and_a_stale_read_is_ignored() {
        let sale_cache = SaleCache::new(Duration::from_secs(3));
        let cached = sale_cache.take(row(1, 1));
        cached.heard(&Head {
            version: 1,
            n: 4,
            free: [0].into(),
            ..Head::default()
        });
        let one = [(ItemNo::FIRST, 1)].into_iter().collect();
        let later = SaleRow {
            last_sequence: 99,
            ..row(1, 1)
        };
        assert!(sale_cache.take(later).is_sold_out(&one));
        assert!(!sale_cache.take(row(1, 2)).is_sold_out(&one));
        let newer = sale_cache.take(row(2, 2));
        newer.heard(&Head {
            version: 2,
            n: 4,
            free: [0].into(),
            ..Head::default()
        });
        assert_eq!(sale_cache.take(row(1, 2)).row.epoch, 2);
        assert!(newer.is_sold_out(&one));
        newer.heard(&Head {
            version: 2,
            n: 5,
            free: [1].into(),
            ..Head::default()
        });
        assert!(!newer.is_sold_out(&one));
    }

    #[test]
    fn nothing_is_fresh_before_the_first_read() {
        let sale_cache = SaleCache::new(Duration::from_secs(3_600));
        assert!(!sale_cache.is_fresh());
        sale_cache.read_since(Instant::now());
        assert!(sale_cache.is_fresh());
    }
}
