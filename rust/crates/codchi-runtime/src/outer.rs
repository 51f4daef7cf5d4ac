//! The outer namespace: where /nix is put, Nix runs, and the mounts of machines are made.
//!
//! There is no keeper process. Every program that needs the outer namespace makes one with the same ids and mounts; it
//! costs a few milliseconds, and nothing has to be kept alive or found again.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use codchi_fs::Context;
use codchi_sys::process::{End, Namespaces};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::ids::{self, Extent, IdMap};

/// What the outer namespace looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OuterConfig {
    /// The directory that is `/nix` there (an own store); none: the host's `/nix`, if it has one.
    pub nix: Option<PathBuf>,
}

/// As whom to go on in the outer namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The person who called: their own id on the host, without privileges. As root: root.
    Caller,
    /// Root of the outer namespace, who owns an own store.
    Maintainer,
}

/// An outer namespace that this process is in.
#[derive(Clone, Debug)]
pub struct Outer {
    /// Its ids; empty as root, who needs no user namespace of this kind.
    pub ids: IdMap,
    /// Whether it was made by root.
    pub privileged: bool,
}

/// A directory of the outer root that belongs to the runtime.
pub const OWN_DIR: &str = "/.codchi";

/// Where the host's own /etc shows, when /etc is a private one.
pub(crate) const HOST_ETC: &str = "/.codchi-etc";

/// Files of a private /etc that are copies. The last two because newuidmap, for a namespace in this one, takes no links.
const OWN_FILES: [&str; 4] = ["passwd", "group", "subuid", "subgid"];

/// Parts of ssh's configuration that belong to nobody in a user namespace, which ssh refuses; of `/etc`.
const SSH_FRAGMENTS: &str = "ssh/ssh_config.d";

/// How many build users an own store has.
const BUILD_USERS: u32 = 32;

