//! Host folders in a machine: given and taken back while it runs, before its first process as well as later.
//!
//! A mount that is moved into a machine's namespace would be the machine's to change: only what a namespace inherits from
//! one of another user namespace is locked. So each is first seen by a user and mount namespace made for that alone, and a copy of
//! what that inherited, locks and all, is what the machine gets: it can unmount it, but never make it writable.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use codchi_core::folder::{Folder, FolderState};
use codchi_fs::Context;
use codchi_sys::identity::{self, with_file_ids};
use codchi_sys::mount::{Attributes, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, set_attributes};
use codchi_sys::process::{self, End, Namespaces};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::mount::{OpenTreeFlags, UnmountFlags};

use crate::error::{Doing, Error, Result};
use crate::ids::Extent;
use crate::inside::{hear, say};
use crate::mounts::{self, Owner};
use crate::outer::{self, OWN_DIR, attach, clone_tree, open_inside, pipe};
use crate::spec::User;

/// Who the machine is, as far as its folders are concerned.
pub(crate) struct Machine {
    /// Its first process.
    pub leader: i32,
    /// Root of it, by the ids of the outer namespace.
    pub owner: Owner,
    /// As root: how many ids it has.
    pub count: u32,
    /// The person's account in it.
    pub user: User,
    /// As root: folders are mapped, so that their owner is that account.
    pub mapped: bool,
    /// Rootless: the account is the caller on the host.
    pub is_caller: bool,
}

/// Gives a machine a folder; why that cannot be is for people.
pub(crate) fn give(machine: &Machine, folder: &Folder) -> std::result::Result<(), String> {
    if !machine.mapped && !machine.is_caller {
        return Err("the machine's user becomes you on this computer at the next start".into());
    }
    let source = open_source(&folder.source)?;
    give_open(machine, folder, &source).map_err(|e| e.to_string())
}

/// The state of folders before a machine is started: those it cannot do without are looked for now.
///
/// # Errors
/// [`Error::Host`] that names the first that is missing.
pub(crate) fn require(machine: &str, folders: &[Folder]) -> Result<()> {
    for f in folders.iter().filter(|f| !f.optional) {
        open_source(&f.source).map_err(|problem| refused(machine, f, &problem))?;
    }
    Ok(())
}

pub(crate) fn refused(machine: &str, f: &Folder, problem: &str) -> Error {
    Error::Host {
        what: format!(
            "the folder `{}` cannot be at `{}` of the machine: {problem}",
            f.source.display(),
            f.target.display()
        ),
        hints: vec![
            format!("`codchi mount add {machine} HOST:{}` gives another one", f.target.display()),
            format!("`codchi mount remove {machine} {}` lets it do without", f.target.display()),
        ],
    }
}

/// What a person is told of a folder that is not there.
pub(crate) fn warning(state: &FolderState) -> Option<String> {
    let problem = state.problem.as_ref().filter(|_| !state.folder.optional)?;
    Some(format!(
        "the folder `{}` is not at `{}` of the machine: {problem}",
        state.folder.source.display(),
        state.folder.target.display()
    ))
}

