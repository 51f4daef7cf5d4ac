//! Nix as a process: evaluation, builds, logs, profiles, closures, fingerprints.
//!
//! How a Nix program is started (which store, which namespaces, as whom) is decided by whoever implements
//! [`Launch`]; everything here only adds arguments and reads what comes back.

pub mod aterm;
pub mod closure;
pub mod daemon;
pub mod drv;
mod error;
pub mod eval;
pub mod fingerprint;
pub mod flake;
pub mod gc;
pub mod generations;
pub mod lock;
pub mod log;
pub mod nix;
pub mod path;
pub mod refusal;
mod roots;
pub mod sources;
pub mod trace;
pub mod updates;

pub use error::NixError;
pub use nix::{Launch, Nix, Options, Role, Version};
pub use path::StorePath;

/// Result of an operation of this crate.
pub type Result<T, E = NixError> = std::result::Result<T, E>;
