//! The driver of Incus.

use crate::instances::{Dialect, Instances};
use crate::{Flavour, Info};

/// Machines on Incus.
pub static INCUS: Instances = Instances { dialect: &DIALECT };

/// What it calls things.
pub static DIALECT: Dialect = Dialect {
    info: Info { name: "incus", kind: Flavour::Container },
    title: "Incus",
    sockets: &["/run/incus/unix.socket", "/var/lib/incus/unix.socket"],
    variables: (Some("INCUS_SOCKET"), "INCUS_DIR"),
    client_folders: ("INCUS_CONF", &[".config/incus"]),
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
