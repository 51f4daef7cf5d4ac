//! What engines of this family, which began with LXD, call differently.

use std::path::{Path, PathBuf};

use crate::{Flavour, Info};

/// One engine.
#[derive(Debug)]
pub struct Dialect {
    /// What the driver is; its name is that of its folder on the Nix side, too.
    pub info: Info,
    /// For people.
    pub title: &'static str,
    /// Where distributions have the daemon's socket.
    pub sockets: &'static [&'static str],
    /// The variables that say where the socket is, and where the daemon's folder is.
    pub variables: (Option<&'static str>, &'static str),
    /// Who may use the socket.
    pub group: &'static str,
    /// Its own client, for hints.
    pub client: &'static str,
    /// The programs by which it is known to be installed.
    pub programs: &'static [&'static str],
    /// How it is installed.
    pub install: &'static str,
    /// How its daemon is started.
    pub start: &'static str,
    /// The oldest version that does what is asked of it.
    pub oldest: (u64, u64),
    /// Whether it shows mounts with mapped owners, for which the kernel has to have idmapped mounts.
    pub shifts: bool,
    /// The key that gives a machine access to the engine.
    pub guest_api: &'static str,
    /// Whether it makes instances without an image; one without anything in it is given to it where it does not.
    pub vacant: bool,
}

/// Incus.
pub static INCUS: Dialect = Dialect {
    info: Info { name: "incus", kind: Flavour::Container, runs: true },
    title: "Incus",
    sockets: &["/run/incus/unix.socket", "/var/lib/incus/unix.socket"],
    variables: (Some("INCUS_SOCKET"), "INCUS_DIR"),
    group: "incus-admin",
    client: "incus",
    programs: &[
        "/usr/libexec/incus/incusd",
        "/usr/bin/incusd",
        "/usr/sbin/incusd",
        "/opt/incus/bin/incusd",
        "/usr/bin/incus",
    ],
    install: "Debian 12: `apt install -t bookworm-backports incus`; later releases: `apt install incus`",
    start: "systemctl start incus",
    oldest: (6, 0),
    shifts: true,
    guest_api: "security.guestapi",
    vacant: true,
};

/// LXD.
pub static LXD: Dialect = Dialect {
    info: Info { name: "lxd", kind: Flavour::Container, runs: true },
    title: "LXD",
    sockets: &["/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket"],
    variables: (Some("LXD_SOCKET"), "LXD_DIR"),
    group: "lxd",
    client: "lxc",
    programs: &["/usr/bin/lxd", "/usr/sbin/lxd", "/snap/bin/lxd", "/var/lib/snapd/snap/bin/lxd"],
    install: "Debian 12: `apt install lxd`; elsewhere: `snap install lxd`",
    start: "systemctl start lxd",
    oldest: (5, 0),
    shifts: false,
    guest_api: "security.devlxd",
    vacant: false,
};

impl Dialect {
    /// The engine's socket: as its own client finds it.
    pub fn socket(&self) -> PathBuf {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(socket) = self.variables.0.and_then(var) {
            return socket;
        }
        if let Some(dir) = var(self.variables.1) {
            return dir.join("unix.socket");
        }
        let mut places = self.sockets.iter().map(Path::new);
        let there = places.clone().find(|p| p.exists());
        there.or_else(|| places.next_back()).unwrap_or(Path::new("")).into()
    }
}
