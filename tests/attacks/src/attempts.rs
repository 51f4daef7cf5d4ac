//! The attempts: what is tried, by whom, what guards against it, and where the same succeeds.

use std::fmt::Write;

use libtest_mimic::Failed;

use crate::drivers::{COLUMNS, by_host, left_out};
use crate::stage::{ALICE, MALLORY, OPEN, OWN_MOUNT, Place, Stage, Verdict, Who};
use crate::{daemon, exports, guest, hostile, misc, require};

/// One attempt.
pub struct Attempt {
    /// Its name, also in the documentation.
    pub name: &'static str,
    /// What is guarded.
    pub group: &'static str,
    /// What is tried.
    pub what: &'static str,
    /// By whom.
    pub who: &'static [Who],
    /// Why it fails.
    pub guard: &'static str,
    /// How.
    pub how: How,
    /// Where the same succeeds.
    pub control: Control,
}

/// How an attempt is made.
pub enum How {
    /// The helper with these words; `{...}` is filled in.
    Helper(&'static [&'static str]),
    /// A shell script of which success is the attack's.
    Script(&'static str),
    /// Something longer; it fails when the attack succeeds.
    Code(fn(&Stage, Who) -> Result<(), Failed>),
}

/// Where the same attempt succeeds.
pub enum Control {
    /// On the host, as its root.
    Host,
    /// The same, on a kernel that has what is attacked.
    HostIfThere,
    /// In the machine without guards, as this user.
    Open(Who),
    /// Something longer; it fails when the attack fails there, too. What it does, for the documentation.
    Code(&'static str, fn(&Stage) -> Result<(), Failed>),
}

const BOTH: &[Who] = &[Who::Root, Who::User];
const ROOT: &[Who] = &[Who::Root];
const USER: &[Who] = &[Who::User];

macro_rules! attempt {
    ($group:expr, $name:expr, $what:expr, $who:expr, $guard:expr, $how:expr, $control:expr) => {
        Attempt {
            name: $name,
            group: $group,
            what: $what,
            who: $who,
            guard: $guard,
            how: $how,
            control: $control,
        }
    };
}

const STORE: &str = "The store";
const OTHER: &str = "Another machine, the host's files";
const DAEMON: &str = "The daemon";
const BELIEF: &str = "What the host believes";
const NETWORK: &str = "Network and sockets";
const SESSION: &str = "The caller's session";
pub const KERNEL: &str = "The kernel";
pub const GUEST: &str = "Shared folders and the port of a virtual machine";
pub const EXPORTS: &str = "Exports from anybody";
const HOSTILE: &str = "Hostile agents, texts and notifications";
const LIMITS: &str = "Limits";

const FILTER: &str = "filter of system calls";
const OUTER: &str = "mounts of the outer namespace are locked";
const USERNS: &str = "user namespace";
const UNTRUSTED: &str = "the endpoint trusts nobody";

use Control::{Host, HostIfThere, Open};
use How::{Code, Helper, Script};

/// All of them, in the order of the documentation.
pub const ALL: &[Attempt] = &[
    attempt!(
        STORE,
        "store-new-file",
        "make a file in the store",
        BOTH,
        "mounted read-only",
        Helper(&["create", "{folder}/attempt"]),
        Open(Who::Root)
    ),
    attempt!(
        STORE,
        "store-change-file",
        "change content, mode, owner, times, name of a path in the store",
        BOTH,
        "mounted read-only",
        Helper(&["change", "{path}"]),
        Open(Who::Root)
    ),
    attempt!(
        STORE,
        "store-remount",
        "make the store's mount writable: remount, mount_setattr, a clone, a second bind",
        BOTH,
        OUTER,
        Helper(&["remount", "{read-only}"]),
        Open(Who::Root)
    ),
    attempt!(
        STORE,
        "store-remount-nested",
        "the same as root of a user namespace below",
        BOTH,
        OUTER,
        Helper(&["nested", "remount", "{read-only}"]),
        Control::Code("a mount of the nested namespace's own", misc::nested_own)
    ),
    attempt!(
        STORE,
        "store-detach",
        "take the store's mount away or move it",
        BOTH,
        OUTER,
        Helper(&["detach", "/nix/store"]),
        Control::Code("a mount of the machine's own", misc::detach_own)
    ),
    attempt!(
        STORE,
        "programs-write",
        "put a program among those that Codchi lays into every machine",
        BOTH,
        "mounted read-only, owned by the host",
        Helper(&["create", "{programs}/attempt"]),
        Open(Who::Root)
    ),
    attempt!(
        STORE,
        "programs-remount",
        "make the mount of those programs writable",
        ROOT,
        OUTER,
        Helper(&["remount", "{read-only-programs}"]),
        Open(Who::Root)
    ),
    attempt!(
        STORE,
        "database",
        "open the store's database",
        BOTH,
        "not in the machine",
        Helper(&[
            "reach",
            "{home}/.local/share/codchi/store/nix/var/nix/db/db.sqlite"
        ]),
        Open(Who::Root)
    ),
    attempt!(
        STORE,
        "endpoint-replace",
        "put a socket of one's own where the daemon's is",
        BOTH,
        "mounted read-only",
        Helper(&["create", "/nix/var/nix/daemon-socket/attempt"]),
        Open(Who::Root)
    ),
    attempt!(
        OTHER,
        "other-files",
        "read a file of another machine by its path, through any process and descriptor",
        BOTH,
        "own root, own process ids",
        Helper(&["reach", "{alice}/etc/keep"]),
        Open(Who::Root)
    ),
    attempt!(
        OTHER,
        "other-secret",
        "the same for a file that only root of the other machine may read",
        BOTH,
        "own root, own process ids",
        Helper(&["reach", "{alice}/etc/private"]),
        Open(Who::Root)
    ),
    attempt!(
        OTHER,
        "other-profile",
        "reach the generations of another machine",
        BOTH,
        "not in the machine",
        Helper(&[
            "reach",
            "{home}/.local/state/codchi/generations/alice/current"
        ]),
        Open(Who::Root)
    ),
    attempt!(
        OTHER,
        "other-roots",
        "reach the garbage collector roots of another machine",
        BOTH,
        "not in the machine",
        Helper(&[
            "reach",
            "{home}/.local/share/codchi/store/nix/var/nix/gcroots/codchi/machines/alice"
        ]),
        Open(Who::Root)
    ),
    attempt!(
        OTHER,
        "other-settings",
        "reach the folder that says how another machine is attached",
        BOTH,
        "not in the machine",
        Helper(&["reach", "{home}/.config/codchi/machines/alice/host.toml"]),
        Open(Who::Root)
    ),
    attempt!(
        OTHER,
        "other-agent",
        "connect to the agent of another machine",
        BOTH,
        "not in the machine",
        Helper(&["reach", "{agent}"]),
        Control::Code("the host, by way of the supervisor", misc::other_agent)
    ),
    attempt!(
        OTHER,
        "host-file",
        "read a file of the host that everyone there may read",
        BOTH,
        "own root",
        Helper(&["reach", "{home}/public-secret"]),
        Open(Who::User)
    ),
    attempt!(
        OTHER,
        "chroot",
        "leave the root by a second chroot",
        BOTH,
        "the root is pivoted, the old one gone",
        Helper(&["break-chroot", "{home}/public-secret"]),
        Control::Code("from a chroot", misc::chroot)
    ),
    attempt!(
        OTHER,
        "host-process",
        "find, signal, read or trace the supervisor",
        BOTH,
        "own process ids",
        Helper(&["process", "{supervisor}"]),
        Host
    ),
    attempt!(
        OTHER,
        "setuid-file",
        "leave a set-user-id file for a helper among the host's users",
        ROOT,
        "the data folder lets nobody through",
        Code(misc::setuid),
        Control::Code(
            "the same file in a folder that all may enter",
            misc::setuid_control
        )
    ),
    attempt!(
        OTHER,
        "agent-from-host",
        "be served by a machine's agent, as another user of the host",
        USER,
        "the runtime folder lets nobody through",
        Code(misc::agent_from_host),
        Control::Code("as the person", misc::agent_from_host_control)
    ),
    attempt!(
        OTHER,
        "descriptors",
        "find a descriptor of the host in a command that the host starts",
        BOTH,
        "streams are made in the machine",
        Helper(&["descriptors"]),
        Control::Code("a command that is given one", misc::descriptor_control)
    ),
    attempt!(
        OTHER,
        "entering-program",
        "open the program of a process that enters from the host (`/proc/PID/exe`)",
        ROOT,
        "a process that enters hides its program",
        Code(misc::entering),
        Control::Code(
            "a process that enters without hiding it",
            misc::entering_control
        )
    ),
    attempt!(
        OTHER,
        "propagation",
        "mount something that the host sees",
        ROOT,
        "mounts are private",
        Code(misc::propagation),
        Control::Code(
            "in a namespace that shares its mounts",
            misc::propagation_control
        )
    ),
    attempt!(
        DAEMON,
        "substituter",
        "have a path of one's own making fetched, unsigned, from a cache of one's own",
        BOTH,
        UNTRUSTED,
        Code(daemon::substituter),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::substituter_control
        )
    ),
    attempt!(
        DAEMON,
        "unsigned-copy",
        "copy an unsigned path of one's own making into the store",
        BOTH,
        UNTRUSTED,
        Code(daemon::copy),
        Control::Code("a daemon that trusts the machine", daemon::copy_control)
    ),
    attempt!(
        DAEMON,
        "import",
        "import an archive that gives a path any content",
        BOTH,
        UNTRUSTED,
        Code(daemon::import),
        Control::Code("a daemon that trusts the machine", daemon::import_control)
    ),
    attempt!(
        DAEMON,
        "chosen-output",
        "build a derivation that names the output of another",
        BOTH,
        "the daemon computes the name",
        Code(daemon::chosen),
        Control::Code(
            "the derivation as it was instantiated",
            daemon::chosen_control
        )
    ),
    attempt!(
        DAEMON,
        "post-build-hook",
        "have the host run a program after a build",
        BOTH,
        UNTRUSTED,
        Code(daemon::post_build_hook),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::post_build_hook_control
        )
    ),
    attempt!(
        DAEMON,
        "pre-build-hook",
        "have the host run a program before a build",
        BOTH,
        UNTRUSTED,
        Code(daemon::pre_build_hook),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::pre_build_hook_control
        )
    ),
    attempt!(
        DAEMON,
        "build-hook",
        "have the host run a program instead of a build",
        BOTH,
        UNTRUSTED,
        Code(daemon::build_hook),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::build_hook_control
        )
    ),
    attempt!(
        DAEMON,
        "diff-hook",
        "have the host run a program that compares two builds",
        BOTH,
        UNTRUSTED,
        Code(daemon::diff_hook),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::diff_hook_control
        )
    ),
    attempt!(
        DAEMON,
        "sandbox-off",
        "build without the sandbox, and read a file of the host",
        BOTH,
        UNTRUSTED,
        Code(daemon::no_sandbox),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::no_sandbox_control
        )
    ),
    attempt!(
        DAEMON,
        "sandbox-paths",
        "have a file of the host put into the sandbox",
        BOTH,
        UNTRUSTED,
        Code(daemon::sandbox_paths),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::sandbox_paths_control
        )
    ),
    attempt!(
        DAEMON,
        "trusted-users",
        "add oneself to the trusted users, then build without the sandbox",
        BOTH,
        UNTRUSTED,
        Code(daemon::trusted_users),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::no_sandbox_control
        )
    ),
    attempt!(
        DAEMON,
        "nix-config",
        "the same by `nixConfig`, NIX_CONFIG and nix.conf of the machine",
        ROOT,
        UNTRUSTED,
        Code(daemon::nix_config),
        Control::Code(
            "a daemon that trusts the machine",
            daemon::nix_config_control
        )
    ),
    attempt!(
        DAEMON,
        "no-chroot",
        "a derivation that asks for no sandbox (`__noChroot`)",
        BOTH,
        "the daemon's sandbox is on, not relaxed",
        Code(daemon::no_chroot),
        Control::Code(
            "a daemon that trusts the machine and is told `relaxed`",
            daemon::no_chroot_control
        )
    ),
    attempt!(
        DAEMON,
        "fixed-output-loopback",
        "a build with a fixed output connects to the host's loopback",
        BOTH,
        "such builds have the machine's network",
        Code(daemon::fixed_output),
        Control::Code("the same build by the person", daemon::fixed_output_control)
    ),
    attempt!(
        DAEMON,
        "fixed-output-environment",
        "a build with a fixed output reads a variable of the person's",
        BOTH,
        "the daemon has none of them",
        Code(daemon::impure),
        Control::Code("the same build by the person", daemon::impure_control)
    ),
    attempt!(
        DAEMON,
        "collect",
        "collect garbage, and lose what the host or another machine holds",
        BOTH,
        "every root is in sight of the collector",
        Code(daemon::collect),
        Control::Code("a path that nobody holds goes", daemon::collect_control)
    ),
    attempt!(
        DAEMON,
        "delete-held",
        "delete a path that another machine holds, its roots ignored",
        BOTH,
        "the daemon takes that from nobody",
        Code(daemon::delete),
        Control::Code(
            "the store's owner, without a daemon",
            daemon::delete_control
        )
    ),
    attempt!(
        DAEMON,
        "repair",
        "have the whole store checked and repaired",
        BOTH,
        UNTRUSTED,
        Script("nix-store --verify --repair"),
        Open(Who::Root)
    ),
    attempt!(
        BELIEF,
        "root-link",
        "register a root and turn its link to a file of the host",
        BOTH,
        "links are resolved within the machine, roots lead into the store only",
        Code(misc::root_link),
        Control::Code("a reader that follows the link", misc::root_link_control)
    ),
    attempt!(
        BELIEF,
        "root-folder",
        "the same with the folder that the link is in",
        BOTH,
        "links are resolved within the machine, roots lead into the store only",
        Code(misc::root_folder),
        Control::Code("a reader that follows the link", misc::root_link_control)
    ),
    attempt!(
        BELIEF,
        "generation-link",
        "leave a profile and a current system of one's own making",
        ROOT,
        "generations are the host's own",
        Code(misc::generation),
        Control::Code(
            "a reader of the machine's profile",
            misc::generation_control
        )
    ),
    attempt!(
        BELIEF,
        "manifest",
        "a module puts a manifest of its own into the system: the host's root mounted, no filter",
        ROOT,
        "the host compares and refuses engine settings that take more",
        Code(misc::manifest),
        Control::Code(
            "the same settings, given to the runtime",
            misc::manifest_control
        )
    ),
    attempt!(
        BELIEF,
        "manifest-needs",
        "a module asks for less than the system it builds",
        ROOT,
        "what was granted must be what the built system asks for",
        Code(misc::needs),
        Control::Code(
            "a reader of the built system's manifest",
            misc::needs_control
        )
    ),
    attempt!(
        BELIEF,
        "git-monitor",
        "a checkout that runs a program when git looks at it",
        USER,
        "git is told not to",
        Code(misc::git),
        Control::Code("git as it is", misc::git_control)
    ),
    attempt!(
        BELIEF,
        "deep-tree",
        "folders deeper than any path is long, so that the machine cannot be removed",
        USER,
        "removal holds one folder open, not all",
        Code(misc::deep),
        Control::Code("removal by recursion", misc::deep_control)
    ),
    attempt!(
        NETWORK,
        "loopback",
        "connect to a service on the host's loopback, by every address that could lead there",
        BOTH,
        "private network, loopback not passed on",
        Code(misc::loopback),
        Control::Code("on the host", misc::loopback_control)
    ),
    attempt!(
        NETWORK,
        "abstract-socket",
        "connect to an abstract socket of the host",
        BOTH,
        "private network",
        Code(misc::abstract_socket),
        Control::Code("on the host", misc::abstract_control)
    ),
    attempt!(
        NETWORK,
        "interfaces",
        "see the host's network interfaces by netlink",
        BOTH,
        "private network",
        Code(misc::links),
        Control::Code("on the host", misc::links_control)
    ),
    attempt!(
        NETWORK,
        "sniff",
        "hear the packets of the host's loopback by a raw socket",
        ROOT,
        "private network",
        Code(misc::sniff),
        Control::Code("on the host", misc::sniff_control)
    ),
    attempt!(
        NETWORK,
        "vsock",
        "open a socket to the hypervisor (AF_VSOCK), which no network namespace bounds",
        BOTH,
        FILTER,
        Helper(&["vsock"]),
        HostIfThere
    ),
    attempt!(
        NETWORK,
        "vsock-by-ring",
        "the same by a ring (io_uring), which no filter of system calls sees",
        BOTH,
        "a machine has no rings",
        Helper(&["vsock-by-ring"]),
        HostIfThere
    ),
    attempt!(
        SESSION,
        "keyring",
        "find a key of the caller's in the session's keyring",
        BOTH,
        "keyrings are absent, the session begins anew",
        Code(misc::keyring),
        Control::Code("the caller itself", misc::keyring_control)
    ),
    attempt!(
        SESSION,
        "environment",
        "find a variable of the caller's, such as the address of its bus",
        BOTH,
        "the environment is the machine's own",
        Code(misc::environment),
        Control::Code("the caller itself", misc::environment_control)
    ),
    attempt!(
        SESSION,
        "terminal",
        "type into the caller's terminal (TIOCSTI)",
        BOTH,
        "the terminal is the machine's own",
        Code(misc::terminal),
        Control::Code("on the caller's terminal", misc::terminal_control)
    ),
    attempt!(
        SESSION,
        "pose-as-host",
        "give the agent orders from inside",
        USER,
        "the agent serves peers outside its process ids only",
        Code(misc::pose),
        Control::Code("the host", misc::pose_control)
    ),
    attempt!(
        KERNEL,
        "device-nodes",
        "make device nodes and open them",
        BOTH,
        USERNS,
        Helper(&["device"]),
        Control::Code("on the host, in memory of its own", misc::device_control)
    ),
    attempt!(
        KERNEL,
        "file-handles",
        "open a file by its number (open_by_handle_at)",
        BOTH,
        FILTER,
        Helper(&["handle", "/nix/store"]),
        Control::Code("on the host", misc::handle_control)
    ),
    attempt!(
        KERNEL,
        "release-agent",
        "name a program that the kernel starts when a control group empties",
        BOTH,
        USERNS,
        Helper(&["release-agent"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "cgroup-limits",
        "change what bounds the machine's own control group",
        BOTH,
        "its files belong to the host",
        Helper(&["change", "{cgroup}"]),
        Control::Code("on the host", misc::cgroup_control)
    ),
    attempt!(
        KERNEL,
        "core-pattern",
        "name a program that the kernel starts when one crashes",
        BOTH,
        USERNS,
        Script(": 3<>/proc/sys/kernel/core_pattern"),
        Host
    ),
    attempt!(
        KERNEL,
        "modprobe-path",
        "name a program that the kernel starts to load modules",
        BOTH,
        USERNS,
        Script("test -e /proc/sys/kernel/modprobe || exit 3; : 3<>/proc/sys/kernel/modprobe"),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "sysctl",
        "change settings of the kernel that all namespaces share",
        BOTH,
        USERNS,
        Script(
            "for f in kernel/panic vm/overcommit_memory vm/drop_caches fs/file-max fs/suid_dumpable; do (: 3>/proc/sys/$f) 2>/dev/null && exit 0; done; exit 1"
        ),
        Host
    ),
    attempt!(
        KERNEL,
        "sysrq",
        "command the kernel by /proc/sysrq-trigger",
        BOTH,
        USERNS,
        Script("test -e /proc/sysrq-trigger || exit 3; : 3>/proc/sysrq-trigger"),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "sysfs",
        "write to devices and drivers in a /sys mounted anew",
        ROOT,
        USERNS,
        Script(
            "d=$(mktemp -d); mount -t sysfs s $d && for f in kernel/uevent_helper power/state kernel/mm/ksm/run kernel/profiling module/printk/parameters/time; do (: 3>$d/$f) 2>/dev/null && exit 0; done; umount $d 2>/dev/null; exit 1"
        ),
        Control::Code("on the host", misc::sysfs_control)
    ),
    attempt!(
        KERNEL,
        "debugfs",
        "mount the kernel's debugging file system",
        BOTH,
        USERNS,
        Helper(&["filesystem", "debugfs"]),
        Control::Code(
            "on the host, in a namespace of its own",
            misc::debugfs_control
        )
    ),
    attempt!(
        KERNEL,
        "bpf",
        "load a program or a map into the kernel (bpf)",
        BOTH,
        FILTER,
        Helper(&["call", "bpf"]),
        Host
    ),
    attempt!(
        KERNEL,
        "perf",
        "watch all processes of a processor (perf_event_open)",
        BOTH,
        FILTER,
        Helper(&["call", "perf_event_open"]),
        Host
    ),
    attempt!(
        KERNEL,
        "userfaultfd",
        "stop the kernel at will (userfaultfd)",
        BOTH,
        FILTER,
        Helper(&["call", "userfaultfd"]),
        Host
    ),
    attempt!(
        KERNEL,
        "kexec",
        "start another kernel (kexec_load)",
        BOTH,
        FILTER,
        Helper(&["call", "kexec_load"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "kexec-file",
        "start another kernel from a file (kexec_file_load)",
        BOTH,
        FILTER,
        Helper(&["call", "kexec_file_load"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "module-load",
        "load a module (init_module)",
        BOTH,
        FILTER,
        Helper(&["call", "init_module"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "module-load-file",
        "load a module from a file (finit_module)",
        BOTH,
        FILTER,
        Helper(&["call", "finit_module"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "module-remove",
        "remove a module (delete_module)",
        BOTH,
        FILTER,
        Helper(&["call", "delete_module"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "swap-on",
        "use a file as swap (swapon)",
        BOTH,
        FILTER,
        Helper(&["call", "swapon"]),
        Host
    ),
    attempt!(
        KERNEL,
        "swap-off",
        "take the host's swap away (swapoff)",
        BOTH,
        FILTER,
        Helper(&["call", "swapoff"]),
        Host
    ),
    attempt!(
        KERNEL,
        "accounting",
        "have the kernel write down every process (acct)",
        BOTH,
        FILTER,
        Helper(&["call", "acct"]),
        Host
    ),
    attempt!(
        KERNEL,
        "quota",
        "change quotas of a file system (quotactl)",
        BOTH,
        FILTER,
        Helper(&["call", "quotactl"]),
        Host
    ),
    attempt!(
        KERNEL,
        "ports",
        "speak to hardware by its ports (iopl)",
        BOTH,
        "CAP_SYS_RAWIO dropped, user namespace",
        Helper(&["call", "iopl"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "kernel-log",
        "change the kernel's console (syslog)",
        BOTH,
        "CAP_SYSLOG dropped, user namespace",
        Helper(&["call", "syslog"]),
        Host
    ),
    attempt!(
        KERNEL,
        "clock",
        "set the host's clock (clock_adjtime)",
        BOTH,
        "CAP_SYS_TIME dropped, user namespace",
        Helper(&["call", "clock_adjtime"]),
        Host
    ),
    attempt!(
        KERNEL,
        "clock-set",
        "set the host's clock (date)",
        BOTH,
        "CAP_SYS_TIME dropped, user namespace",
        Script("date -s '2001-01-01' >/dev/null"),
        Control::Code("clock_adjtime on the host, by nothing", misc::clock_control)
    ),
    attempt!(
        KERNEL,
        "keys-add",
        "put a key into the kernel (add_key)",
        BOTH,
        FILTER,
        Helper(&["call", "add_key"]),
        Host
    ),
    attempt!(
        KERNEL,
        "keys-read",
        "ask for a keyring (keyctl)",
        BOTH,
        FILTER,
        Helper(&["call", "keyctl"]),
        Host
    ),
    attempt!(
        KERNEL,
        "calls-32-bit",
        "the refused calls by the instruction of 32-bit programs (acct)",
        BOTH,
        FILTER,
        Helper(&["call32", "acct"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "calls-32-bit-keys",
        "the same for keys (keyctl)",
        BOTH,
        FILTER,
        Helper(&["call32", "keyctl"]),
        HostIfThere
    ),
    attempt!(
        KERNEL,
        "calls-32-bit-swap",
        "the same for swap (swapoff)",
        BOTH,
        FILTER,
        Helper(&["call32", "swapoff"]),
        HostIfThere
    ),
    attempt!(
        HOSTILE,
        "agent-link",
        "an agent's socket that is a link to a socket of the host",
        ROOT,
        "opened without following links",
        Code(hostile::link),
        Control::Code("a client that follows it", hostile::link_control)
    ),
    attempt!(
        HOSTILE,
        "agent-fifo",
        "a pipe where the agent's socket should be",
        ROOT,
        "checked to be a socket",
        Code(hostile::fifo),
        Control::Code("a client that opens it waits", hostile::fifo_control)
    ),
    attempt!(
        HOSTILE,
        "agent-silent",
        "an agent that takes a call and says nothing",
        ROOT,
        "a deadline",
        Code(hostile::silent),
        Control::Code("a client without one waits", hostile::silent_control)
    ),
    attempt!(
        HOSTILE,
        "agent-garbage",
        "an agent that answers garbage",
        ROOT,
        "frames are checked",
        Code(hostile::garbage),
        Control::Code("the bytes do arrive", hostile::garbage_control)
    ),
    attempt!(
        HOSTILE,
        "agent-huge-frame",
        "an agent that announces a frame of 4 GiB",
        ROOT,
        "a frame has a limit",
        Code(hostile::huge),
        Control::Code("the bytes do arrive", hostile::huge_control)
    ),
    attempt!(
        HOSTILE,
        "agent-endless-parts",
        "an agent whose message never ends",
        ROOT,
        "a message has a limit",
        Code(hostile::endless),
        Control::Code("64 MiB do arrive", hostile::endless_control)
    ),
    attempt!(
        HOSTILE,
        "agent-file",
        "an agent that hands out a file as the command's streams",
        ROOT,
        "streams must be pipes or a terminal",
        Code(hostile::file),
        Control::Code("the descriptors do arrive", hostile::file_control)
    ),
    attempt!(
        HOSTILE,
        "agent-sockets",
        "an agent that hands out sockets as the command's streams",
        ROOT,
        "streams must be pipes or a terminal",
        Code(hostile::sockets),
        Control::Code("the descriptors do arrive", hostile::sockets_control)
    ),
    attempt!(
        HOSTILE,
        "agent-descriptors",
        "an agent that hands out thousands of descriptors",
        ROOT,
        "three at most",
        Code(hostile::many),
        Control::Code("the descriptors do arrive", hostile::many_control)
    ),
    attempt!(
        HOSTILE,
        "agent-status",
        "an agent that says a status no command can have",
        ROOT,
        "frames are checked",
        Code(hostile::status),
        Control::Code("the bytes do arrive", hostile::status_control)
    ),
    attempt!(
        HOSTILE,
        "agent-error-text",
        "an agent whose error moves the cursor, sets the title, turns text round",
        ROOT,
        "control characters are shown, not obeyed",
        Code(hostile::escapes),
        Control::Code("the characters do arrive", hostile::escapes_control)
    ),
    attempt!(
        HOSTILE,
        "agent-warning-text",
        "the same by a warning",
        ROOT,
        "control characters are shown, not obeyed",
        Code(hostile::warning),
        Control::Code("the characters do arrive", hostile::warning_control)
    ),
    attempt!(
        HOSTILE,
        "journal-text",
        "a journal whose reader prints control characters into `codchi logs`",
        ROOT,
        "control characters are shown, not obeyed",
        Code(hostile::journal),
        Control::Code(
            "`codchi exec` passes them on, as ssh does",
            hostile::journal_control
        )
    ),
    attempt!(
        HOSTILE,
        "console-text",
        "control characters on the console, read by `codchi logs --console`",
        ROOT,
        "control characters are shown, not obeyed",
        Code(hostile::console),
        Control::Code("they are in the file", hostile::console_control)
    ),
    attempt!(
        HOSTILE,
        "console-flood",
        "a console that never ends fills the host's disk",
        ROOT,
        "the log has a limit",
        Code(hostile::flood),
        Control::Code("a file without a limit", hostile::flood_control)
    ),
    attempt!(
        HOSTILE,
        "notify-pose",
        "pose as PID 1 at the supervisor: ready, stopping, a status text",
        BOTH,
        "only PID 1 is heard",
        Code(hostile::pose),
        Control::Code("the messages do arrive", hostile::pose_control)
    ),
    attempt!(
        HOSTILE,
        "notify-flood",
        "keep the supervisor busy with notifications",
        BOTH,
        "it hears 64, then does its work",
        Code(hostile::notify_flood),
        Control::Code("the messages do arrive", hostile::pose_control)
    ),
    attempt!(
        HOSTILE,
        "notify-descriptors",
        "send the supervisor descriptors until it has no more",
        BOTH,
        "they are closed as they come",
        Code(hostile::notify_descriptors),
        Control::Code(
            "a reader that keeps them",
            hostile::notify_descriptors_control
        )
    ),
    attempt!(
        GUEST,
        "share-write",
        "mount the shared store and programs anew, writable, and change them",
        ROOT,
        "the host shares them read-only",
        Code(guest::write),
        Control::Code("the share that is the machine's own", guest::write_control)
    ),
    attempt!(
        GUEST,
        "share-link",
        "leave links and folders in the shared root that lead out of it, and go that way",
        ROOT,
        "the machine's kernel follows them, in the machine",
        Code(guest::link),
        Control::Code("the host follows them", guest::link_control)
    ),
    attempt!(
        GUEST,
        "share-devices",
        "leave device nodes among the files that the host keeps",
        ROOT,
        "what shares the files is nobody on the host",
        Code(guest::devices),
        Control::Code("the host's root makes them there", guest::devices_control)
    ),
    attempt!(
        GUEST,
        "port-open",
        "open the port beside the agent, and pose as it",
        USER,
        "it is root's",
        Helper(&["open-port"]),
        Control::Code("the machine's root", guest::port_control)
    ),
    attempt!(
        GUEST,
        "port-noise",
        "200000 frames that nobody should send over the port",
        ROOT,
        "frames are checked",
        Code(guest::noise),
        Control::Code("they do arrive", guest::noise_control)
    ),
    attempt!(
        GUEST,
        "port-channels",
        "open 5000 ways to the store at once",
        ROOT,
        "100 at most",
        Code(guest::channels),
        Control::Code("one of them is opened", guest::channels_control)
    ),
    attempt!(
        GUEST,
        "port-session",
        "ask for what of the caller's session was not granted, for kinds and numbers that there are not, and by names of files",
        ROOT,
        "the host decides, by four numbers and what it has opened",
        Code(guest::session),
        Control::Code("one that is open", guest::session_control)
    ),
    attempt!(
        GUEST,
        "port-session-many",
        "open 5000 ways to the caller's session at once",
        ROOT,
        "100 at most",
        Code(guest::session_many),
        Control::Code("one of them is opened", guest::session_many_control)
    ),
    attempt!(
        GUEST,
        "session-stall",
        "fill every way to the caller's session, so that commands, the store and the host wait",
        USER,
        "each stream has a window of its own",
        Code(guest::stall),
        Control::Code("the streams are full", guest::stall_control)
    ),
    attempt!(
        GUEST,
        "port-unread",
        "have the host answer without end, and take nothing of it",
        ROOT,
        "what it keeps has an end, and so has then the machine",
        Code(guest::unread),
        Control::Code("it does answer", guest::noise_control)
    ),
    attempt!(
        EXPORTS,
        "export-paths",
        "write outside the machine's folder, or name a file there: `..`, the root, links, hard links",
        ROOT,
        "paths are resolved beneath the folder, without links",
        Code(exports::paths),
        Control::Code("`tar -P`", exports::paths_control)
    ),
    attempt!(
        EXPORTS,
        "export-contents",
        "device nodes, set-user-id files, owners of the host, holes of 4 TiB, names that a terminal obeys, a file through a link before it",
        ROOT,
        "left out, mapped, kept as holes, shown, replaced",
        Code(exports::contents),
        Control::Code("`tar` makes and says them", exports::contents_control)
    ),
    attempt!(
        EXPORTS,
        "export-record",
        "a record with another machine's name, a path, control characters",
        ROOT,
        "names are checked, what is said is shown",
        Code(exports::records),
        Control::Code("the record says it", exports::records_control)
    ),
    attempt!(
        EXPORTS,
        "export-input",
        "an input that is a link to a folder of the person's, so that it lands in the store",
        ROOT,
        "no link on the way to an input is followed",
        Code(exports::inputs),
        Control::Code("a reader that follows it", exports::inputs_control)
    ),
    attempt!(
        EXPORTS,
        "export-grants",
        "a machine flake that takes a folder of the person's and her ssh agent, as if she had written it",
        ROOT,
        "what only a person can grant is asked for, and `--yes` is no answer",
        Code(exports::grants),
        Control::Code("`--accept`", exports::grants_control)
    ),
    attempt!(
        LIMITS,
        "runtime-folder",
        "fill the host's runtime folder through the agent's",
        ROOT,
        "it is memory of the machine's own with a limit",
        Code(misc::runtime_folder),
        Control::Code("a folder without a limit", misc::runtime_folder_control)
    ),
    attempt!(
        LIMITS,
        "fork-bomb",
        "start processes without end, so that nobody else can start any",
        BOTH,
        "a machine has a limit of tasks",
        Code(misc::fork_bomb),
        Control::Code("a machine without the limit", misc::fork_bomb_control)
    ),
    attempt!(
        LIMITS,
        "memory-bomb",
        "take more memory than the machine may have",
        BOTH,
        "a limit of the control group, on hosts whose groups count memory; or all that a virtual machine has",
        Code(misc::memory_bomb),
        Control::Code("on the host", misc::memory_bomb_control)
    ),
    attempt!(
        LIMITS,
        "inbox-watches",
        "use up the person's inotify watches by roots that come and go",
        USER,
        "a watch goes with its root",
        Code(misc::watches),
        Control::Code("a watcher that keeps them", misc::watches_control)
    ),
];

/// Makes an attempt as one user: it must fail, and everything guarded must be as it was.
pub fn attempt(stage: &Stage, attempt: &Attempt, who: Who) -> Result<(), Failed> {
    let before = stage.guarded()?;
    match &attempt.how {
        Helper(words) => {
            let words = fill(stage, Place::Machine(MALLORY), words)?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            refused(stage.attempt(Place::Machine(MALLORY), who, &words)?)?;
        }
        Script(text) => refused(script(stage, Place::Machine(MALLORY), who, text)?)?,
        Code(f) => f(stage, who)?,
    }
    let after = stage.guarded()?;
    for (what, was) in &before {
        let is = after.get(what).map(String::as_str).unwrap_or_default();
        require(
            is == was,
            format!("changed: {what}\nbefore: {was}\nafter:  {is}"),
        )?;
    }
    Ok(())
}

/// The same where the guard is taken away: it must succeed.
pub fn control(stage: &Stage, attempt: &Attempt) -> Result<(), Failed> {
    let (place, who, may_lack) = match attempt.control {
        Control::Code(_, f) => return f(stage),
        _ if by_host(stage.host.driver, attempt.name) => (Place::Host, Who::Root, false),
        Host => (Place::Host, Who::Root, false),
        HostIfThere => (Place::Host, Who::Root, true),
        Open(who) => {
            stage.open()?;
            (Place::Machine(OPEN), who, false)
        }
    };
    let verdict = match &attempt.how {
        Helper(words) => {
            let words = fill(stage, place, words)?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            stage.attempt(place, who, &words)?
        }
        Script(text) => script(stage, place, who, text)?,
        Code(_) => return Err("a longer attempt needs a control of its own".into()),
    };
    match verdict {
        Verdict::Done(_) => Ok(()),
        // Whether the guard holds cannot be seen where there is nothing to guard.
        Verdict::Absent(_) if may_lack => Ok(()),
        other => Err(format!(
            "the attempt shows nothing, it fails without its guard too: {}",
            other.said()
        )
        .into()),
    }
}

/// Requires that an attempt was refused.
pub fn refused(verdict: Verdict) -> Result<(), Failed> {
    match verdict {
        Verdict::Refused(_) | Verdict::Absent(_) => Ok(()),
        Verdict::Done(how) => Err(format!("the attack succeeded: {how}").into()),
    }
}

/// Requires that an attempt succeeded.
pub fn succeeded(verdict: Verdict) -> Result<(), Failed> {
    match verdict {
        Verdict::Done(_) => Ok(()),
        other => Err(format!("it should have succeeded here: {}", other.said()).into()),
    }
}

/// Runs a shell script whose success is the attack's; 3 says that there is nothing to attack.
pub fn script(stage: &Stage, place: Place, who: Who, text: &str) -> Result<Verdict, Failed> {
    let done = stage.run(place, who, &["sh", "-c", text])?;
    let said = format!("{} {}", done.text(), done.err.trim());
    Ok(match done.status {
        0 => Verdict::Done(said),
        3 => Verdict::Absent(said),
        _ => Verdict::Refused(said),
    })
}

fn fill(stage: &Stage, place: Place, words: &[&str]) -> Result<Vec<String>, Failed> {
    let made = stage.ready()?;
    let open = place == Place::Machine(OPEN);
    let socket = if stage.host.driver == "qemu" {
        "stream"
    } else {
        "socket"
    };
    let programs = match open && stage.host.driver == "qemu" {
        true => stage
            .host
            .home
            .join(".local/share/codchi/bin")
            .display()
            .to_string(),
        false => "/run/codchi/bin".into(),
    };
    let pid = |machine: &str| -> Result<String, Failed> {
        let text = codchi_fs::read_to_string(stage.runtime(machine).join("supervisor.json"))?;
        let v: serde_json::Value = serde_json::from_str(&text)?;
        Ok(v["pid"].to_string())
    };
    let values = [
        ("{home}", stage.host.home.display().to_string()),
        (
            "{agent}",
            stage
                .runtime(ALICE)
                .join("agent")
                .join(socket)
                .display()
                .to_string(),
        ),
        ("{programs}", programs),
        ("{alice}", stage.root(ALICE).display().to_string()),
        ("{path}", made.victim.clone()),
        ("{folder}", made.folder.clone()),
        (
            "{read-only}",
            if open { OWN_MOUNT } else { "/nix/store" }.into(),
        ),
        (
            "{read-only-programs}",
            if open { OWN_MOUNT } else { "/run/codchi/bin" }.into(),
        ),
        ("{supervisor}", pid(ALICE)?),
        ("{cgroup}", "/sys/fs/cgroup/cgroup.max.descendants".into()),
    ];
    Ok(words
        .iter()
        .map(|w| {
            values
                .iter()
                .fold(w.to_string(), |w, (name, value)| w.replace(name, value))
        })
        .collect())
}

/// The attempts as a page of the documentation.
pub fn table() -> String {
    let mut out = String::from(
        "# Attempts\n\nWhat the suite `tests/attacks` tries from inside real machines, on each driver. Every attempt must fail, and what is \
         guarded must be as it was; the same attempt must succeed where its guard is taken away (the control), else it would show \
         nothing. What is promised on this ground is in SECURITY.md, at the top of the repository.\n\nThe native driver is attacked as \
         root and rootless, the others as root; LXD gets the settings of Incus, where their controls are. On virtual machines, \"a machine without the guard\" is the person, in the store's own \
         namespace.\n",
    );
    let titles: Vec<&str> = COLUMNS.iter().map(|(_, title)| *title).collect();
    let mut group = "";
    let mut counts = vec![0; COLUMNS.len()];
    for a in ALL {
        if a.group != group {
            group = a.group;
            let _ = write!(
                out,
                "\n## {group}\n\n| attempt | what is tried | as | guard | control | {} |\n|---|---|---|---|---|{}\n",
                titles.join(" | "),
                "---|".repeat(titles.len())
            );
        }
        let who: Vec<&str> = a.who.iter().map(|w| w.as_str()).collect();
        let control = match &a.control {
            Host => "on the host",
            HostIfThere => "on the host, where its kernel has it",
            Open(_) => "a machine without the guard",
            Control::Code(what, _) => what,
        };
        let mut results = Vec::new();
        for ((kinds, _), count) in COLUMNS.iter().zip(&mut counts) {
            let out: Vec<_> = a
                .who
                .iter()
                .filter_map(|w| Some((w, left_out(kinds[0], a.group, a.name, Some(*w))?)))
                .collect();
            *count += usize::from(out.len() < a.who.len());
            results.push(match out.first() {
                None => "refused".into(),
                Some((_, why)) if out.len() == a.who.len() => format!("left out: {why}"),
                Some((who, why)) => format!("refused; left out as {}: {why}", who.as_str()),
            });
        }
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {control} | {} |",
            a.name,
            a.what,
            who.join(", "),
            a.guard,
            results.join(" | ")
        );
    }
    let counts: Vec<String> = titles
        .iter()
        .zip(counts)
        .map(|(title, count)| format!("{title} {count}"))
        .collect();
    let _ = write!(out, "\n{} attempts: {}.\n", ALL.len(), counts.join(", "));
    out
}
