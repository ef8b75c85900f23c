//! The names of sales, items, buyers, keys and orders. Each is checked once, when it is parsed.
//! They must never be normalised: `ann`, `Ann` and `ann ` are three buyers.

use std::fmt;
use std::sync::Arc;

/// Why a name was refused. The message includes the rule for valid names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {shown}: {rule}")]
pub struct InvalidName {
    kind: &'static str,
    shown: String,
    rule: String,
}

impl InvalidName {
    fn new(kind: &'static str, value: &str, rule: impl Into<String>) -> Self {
        const SHOWN_MAX_CHARS: usize = 40;
        let mut shown: String = value.chars().take(SHOWN_MAX_CHARS).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Self {
            kind,
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
        let rule =
            "a sale id has 1 to 64 characters (A-Z a-z 0-9 _ . -), the first a letter or digit";
        if !is_plain_id(id, Self::MAX_BYTES) {
            return Err(InvalidName::new("sale id", id, rule));
        }
        Ok(Self(id.into()))
    }

    /// The same id in memory of its own, so that clones of it do not share a reference count with
    /// clones of this one.
    #[must_use]
    pub fn unshared(&self) -> Self {
        Self(Arc::from(&*self.0))
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

/// 1 to 64 bytes of `A-Z a-z 0-9 _ . -`, starting with a letter or digit; unique within its sale.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemId(Arc<str>);

impl ItemId {
    pub const MAX_BYTES: usize = 64;
    /// The only item of a sale that was created without naming any.
    pub const DEFAULT: &str = "default";

    pub fn new(id: &str) -> Result<Self, InvalidName> {
        if !is_plain_id(id, Self::MAX_BYTES) {
            let rule = "an item id has 1 to 64 characters (A-Z a-z 0-9 _ . -), the first a letter or digit";
            return Err(InvalidName::new("item id", id, rule));
        }
        Ok(Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ItemId {
    /// [`ItemId::DEFAULT`].
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

fn is_plain_id(id: &str, max_bytes: usize) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let starts_well = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    id.len() <= max_bytes && starts_well && id.bytes().all(allowed)
}

/// Up to 128 bytes of UTF-8 without control characters. The empty name is the anonymous buyer.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Buyer(Box<str>);

impl Buyer {
    pub const MAX_BYTES: usize = 128;

    /// The buyer without a name. It cannot buy from a sale that has a limit per buyer.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Refuses an empty name; for the anonymous buyer, use [`Buyer::anonymous`].
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        if name.is_empty() || name.len() > Self::MAX_BYTES || name.chars().any(char::is_control) {
            let rule = "a buyer has 1 to 128 bytes of UTF-8 without control characters";
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

/// A client's identifier for one attempt: 1 to 255 bytes of visible ASCII, scoped to one sale and
/// one buyer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    pub const MAX_BYTES: usize = 255;

    pub fn new(key: &str) -> Result<Self, InvalidName> {
        let visible = |b: u8| (0x21..=0x7e).contains(&b);
        if key.is_empty() || key.len() > Self::MAX_BYTES || !key.bytes().all(visible) {
            let rule = "an idempotency key has 1 to 255 visible ASCII characters, such as a UUID";
            return Err(InvalidName::new("idempotency key", key, rule));
        }
        Ok(Self(key.into()))
    }

    /// Whether a stranger cannot guess the key: it has room for 128 random bits, as hexadecimal digits
    /// such as a UUID's, or as other characters. Hyphens do not count.
    pub fn is_unguessable(&self) -> bool {
        const HEX_DIGITS_MIN: usize = 32;
        const OTHERS_MIN: usize = 22;
        let counted = self.0.bytes().filter(|&b| b != b'-');
        let (count, is_hex) = counted.fold((0, true), |(count, is_hex), b| {
            (count + 1, is_hex && b.is_ascii_hexdigit())
        });
        count >= if is_hex { HEX_DIGITS_MIN } else { OTHERS_MIN }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identifies a claim, and the order that it becomes. It is generated by the engine and cannot be
/// guessed. 1 to 64 bytes of `0-9 A-Z a-z _ -`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OrderId(Arc<str>);

impl OrderId {
    pub const MAX_BYTES: usize = 64;

    /// Checks only the format. Only an engine knows whether an order has this id.
    pub fn new(id: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if id.is_empty() || id.len() > Self::MAX_BYTES || !id.bytes().all(allowed) {
            let rule = "an order id has 1 to 64 characters (A-Z a-z 0-9 _ -), as in the answer";
            return Err(InvalidName::new("order id", id, rule));
        }
        Ok(Self(id.into()))
    }

    /// The number as 32 lower-case hexadecimal digits.
    pub fn from_number(number: u128) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (index, byte) in number.to_be_bytes().into_iter().enumerate() {
            text[2 * index] = DIGITS[usize::from(byte >> 4)];
            text[2 * index + 1] = DIGITS[usize::from(byte & 0xf)];
        }
        Self(std::str::from_utf8(&text).unwrap_or_default().into())
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
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    )*};
}
shown_as_text!(SaleId, ItemId, Buyer, IdempotencyKey, OrderId);
serialized_as_text!(SaleId, ItemId);

macro_rules! checked_when_read {
    ($($name:ident),*) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
checked_when_read!(SaleId, ItemId, IdempotencyKey, OrderId);

impl<'de> serde::Deserialize<'de> for Buyer {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Option<std::borrow::Cow<'de, str>>>::deserialize(deserializer)?;
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
        let number = OrderId::from_number(0x0123_89ab << 96 | 0xf);
        assert_eq!(number.as_str(), "012389ab00000000000000000000000f");
    }

    #[test]
    fn a_key_with_room_for_128_bits_is_unguessable() {
        let is_unguessable = |key: &str| IdempotencyKey::new(key).unwrap().is_unguessable();
        assert!(is_unguessable("8e03978e-40d5-43e8-bc93-6894a57f9324"));
        assert!(is_unguessable("8E03978E40D543E8BC936894A57F9324"));
        assert!(is_unguessable("ZGlzIGlzIDIyIGNoYXJzLg"));
        // A UUID may happen to have no letter.
        assert!(is_unguessable("12345678-1234-4234-8234-123456789012"));
        assert!(!is_unguessable("1"));
        assert!(!is_unguessable("8e03978e-40d5-43e8-bc93-6894a57f932"));
        assert!(!is_unguessable("order-of-ann-number-1"));
        assert!(!is_unguessable(&"1".repeat(31)));
        assert!(!is_unguessable(&"-".repeat(64)));
    }

    #[test]
    fn a_refusal_shows_the_value_shortened_and_the_rule() {
        let text = Buyer::new(&"b".repeat(10_000)).unwrap_err().to_string();
        assert!(text.contains("(10000 bytes)") && text.contains("1 to 128 bytes"));
        assert!(text.len() < 200, "{text}");
    }
}
