//! Aligned tables for people. Programs must use JSON.

/// Names and values in two columns. Numbers are right-aligned.
pub(crate) fn pairs<N: AsRef<str>>(rows: &[(N, String)]) -> String {
    let name_width = rows
        .iter()
        .map(|(name, _)| name.as_ref().chars().count())
        .max()
        .unwrap_or(0);
    let is_number = |value: &str| value.starts_with(|c: char| c.is_ascii_digit());
    let numbers = rows.iter().filter(|(_, value)| is_number(value));
    let value_width = numbers
        .map(|(_, value)| value.chars().count())
        .max()
        .unwrap_or(0);
    let mut table = String::new();
    for (name, value) in rows {
        let name = name.as_ref();
        let line = if is_number(value) {
            format!("  {name:<name_width$}  {value:>value_width$}")
        } else {
            format!("  {name:<name_width$}  {value}")
        };
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// Any number of columns with headings.
pub(crate) fn columns<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .chain([heads[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut table = line(heads);
    for row in rows {
        table.push_str(&line(std::array::from_fn(|column| row[column].as_str())));
    }
    table
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as milliseconds.
pub(crate) fn milliseconds(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_aligned() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        let table = pairs(&[
            ("won", grouped(100)),
            ("sold out", grouped(1_900)),
            ("verdict", "clean".into()),
        ]);
        assert_eq!(
            table,
            "  won         100\n  sold out  1,900\n  verdict   clean\n"
        );
    }
}
