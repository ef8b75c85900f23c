//! Writes literals into SQL and reads columns from rows. No I/O.

use std::fmt::Write;

use mysql_async::Row;
use mysql_async::prelude::FromValue;
use seckill_cluster_codec::order_id;
use seckill_sale::OrderId;

/// Formats bytes as an SQL literal that is safe for any content.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    quote_into(&mut text, bytes);
    text
}

/// Appends such a literal: quoted if every byte is harmless, otherwise in hexadecimal.
pub(crate) fn quote_into(text: &mut String, bytes: &[u8]) {
    let is_harmless = |byte: &u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':' | b'/' | b'@')
    };
    if let Some(plain) = std::str::from_utf8(bytes)
        .ok()
        .filter(|_| bytes.iter().all(is_harmless))
    {
        text.push('\'');
        text.push_str(plain);
        text.push('\'');
        return;
    }
    hex_into(text, bytes);
}

/// Appends bytes in hexadecimal, as they are in binary columns.
pub(crate) fn hex_into(text: &mut String, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    text.push_str("x'");
    for byte in bytes {
        text.push(HEX[usize::from(byte >> 4)].into());
        text.push(HEX[usize::from(byte & 15)].into());
    }
    text.push('\'');
}

/// Formats an order id, which the store holds as bytes. An id that no cluster made is an empty
/// literal, which equals no order id.
pub(crate) fn order_id_literal(id: &OrderId) -> String {
    let mut text = String::with_capacity(2 * order_id::ID_BYTES + 3);
    order_id_into(&mut text, id);
    text
}

/// Appends such a literal.
pub(crate) fn order_id_into(text: &mut String, id: &OrderId) {
    match order_id::to_bytes(id) {
        Some(bytes) => hex_into(text, &bytes),
        None => hex_into(text, &[]),
    }
}

/// Formats a comma-separated list of literals.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for name in names {
        separate(&mut text);
        quote_into(&mut text, name.as_bytes());
    }
    text
}

/// Formats a comma-separated list of order ids. Leaves out ids that no cluster made.
pub(crate) fn order_id_list<'a>(ids: impl IntoIterator<Item = &'a OrderId>) -> String {
    let mut text = String::new();
    for bytes in ids.into_iter().filter_map(order_id::to_bytes) {
        separate(&mut text);
        hex_into(&mut text, &bytes);
    }
    text
}

fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push(',');
    }
}

pub(crate) fn or_null<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "NULL".into(), |value| value.to_string())
}

/// Takes a column of a row. Returns `None` if it is missing or has another type, for example after
/// a manual edit.
pub(crate) fn column<T: FromValue>(row: &mut Row, at: usize) -> Option<T> {
    row.take_opt(at)?.ok()
}

/// Takes a binary column as text. Invalid UTF-8 is replaced.
pub(crate) fn text(row: &mut Row, at: usize) -> Option<String> {
    column::<Vec<u8>>(row, at).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes a nullable binary column as text. The outer `Option` is as in [`column`].
pub(crate) fn text_or_null(row: &mut Row, at: usize) -> Option<Option<String>> {
    let bytes: Option<Vec<u8>> = column(row, at)?;
    Some(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Takes an order id.
pub(crate) fn order_id(row: &mut Row, at: usize) -> Option<OrderId> {
    let bytes: Vec<u8> = column(row, at)?;
    let bytes = bytes.as_slice().try_into().ok()?;
    Some(order_id::from_bytes(bytes))
}

/// Appends one `(a, b, …)` row, separated by a comma from the row before.
pub(crate) fn push_row(sql: &mut String, is_first: bool, row: std::fmt::Arguments<'_>) {
    if !is_first {
        sql.push(',');
    }
    // Writing to a String cannot fail.
    let _ = sql.write_fmt(row);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_content_escapes_from_a_literal() {
        assert_eq!(quoted(b""), "''");
        assert_eq!(quoted(b"ann_1@x.y"), "'ann_1@x.y'");
        assert_eq!(quoted(b"\\"), "x'5c'");
        assert_eq!(quoted("王".as_bytes()), "x'e78e8b'");
        assert_eq!(quoted(b"'; DROP"), "x'273b2044524f50'");
        assert_eq!(list(["a", "b"]), "'a','b'");
    }

    #[test]
    fn order_ids_are_bytes() {
        let id = OrderId::new("AAECAwQFBgcICQoLDA0ODxAREhMUFRb-").unwrap();
        let literal = "x'000102030405060708090a0b0c0d0e0f10111213141516fe'";
        assert_eq!(order_id_literal(&id), literal);
        let made_up = OrderId::new("made-up").unwrap();
        assert_eq!(order_id_literal(&made_up), "x''");
        let list = order_id_list([&id, &made_up, &id]);
        assert_eq!(list, format!("{literal},{literal}"));
    }
}
