//! The commands.

pub mod clone;
pub mod copies;
pub mod doctor;
pub mod exec;
pub mod gc;
pub mod init;
pub mod install;
pub mod leave;
pub mod life;
pub mod module;
pub mod mount;
pub mod moving;
pub mod plumbing;
pub mod port;
pub mod rebuild;
pub mod secrets;
pub mod show;
pub mod store;

use codchi_drivers::Begun;
use codchi_secrets::Bundle;
use codchi_store::Store;

use crate::app::App;
use crate::failure::{Failure, Result};
use crate::worker::{HostParts, MachineWorker};

/// `supervise`: the process that looks after a running machine.
pub fn supervise(app: &App, given: &str) -> Result<()> {
    let name = app.machine(given)?;
    let driver = codchi_drivers::find(&app.attachment(&name)?.driver)?;
    let begin = |awaited: bool| -> Result<Begun> {
        let store = Store::open(&app.dirs, &app.settings)?.ok_or_else(crate::make::no_store)?;
        let mut secrets = Ok(Bundle::new());
        if !awaited {
            let worker = MachineWorker::new(app, &name, Some(&store), None);
            worker.prepare()?;
            secrets = worker.current_secrets().map_err(|f| f.message);
        }
        Ok(Begun { store, secrets })
    };
    let mut begin = |awaited| begin(awaited).map_err(Failure::into_engine);
    Ok(driver.supervise(&HostParts::none().host(app, None), &name, &mut begin)?)
}
