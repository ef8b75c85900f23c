//! The names that come from outside: sales, buyers, keys, orders. Each is checked once, on entry.
//! No name is ever normalised: `ann`, `Ann` and `ann ` are three buyers.

use std::fmt;
use std::sync::Arc;

/// A name that was refused. The text says what would be right.
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

/// 1 to 64 bytes of `A-Z a-z 0-9 _ . -`, starting with a letter or digit. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaleId(Arc<str>);

impl SaleId {
    pub const MAX_BYTES: usize = 64;

    pub fn new(id: &str) -> Result<Self, InvalidName> {
        let rule = "a sale id is 1 to 64 of A-Z a-z 0-9 _ . - and starts with a letter or digit";
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let starts_well = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if id.len() > Self::MAX_BYTES || !starts_well || !id.bytes().all(allowed) {
            return Err(InvalidName::new("sale id", id, rule));
        }
        Ok(Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for SaleId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Up to 128 bytes of UTF-8 without control characters. The empty name is the anonymous buyer.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Buyer(Box<str>);

impl Buyer {
    pub const MAX_BYTES: usize = 128;

    /// The buyer without a name. No limit per buyer applies to it.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Refuses an empty name: an anonymous buyer gives no name at all.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        if name.is_empty() || name.len() > Self::MAX_BYTES || name.chars().any(char::is_control) {
            let rule = "a buyer is 1 to 128 bytes of UTF-8 without control characters";
            return Err(InvalidName::new("buyer", name, rule));
        }
        Ok(Self(name.into()))
    }

    pub fn is_anonymous(&self) -> bool {
        self.0.is_empty()
    }

    /// Empty for the anonymous buyer.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A client's name for one attempt: 1 to 255 bytes of visible ASCII. It is unique within one sale
/// and one buyer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    pub const MAX_BYTES: usize = 255;

    pub fn new(key: &str) -> Result<Self, InvalidName> {
        let visible = |b: u8| (0x21..=0x7e).contains(&b);
        if key.is_empty() || key.len() > Self::MAX_BYTES || !key.bytes().all(visible) {
            let rule = "an idempotency key is 1 to 255 visible ASCII characters, such as a UUID";
            return Err(InvalidName::new("idempotency key", key, rule));
        }
        Ok(Self(key.into()))
    }

    /// Whether a stranger cannot guess the key: it has room for 128 random bits, going by the
    /// smallest usual alphabet that it fits. Hyphens do not count.
    pub fn is_unguessable(&self) -> bool {
        const DIGITS_MIN: usize = 39;
        const HEX_DIGITS_MIN: usize = 32;
        const OTHERS_MIN: usize = 22;
        let counted = self.0.bytes().filter(|&b| b != b'-');
        let (count, all_digits, all_hex) =
            counted.fold((0, true, true), |(count, digits, hex), b| {
                (
                    count + 1,
                    digits && b.is_ascii_digit(),
                    hex && b.is_ascii_hexdigit(),
                )
            });
        count
            >= match (all_digits, all_hex) {
                (true, _) => DIGITS_MIN,
                (false, true) => HEX_DIGITS_MIN,
                (false, false) => OTHERS_MIN,
            }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a claim from the start. Engines generate it, and it cannot be guessed.
/// 1 to 64 bytes of `0-9 A-Z a-z _ -`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OrderId(Arc<str>);

impl OrderId {
    pub const MAX_BYTES: usize = 64;

    /// Checks the form alone. Only an engine knows whether an order has this id.
    pub fn new(id: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if id.is_empty() || id.len() > Self::MAX_BYTES || !id.bytes().all(allowed) {
            let rule = "an order id is 1 to 64 of A-Z a-z 0-9 _ - as it was given in the answer";
            return Err(InvalidName::new("order id", id, rule));
        }
        Ok(Self(id.into()))
    }

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
    )*};
}

macro_rules! serialized_as_text {
    ($($name:ident),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }
    )*};
}
shown_as_text!(SaleId, Buyer, IdempotencyKey, OrderId);
serialized_as_text!(SaleId, IdempotencyKey, OrderId);

impl serde::Serialize for Buyer {
    /// The anonymous buyer is `null`.
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.is_anonymous() {
            to.serialize_none()
        } else {
            to.serialize_str(self.as_str())
        }
    }
}

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
        let text = <Option<std::borrow::Cow<'de, str>>>::deserialize(from)?;
        match text {
            Some(text) if !text.is_empty() => Self::new(&text).map_err(serde::de::Error::custom),
            _ => Ok(Self::anonymous()),
        }
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
    fn a_key_is_unguessable_from_128_bits_on() {
        let is = |key: &str| IdempotencyKey::new(key).unwrap().is_unguessable();
        assert!(is("8e03978e-40d5-43e8-bc93-6894a57f9324"));
        assert!(is("8E03978E40D543E8BC936894A57F9324"));
        assert!(is("ZGlzIGlzIDIyIGNoYXJzLg"));
        assert!(is(&"1234567890".repeat(4)));
        assert!(!is("1"));
        assert!(!is("8e03978e-40d5-43e8-bc93-6894a57f932"));
        assert!(!is("order-of-ann-number-1"));
        assert!(!is(&"1".repeat(38)));
        assert!(!is(&"-".repeat(64)));
    }

    #[test]
    fn a_refusal_shows_the_value_shortened_and_the_rule() {
        let text = Buyer::new(&"b".repeat(10_000)).unwrap_err().to_string();
        assert!(text.contains("(10000 bytes)") && text.contains("1 to 128 bytes"));
        assert!(text.len() < 200, "{text}");
    }
}
