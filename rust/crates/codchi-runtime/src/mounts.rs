//! The mounts of a machine that are made in the outer namespace, where the machine cannot undo them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use codchi_fs::Context;
use codchi_secrets::Bundle;
use codchi_sys::identity::with_file_ids;
use codchi_sys::mount::{Attributes, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, set_attributes};
use codchi_sys::process::Namespaces;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::closure;
use crate::error::{Doing, Error, Result};
use crate::ids::{self, Extent};
use crate::outer::{OWN_DIR, attach, clone_tree, open_inside, pipe};
use crate::spec::{Mount, MountKind, Spec};

/// Where a machine finds its secrets.
pub(crate) const CREDENTIALS: &str = "/run/codchi/credentials";

/// Root of a machine by the ids of the outer namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Where the machine's root is put together, in the root of the outer namespace.
pub(crate) fn stage_dir() -> std::path::PathBuf {
    Path::new(OWN_DIR).join("root")
}

/// What options of mount(8) say: flags, and what is left for the file system.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub set: u64,
    pub clear: u64,
    pub data: String,
}

pub(crate) fn options(list: &[String]) -> Options {
    let mut o = Options::default();
    for w in list {
        match w.as_str() {
            "ro" => o.set |= READ_ONLY,
            "rw" => o.clear |= READ_ONLY,
            "nosuid" => o.set |= NO_SUID,
            "nodev" => o.set |= NO_DEV,
            "noexec" => o.set |= NO_EXEC,
            "suid" | "dev" | "exec" | "bind" | "rbind" | "defaults" | "relatime" => {}
            other => {
                if !o.data.is_empty() {
                    o.data.push(',');
                }
                o.data.push_str(other);
            }
        }
    }
    o
}

impl Options {
    pub fn mount_flags(&self) -> MountFlags {
        let mut f = MountFlags::empty();
        for (bit, flag) in [
            (READ_ONLY, MountFlags::RDONLY),
            (NO_SUID, MountFlags::NOSUID),
            (NO_DEV, MountFlags::NODEV),
            (NO_EXEC, MountFlags::NOEXEC),
        ] {
            if self.set & bit != 0 {
                f |= flag;
            }
        }
        f
    }

    pub fn data(&self) -> Result<std::ffi::CString> {
        std::ffi::CString::new(self.data.as_str())
            .map_err(|_| Error::Settings("a mount option has a NUL".into()))
    }
}

/// A user namespace that exists only as a descriptor, to map the owners of mounts with.
pub(crate) fn mapping_namespace(base: u32, count: u32) -> Result<OwnedFd> {
    let all = [Extent { inside: 0, outside: base, count }];
    user_namespace(&all, &all)
}

/// The same with any map.
pub(crate) fn user_namespace(uids: &[Extent], gids: &[Extent]) -> Result<OwnedFd> {
    let (r, w) = pipe()?;
    let child = codchi_sys::process::clone(Namespaces::USER, None, || {
        // Both ends are here; only a kill ends this.
        let _ = rustix::io::read(&r, &mut [0u8; 1]);
        0
    })
    .doing("make a user namespace")?;
    drop(w);
    let done = write_maps(child.pid, uids, Some(gids)).and_then(|()| {
        let path = format!("/proc/{}/ns/user", child.pid);
        Ok(rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("open", path)?)
    });
    child.signal(codchi_sys::signal::SIGKILL).doing("end a process")?;
    child.wait().doing("wait for a process")?;
    done
}

/// Writes the id maps of a process in a new user namespace; groups as users where none are given.
pub(crate) fn write_maps(pid: i32, uids: &[Extent], gids: Option<&[Extent]>) -> Result<()> {
    codchi_fs::write(format!("/proc/{pid}/uid_map"), ids::map_text(uids))?;
    codchi_fs::write(format!("/proc/{pid}/gid_map"), ids::map_text(gids.unwrap_or(uids)))?;
    Ok(())
}

/// Makes an empty root directory belong to the machine's root.
pub(crate) fn prepare_root(root: &Path, owner_on_disk: Owner) -> Result<()> {
    if codchi_fs::read_dir(root)?.is_empty() {
        rustix::fs::chown(
            root,
            Some(Uid::from_raw(owner_on_disk.uid)),
            Some(Gid::from_raw(owner_on_disk.gid)),
        )
        .at("change the owner of", root)?;
        rustix::fs::chmod(root, Mode::from_raw_mode(0o755)).at("change the mode of", root)?;
    }
    Ok(())
}

