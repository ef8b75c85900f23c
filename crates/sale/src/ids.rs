//! The names that come from outside: sales, buyers, keys, orders. Each is checked once, where it enters.
//! No name is ever normalised: `ann`, `Ann` and `ann ` are three buyers.

use std::fmt;
use std::sync::Arc;

/// Why a name was refused; the text says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown}: {rule}")]
pub struct InvalidName {
    what: &'static str,
    shown: String,
    rule: String,
}

impl InvalidName {
    fn new(what: &'static str, value: &str, rule: impl Into<String>) -> Self {
        const SHOWN_MAX_CHARS: usize = 40;
        let mut shown: String = value.chars().take(SHOWN_MAX_CHARS).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Self {
            what,
            shown: format!("{shown:?} ({} bytes)", value.len()),
            rule: rule.into(),
        }
    }
}

/// A sale's name: 1 to 64 bytes of `A-Z a-z 0-9 _ . -`, starting with a letter or digit. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaleId(Arc<str>);

impl SaleId {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Checks a name.
    pub fn new(id: &str) -> Result<Self, InvalidName> {
        let rule = "a sale id is 1 to 64 of A-Z a-z 0-9 _ . - and starts with a letter or digit";
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let starts_well = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if id.len() > Self::MAX_BYTES || !starts_well || !id.bytes().all(allowed) {
            return Err(InvalidName::new("sale id", id, rule));
        }
        Ok(Self(id.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for SaleId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Who buys: up to 128 bytes of UTF-8 without control characters. The empty name is the anonymous buyer.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Buyer(Box<str>);

impl Buyer {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// The buyer without a name. No limit per buyer can bind it.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Checks a name. An empty one is refused: anonymity is asked for by giving no name at all.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        if name.is_empty() || name.len() > Self::MAX_BYTES || name.chars().any(char::is_control) {
            let rule = "a buyer is 1 to 128 bytes of UTF-8 without control characters";
            return Err(InvalidName::new("buyer", name, rule));
        }
        Ok(Self(name.into()))
    }

    /// Whether this is the buyer without a name.
    pub fn is_anonymous(&self) -> bool {
        self.0.is_empty()
    }

    /// The name; empty for the anonymous buyer.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A client's name for one attempt: 1 to 255 bytes of visible ASCII. It counts within one sale and one buyer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    /// The longest key, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Checks a key.
    pub fn new(key: &str) -> Result<Self, InvalidName> {
        let visible = |b: u8| (0x21..=0x7e).contains(&b);
        if key.is_empty() || key.len() > Self::MAX_BYTES || !key.bytes().all(visible) {
            let rule = "an idempotency key is 1 to 255 visible ASCII characters, such as a UUID";
            return Err(InvalidName::new("idempotency key", key, rule));
        }
        Ok(Self(key.into()))
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a claim from its first moment on. Engines make them; nobody can guess one. 1 to 64 bytes of `0-9 A-Z a-z _ -`.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OrderId(Arc<str>);

impl OrderId {
    /// The longest id, in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Checks the form of an id; whether it names anything is the engine's to say.
    pub fn new(id: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if id.is_empty() || id.len() > Self::MAX_BYTES || !id.bytes().all(allowed) {
            let rule = "an order id is 1 to 64 of A-Z a-z 0-9 _ - as it was given in the answer";
            return Err(InvalidName::new("order id", id, rule));
        }
        Ok(Self(id.into()))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for OrderId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }
    )*};
}
shown_as_text!(SaleId, Buyer, IdempotencyKey, OrderId);

macro_rules! checked_when_read {
    ($($name:ident),*) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
checked_when_read!(SaleId, IdempotencyKey, OrderId);

impl<'de> serde::Deserialize<'de> for Buyer {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        if text.is_empty() {
            return Ok(Self::anonymous());
        }
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_never_normalised() {
        assert!(SaleId::new("counter").is_ok());
        for bad in ["", ".hidden", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(SaleId::new(bad).is_err(), "{bad:?}");
        }
        assert_ne!(Buyer::new("ann").unwrap(), Buyer::new("ann ").unwrap());
        assert!(Buyer::new("").is_err() && Buyer::new("a\nb").is_err());
        assert!(Buyer::new(&"b".repeat(129)).is_err());
        assert!(IdempotencyKey::new(&"k".repeat(255)).is_ok());
        assert!(IdempotencyKey::new(&"k".repeat(256)).is_err());
        assert!(IdempotencyKey::new("two words").is_err());
        assert!(OrderId::new("../etc").is_err());
    }

    #[test]
    fn a_refusal_shows_the_value_shortened_and_the_rule() {
        let text = Buyer::new(&"b".repeat(10_000)).unwrap_err().to_string();
        assert!(text.contains("(10000 bytes)") && text.contains("1 to 128 bytes"));
        assert!(text.len() < 200, "{text}");
    }
}
