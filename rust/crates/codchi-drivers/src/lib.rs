//! What machines run on: the driver contract and its adapters.

pub mod agent;
