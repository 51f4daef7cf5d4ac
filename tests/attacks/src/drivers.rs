//! What differs between the drivers: attempts that mean nothing on one of them, and other reasons for which they fail there.

use crate::stage::Who;

/// The columns of the table: the first words of `CODCHI_ATTACKS`, and what they are called.
pub const COLUMNS: &[(&[&str], &str)] = &[
    (&["root", "rootless"], "native"),
    (&["oci"], "OCI"),
    (&["incus"], "Incus"),
    (&["lxd"], "LXD"),
    (&["qemu"], "QEMU"),
];

const HIDES: &str =
    "its root can hide it from itself: the engine mounts it in the machine's own namespace";
const KERNEL: &str = "its kernel is its own";
const NO_KERNEL: &str = "only virtual machines have them";
const OWN_SOCKET: &str = "the socket is the machine's own; what it leads to is the port";
const NO_SOCKET: &str = "the host reads no such socket";
const NO_DESCRIPTORS: &str = "nothing but bytes passes by the port";

const UNPACKED: &str = "the export is read as on the native driver";

/// What an instance without guards would be made of needs mounts with mapped owners.
const SAME_SETTINGS: &str = "shown on Incus, with the same settings";

const CONSOLE: &str = "the engine keeps the console";

/// Kind of run, attempt, as whom it is left out (none: as anybody, and the control), and why.
const LEFT_OUT: &[(&str, &str, Option<Who>, &str)] = &[
    ("incus", "store-detach", Some(Who::Root), HIDES),
    ("incus", "console-text", None, CONSOLE),
    ("incus", "console-flood", None, CONSOLE),
    ("qemu", "store-remount", None, KERNEL),
    ("qemu", "store-remount-nested", None, KERNEL),
    ("qemu", "store-detach", None, KERNEL),
    ("qemu", "programs-remount", None, KERNEL),
    ("qemu", "endpoint-replace", None, OWN_SOCKET),
    (
        "qemu",
        "entering-program",
        None,
        "nothing of the host enters it",
    ),
    (
        "qemu",
        "pose-as-host",
        None,
        "it has no socket of the agent's",
    ),
    ("qemu", "vsock", None, KERNEL),
    ("qemu", "vsock-by-ring", None, KERNEL),
    ("qemu", "agent-link", None, OWN_SOCKET),
    ("qemu", "agent-fifo", None, OWN_SOCKET),
    ("qemu", "agent-file", None, NO_DESCRIPTORS),
    ("qemu", "agent-sockets", None, NO_DESCRIPTORS),
    ("qemu", "agent-descriptors", None, NO_DESCRIPTORS),
    ("qemu", "notify-pose", None, NO_SOCKET),
    ("qemu", "notify-flood", None, NO_SOCKET),
    ("qemu", "notify-descriptors", None, NO_SOCKET),
    (
        "qemu",
        "fork-bomb",
        None,
        "its processes are its own kernel's",
    ),
    (
        "qemu",
        "runtime-folder",
        None,
        "no folder of the host's runtime is in it",
    ),
];

/// Groups of attempts that kinds of runs leave out as a whole.
const GROUPS: &[(&[&str], &str, &str)] = &[
    (&["qemu"], crate::attempts::KERNEL, KERNEL),
    (&["incus", "qemu"], crate::attempts::EXPORTS, UNPACKED),
    (
        &["root", "rootless", "incus", "oci"],
        crate::attempts::GUEST,
        NO_KERNEL,
    ),
];

/// The kind of which the exceptions are those of another, too.
fn family(kind: &str) -> &str {
    match kind {
        "lxd" => "incus",
        other => other,
    }
}

/// Why an attempt is left out in a kind of run; `who` is none for its control.
pub fn left_out(kind: &str, group: &str, name: &str, who: Option<Who>) -> Option<&'static str> {
    if kind == "lxd" && who.is_none() {
        return Some(SAME_SETTINGS);
    }
    let kind = family(kind);
    let whole = GROUPS
        .iter()
        .find(|(kinds, g, _)| kinds.contains(&kind) && *g == group);
    let single = LEFT_OUT
        .iter()
        .find(|(k, n, w, _)| *k == kind && *n == name && (w.is_none() || *w == who));
    whole
        .map(|(_, _, why)| *why)
        .or(single.map(|(_, _, _, why)| *why))
}

/// What the suite leaves out on this host, since nothing could guard it.
pub fn lacks(kind: &str, name: &str) -> Option<&'static str> {
    let counted = codchi_fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        let of = |l: &str| {
            l.contains(" - cgroup2 ")
                .then(|| l.split(' ').nth(4).map(String::from))
        };
        mounts.lines().filter_map(of).flatten().any(|at| {
            let file = std::path::Path::new(&at).join("cgroup.controllers");
            codchi_fs::read_to_string(file)
                .is_ok_and(|t| t.split_whitespace().any(|c| c == "memory"))
        })
    });
    let lacks = name == "memory-bomb" && kind != "qemu" && !counted;
    lacks.then_some("this host's control groups count no memory")
}

/// Whether the control is the host's root itself, as nothing that is shown to a machine has the owner it takes.
pub fn by_host(driver: &str, name: &str) -> bool {
    driver == "incus" && name == "other-secret"
}
