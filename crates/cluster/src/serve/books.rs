//! What this server knows of each sale, for how long it may trust it, and which sales are sold out: what an answer from
//! memory rests on. Filled by `refresh`; nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use seckill_sale::SaleId;

use crate::gate::reply::Head;
use crate::store::sales::SaleRow;

/// One sale as the store had it when it was last read.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) row: SaleRow,
    /// The gate's `n` + 1 at which no unit was free; 0 where one may be. It dies with the book: a restock makes a new one.
    sold_out_n: AtomicU64,
    /// The highest `n` heard of.
    heard_n: AtomicU64,
    /// Asked for since the last refresh.
    used: AtomicBool,
}

impl Book {
    fn new(row: SaleRow) -> Self {
        Self {
            row,
            sold_out_n: AtomicU64::new(0),
            heard_n: AtomicU64::new(0),
            used: AtomicBool::new(false),
        }
    }

    /// Takes note of the gate's word.
    pub(crate) fn heard(&self, head: &Head) {
        // Replies may come in another order than they were given.
        if self.heard_n.fetch_max(head.n, Ordering::AcqRel) > head.n {
            return;
        }
        let mark = if head.free == 0 && head.ver == self.row.sale.ver {
            head.n + 1
        } else {
            0
        };
        // A mark that is new must outlive the next round, which takes away those that nobody uses.
        self.used.fetch_or(mark > 0, Ordering::Relaxed);
        self.sold_out_n.store(mark, Ordering::Release);
    }

    /// Forgets that it was sold out.
    pub(crate) fn doubt(&self) {
        self.sold_out_n.store(0, Ordering::Release);
    }

    pub(crate) fn is_sold_out(&self) -> bool {
        self.used.store(true, Ordering::Relaxed);
        // Replies race: a mark counts only while no later word was heard.
        self.sold_out_n.load(Ordering::Acquire) == self.heard_n.load(Ordering::Acquire) + 1
    }

    /// Whether somebody has asked since the last time.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }
}

/// All sales.
pub(crate) struct Books {
    sales: papaya::HashMap<SaleId, Arc<Book>>,
    began: Instant,
    lease: Duration,
    /// Milliseconds after `began` at which the latest whole read of the sales began, + 1; 0 before the first.
    read_ms: AtomicU64,
}

impl Books {
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            sales: papaya::HashMap::new(),
            began: Instant::now(),
            lease,
            read_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn get(&self, id: &SaleId) -> Option<Arc<Book>> {
        self.sales.pin().get(id).cloned()
    }

    /// Runs on a sale's book without a count of its users.
    pub(crate) fn with<T>(&self, id: &SaleId, run: impl FnOnce(&Book) -> T) -> Option<T> {
        self.sales.pin().get(id).map(|book| run(book))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Book>> {
        self.sales.pin().values().cloned().collect()
    }

    /// Whether what was read is young enough to say a no by it.
    pub(crate) fn is_fresh(&self) -> bool {
        let read_ms = self.read_ms.load(Ordering::Acquire);
        read_ms > 0 && self.began.elapsed() < Duration::from_millis(read_ms - 1) + self.lease
    }

    /// Whether a no of this book's epoch may be said.
    pub(crate) fn is_fresh_for(&self, book: &Book) -> bool {
        let is_current = |now: &Book| now.row.epoch == book.row.epoch && now.row.is_open;
        self.is_fresh() && self.with(&book.row.sale.id, is_current) == Some(true)
    }

    /// Says that a whole read which began then is in.
    pub(crate) fn read_since(&self, began: Instant) {
        let at_ms = began.saturating_duration_since(self.began).as_millis() as u64;
        self.read_ms.fetch_max(at_ms + 1, Ordering::AcqRel);
    }

    /// Takes a row in, unless a later one is there. A book whose terms and epoch are the same keeps its mark.
    pub(crate) fn take(&self, row: SaleRow) -> Arc<Book> {
        let sales = self.sales.pin();
        let age = |row: &SaleRow| (row.epoch, row.sale.ver);
        let id = row.sale.id.clone();
        let fresh = Arc::new(Book::new(row));
        let taken = sales.compute(id, |known| match known {
            Some((_, book)) if age(&book.row) > age(&fresh.row) || book.row == fresh.row => {
                papaya::Operation::Abort(Arc::clone(book))
            }
            _ => papaya::Operation::Insert(Arc::clone(&fresh)),
        });
        match taken {
            papaya::Compute::Aborted(book) => book,
            _ => fresh,
        }
    }

    /// Forgets sales that are not among these.
    pub(crate) fn keep_only(&self, ids: &std::collections::HashSet<SaleId>) {
        self.sales.pin().retain(|id, _| ids.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::keys::GateKeys;
    use seckill_sale::NewSale;

    fn row(epoch: u32, ver: u64) -> SaleRow {
        let id = SaleId::new("s").unwrap();
        let mut sale = NewSale::units(id, 10).validate().unwrap();
        sale.ver = ver;
        SaleRow {
            num: 1,
            sale,
            keys: GateKeys::new("s"),
            epoch,
            is_open: true,
            suspect_epoch: None,
            lease_is_over: true,
        }
    }

    #[test]
    fn a_mark_lasts_until_the_sale_changes_and_an_old_read_changes_nothing() {
        let books = Books::new(Duration::from_secs(3));
        let book = books.take(row(1, 1));
        book.heard(&Head {
            ver: 1,
            n: 4,
            free: 0,
            ..Head::default()
        });
        assert!(books.take(row(1, 1)).is_sold_out());
        assert!(!books.take(row(1, 2)).is_sold_out());
        let newer = books.take(row(2, 2));
        newer.heard(&Head {
            ver: 2,
            n: 4,
            free: 0,
            ..Head::default()
        });
        assert_eq!(books.take(row(1, 2)).row.epoch, 2);
        assert!(newer.is_sold_out());
        newer.heard(&Head {
            ver: 2,
            n: 5,
            free: 1,
            ..Head::default()
        });
        assert!(!newer.is_sold_out());
    }

    #[test]
    fn nothing_is_fresh_before_the_first_read() {
        let books = Books::new(Duration::from_secs(3_600));
        assert!(!books.is_fresh());
        books.read_since(Instant::now());
        assert!(books.is_fresh());
    }
}
