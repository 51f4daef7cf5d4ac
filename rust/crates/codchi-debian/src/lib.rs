//! Debian mirrors: signatures, indexes, resolution, downloads, unpacking.
//!
//! With default features off only [`unpack`] is left, which is all that the static programs need.

mod error;
pub mod unpack;

pub use error::{Error, Result};
