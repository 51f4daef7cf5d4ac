//! Whether this host can run virtual machines, and what mends it.

use std::path::PathBuf;

use codchi_core::status::{Finding, Level};
use codchi_runtime::guest;

use crate::{DriverError, Result};

const INSTALL: &str =
    "Debian, Ubuntu: `sudo apt install qemu-system-x86 virtiofsd` (Debian 12: without `virtiofsd`)";

/// The program of this processor.
pub fn program() -> Option<PathBuf> {
    guest::program_path(&format!("qemu-system-{}", std::env::consts::ARCH))
}

/// That what a start needs is there.
pub fn usable() -> Result<()> {
    let missing = |what: &str| DriverError::Host {
        what: format!("{what} is not installed, which virtual machines need"),
        hints: vec![INSTALL.into()],
    };
    program().ok_or_else(|| missing("QEMU"))?;
    guest::server_path().ok_or_else(|| missing("virtiofsd"))?;
    Ok(())
}

/// What doctor says. Not to have it is nothing that is wrong.
pub fn probe() -> Vec<Finding> {
    let finding = |what: &str, found: Option<PathBuf>| Finding {
        what: what.into(),
        level: if found.is_some() { Level::Good } else { Level::Missing },
        fix: found.is_none().then(|| INSTALL.to_owned()),
        detail: found.map_or("not installed".into(), |p| format!("`{}`", p.display())),
    };
    vec![finding("QEMU", program()), finding("virtiofsd", guest::server_path())]
}
