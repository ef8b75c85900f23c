//! Writes literals into SQL and reads columns from rows. No I/O.

use std::fmt::Write;

use mysql_async::Row;
use mysql_async::prelude::FromValue;

/// Formats bytes as an SQL literal that is safe for any content.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    quote_into(&mut text, bytes);
    text
}

/// Appends such a literal: quoted if every byte is harmless, otherwise in hexadecimal.
pub(crate) fn quote_into(text: &mut String, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
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
    text.push_str("x'");
    for byte in bytes {
        text.push(HEX[usize::from(byte >> 4)].into());
        text.push(HEX[usize::from(byte & 15)].into());
    }
    text.push('\'');
}

/// Formats a comma-separated list of literals.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for name in names {
        if !text.is_empty() {
            text.push(',');
        }
        quote_into(&mut text, name.as_bytes());
    }
    text
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
}
