//! Whether this host can run virtual machines, and what mends it.

use std::path::{Path, PathBuf};

use codchi_core::status::{Finding, Level};
use codchi_runtime::{guest, outer};

use crate::{DriverError, Result};

const INSTALL: &str =
    "Debian, Ubuntu: `sudo apt install qemu-system-x86 virtiofsd` (Debian 12: without `virtiofsd`)";

/// Nobody has tried it otherwise.
const ROOT: &str = "virtual machines need root on this computer";

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
    if !outer::is_privileged() {
        return Err(DriverError::Host {
            what: ROOT.into(),
            hints: vec!["run `codchi` as root, or use the driver that needs no root".into()],
        });
    }
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
    let mut all = vec![finding("QEMU", program()), finding("virtiofsd", guest::server_path())];
    if !outer::is_privileged() {
        all.push(Finding {
            what: "virtual machines without root".into(),
            level: Level::Missing,
            detail: ROOT.into(),
            fix: Some("run `codchi` as root for them, or use another driver".into()),
        });
    }
    let there = Path::new("/dev/kvm").exists();
    all.push(Finding {
        what: "KVM".into(),
        level: if there { Level::Good } else { Level::Degraded },
        detail: match there {
            true => "`/dev/kvm` is there; a machine's first start finds out whether it works".into(),
            false => "there is no `/dev/kvm`: the processor of virtual machines is emulated, and slow".into(),
        },
        fix: None,
    });
    all
}
