//! What happens in the machine's namespaces between their making and PID 1.

use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use codchi_sys::mount::{Attributes, READ_ONLY, set_attributes};
use codchi_sys::process::Namespaces;
use codchi_sys::{identity, process};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::error::{Doing, Error, Result};
use crate::outer::{attach, clone_tree};
use crate::spec::{Mount, MountKind, Spec};
use crate::{caps, cgroup, filter, mounts};

/// A word between supervisor and child, and at most three descriptors.
pub(crate) fn say(to: BorrowedFd<'_>, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The other's next word; `None` when it has closed its end.
pub(crate) fn hear(from: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut text = vec![0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let n = loop {
        let mut into = [IoSliceMut::new(&mut text)];
        match rustix::net::recvmsg(from, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(r) => break r.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    };
    let mut all = Vec::new();
    for m in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = m {
            all.extend(fds);
        }
    }
    text.truncate(n);
    Ok(if n == 0 && all.is_empty() { None } else { Some((text, all)) })
}

/// The words of the handshake.
pub(crate) mod word {
    /// To the child: its ids are mapped.
    pub const MAPPED: &[u8] = b"mapped";
    /// From it: it is root of its namespace.
    pub const ROOT: &[u8] = b"root";
    /// From it: both ends of the console; mounts are made.
    pub const CONSOLE: &[u8] = b"console";
    /// To it: the network is there, or will not be.
    pub const GO: &[u8] = b"go";
    /// From it: it failed, and why follows.
    pub const FAILED: &[u8] = b"failed: ";
}

/// The child's whole life: it answers only when it failed. It holds itself to so many `tasks`.
pub(crate) fn run(ctl: &OwnedFd, spec: &Spec, tasks: Option<u64>) -> i32 {
    let e = match cgroup::take_on(tasks).and_then(|()| prepare(ctl.as_fd(), spec)) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    let _ = say(ctl.as_fd(), &[word::FAILED, e.to_string().as_bytes()].concat(), &[]);
    1
}

fn expect(ctl: BorrowedFd<'_>, wanted: &[u8]) -> Result<()> {
    match hear(ctl).doing("hear from the supervisor")? {
        Some((w, _)) if w == wanted => Ok(()),
        _ => Err(Error::Told("the supervisor has gone".into())),
    }
}

fn prepare(ctl: BorrowedFd<'_>, spec: &Spec) -> Result<std::convert::Infallible> {
    expect(ctl, word::MAPPED)?;
    identity::set_groups(&[]).doing("drop groups")?;
    identity::set_gid(0).doing("become root of the machine")?;
    identity::set_uid(0).doing("become root of the machine")?;
    // Without this the supervisor cannot reach our namespaces; nobody else is in here yet.
    identity::set_dumpable(true).doing("show the namespaces to the supervisor")?;
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).doing("tie the machine to its supervisor")?;
    say(ctl, word::ROOT, &[]).doing("speak to the supervisor")?;
    rustix::process::setsid().doing("begin a session")?;
    identity::new_session_keyring().doing("make a session keyring")?;
    process::unshare(Namespaces::CGROUP).doing("make a cgroup namespace")?;
    rustix::system::sethostname(spec.host_name.as_bytes()).doing("set the host name")?;
    process::loopback_up().doing("bring up the loopback interface")?;

    let devices = devices(spec)?;
    enter_root(spec)?;
    for (name, tree) in &devices {
        let at = Path::new("/dev").join(name);
        let target = own_place(&at, false).doing(format!("make `{}`", at.display()))?;
        attach(tree, &target).doing(format!("put the device at `{}`", at.display()))?;
    }
    let dev = ["fd", "stdin", "stdout", "stderr"];
    for (name, to) in dev.iter().zip(["", "/0", "/1", "/2"]) {
        link(&format!("/proc/self/fd{to}"), &format!("/dev/{name}"))?;
    }
    link("pts/ptmx", "/dev/ptmx")?;
    hide(spec)?;
    let terminal = console(ctl)?;

    expect(ctl, word::GO)?;
    for n in caps::numbers(&spec.capabilities.drop)? {
        identity::drop_bounding(n).doing("drop a capability")?;
    }
    limit_descriptors();
    for target in 0..=2 {
        process::stdio(terminal.as_fd(), target).doing("open the console")?;
    }
    process::close_from(3).doing("close descriptors")?;
    codchi_sys::signal::reset();
    let text =
        |s: &str| CString::new(s).map_err(|_| Error::Settings("a NUL in `init` or `environment`".into()));
    let argv = spec.init.iter().map(|s| text(s)).collect::<Result<Vec<_>>>()?;
    let env = spec.environment.iter().map(|(k, v)| text(&format!("{k}={v}"))).collect::<Result<Vec<_>>>()?;
    check_program(Path::new(&spec.init[0]))?;
    rustix::process::chdir("/").doing("enter the root")?;
    // Last: from here on the listed calls are refused to us, too.
    let program = filter::program(&spec.seccomp)?;
    if !program.is_empty() {
        codchi_sys::seccomp::install(&program).doing("install the system call filter")?;
    }
    match codchi_sys::spawn::execve(&argv[0], &argv, &env) {
        Ok(never) => match never {},
        Err(e) => Err(e).doing(format!("start `{}` in the machine", spec.init[0])),
    }
}

/// A link such as /proc/self/exe would make a program of the host PID 1, within reach of the machine.
fn check_program(path: &Path) -> Result<()> {
    let how = rustix::fs::ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how)
        .map(|_| ())
        .doing(format!("find `{}` in the machine", path.display()))
}

