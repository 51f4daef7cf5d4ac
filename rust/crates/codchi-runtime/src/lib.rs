//! Namespaces, mounts, cgroups, network and supervision of a native machine.
//!
//! A machine runs in a user and mount namespace that is the child of an outer one, in which all its mounts are made:
//! what the outer namespace mounted, the machine can neither unmount nor change ([`outer`]). A supervisor
//! ([`mod@supervise`]) is the parent of its PID 1; [`start`] starts and stops supervisors, [`mod@state`] tells what they do.
//! Where an engine is the parent of PID 1, [`mod@attend`] does what a supervisor does besides; a machine with a kernel of its own has
//! [`guest`].

pub mod attached;
pub mod attend;
pub mod bundle;
mod caps;
mod cgroup;
mod closure;
mod connection;
pub mod enter;
pub mod error;
mod filter;
pub mod folders;
pub mod guard;
pub mod guest;
mod host;
pub mod ids;
mod inside;
pub mod keep;
pub mod lent;
pub mod lent_folders;
pub mod manager;
mod mounts;
pub mod network;
mod notify;
pub mod outer;
mod ports;
pub mod probe;
mod pulse;
pub mod relay;
mod resolver;
pub mod services;
pub mod spec;
pub mod start;
pub mod state;
pub mod still;
pub mod supervise;
pub mod within;
mod x11;

pub use error::{Error, Result};
