//! Names of a sale's keys in Redis. All share one hash tag, so a Cluster stores them in one slot.

use std::sync::Arc;

/// The seven keys of a sale, in the order that the script expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateKeys(Arc<[String; 7]>);

impl GateKeys {
    pub fn new(stock_key: &str) -> Self {
        let key = |suffix: &str| format!("{{{stock_key}}}:{suffix}");
        Self(Arc::new([
            stock_key.to_owned(),
            key("m"),
            key("c"),
            key("k"),
            key("b"),
            key("f"),
            key("o"),
        ]))
    }

    pub(crate) fn all(&self) -> &[String; 7] {
        &self.0
    }

    /// The number of free units, the tutorial's `counter`.
    pub fn stock(&self) -> &str {
        &self.0[0]
    }

    /// The terms and the state of the gate.
    pub fn terms(&self) -> &str {
        &self.0[1]
    }

    pub(crate) fn claims(&self) -> &str {
        &self.0[2]
    }

    pub(crate) fn by_key(&self) -> &str {
        &self.0[3]
    }

    pub(crate) fn buyers(&self) -> &str {
        &self.0[4]
    }

    pub(crate) fn returned(&self) -> &str {
        &self.0[5]
    }

    pub(crate) fn outbox(&self) -> &str {
        &self.0[6]
    }
}