fn limit_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // What programs expect at their start; the highest we have ourselves stays the highest.
    let now = getrlimit(Resource::Nofile);
    let current = now.maximum.map_or(1024, |m| m.min(1024));
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: now.maximum });
}

/// Clones of the host's device nodes, taken while its /dev is in sight.
fn devices(spec: &Spec) -> Result<Vec<(PathBuf, OwnedFd)>> {
    let mut all = Vec::new();
    for d in &spec.devices {
        let name = d.trim_end_matches('?');
        let path = Path::new("/dev").join(name);
        match clone_tree(&path, false) {
            Ok(tree) => all.push((name.into(), tree)),
            Err(_) if d.ends_with('?') => {}
            Err(e) => return Err(e).doing(format!("take `{}` of the host", path.display())),
        }
    }
    Ok(all)
}

/// Makes the staged tree the root and mounts the kernel's file systems.
fn enter_root(spec: &Spec) -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing("make mounts private")?;
    // What was mounted by the parent is locked and cannot become a root; a clone of it can, and what lies in it stays
    // locked.
    let stage = mounts::stage_dir();
    let tree = clone_tree(&stage, true).doing("take the machine's root")?;
    let over = rustix::fs::open(&stage, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing("open the machine's root")?;
    attach(&tree, &over).doing("mount the machine's root")?;
    let old = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing("open the root")?;
    rustix::process::fchdir(&tree).doing("enter the machine's root")?;
    rustix::process::pivot_root(".", ".").doing("change the root")?;
    // The kernel lets us mount /proc and /sys only while whole ones are in sight: those of the old root. Paths lead
    // into the new root already, whatever links the machine has laid.
    for m in &spec.mounts {
        if m.kind != MountKind::Bind && !m.outer {
            kernel_mount(m)?;
        }
    }
    rustix::process::fchdir(&old).doing("enter the old root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing("let go of the host's root")?;
    rustix::process::chdir("/").doing("enter the machine's root")?;
    // An init in a container leaves this to whoever starts it, and counts on it: systemd gives services their credentials by
    // mounts that spread from a namespace of their own. They spread within the machine only.
    rustix::mount::mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .doing("share mounts within the machine")
}

fn kernel_mount(m: &Mount) -> Result<()> {
    let kind = m.kind.as_str();
    let what = || format!("mount {kind} at `{}`", m.target.display());
    let o = mounts::options(&m.options);
    own_place(&m.target, true).doing(what())?;
    rustix::mount::mount(kind, &m.target, kind, o.mount_flags(), o.data()?.as_c_str()).doing(what())
}

/// A mount point of the machine's own, made where it is missing; called with the machine's root as the root.
fn own_place(path: &Path, dir: bool) -> io::Result<OwnedFd> {
    if rustix::fs::stat(path).is_err() {
        let mut at = PathBuf::new();
        let parent = path.parent().unwrap_or(Path::new("/"));
        for c in parent.components() {
            at.push(c);
            if rustix::fs::stat(&at).is_err() {
                rustix::fs::mkdir(&at, Mode::from_raw_mode(0o755))?;
            }
        }
        if dir {
            rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))?;
        } else {
            rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o666), 0)?;
        }
    }
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn link(to: &str, at: &str) -> Result<()> {
    match rustix::fs::symlink(to, at) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(e).doing(format!("make the link `{at}`")),
    }
}

/// Masked and read-only paths.
fn hide(spec: &Spec) -> Result<()> {
    for p in &spec.masked_paths {
        let what = || format!("hide `{}`", p.display());
        let Ok(s) = rustix::fs::stat(p) else { continue };
        if FileType::from_raw_mode(s.st_mode).is_dir() {
            rustix::mount::mount("tmpfs", p, "tmpfs", MountFlags::RDONLY, c"size=0").doing(what())?;
        } else {
            rustix::mount::mount_bind("/dev/null", p).doing(what())?;
        }
    }
    for p in &spec.read_only_paths {
        let what = || format!("make `{}` read-only", p.display());
        if rustix::fs::stat(p).is_err() {
            continue;
        }
        let tree = clone_tree(p, true).doing(what())?;
        set_attributes(
            tree.as_fd(),
            &Attributes { set: READ_ONLY, recursive: true, ..Attributes::default() },
        )
        .doing(what())?;
        let target = own_place(p, true).doing(what())?;
        attach(&tree, &target).doing(what())?;
    }
    Ok(())
}

/// Makes the console: a terminal of the machine's own, whose other end the supervisor reads.
fn console(ctl: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).doing("make a console")?;
    rustix::pty::unlockpt(&master).doing("make a console")?;
    let name = rustix::pty::ptsname(&master, Vec::new()).doing("make a console")?;
    let name = Path::new(std::ffi::OsStr::new(name.to_str().unwrap_or("/dev/pts/0")));
    let tree = clone_tree(name, false).doing("make a console")?;
    let target = own_place(Path::new("/dev/console"), false).doing("make a console")?;
    attach(&tree, &target).doing("make a console")?;
    let terminal = rustix::fs::open("/dev/console", flags, Mode::empty()).doing("open the console")?;
    // The supervisor holds this end, too: a terminal that nobody has open hangs up, and this one is reopened all the time.
    say(ctl, word::CONSOLE, &[master.as_fd(), terminal.as_fd()]).doing("speak to the supervisor")?;
    Ok(terminal)
}
