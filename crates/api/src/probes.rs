//! The probes that answer with JSON.

use serde::{Deserialize, Serialize};

/// The answer of `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether every component is ready.
    pub ready: bool,
    pub components: Vec<ComponentState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentState {
    /// For example, `store`.
    pub component: String,
    pub ready: bool,
    /// What is wrong and what happens next; empty when ready.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_json;

    #[test]
    fn readiness_lists_components() {
        let store = ComponentState {
            component: "store".into(),
            ready: true,
            detail: String::new(),
        };
        let readiness = Readiness {
            ready: true,
            components: vec![store],
        };
        is_json(
            &readiness,
            r#"{"ready":true,"components":[{"component":"store","ready":true,"detail":""}]}"#,
        );
    }
}
