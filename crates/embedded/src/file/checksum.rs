//! Checksums of rows, because SQLite does not detect a flipped byte inside a value.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// SipHash-1-3 with a zero key, with each text preceded by its length. Checksums are stored, so the
/// algorithm must never change.
pub(super) struct Checksum(SipHasher13);

impl Checksum {
    pub(super) fn new() -> Self {
        Self(SipHasher13::new())
    }

    pub(super) fn text(&mut self, text: &str) {
        self.0.write(&(text.len() as u32).to_le_bytes());
        self.0.write(text.as_bytes());
    }

    /// A text that may be missing, which is not the same as an empty one.
    pub(super) fn optional_text(&mut self, text: Option<&str>) {
        self.bytes(&[u8::from(text.is_some())]);
        self.text(text.unwrap_or_default());
    }

    /// For a sequence of values of fixed length.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(super) fn finish(&self) -> i64 {
        self.0.finish() as i64
    }
}