/// Opens a path of the host. No link counts: a machine that may write in one folder could make it lead into another.
fn open_source(path: &Path) -> std::result::Result<OwnedFd, String> {
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how);
    match opened {
        Ok(fd) => Ok(fd),
        Err(rustix::io::Errno::LOOP) => Err(match std::fs::canonicalize(path) {
            Ok(to) => format!("a link is on that way; it leads to `{}`", to.display()),
            Err(e) => format!("a link is on that way: {e}"),
        }),
        Err(rustix::io::Errno::NOENT) => Err("there is no such folder on this computer".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// Why no machine of the caller's may have this folder, for people; none where it may, or is not there yet.
pub fn refusal(folder: &Folder) -> Option<String> {
    let source = match open_source(&folder.source) {
        Ok(source) => source,
        Err(problem) => return (!folder.optional).then_some(problem),
    };
    let what = || format!("open `{}`", folder.source.display());
    let meta = rustix::fs::fstat(&source).doing(what());
    let examined = meta.and_then(|meta| examine(folder, &meta, outer::is_privileged()));
    examined.err().map(|e| e.to_string())
}

/// Whether a folder may be given at all, and whether it is one, or a file.
fn examine(folder: &Folder, meta: &Stat, mapped: bool) -> Result<bool> {
    let kind = FileType::from_raw_mode(meta.st_mode);
    if !kind.is_dir() && !kind.is_file() {
        return Err(Error::Told("it is neither a folder nor a file".into()));
    }
    if mapped && meta.st_uid == 0 && !folder.read_only && !crate::cgroup::is_private(&folder.source)? {
        return Err(Error::Told(format!(
            "it is root's and others can reach it, so that a program in the machine could leave a set-user-id \
             file for them there: `chmod 700` it, give it to another user, or add it with `:ro` (mode {:o})",
            meta.st_mode & 0o777
        )));
    }
    Ok(kind.is_dir())
}

fn give_open(machine: &Machine, folder: &Folder, source: &OwnedFd) -> Result<()> {
    let what = || format!("open `{}`", folder.source.display());
    let meta = rustix::fs::fstat(source).doing(what())?;
    let is_dir = examine(folder, &meta, machine.mapped)?;
    let idmap = if machine.mapped { Some(map_onto_user(machine, meta.st_uid, meta.st_gid)?) } else { None };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_NO_AUTOMOUNT
        | OpenTreeFlags::AT_EMPTY_PATH;
    // A map applies to whole mounts; what is mounted below is left out rather than shown with foreign owners.
    if idmap.is_none() {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(source, "", flags).doing(what())?;
    let attributes = Attributes {
        set: NO_SUID | NO_DEV | if folder.read_only { READ_ONLY } else { 0 },
        clear: 0,
        private: true,
        idmap: idmap.as_ref().map(AsFd::as_fd),
        recursive: idmap.is_none(),
    };
    set_attributes(tree.as_fd(), &attributes)
        .map_err(|e| mounts::idmap_refused(e, &folder.source, idmap.is_some()))?;
    mount(machine, vec![Tree { tree, is_dir, target: folder.target.clone() }])
}

/// Something to mount in a machine.
pub(crate) struct Tree {
    /// What, attached nowhere.
    pub tree: OwnedFd,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Where, in the machine.
    pub target: PathBuf,
}

/// Mounts in a running machine, so that nobody in it can make writable what is not.
pub(crate) fn mount(machine: &Machine, trees: Vec<Tree>) -> Result<()> {
    let trees = locked(trees)?;
    in_machine(machine.leader, move || {
        let root = open_root()?;
        for Tree { tree, is_dir, target } in trees {
            let what = || format!("make `{}` in the machine", target.display());
            let at = place(&root, &target, is_dir).doing(what())?;
            let there = rustix::fs::fstat(&at).doing(what())?;
            if FileType::from_raw_mode(there.st_mode).is_dir() != is_dir {
                let kind = if is_dir { "no folder" } else { "a folder" };
                return Err(Error::Told(format!("`{}` in the machine is {kind}", target.display())));
            }
            attach(&tree, &at).doing(what())?;
        }
        Ok(())
    })
}

/// A copy of what is mounted at a path of a machine, without what is mounted below, and cut off from it: what is mounted there later is
/// not in the copy.
pub(crate) fn copy_mount(leader: i32, path: &Path) -> Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .doing("make a socket")?;
    let what = || format!("find `{}` in the machine", path.display());
    in_machine(leader, || {
        let at = open_inside(open_root()?, path, OFlags::PATH | OFlags::DIRECTORY).doing(what())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_NO_AUTOMOUNT
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&at, "", flags).doing(what())?;
        let attributes =
            Attributes { set: NO_SUID | NO_DEV | NO_EXEC, private: true, ..Attributes::default() };
        set_attributes(tree.as_fd(), &attributes).doing(what())?;
        say(theirs.as_fd(), b"tree", &[tree.as_fd()]).doing(what())
    })?;
    let heard = hear(ours.as_fd()).doing(what())?;
    let tree = heard.and_then(|(_, fds)| fds.into_iter().next());
    tree.ok_or_else(|| Error::Told(format!("`{}` of the machine was not found", path.display())))
}

/// Gives a machine that is about to start its folders, and tells what became of each.
///
/// # Errors
/// [`Error::Host`] that names the first it cannot do without and does not get.
pub(crate) fn give_all(machine: &Machine, name: &str, all: &[Folder]) -> Result<Vec<FolderState>> {
    let give = |folder: &Folder| {
        let problem = give(machine, folder).err();
        match problem.as_ref().filter(|_| !folder.optional) {
            Some(problem) => Err(refused(name, folder, problem)),
            None => Ok(FolderState { folder: folder.clone(), problem }),
        }
    };
    all.iter().map(give).collect()
}

/// Takes from a running machine the folders it has and shall not have any more, gives it the others, and tells what it has now.
pub(crate) fn change(machine: &Machine, has: Vec<FolderState>, wanted: &[Folder]) -> Vec<FolderState> {
    let (stays, goes): (Vec<_>, Vec<_>) =
        has.into_iter().filter(|s| s.problem.is_none()).partition(|s| wanted.contains(&s.folder));
    for state in goes.iter().rev() {
        if let Err(e) = take(machine, &state.folder) {
            let _ = writeln!(io::stderr(), "{e}");
        }
    }
    let give = |folder: &Folder| {
        let there = stays.iter().any(|s| s.folder == *folder);
        let problem = if there { None } else { give(machine, folder).err() };
        FolderState { folder: folder.clone(), problem }
    };
    wanted.iter().map(give).collect()
}

/// Takes a folder back.
pub(crate) fn take(machine: &Machine, folder: &Folder) -> std::result::Result<(), String> {
    let target = folder.target.clone();
    let done = in_machine(machine.leader, move || {
        let root = open_root()?;
        let what = || format!("unmount `{}` in the machine", target.display());
        // By what is open, and not by a path that the machine could bend.
        let gone = |e: &rustix::io::Errno| *e == rustix::io::Errno::INVAL;
        match open_inside(&root, &target, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(dir) => {
                rustix::process::fchdir(&dir).doing(what())?;
                rustix::mount::unmount(".", UnmountFlags::DETACH)
                    .or_else(|e| if gone(&e) { Ok(()) } else { Err(e) })
            }
            Err(_) => {
                let (parent, name) =
                    (target.parent().unwrap_or(Path::new("/")), target.file_name().unwrap_or_default());
                let parent = open_inside(&root, parent, OFlags::PATH | OFlags::DIRECTORY).doing(what())?;
                rustix::process::fchdir(&parent).doing(what())?;
                rustix::mount::unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                    .or_else(|e| if gone(&e) || e == rustix::io::Errno::NOENT { Ok(()) } else { Err(e) })
            }
        }
        .doing(what())
    });
    done.map_err(|e| e.to_string())
}

fn open_root() -> Result<OwnedFd> {
    Ok(rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", "/")?)
}

/// Opens a mount point inside the machine, and makes it where it is missing, as the owner of what it lies in would.
fn place(root: &OwnedFd, path: &Path, dir: bool) -> io::Result<OwnedFd> {
    let names: Vec<_> = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let mut at = PathBuf::from("/");
    for (i, name) in names.iter().enumerate() {
        let parent = open_inside(root, &at, OFlags::PATH | OFlags::DIRECTORY)?;
        at.push(name);
        match open_inside(root, &at, OFlags::PATH) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(_) => continue,
        }
        let owner = rustix::fs::fstat(&parent)?;
        let made = with_file_ids(owner.st_uid, owner.st_gid, || {
            if dir || i + 1 < names.len() {
                rustix::fs::mkdirat(&parent, name.as_os_str(), Mode::from_raw_mode(0o755))
            } else {
                let mode = Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(&parent, name.as_os_str(), FileType::RegularFile, mode, 0)
            }
        })?;
        match made {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    open_inside(root, path, OFlags::PATH)
}

/// A namespace that shows a folder's owner as the machine's user, and the machine's other ids as themselves: what its root
/// makes there belongs on the host to ids that nobody has.
fn map_onto_user(machine: &Machine, uid: u32, gid: u32) -> Result<OwnedFd> {
    let count = machine.count;
    let extents = |on_disk: u32, base: u32, user: u32| {
        let own = Extent { inside: base, outside: base, count };
        if (base..base + count).contains(&on_disk) {
            return vec![own];
        }
        let shown = base + user;
        let all = [
            Extent { inside: on_disk, outside: shown, count: 1 },
            Extent { inside: base, outside: base, count: user },
            Extent { inside: shown + 1, outside: shown + 1, count: count - user - 1 },
        ];
        all.into_iter().filter(|e| e.count > 0).collect()
    };
    let uids = extents(uid, machine.owner.uid, machine.user.uid);
    let gids = extents(gid, machine.owner.gid, machine.user.gid);
    mounts::user_namespace(&uids, &gids)
}

/// Copies of trees whose read-only and other marks nobody in a machine can take away.
fn locked(trees: Vec<Tree>) -> Result<Vec<Tree>> {
    let mut places = Vec::new();
    for (i, t) in trees.iter().enumerate() {
        let at = Path::new(OWN_DIR).join(format!("{}-{i}", if t.is_dir { "folder" } else { "file" }));
        if t.is_dir {
            codchi_fs::create_dir_all(&at)?;
        } else {
            codchi_fs::write(&at, "")?;
        }
        let target = rustix::fs::open(&at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).at("open", &at)?;
        attach(&t.tree, &target).doing("mount a folder")?;
        places.push(at);
    }
    let heard = seen_by_another(&places);
    for at in &places {
        let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
    }
    let all = trees.into_iter().zip(heard?);
    Ok(all.map(|(t, tree)| Tree { tree, ..t }).collect())
}

/// Clones of what a new user and mount namespace has at these places.
fn seen_by_another(places: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .doing("make a socket")?;
    let (hidden, end) = (ours.as_raw_fd(), theirs.as_fd());
    let child = process::clone(Namespaces::USER.and(Namespaces::MOUNT), None, || {
        process::close_one(hidden);
        for at in places {
            let done = clone_tree(at, true).and_then(|tree| say(end, b"tree", &[tree.as_fd()]));
            if let Err(e) = done {
                let _ = say(end, e.to_string().as_bytes(), &[]);
                return 1;
            }
        }
        0
    })
    .doing("make a namespace")?;
    drop(theirs);
    let hear_one = || match hear(ours.as_fd()).doing("hear from a namespace")? {
        Some((said, fds)) => {
            fds.into_iter().next().ok_or_else(|| Error::Told(String::from_utf8_lossy(&said).into_owned()))
        }
        None => Err(Error::Told("the namespace of a folder could not be made".into())),
    };
    let heard = places.iter().map(|_| hear_one()).collect();
    drop(ours);
    child.wait().doing("wait for a process")?;
    heard
}

/// Does something in a copy of this process that is root of the machine, in its mounts.
fn in_machine(leader: i32, f: impl FnOnce() -> Result<()>) -> Result<()> {
    let machine = process::pidfd_open(leader).doing("find the machine's first process")?;
    let (r, w) = pipe()?;
    let child = process::fork(|| {
        let done = process::setns(machine.as_fd(), Namespaces::USER.and(Namespaces::MOUNT))
            .doing("join the machine's namespaces")
            .and_then(|()| identity::set_groups(&[]).doing("drop groups"))
            .and_then(|()| identity::set_gid(0).doing("become root of the machine"))
            .and_then(|()| identity::set_uid(0).doing("become root of the machine"))
            .and_then(|()| f());
        match done {
            Ok(()) => 0,
            Err(e) => {
                let _ = std::fs::File::from(w).write_all(e.to_string().as_bytes());
                1
            }
        }
    })
    .doing("start a process")?;
    let mut said = String::new();
    std::fs::File::from(r).read_to_string(&mut said).doing("hear from the machine")?;
    match child.wait().doing("wait for a process")? {
        End::Code(0) => Ok(()),
        _ if said.is_empty() => Err(Error::Told("the machine cannot be entered".into())),
        _ => Err(Error::Told(said)),
    }
}

/// Rootless: gives the files of the machine's user to the caller, or takes them back, as the machine's ids say from now on. That is
/// kept beside the root file system in `state`. Once a machine's user is the caller it stays so.
///
/// Answers whether, and which account it is.
pub(crate) fn become_caller(root: &Path, state: &Path, wanted: Option<User>) -> Result<Option<User>> {
    let (now, whole) = callers(state)?;
    let user = match (now, wanted) {
        (Some(now), None) => now,
        (Some(now), Some(wanted)) if now == wanted => now,
        (None, Some(wanted)) => wanted,
        // The account has another number: its old files are that number's.
        (Some(now), Some(wanted)) => {
            give_back(root, state, now)?;
            wanted
        }
        (None, None) => return Ok(None),
    };
    if now != Some(user) || !whole {
        // Cut short, it is begun again: what is the caller's already stays so.
        codchi_fs::write_atomic(state, format!("{} {} changing\n", user.uid, user.gid), 0o600)?;
        reown(root, user, User { uid: crate::ids::CALLER, gid: crate::ids::CALLER })?;
        codchi_fs::write_atomic(state, format!("{} {} done\n", user.uid, user.gid), 0o600)?;
    }
    Ok(Some(user))
}

/// The account of the machine that is the caller on disk, and whether all its files are.
fn callers(state: &Path) -> Result<(Option<User>, bool)> {
    let text = codchi_fs::read_if_exists(state)?.unwrap_or_default();
    let mut words = text.split_whitespace();
    let now = match (words.next().map(str::parse), words.next().map(str::parse)) {
        (Some(Ok(uid)), Some(Ok(gid))) => Some(User { uid, gid }),
        _ => None,
    };
    Ok((now, words.next() == Some("done")))
}

/// Sees that no account of a machine is the caller on disk.
///
/// # Errors
/// A file cannot be given to another account.
pub(crate) fn part_from_caller(root: &Path, state: &Path) -> Result<()> {
    match callers(state)? {
        (Some(now), _) => give_back(root, state, now),
        (None, _) => Ok(()),
    }
}

fn give_back(root: &Path, state: &Path, now: User) -> Result<()> {
    codchi_fs::write_atomic(state, format!("{} {} changing\n", now.uid, now.gid), 0o600)?;
    reown(root, User { uid: crate::ids::CALLER, gid: crate::ids::CALLER }, now)?;
    Ok(codchi_fs::remove_if_exists(state)?)
}

/// Gives every file of one account to another, in a tree that nobody uses.
fn reown(dir: &Path, from: User, to: User) -> Result<()> {
    use rustix::fs::{AtFlags, Gid, Uid};
    let change = |path: &Path| -> Result<bool> {
        let meta = std::fs::symlink_metadata(path).at("examine", path)?;
        let uid = (meta.uid() == from.uid).then(|| Uid::from_raw(to.uid));
        let gid = (meta.gid() == from.gid).then(|| Gid::from_raw(to.gid));
        if uid.is_some() || gid.is_some() {
            rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .at("change the owner of", path)?;
            // The kernel takes these bits away with the owner.
            if meta.is_file() && meta.mode() & 0o6000 != 0 {
                rustix::fs::chmod(path, Mode::from_raw_mode(meta.mode() & 0o7777))
                    .at("change the mode of", path)?;
            }
        }
        Ok(meta.is_dir())
    };
    change(dir)?;
    for e in codchi_fs::read_dir(dir)? {
        let path = e.path();
        let is_dir = e.file_type().at("examine", &path)?.is_dir();
        if is_dir {
            reown(&path, from, to)?;
        } else {
            change(&path)?;
        }
    }
    Ok(())
}