/// The first build user of an own store; the id before it is their group's.
///
/// Each store has ids of its own: Nix ends every process of a build user before and after a build, so two stores with the
/// same build users, or a store and a Nix of the host's, would end each other's builds. As root they are ids of the host, above
/// what machines get; rootless they are ids of the caller's range.
fn first_build_user(nix: &Path, privileged: bool) -> u32 {
    let hash = nix
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(2_166_136_261u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(16_777_619));
    match privileged {
        true => 0x7000_0001 + (hash % 0x40_0000) * BUILD_USERS,
        false => 30_001 + (hash % 900) * BUILD_USERS,
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this process is root of the host itself. Root of a container is not: it can neither map the owners of the host's
/// files nor take ids that it was not given, and goes the way of an ordinary user, with root's folders.
pub fn is_privileged() -> bool {
    let map = codchi_fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Moves this process, which must have one thread, into a new outer namespace. Its ids stay; rootless it has all
/// capabilities there until the next exec.
///
/// # Errors
/// [`Error::Host`] with the command that mends it where the host does not allow user namespaces, lends no subordinate
/// ids, or lacks newuidmap.
pub fn enter(config: &OuterConfig) -> Result<Outer> {
    let privileged = is_privileged();
    let caller = if privileged { None } else { Some(Caller::find()?) };
    let ids = match &caller {
        None => IdMap::default(),
        Some(c) => enter_user_namespace(c)?,
    };
    codchi_sys::process::unshare(Namespaces::MOUNT).map_err(|e| mounts_refused(e, privileged))?;
    // What the host mounts and unmounts later shows here, nothing made here shows on the host.
    let follow = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", follow).map_err(|e| mounts_refused(e.into(), privileged))?;
    let build_users = config.nix.as_deref().map(|nix| first_build_user(nix, privileged));
    let private_etc = caller.is_some() || build_users.is_some();
    let own_ssh = caller.is_some() && codchi_fs::read_dir(host_etc().join(SSH_FRAGMENTS)).is_ok();
    build_root(config, private_etc, own_ssh)?;
    if private_etc {
        name_ids(caller.as_ref(), build_users)?;
    }
    if own_ssh {
        copy_ssh_fragments()?;
    }
    Ok(Outer { ids, privileged })
}

/// Goes on as a role, in a process that is in the outer namespace. The owner of a store gets terminals of its own.
pub fn become_role(outer: &Outer, role: Role) -> Result<()> {
    match (outer.privileged, role) {
        (true, _) => Ok(()),
        (false, Role::Caller) => codchi_sys::identity::drop_capabilities().doing("drop capabilities"),
        (false, Role::Maintainer) => {
            own_terminals()?;
            codchi_sys::identity::set_groups(&[]).doing("drop groups")?;
            codchi_sys::identity::set_gid(0).doing("become root of the namespace")?;
            codchi_sys::identity::set_uid(0).doing("become root of the namespace")
        }
    }
}

/// Nix gives the terminal of a build to the build user. Those of the host belong to a group that the namespace does not have,
/// so that it may not.
fn own_terminals() -> Result<()> {
    let pts = Path::new("/dev/pts");
    if !pts.is_dir() {
        return Ok(());
    }
    codchi_sys::process::unshare(Namespaces::MOUNT).doing("make a mount namespace")?;
    let data = c"newinstance,ptmxmode=0666,mode=0620";
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("devpts", pts, "devpts", flags, data).doing("mount terminals")
}

/// Replaces this process by a program in the outer namespace. Answers only when that failed.
pub fn exec(config: &OuterConfig, role: Role, program: &OsStr, args: &[OsString]) -> Error {
    let go = || -> Result<std::convert::Infallible> {
        let outer = enter(config)?;
        become_role(&outer, role)?;
        let source = Command::new(program).args(args).exec();
        Err(Error::Os { doing: format!("run `{}`", program.display()), source })
    };
    match go() {
        Err(e) => e,
        Ok(never) => match never {},
    }
}

/// Runs a function in a copy of this process that is in the outer namespace, and hands back the bytes it made.
/// This process must have one thread.
pub fn run<F>(config: &OuterConfig, role: Role, f: F) -> Result<Vec<u8>>
where
    F: FnOnce(&Outer) -> Result<Vec<u8>>,
{
    let (r, w) = pipe()?;
    let child = codchi_sys::process::fork(|| {
        let done = enter(config).and_then(|o| become_role(&o, role).map(|()| o)).and_then(|o| f(&o));
        let (code, bytes) = match done {
            Ok(b) => (0, b),
            Err(Error::Host { what, hints }) => (3, [&[what][..], &hints].concat().join("\n").into_bytes()),
            Err(e) => (1, e.to_string().into_bytes()),
        };
        if std::fs::File::from(w).write_all(&bytes).is_err() { 1 } else { code }
    })
    .doing("start a process")?;
    // The closure has moved the write end into the child; this process holds no copy that would keep the pipe open.
    let mut bytes = Vec::new();
    std::fs::File::from(r).read_to_end(&mut bytes).doing("read from the outer namespace")?;
    let end = child.wait().doing("wait for a process")?;
    let text = || String::from_utf8_lossy(&bytes).into_owned();
    match end {
        End::Code(0) => Ok(bytes),
        End::Code(3) => {
            let mut lines = text().lines().map(String::from).collect::<Vec<_>>().into_iter();
            Err(Error::Host { what: lines.next().unwrap_or_default(), hints: lines.collect() })
        }
        End::Code(1) if !bytes.is_empty() => Err(Error::Told(text())),
        end => Err(Error::Told(format!("a process in the outer namespace ended: {end:?}"))),
    }
}

/// Removes a tree whose files belong to ids that only the outer namespace has.
pub fn remove_tree(path: &Path) -> Result<()> {
    let path = path.to_path_buf();
    if is_root() {
        return Ok(codchi_fs::remove_dir_all(path)?);
    }
    run(&OuterConfig::default(), Role::Maintainer, move |outer| {
        // The parent belongs to the caller, the tree to subordinate ids: root of the namespace may change both.
        let _ = outer;
        codchi_fs::remove_dir_all(path)?;
        Ok(Vec::new())
    })
    .map(|_| ())
}

pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("make a pipe")
}

/// The person who called, by the host's ids.
struct Caller {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
    uids: Vec<Extent>,
    gids: Vec<Extent>,
}

impl Caller {
    fn find() -> Result<Caller> {
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        let name = user_name(uid)?;
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| "/".into());
        let uids = subordinate(&name, uid, "/etc/subuid", false)?;
        let gids = subordinate(&name, uid, "/etc/subgid", true)?;
        Ok(Caller { name, uid, gid, home, uids, gids })
    }
}

/// The caller's login name, by the account data base or the environment.
pub(crate) fn user_name(uid: u32) -> Result<String> {
    let passwd = codchi_fs::read_if_exists("/etc/passwd")?.unwrap_or_default();
    for line in passwd.lines() {
        let mut f = line.split(':');
        if let (Some(name), Some(_), Some(id)) = (f.next(), f.next(), f.next())
            && id.parse() == Ok(uid)
        {
            return Ok(name.into());
        }
    }
    // An account of a directory service: `id` asks it.
    let out = Command::new("id").arg("-un").output().ok().filter(|o| o.status.success());
    let name = out.and_then(|o| String::from_utf8(o.stdout).ok()).map(|s| s.trim().to_string());
    Ok(name.filter(|n| !n.is_empty()).unwrap_or_else(|| format!("user{uid}")))
}

/// What `/etc/subuid` or `/etc/subgid` lends to the caller; a directory service is asked by getsubids.
pub(crate) fn subordinate(name: &str, uid: u32, file: &str, group: bool) -> Result<Vec<Extent>> {
    let text = codchi_fs::read_if_exists(file)?.unwrap_or_default();
    let mut ranges = ids::ranges_of(&text, name, uid);
    if ranges.is_empty() {
        let mut c = Command::new("getsubids");
        if group {
            c.arg("-g");
        }
        if let Ok(o) = c.arg(name).output() {
            // Lines such as `0: name 100000 65536`.
            for l in String::from_utf8_lossy(&o.stdout).lines() {
                let w: Vec<&str> = l.split_whitespace().collect();
                if let [.., first, count] = w[..]
                    && let (Ok(f), Ok(c)) = (first.parse(), count.parse())
                {
                    ranges.push((f, c));
                }
            }
        }
    }
    let more = ids::lay_more(&ranges);
    ids::lay(&ranges).map(|own| [own, more].concat()).ok_or_else(|| {
        let host = Host { user: name.into(), ..Host::look() };
        Error::Host {
            what: format!("`{file}` lends `{name}` fewer than 65536 ids, which a machine without root needs"),
            hints: vec![host.lend(next_free(&text))],
        }
    })
}

/// The first id at or after 100000 that follows every range lent.
fn next_free(file: &str) -> u32 {
    let end = |l: &str| {
        let mut f = l.split(':').skip(1);
        let first: u32 = f.next()?.trim().parse().ok()?;
        first.checked_add(f.next()?.trim().parse().ok()?)
    };
    file.lines().filter_map(end).filter(|e| *e < 0x7000_0000).max().unwrap_or(0).max(100_000)
}

fn enter_user_namespace(c: &Caller) -> Result<IdMap> {
    let mut ids = IdMap { uids: c.uids.clone(), gids: c.gids.clone() };
    ids.uids.push(Extent { inside: ids::CALLER, outside: c.uid, count: 1 });
    ids.gids.push(Extent { inside: ids::CALLER, outside: c.gid, count: 1 });

    // newuidmap has to run outside: a copy of this process waits there until the namespace exists.
    let (go_r, go_w) = pipe()?;
    let (said_r, said_w) = pipe()?;
    let target = rustix::process::getpid().as_raw_nonzero().get();
    let helper = codchi_sys::process::fork(|| {
        let mut go = [0];
        match std::fs::File::from(go_r).read(&mut go) {
            Ok(1) if go[0] == b'x' => {}
            _ => return 0,
        }
        match map_by_helpers(target, &ids) {
            Ok(()) => 0,
            Err(said) => {
                let _ = std::fs::File::from(said_w).write_all(said.as_bytes());
                1
            }
        }
    })
    .doing("start a process")?;
    let entered = codchi_sys::process::unshare(Namespaces::USER);
    // The copy holds this end of the pipe, too: only a word ends its waiting.
    let word: &[u8] = if entered.is_ok() { b"x" } else { b"n" };
    rustix::io::write(&go_w, word).doing("start the mapping of user ids")?;
    let end = helper.wait().doing("wait for newuidmap")?;
    entered.map_err(user_namespace_refused)?;
    if end != End::Code(0) {
        let mut said = String::new();
        let _ = std::fs::File::from(said_r).read_to_string(&mut said);
        return Err(mapping_refused(said.trim()));
    }
    Ok(ids)
}

fn map_by_helpers(pid: i32, ids: &IdMap) -> std::result::Result<(), String> {
    for (program, map) in [("newuidmap", &ids.uids), ("newgidmap", &ids.gids)] {
        let mut c = Command::new(program);
        c.arg(pid.to_string());
        for e in map {
            c.args([e.inside.to_string(), e.outside.to_string(), e.count.to_string()]);
        }
        match c.stdin(std::process::Stdio::null()).output() {
            Ok(o) if o.status.success() => {}
            Ok(o) => return Err(format!("{program}: {}", String::from_utf8_lossy(&o.stderr).trim())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(format!("{program}: not found")),
            Err(e) => return Err(format!("{program}: {e}")),
        }
    }
    Ok(())
}

pub(crate) fn user_namespace_refused(e: io::Error) -> Error {
    let what = format!("this system does not let you make user namespaces: {e}");
    Error::Host { what, hints: Host::look().namespace_hints() }
}

fn mounts_refused(e: io::Error, privileged: bool) -> Error {
    if !privileged && let Some(hints) = Host::look().apparmor_hints() {
        return Error::Host {
            what: format!("this system takes the rights away inside user namespaces: {e}"),
            hints,
        };
    }
    Error::Os { doing: "make a mount namespace".into(), source: e }
}

fn mapping_refused(said: &str) -> Error {
    let hints = if said.ends_with("not found") {
        vec![
            "Debian, Ubuntu: `sudo apt install uidmap`; Fedora: `sudo dnf install shadow-utils-subid`; Arch has it in `shadow`"
                .into(),
        ]
    } else {
        vec![
            "`newuidmap` must be set-user-id root or have file capabilities: `ls -l $(command -v newuidmap)`"
                .into(),
            "and `/etc/subuid`, `/etc/subgid` must lend you the ids: `codchi doctor` shows them".into(),
        ]
    };
    Error::Host { what: format!("the user ids could not be mapped: {said}"), hints }
}

/// A clone of the mounts at a path, attached nowhere yet.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_NO_AUTOMOUNT;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// Attaches a detached tree at an open directory or file.
pub(crate) fn attach(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", target, "", flags)?)
}

/// Where the host's /etc shows: in a namespace like this one, elsewhere already.
fn host_etc() -> &'static Path {
    Path::new(if Path::new(HOST_ETC).is_dir() { HOST_ETC } else { "/etc" })
}

type Entries = Vec<(OsString, Entry)>;

enum Entry {
    Link(PathBuf),
    Tree { fd: OwnedFd, dir: bool },
}

/// A root of our own that shows what the host's shows, except for /nix and, where wanted, the files of accounts.
fn build_root(config: &OuterConfig, private_etc: bool, own_ssh: bool) -> Result<()> {
    let cwd = std::env::current_dir().ok();
    let (mut entries, mut etc) = (Entries::new(), Entries::new());
    let host_etc = host_etc();
    for e in codchi_fs::read_dir("/")? {
        let name = e.file_name();
        // In a namespace like this one the host's /etc shows elsewhere already.
        let own = name.as_bytes() == &OWN_DIR.as_bytes()[1..]
            || (private_etc && name.as_bytes() == &HOST_ETC.as_bytes()[1..]);
        if own || (name == "nix" && config.nix.is_some()) {
            continue;
        }
        let path = if private_etc && name == "etc" { host_etc.to_owned() } else { e.path() };
        let kind = e.file_type().at("examine", &path)?;
        if kind.is_symlink() {
            let to = rustix::fs::readlink(&path, Vec::new()).at("read link", &path)?;
            entries.push((name, Entry::Link(PathBuf::from(OsStr::from_bytes(to.as_bytes())))));
        } else if kind.is_dir() || kind.is_file() {
            match clone_tree(&path, true) {
                Ok(fd) => entries.push((name, Entry::Tree { fd, dir: kind.is_dir() })),
                // A place that even its existence is kept from us, such as a stale network mount, is left out.
                Err(_) if kind.is_file() => {}
                Err(e) if matches!(e.raw_os_error(), Some(116 | 107 | 13)) => {}
                Err(e) => return Err(e).doing(format!("show `{}` in the namespace", path.display())),
            }
        }
    }
    if private_etc {
        // A private file over one of the host's would be gone as soon as the host replaces its own, as `useradd` does. So
        // /etc is a folder of ours with links to what the host has there, which may be replaced.
        for (name, _) in entries.iter_mut().filter(|(n, e)| n == "etc" && matches!(e, Entry::Tree { .. })) {
            *name = HOST_ETC.trim_start_matches('/').into();
        }
        for e in codchi_fs::read_dir(host_etc)? {
            let (name, path) = (e.file_name(), e.path());
            let kind = e.file_type().at("examine", &path)?;
            let entry = if OWN_FILES.iter().any(|own| name == *own) || (own_ssh && name == "ssh") {
                continue;
            } else if kind.is_dir() && path.join("flake.nix").exists() {
                // Nix takes no link for a flake's folder.
                match clone_tree(&path, true) {
                    Ok(fd) => Entry::Tree { fd, dir: true },
                    Err(_) => continue,
                }
            } else if kind.is_symlink() {
                let to = rustix::fs::readlink(&path, Vec::new()).at("read link", &path)?;
                Entry::Link(PathBuf::from(OsStr::from_bytes(to.as_bytes())))
            } else {
                Entry::Link(Path::new("..").join(HOST_ETC.trim_start_matches('/')).join(&name))
            };
            etc.push((name, entry));
        }
    }
    if let Some(nix) = &config.nix {
        let fd = clone_tree(nix, true).doing(format!("show `{}` as `/nix`", nix.display()))?;
        entries.push(("nix".into(), Entry::Tree { fd, dir: true }));
    }

    // The clones are taken: what is covered now does not matter.
    let place =
        ["/tmp", "/run", "/mnt", "/proc"].into_iter().find(|p| Path::new(p).is_dir()).unwrap_or("/proc");
    rustix::mount::mount("codchi", place, "tmpfs", MountFlags::NOSUID, c"mode=0755")
        .doing("mount a root for the namespace")?;
    let root = rustix::fs::open(place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", place)?;
    rustix::mount::mount_change(place, MountPropagationFlags::PRIVATE).doing("make the root private")?;
    show_entries(&root, &entries)?;
    if private_etc {
        show_entries(&make_at(&root, OsStr::new("etc"), true).doing("make `/etc` in the namespace")?, &etc)?;
    }
    rustix::fs::mkdirat(&root, OWN_DIR.trim_start_matches('/'), Mode::from_raw_mode(0o755))
        .doing("make a directory in the namespace")?;
    change_root(root)?;
    if cwd.is_none_or(|d| rustix::process::chdir(&d).is_err()) {
        rustix::process::chdir("/").doing("change directory")?;
    }
    Ok(())
}

fn show_entries(folder: &OwnedFd, entries: &[(OsString, Entry)]) -> Result<()> {
    for (name, e) in entries {
        let shown = || format!("show `{}` in the namespace", name.display());
        match e {
            Entry::Link(to) => rustix::fs::symlinkat(to, folder, name).doing(shown())?,
            Entry::Tree { fd, dir } => {
                let target = make_at(folder, name, *dir).doing(shown())?;
                attach(fd, &target).doing(shown())?;
            }
        }
    }
    Ok(())
}

fn make_at(root: &OwnedFd, name: &OsStr, dir: bool) -> io::Result<OwnedFd> {
    if dir {
        rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))?;
    } else {
        rustix::fs::mknodat(root, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
    }
    Ok(rustix::fs::openat(root, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes the mount that is open as `root` the root, and lets go of the old one.
pub(crate) fn change_root(root: OwnedFd) -> Result<()> {
    let old = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing("open the root")?;
    rustix::process::fchdir(&root).doing("enter the new root")?;
    rustix::process::pivot_root(".", ".").doing("change the root")?;
    rustix::process::fchdir(&old).doing("enter the old root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing("let go of the old root")?;
    rustix::process::chdir("/").doing("enter the new root")
}

/// Private account files: the caller under the id the namespace shows, and the build users of an own store.
fn name_ids(caller: Option<&Caller>, build_users: Option<u32>) -> Result<()> {
    let read =
        |name| codchi_fs::read_if_exists(Path::new(HOST_ETC).join(name)).map(Option::unwrap_or_default);
    let (passwd, group) = account_files(&read("passwd")?, &read("group")?, caller, build_users);
    // Readable whatever the caller's umask.
    let readable =
        |p: &Path, mode| rustix::fs::chmod(p, Mode::from_raw_mode(mode)).at("change the mode of", p);
    let etc = Path::new("/etc");
    readable(etc, 0o755)?;
    for (name, text) in OWN_FILES.into_iter().zip([passwd, group, read("subuid")?, read("subgid")?]) {
        codchi_fs::write(etc.join(name), text)?;
        readable(&etc.join(name), 0o644)?;
    }
    Ok(())
}

/// ssh ends with an error where a file that its configuration includes belongs neither to root nor to the caller, as the host's
/// do in a user namespace. So those are copies, which are the caller's.
fn copy_ssh_fragments() -> Result<()> {
    let (host, own) = (Path::new(HOST_ETC).join("ssh"), Path::new("/etc/ssh"));
    codchi_fs::create_dir_all(own)?;
    for e in codchi_fs::read_dir(&host)? {
        let name = e.file_name();
        if name != "ssh_config.d" {
            codchi_fs::symlink_atomic(host.join(&name), own.join(&name))?;
        }
    }
    let copies = own.join("ssh_config.d");
    codchi_fs::create_dir_all(&copies)?;
    let read = |path: &Path| codchi_fs::read_if_exists(path).ok().flatten();
    for e in codchi_fs::read_dir(Path::new(HOST_ETC).join(SSH_FRAGMENTS))? {
        if let Some(text) = read(&e.path()) {
            codchi_fs::write(copies.join(e.file_name()), inlined(&text, &read, 0))?;
        }
    }
    Ok(())
}

/// A part of ssh's configuration with what it includes in its place, where that is one file without conditions.
fn inlined(text: &str, read: &dyn Fn(&Path) -> Option<String>, depth: usize) -> String {
    let word = |line: &str| line.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let file = line.trim().split_once(char::is_whitespace).map_or("", |(_, f)| f.trim());
        let included = (word(line) == "include" && file.starts_with('/') && depth < 8)
            .then(|| read(Path::new(file)))
            .flatten()
            .filter(|t| !t.lines().any(|l| ["host", "match"].contains(&word(l).as_str())));
        match included {
            Some(t) => out.push_str(&inlined(&t, read, depth + 1)),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

fn account_files(
    passwd: &str,
    group: &str,
    caller: Option<&Caller>,
    build_users: Option<u32>,
) -> (String, String) {
    let (mut p, mut g) = (String::new(), String::new());
    let mine = |l: &str| l.starts_with("nixbld");
    for l in passwd.lines().filter(|l| build_users.is_none() || !mine(l)) {
        let name = l.split(':').next().unwrap_or_default();
        if caller.is_none_or(|c| c.name != name) {
            p.push_str(l);
            p.push('\n');
        }
    }
    for l in group.lines().filter(|l| build_users.is_none() || !mine(l)) {
        let mut f: Vec<&str> = l.split(':').collect();
        let shown = ids::CALLER.to_string();
        if let (Some(c), [_, _, gid, ..]) = (caller, &mut f[..])
            && gid.parse() == Ok(c.gid)
        {
            *gid = &shown;
        }
        g.push_str(&f.join(":"));
        g.push('\n');
    }
    if let Some(c) = caller {
        let id = ids::CALLER;
        p.push_str(&format!("{}:x:{id}:{id}::{}:/bin/sh\n", c.name, c.home.display()));
        if !g.lines().any(|l| l.split(':').nth(2).and_then(|i| i.parse().ok()) == Some(id)) {
            g.push_str(&format!("{}:x:{id}:\n", c.name));
        }
    }
    if let Some(first) = build_users {
        let group = first - 1;
        let names: Vec<String> = (1..=BUILD_USERS).map(|n| format!("nixbld{n}")).collect();
        g.push_str(&format!("nixbld:x:{group}:{}\n", names.join(",")));
        for (uid, name) in (first..).zip(&names) {
            p.push_str(&format!("{name}:x:{uid}:{group}:Nix build user:/var/empty:/bin/false\n"));
        }
    }
    (p, g)
}

/// Opens a path inside `root` as if that were the root of everything: no link leads out of it.
pub(crate) fn open_inside(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_line_shows_the_id_of_the_namespace() {
        let c = Caller {
            name: "ann".into(),
            uid: 1001,
            gid: 100,
            home: "/home/ann".into(),
            uids: vec![],
            gids: vec![],
        };
        let passwd =
            "root:x:0:0::/root:/bin/sh\nann:x:1001:100::/home/ann:/bin/zsh\nnixbld1:x:7:7::/:/bin/false\n";
        let (p, g) = account_files(passwd, "root:x:0:\nusers:x:100:bob\n", Some(&c), Some(30001));
        assert!(p.contains("ann:x:65536:65536::/home/ann:/bin/sh\n"), "{p}");
        assert!(!p.contains("1001"), "{p}");
        assert_eq!(p.matches("nixbld1:").count(), 1);
        assert!(g.contains("users:x:65536:bob\n") && g.contains("nixbld:x:30000:nixbld1,"), "{g}");
    }

    #[test]
    fn what_a_part_of_sshs_configuration_includes_takes_its_place() {
        let read = |p: &Path| match p.to_str() {
            Some("/etc/crypto") => Some("Ciphers a,b\n".into()),
            Some("/etc/hosts.conf") => Some("Host x\n  Port 1\n".into()),
            _ => None,
        };
        let text =
            "Match all\n  Include /etc/crypto\nInclude /etc/hosts.conf\ninclude /nowhere\nInclude *.conf\n";
        assert_eq!(
            inlined(text, &read, 0),
            "Match all\nCiphers a,b\nInclude /etc/hosts.conf\ninclude /nowhere\nInclude *.conf\n"
        );
    }

    #[test]
    fn two_stores_have_build_users_of_their_own() {
        let (a, b) = (Path::new("/a/store/nix"), Path::new("/b/store/nix"));
        for privileged in [true, false] {
            let (x, y) = (first_build_user(a, privileged), first_build_user(b, privileged));
            assert!(x.abs_diff(y) >= BUILD_USERS);
            assert_eq!(x, first_build_user(a, privileged));
        }
        assert!(first_build_user(a, false) + BUILD_USERS < ids::COUNT);
    }

    #[test]
    fn a_new_range_follows_those_that_are_lent() {
        assert_eq!(next_free(""), 100_000);
        assert_eq!(next_free("a:100000:65536\nb:165536:65536\n"), 231_072);
    }
}
