//! A machine that sees of the store only what its system needs to run.
//!
//! In the outer namespace a folder in memory has a mount point for each of those paths and the path mounted on it; that folder is
//! the machine's store. The folder is one file system, wherever it is mounted: a mount point that is made here later is there in
//! a running machine, too, and a path is mounted on it as host folders are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use codchi_fs::Context;
use codchi_sys::mount::{Attributes, READ_ONLY, set_attributes};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{Doing, Error, Result};
use crate::folders::{self, Machine, Tree};
use crate::mounts::{Owner, bound};
use crate::outer::{OWN_DIR, attach, clone_tree};
use crate::spec::Mount;

/// How many paths a running machine is given at a time: each takes a descriptor meanwhile.
const AT_ONCE: usize = 64;

fn view() -> PathBuf {
    Path::new(OWN_DIR).join("closure")
}

/// Takes the folder away.
pub(crate) fn forget() {
    let _ = rustix::mount::unmount(view().as_path(), UnmountFlags::DETACH);
}

/// Makes the folder, with these names of the store, and gives a clone of it, attached nowhere yet.
pub(crate) fn make(
    m: &Mount,
    names: &[String],
    owner: Owner,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    let dir = view();
    codchi_fs::create_dir_all(&dir)?;
    let data = format!("mode=0755,size=1m,nr_inodes=65536,uid={},gid={}", owner.uid, owner.gid);
    let data = std::ffi::CString::new(data).map_err(std::io::Error::other).doing("mount memory")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("closure", &dir, "tmpfs", flags, data.as_c_str()).doing("mount memory")?;
    for name in names {
        if let Some((tree, _)) = place(m, name, idmap)? {
            let at = dir.join(name);
            let target =
                rustix::fs::open(&at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).at("open", &at)?;
            attach(&tree, &target).doing(format!("mount `{name}` of the store"))?;
        }
    }
    let all = clone_tree(&dir, true).doing("take a part of the store")?;
    let attributes = Attributes { set: READ_ONLY, private: true, ..Attributes::default() };
    set_attributes(all.as_fd(), &attributes).doing("make a part of the store read-only")?;
    Ok(all)
}

/// Gives a running machine further names of the store.
pub(crate) fn extend(
    machine: &Machine,
    m: &Mount,
    names: &[String],
    idmap: Option<BorrowedFd<'_>>,
) -> Result<()> {
    for some in names.chunks(AT_ONCE) {
        let mut trees = Vec::new();
        for name in some {
            if let Some((tree, is_dir)) = place(m, name, idmap)? {
                trees.push(Tree { tree, is_dir, target: m.target.join(name) });
            }
        }
        folders::mount(machine, trees)?;
    }
    Ok(())
}

/// Makes the mount point of a name, and gives what is to be mounted on it and whether that is a folder. A link is copied, and
/// nothing is mounted.
fn place(m: &Mount, name: &str, idmap: Option<BorrowedFd<'_>>) -> Result<Option<(OwnedFd, bool)>> {
    let odd = name.is_empty() || name.starts_with('.') || name.contains('/');
    let Some(store) = m.source.as_ref().filter(|_| !odd) else {
        return Err(Error::Settings(format!("`{name}` is no name in the store")));
    };
    let (source, at) = (store.join(name), view().join(name));
    let kind = source.symlink_metadata().at("examine", &source)?.file_type();
    if kind.is_symlink() {
        let to = codchi_fs::read_link_if_exists(&source)?.unwrap_or_default();
        codchi_fs::symlink_atomic(to, &at)?;
        return Ok(None);
    }
    if kind.is_dir() {
        codchi_fs::create_dir_all(&at)?;
    } else {
        codchi_fs::write(&at, "")?;
    }
    Ok(Some((bound(m, &source, idmap)?, kind.is_dir())))
}
