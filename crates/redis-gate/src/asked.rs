//! An attempt as it is sent to the gate. No I/O.

use std::borrow::Cow;
use std::fmt::Write;

use seckill_cluster_codec::digest::Digester;
use seckill_cluster_codec::message;
use seckill_cluster_codec::order_id::{self, ID_BYTES};
use seckill_sale::{Attempt, Invalid, ItemNo, Names, OrderId, Sale, TakenLines, resolve_lines};

/// An attempt with its order id and digests. Sending it again is idempotent.
#[derive(Debug, Clone)]
pub struct Asked {
    pub order_id: OrderId,
    pub attempt: Attempt,
    /// The attempt's part of the claim message.
    pub part: String,
    pub(crate) id: [u8; ID_BYTES],
    pub(crate) names: Names,
    /// The gate answers with the reason only if the attempt's key has no claim.
    pub(crate) lines: Result<TakenLines, Invalid>,
}

impl Asked {
    /// `sale` is the attempt's sale. `None` if the id cannot be one of a cluster's.
    pub fn new(
        order_id: OrderId,
        attempt: Attempt,
        digester: &Digester,
        sale: &Sale,
    ) -> Option<Self> {
        Some(Self {
            id: order_id::to_bytes(&order_id)?,
            names: digester.names(&attempt),
            lines: resolve_lines(sale, &attempt),
            part: message::attempt_part(&order_id, &attempt),
            order_id,
            attempt,
        })
    }

    /// The lines as the script reads them.
    pub(crate) fn lines_text(&self) -> Cow<'static, str> {
        let lines = match &self.lines {
            Ok(lines) => lines,
            Err(_) => return "".into(),
        };
        if lines[..] == [(ItemNo::FIRST, 1)] {
            return "1".into();
        }
        let mut text = String::new();
        for (item, quantity) in lines {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{}/{quantity}", item.get());
        }
        text.into()
    }
}