/// Puts the machine's root together: its file system, and over it what comes from outside; of the store, where it sees only a
/// part, these names.
pub(crate) fn stage(
    spec: &Spec,
    closure: &[String],
    owner: Owner,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let dir = stage_dir();
    codchi_fs::create_dir_all(&dir)?;
    let root = clone_tree(&spec.root, false).doing(format!("mount `{}`", spec.root.display()))?;
    let attributes = Attributes { set: NO_DEV, private: true, idmap, ..Attributes::default() };
    set_attributes(root.as_fd(), &attributes).map_err(|e| idmap_refused(e, &spec.root, idmap.is_some()))?;
    attach(&root, &open_dir(&dir)?).doing("mount the machine's root")?;
    let root = open_dir(&dir)?;
    for m in &spec.mounts {
        match m.kind {
            MountKind::Bind if m.closure => {
                let what = || format!("show a part of the store at `{}`", m.target.display());
                let view = closure::make(m, closure, owner, idmap)?;
                attach(&view, &place(&root, &m.target, true, owner).doing(what())?).doing(what())?;
            }
            MountKind::Bind => bind(&root, m, owner, idmap)?,
            MountKind::Tmpfs | MountKind::Ramfs if is_credentials(m) => show_credentials(&root, m, owner)?,
            MountKind::Tmpfs | MountKind::Ramfs if m.outer => {
                let what = || format!("mount memory at `{}`", m.target.display());
                let target = place(&root, &m.target, true, owner).doing(what())?;
                memory(&target, m, owner).doing(what())?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes it apart again.
pub(crate) fn unstage() {
    let _ = rustix::mount::unmount(stage_dir().as_path(), UnmountFlags::DETACH);
    closure::forget();
}

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", path)?)
}

pub(crate) fn idmap_refused(e: io::Error, path: &Path, asked: bool) -> Error {
    if asked && e.raw_os_error() == Some(22) {
        return Error::Host {
            what: format!("the file system of `{}` cannot map owners (idmapped mounts)", path.display()),
            hints: vec![
                "keep Codchi's data on ext4, xfs, btrfs, f2fs or tmpfs: set XDG_DATA_HOME, with Linux 5.12 or later".into(),
            ],
        };
    }
    Error::Os { doing: format!("mount `{}`", path.display()), source: e }
}

fn bind(root: &OwnedFd, m: &Mount, owner: Owner, idmap: Option<BorrowedFd<'_>>) -> Result<()> {
    let source = m.source.as_deref().unwrap_or(Path::new("/"));
    let what = || format!("mount `{}` at `{}`", source.display(), m.target.display());
    let tree = match bound(m, source, idmap) {
        Err(Error::Os { source, .. }) if m.optional && source.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        r => r?,
    };
    let is_dir = FileType::from_raw_mode(rustix::fs::fstat(&tree).doing(what())?.st_mode).is_dir();
    let target = place(root, &m.target, is_dir, owner).doing(what())?;
    attach(&tree, &target).doing(what())
}

/// What a bind mount shows of the host: a clone of the mounts at `source`, with the options of `m`, attached nowhere yet.
pub(crate) fn bound(m: &Mount, source: &Path, idmap: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let idmap = idmap.filter(|_| m.idmap);
    // A map applies to whole mounts; what is mounted below is left out rather than shown with foreign owners.
    let tree = clone_tree(source, idmap.is_none()).doing(format!(
        "mount `{}` at `{}`",
        source.display(),
        m.target.display()
    ))?;
    let o = options(&m.options);
    if !o.data.is_empty() {
        return Err(Error::Settings(format!(
            "`{}` is no option of a bind mount (`{}`)",
            o.data,
            m.target.display()
        )));
    }
    let attributes = Attributes { set: o.set, clear: 0, private: true, idmap, recursive: idmap.is_none() };
    set_attributes(tree.as_fd(), &attributes).map_err(|e| idmap_refused(e, source, idmap.is_some()))?;
    Ok(tree)
}

/// Mounts memory that belongs to the machine's root.
fn memory(target: &OwnedFd, m: &Mount, owner: Owner) -> io::Result<()> {
    let mut o = options(&m.options);
    let ids = format!("uid={},gid={}", owner.uid, owner.gid);
    o.data = if o.data.is_empty() { ids } else { format!("{},{ids}", o.data) };
    let path = format!("/proc/self/fd/{}", target.as_raw_fd());
    let data = o.data().map_err(io::Error::other)?;
    let kind = m.kind.as_str();
    rustix::mount::mount(kind, path.as_str(), kind, o.mount_flags(), data.as_c_str())?;
    Ok(())
}

fn is_credentials(m: &Mount) -> bool {
    m.outer && m.target == Path::new(CREDENTIALS)
}

/// Where the credentials are mounted in the outer namespace. They are held there and only shown to the machine, so that they
/// are there again after it has rebooted itself, with what was delivered since.
pub(crate) fn credentials_dir() -> std::path::PathBuf {
    Path::new(OWN_DIR).join("credentials")
}

/// The memory for secrets that a machine asks for.
pub(crate) fn credentials(spec: &Spec) -> Option<&Mount> {
    spec.mounts.iter().find(|m| is_credentials(m))
}

/// Mounts the memory for the machine's secrets and puts them in.
pub(crate) fn hold_credentials(m: &Mount, owner: Owner, secrets: &Bundle) -> Result<()> {
    let dir = credentials_dir();
    codchi_fs::create_dir_all(&dir)?;
    memory(&open_dir(&dir)?, m, owner).doing("mount memory for secrets")?;
    // A ramfs takes no owner as an option.
    rustix::fs::chown(&dir, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
        .at("change the owner of", &dir)?;
    with_file_ids(owner.uid, owner.gid, || -> Result<()> {
        for (name, value) in secrets.iter() {
            let path = dir.join(name);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o400)).at("create", &path)?;
            let mut rest: &[u8] = value;
            while !rest.is_empty() {
                let n = rustix::io::write(&file, rest).at("write", &path)?;
                rest = &rest[n..];
            }
        }
        Ok(())
    })
    .doing("put secrets into memory")?
}

fn show_credentials(root: &OwnedFd, m: &Mount, owner: Owner) -> Result<()> {
    let what = || format!("show the secrets at `{}`", m.target.display());
    let target = place(root, &m.target, true, owner).doing(what())?;
    attach(&clone_tree(&credentials_dir(), false).doing(what())?, &target).doing(what())
}

/// Opens a mount point inside `root`, and makes it as the machine's root would where it is missing. The machine may
/// have put links anywhere: none leads out of `root`.
pub(crate) fn place(root: &OwnedFd, path: &Path, dir: bool, owner: Owner) -> io::Result<OwnedFd> {
    match open_inside(root, path, OFlags::PATH) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        r => return r,
    }
    let names: Vec<_> = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let mut at = std::path::PathBuf::from("/");
    for (i, name) in names.iter().enumerate() {
        let parent = open_inside(root, &at, OFlags::PATH | OFlags::DIRECTORY)?;
        at.push(name);
        let name = name.as_os_str();
        let made = with_file_ids(owner.uid, owner.gid, || {
            if dir || i + 1 < names.len() {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
            } else {
                rustix::fs::mknodat(&parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
            }
        })?;
        match made {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    open_inside(root, path, OFlags::PATH)
}

/// As root on a host that keeps these to root: nodes that machines and their network programs may open, in our own
/// mount namespace only. Every namespace has its own networks and its own mounts to use them for.
///
/// `granted` are those that a person granted besides: whoever is in the machine may use them.
pub(crate) fn open_devices(granted: &[String]) {
    for name in ["net/tun", "fuse"].into_iter().chain(granted.iter().map(String::as_str)) {
        let there = Path::new("/dev").join(name);
        let Ok(node) = rustix::fs::stat(&there) else { continue };
        let kind = FileType::from_raw_mode(node.st_mode);
        if node.st_mode & 0o006 == 0o006 || kind != FileType::CharacterDevice {
            continue;
        }
        let own = Path::new(OWN_DIR).join(name.replace('/', "-"));
        let mode = Mode::from_raw_mode(0o666);
        // Best effort: without it the next kind of network is tried, or a machine has no fuse.
        let _ = rustix::fs::mknodat(CWD, &own, kind, mode, node.st_rdev)
            .and_then(|()| rustix::fs::chmod(&own, mode))
            .and_then(|()| rustix::mount::mount_bind(&own, &there));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_data() {
        let o = options(&["ro".into(), "nosuid".into(), "mode=0755".into(), "size=4m".into()]);
        assert_eq!(o.set, READ_ONLY | NO_SUID);
        assert_eq!(o.data, "mode=0755,size=4m");
        assert_eq!(o.mount_flags(), MountFlags::RDONLY | MountFlags::NOSUID);
    }
}
