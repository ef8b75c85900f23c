//! Values that are checked when they are deserialized, so that an error names the key.

use std::net::SocketAddr;

use serde::de::{Deserialize, Deserializer, Error};

/// A whole number from `MIN` to `MAX`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Between<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Between<MIN, MAX> {
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Between<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let right = || format!("it must be a whole number from {MIN} to {MAX}");
        // Signed, so that a negative number gets the same error as one that is too large.
        let number = i64::deserialize(from).map_err(|_| D::Error::custom(right()))?;
        match u64::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(D::Error::custom(right())),
        }
    }
}

pub(crate) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(|_| {
        D::Error::custom(
            "it must be an IP address and a port, such as 127.0.0.1:3000 or [::1]:3000",
        )
    })
}
