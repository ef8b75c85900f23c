//! One file on a simulated disk: its synced content, and the writes since, which may be lost.
//! Plain values: no I/O, and no random numbers except from the caller.

use crate::rng::Rng;

/// Writes are atomic in units of this size, aligned to the start of the file.
pub(crate) const SECTOR_BYTES: usize = 512;

/// A change of a file that has not been synced yet.
#[derive(Debug, Clone)]
pub(crate) enum PendingOp {
    Write { offset: usize, data: Vec<u8> },
    Truncate { size: usize },
}

impl PendingOp {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => write(image, *offset, data),
            Self::Truncate { size } => image.resize(*size, 0),
        }
    }

    /// Applies each sector of a write with a probability of one half. A truncation cannot be torn,
    /// and is not applied.
    fn apply_torn(&self, image: &mut Vec<u8>, rng: &mut Rng) {
        let Self::Write { offset, data } = self else {
            return;
        };
        let end = offset + data.len();
        let mut start = *offset;
        while start < end {
            let next = end.min((start / SECTOR_BYTES + 1) * SECTOR_BYTES);
            if rng.one_in(2) {
                write(image, start, &data[start - offset..next - offset]);
            }
            start = next;
        }
    }
}

fn write(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(data);
}

/// The content of a file on the disk. A running process sees it with all pending changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    durable: Vec<u8>,
    pending: Vec<PendingOp>,
}

impl Contents {
    pub(crate) fn durable(content: Vec<u8>) -> Self {
        Self {
            durable: content,
            pending: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, op: PendingOp) {
        self.pending.push(op);
    }

    pub(crate) fn sync(&mut self) {
        for op in self.pending.drain(..) {
            op.apply(&mut self.durable);
        }
    }

    /// The content after a power cut: each pending change is kept, torn or dropped.
    pub(crate) fn after_power_cut(&self, rng: &mut Rng) -> Vec<u8> {
        let mut image = self.durable.clone();
        // Disks differ in how much they write before a sync, so each file has its own probability.
        let keep_percent = rng.below(101);
        for op in &self.pending {
            if rng.below(100) < keep_percent {
                op.apply(&mut image);
            } else if rng.one_in(2) {
                op.apply_torn(&mut image, rng);
            }
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUTS: u64 = 200;

    fn images(contents: &Contents) -> Vec<Vec<u8>> {
        (0..CUTS)
            .map(|seed| contents.after_power_cut(&mut Rng::new(seed)))
            .collect()
    }

    fn ones(offset: usize, len: usize) -> PendingOp {
        let data = vec![1; len];
        PendingOp::Write { offset, data }
    }

    #[test]
    fn a_write_may_be_lost_until_it_is_synced() {
        let mut contents = Contents::durable(vec![0; 4]);
        contents.push(ones(2, 4));
        let unsynced = images(&contents);
        assert!(unsynced.contains(&vec![0; 4]));
        assert!(unsynced.contains(&vec![0, 0, 1, 1, 1, 1]));
        contents.sync();
        contents.push(PendingOp::Truncate { size: 1 });
        let synced = images(&contents);
        assert!(synced.contains(&vec![0]));
        assert!(synced.contains(&vec![0, 0, 1, 1, 1, 1]));
        contents.sync();
        assert!(images(&contents).iter().all(|image| *image == [0]));
    }

    #[test]
    fn a_write_is_torn_only_at_sectors() {
        let (before, len) = (100, 3 * SECTOR_BYTES);
        let mut contents = Contents::durable(vec![0; before + len]);
        contents.push(ones(before, len));
        let mut torn = 0;
        for image in images(&contents) {
            assert!(image[..before].iter().all(|byte| *byte == 0));
            // The write covers only a part of the first and of the last sector.
            let sectors = image[before..SECTOR_BYTES]
                .chunks(SECTOR_BYTES)
                .chain(image[SECTOR_BYTES..].chunks(SECTOR_BYTES));
            let kept: Vec<bool> = sectors
                .map(|sector| {
                    assert!(sector.iter().all(|byte| *byte == sector[0]));
                    sector[0] == 1
                })
                .collect();
            assert_eq!(kept.len(), 4);
            torn += usize::from(kept.contains(&true) && kept.contains(&false));
        }
        assert!(torn > 0);
    }

    #[test]
    fn a_lost_write_before_a_kept_one_leaves_zeros() {
        let mut contents = Contents::default();
        contents.push(ones(0, 2));
        contents.push(ones(2, 2));
        assert!(images(&contents).contains(&vec![0, 0, 1, 1]));
    }
}
