//! Checks of the unit tests: a value against its JSON, in both directions.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The value is written as exactly this text, and the text is read as the value.
pub(crate) fn is_json<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, text: &str) {
    assert_eq!(serde_json::to_string(value).unwrap(), text);
    assert_eq!(&serde_json::from_str::<T>(text).unwrap(), value);
}
