//! The commands, a file each: what the user asked for, done through the port, and shown.

pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod component;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod demo_cluster;
pub(crate) mod init;
pub(crate) mod load;
pub(crate) mod sale;
pub(crate) mod serve;
