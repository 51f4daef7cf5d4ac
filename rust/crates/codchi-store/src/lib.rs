//! Where /nix is: the host's store or an own one, and the endpoint of each machine.

pub mod bootstrap;
mod collect;
pub mod detect;
pub mod endpoint;
mod error;
pub mod shell;
mod store;
mod tarball;

pub use error::StoreError;
pub use store::{Kind, Place, Store, certificates, certificates_of_git};

/// Result of an operation of this crate.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
