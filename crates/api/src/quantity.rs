//! A quantity as a client wrote it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error};
use serde_json::value::RawValue;

/// A quantity in a request. Any JSON number is read, so that one that cannot be bought gets a
/// problem of its own, which names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity<'a> {
    Whole(u32),
    /// The text of a number that is not written as a whole one from 0 to `u32::MAX`.
    Other(&'a str),
}

impl From<u32> for Quantity<'_> {
    fn from(quantity: u32) -> Self {
        Self::Whole(quantity)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Quantity<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&'a RawValue>::deserialize(deserializer)?.get();
        if !text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
            let text = Shortened(text);
            return Err(D::Error::custom(format_args!("{text} is not a number")));
        }
        Ok(text.parse().map_or(Self::Other(text), Self::Whole))
    }
}

impl fmt::Display for Quantity<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(quantity) => write!(f, "{quantity}"),
            Self::Other(text) => write!(f, "{}", Shortened(text)),
        }
    }
}

/// A client's text, which may be long.
struct Shortened<'a>(&'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX_CHARS: usize = 40;
        match self.0.char_indices().nth(SHOWN_MAX_CHARS) {
            Some((end, _)) => write!(f, "{}…", &self.0[..end]),
            None => f.write_str(self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_is_read_and_nothing_else() {
        let read = |text| serde_json::from_str::<Quantity<'_>>(text);
        assert_eq!(read("0").unwrap(), Quantity::Whole(0));
        assert_eq!(read("4294967295").unwrap(), Quantity::Whole(u32::MAX));
        for text in ["-1", "1.0", "1e0", "4294967296", "1e400", "-0"] {
            assert_eq!(read(text).unwrap(), Quantity::Other(text));
        }
        for text in ["null", "\"1\"", "[1]", "{}", "true", "01", "+1", "1."] {
            assert!(read(text).is_err(), "{text}");
        }
        let refused = read("null").unwrap_err().to_string();
        assert!(refused.starts_with("null is not a number"), "{refused}");
    }

    #[test]
    fn a_long_number_is_shortened() {
        let long = "9".repeat(100);
        assert_eq!(Quantity::Other("1e400").to_string(), "1e400");
        assert_eq!(
            Quantity::Other(&long).to_string(),
            format!("{}…", "9".repeat(40))
        );
    }
}
