//! Namespaces, mounts, cgroups, network and supervision of a native machine.
//!
//! A machine runs in a user and mount namespace that is the child of an outer one, in which all its mounts are made:
//! what the outer namespace mounted, the machine can neither unmount nor change ([`outer`]).

pub mod error;
pub mod ids;
pub mod outer;

pub use error::{Error, Result};
