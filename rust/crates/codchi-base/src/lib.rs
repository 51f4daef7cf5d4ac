//! Static programs of the built-in base.
//!
//! [`build`] is what derivations run: it unpacks packages, plans trees and merges layers, so that no build needs a shell
//! of its own. [`machine`] is what a machine runs: stage 2 of the boot, activation, and switching between systems.

pub mod build;
pub mod error;
pub mod machine;

pub use error::{Error, Result};
