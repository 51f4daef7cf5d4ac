//! The files of a container as its own root sees them, for a process that works on them from outside.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use codchi_fs::Context;
use codchi_sys::identity;
use codchi_sys::mount::{Attributes, READ_ONLY, set_attributes};
use codchi_sys::process::{self, Namespaces};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags};

use crate::error::{Doing, Result};
use crate::outer::{attach, clone_tree};

/// Where what a process works on shows, after [`enter_files`].
#[derive(Debug)]
pub struct Places {
    /// The container's root file system, without what is mounted in it.
    pub root: PathBuf,
    /// The host's folders that were asked for, in their order, read-only.
    pub shown: Vec<PathBuf>,
}

/// Makes this process, which must have one thread and be the host's root, root of the container whose first process is `leader`,
/// with nothing of the container in sight but its root file system. Ids are the container's from then on.
///
/// # Errors
/// That one of the namespaces or mounts could not be made.
pub fn enter_files(leader: i32, shown: &[PathBuf]) -> Result<Places> {
    let machine = process::pidfd_open(leader).doing("find the machine's first process")?;
    let user = format!("/proc/{leader}/ns/user");
    let user = rustix::fs::open(&user, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("open", &user)?;
    let what = |path: &Path| format!("show `{}` to the machine's root", path.display());
    let mut trees = Vec::new();
    for path in shown {
        let tree = clone_tree(path, false).doing(what(path))?;
        // The host's root is the container's there.
        let attributes =
            Attributes { set: READ_ONLY, private: true, idmap: Some(user.as_fd()), ..Attributes::default() };
        set_attributes(tree.as_fd(), &attributes).doing(what(path))?;
        trees.push(tree);
    }
    // A process finds its own descriptors there; the container's knows nothing of this one.
    let proc = clone_tree(Path::new("/proc"), false).doing("show `/proc`")?;
    let join = || "join the machine's namespaces";
    process::setns(machine.as_fd(), Namespaces::USER.and(Namespaces::MOUNT)).doing(join())?;
    process::unshare(Namespaces::MOUNT).doing(join())?;
    identity::set_groups(&[]).doing("drop groups")?;
    identity::set_gid(0).doing("become root of the machine")?;
    identity::set_uid(0).doing("become root of the machine")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).doing(join())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = rustix::mount::open_tree(CWD, "/", flags).doing("find the machine's root")?;
    // A root of our own, over the machine's devices; what the machine has elsewhere is out of sight with its own.
    let stage = Path::new("/dev");
    let memory = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("stage", stage, "tmpfs", memory, c"mode=0700").doing("mount memory")?;
    let place = |name: &str, tree| -> Result<PathBuf> {
        let at = stage.join(name);
        codchi_fs::create_dir_all(&at)?;
        let target = rustix::fs::open(&at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .at("open", &at)?;
        attach(tree, &target).doing("show a folder")?;
        Ok(Path::new("/").join(name))
    };
    place("proc", &proc)?;
    let root = place("root", &root)?;
    let shown = trees.iter().enumerate().map(|(i, tree)| place(&format!("shown-{i}"), tree));
    let shown = shown.collect::<Result<Vec<_>>>()?;
    rustix::process::chroot(stage).doing("enter a root of our own")?;
    rustix::process::chdir("/").doing("enter a root of our own")?;
    Ok(Places { root, shown })
}
