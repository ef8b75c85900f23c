//! The commands, one file each. They must leave all decisions about sales to the engine.

pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod component;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod demo_cluster;
pub(crate) mod demo_result;
pub(crate) mod events;
pub(crate) mod init;
pub(crate) mod load;
pub(crate) mod sale;
pub(crate) mod serve;
