//! Writes the types of the API as JSON.

use bytes::Bytes;
use serde::Serialize;

/// Room for a confirmation of one unit, so that it is written without growing the buffer.
const BODY_BYTES: usize = 256;

pub(crate) fn to_json(value: &impl Serialize) -> Bytes {
    let mut body = Vec::with_capacity(BODY_BYTES);
    match serde_json::to_writer(&mut body, value) {
        Ok(()) => body.into(),
        // The types of the API have no map with other keys than text, and memory takes all bytes.
        Err(error) => unreachable!("JSON in memory: {error}"),
    }
}
