//! The commands.

pub mod copies;
pub mod doctor;
pub mod exec;
pub mod init;
pub mod life;
pub mod module;
pub mod plumbing;
pub mod port;
pub mod rebuild;
pub mod show;
pub mod store;

use codchi_core::name::MachineName;

use crate::failure::{Failure, Result};

/// `supervise`: the process that looks after a running machine.
pub fn supervise(given: &str) -> Result<()> {
    let name: MachineName = given.parse()?;
    let dirs = crate::app::dirs()?;
    let settings = crate::app::settings(&dirs)?;
    let store =
        codchi_store::Store::open(&dirs, &settings)?.ok_or_else(|| Failure::failed("the store is gone"))?;
    let file = dirs.host_toml(&name);
    let attachment = codchi_core::machine::Host::parse(&file, &codchi_fs::read_to_string(&file)?)?;
    Ok(codchi_drivers::find(&attachment.driver)?.supervise(&dirs, &name, &store)?)
}
