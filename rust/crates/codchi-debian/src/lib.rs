//! Debian mirrors: signatures, indexes, resolution, downloads, unpacking.
//!
//! With default features off only [`unpack`] is left, which is all that the static programs need.
//!
//! The way of a package: [`mirror`] says where, [`release`] what the mirror has and that Debian signed it, [`packages`]
//! reads it, [`resolve`] decides what needs what, [`index`] writes it down for Nix, [`fetch`] downloads. [`lent`] takes single
//! packages from another suite.

mod error;
pub mod unpack;

#[cfg(feature = "net")]
pub mod depends;
#[cfg(feature = "net")]
pub mod fetch;
#[cfg(feature = "net")]
pub mod hash;
#[cfg(feature = "net")]
mod http;
#[cfg(feature = "net")]
pub mod index;
#[cfg(feature = "net")]
pub mod lent;
#[cfg(feature = "net")]
pub mod mirror;
#[cfg(feature = "net")]
pub mod nearest;
#[cfg(feature = "net")]
pub mod openpgp;
#[cfg(feature = "net")]
pub mod packages;
#[cfg(feature = "net")]
pub mod release;
#[cfg(feature = "net")]
pub mod resolve;
#[cfg(feature = "net")]
pub mod suite;
#[cfg(all(test, feature = "net"))]
mod tests;
#[cfg(feature = "net")]
pub mod version;

pub use error::{Error, Result};

#[cfg(feature = "net")]
pub use crate::{
    fetch::Fetch,
    mirror::{Mirror, Settings},
    packages::Archive,
    release::Freshness,
    suite::{Record, State, Suite},
};
