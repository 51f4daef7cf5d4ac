//! The commands.

pub mod doctor;
pub mod exec;
pub mod init;
pub mod life;
pub mod plumbing;
pub mod rebuild;
pub mod show;
pub mod store;

use codchi_core::name::MachineName;

use crate::failure::{Failure, Result};

/// `supervise`: the parent of a machine's PID 1.
pub fn supervise(given: &str) -> Result<()> {
    let name: MachineName = given.parse()?;
    let dirs = crate::app::dirs()?;
    let settings = crate::app::settings(&dirs)?;
    let store =
        codchi_store::Store::open(&dirs, &settings)?.ok_or_else(|| Failure::failed("the store is gone"))?;
    Ok(codchi_drivers::native::supervise(&dirs, &name, &store)?)
}
