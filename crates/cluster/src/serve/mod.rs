//! What a server needs to answer attempts: gate calls, waiting for the store, and cached sales.
//! `engine` implements the port; the relay and the recorder move claims to the store.

pub(crate) mod addresses;
pub(crate) mod confirming;
pub(crate) mod deciding;
pub(crate) mod refresh;
pub(crate) mod terms;
