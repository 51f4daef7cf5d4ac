//! The driver of LXD.

use crate::instances::{Dialect, Instances};
use crate::{Flavour, Info};

/// Machines on LXD.
pub static LXD: Instances = Instances { dialect: &DIALECT };

/// What it calls things.
pub static DIALECT: Dialect = Dialect {
    info: Info { name: "lxd", kind: Flavour::Container },
    title: "LXD",
    sockets: &["/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket"],
    variables: (Some("LXD_SOCKET"), "LXD_DIR"),
    client_folders: ("LXD_CONF", &[".config/lxc", "snap/lxd/common/config"]),
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
