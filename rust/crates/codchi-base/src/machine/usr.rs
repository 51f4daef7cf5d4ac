//! Mounts a machine's `/usr`: an overlay of unpacked packages, exchanged at a switch without a moment without it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use codchi_fs::Context as _;
use rustix::fd::OwnedFd;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind, move_mount, open_tree,
    unmount,
};

use super::{RUN, System, boot, say};
use crate::Result;
use crate::error::Tried;

/// Where copies are kept when the kernel cannot overlay the store.
const COPIES: &str = "/var/lib/codchi-base/usr";

/// Mounts a system's `/usr` unless it is there already.
pub fn mount_usr(system: &System) -> Result<()> {
    let wanted = system.usr()?;
    let note = Path::new(RUN).join("usr");
    codchi_fs::create_dir_all(RUN)?;
    codchi_fs::create_dir_all("/usr")?;
    let there = boot::mounted("/usr")?;
    if there && codchi_fs::read_if_exists(&note)?.as_deref() == wanted.to_str() {
        return Ok(());
    }
    let tree = match overlay(&wanted) {
        Ok(tree) => tree,
        Err(e) => {
            say(format!("{e}; /usr becomes a copy"));
            copied(&wanted)?
        }
    };
    put(&tree, there)?;
    links()?;
    codchi_fs::write(&note, wanted.to_string_lossy().as_bytes())?;
    Ok(())
}

/// The overlay of a system's layers, not yet anywhere.
fn overlay(usr: &Path) -> Result<OwnedFd> {
    // Short names, since a mount's options must fit into one page.
    let short = Path::new(RUN).join("layers");
    let stage = Path::new(RUN).join("stage");
    codchi_fs::remove_dir_all(&short)?;
    codchi_fs::create_dir_all(&short)?;
    codchi_fs::create_dir_all(&stage)?;
    let mut options = String::from("lowerdir=");
    for (i, layer) in codchi_fs::read_to_string(usr.join("layers"))?.lines().enumerate() {
        symlink(layer, short.join(i.to_string())).at("create link", &short)?;
        options.push_str(&format!("{}{i}", if i == 0 { "" } else { ":" }));
    }
    let options = std::ffi::CString::new(options).unwrap_or_default();
    rustix::process::chdir(&short).tried(|| format!("enter `{}`", short.display()))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    let mounted = mount("usr", &stage, "overlay", flags, options.as_c_str())
        .tried(|| "mount the packages as an overlay".to_owned());
    rustix::process::chdir("/").tried(|| "enter `/`".to_owned())?;
    mounted?;
    take(&stage)
}

/// A private copy of a mount, which is then taken away from where it was.
fn take(stage: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, stage, flags)
        .tried(|| format!("clone the mount at `{}`", stage.display()));
    unmount(stage, UnmountFlags::DETACH).tried(|| format!("unmount `{}`", stage.display()))?;
    tree
}

/// A real copy of the layers, where they cannot be an overlay (idmapped lower layers need Linux 5.19).
fn copied(usr: &Path) -> Result<OwnedFd> {
    let name = usr.file_name().unwrap_or_default();
    let copy = Path::new(COPIES).join(name);
    let done = copy.join(".complete");
    if !done.exists() {
        codchi_fs::remove_dir_all(&copy)?;
        codchi_fs::create_dir_all(&copy)?;
        for layer in codchi_fs::read_to_string(usr.join("layers"))?.lines() {
            crate::build::merge::copy(Path::new(layer), &copy)?;
        }
        codchi_fs::write(&done, "")?;
    }
    for old in codchi_fs::read_dir(COPIES)?.into_iter().map(|e| e.path()).filter(|p| *p != copy) {
        if codchi_fs::read_if_exists(Path::new(RUN).join("usr"))?
            .map(PathBuf::from)
            .and_then(|u| u.file_name().map(|n| n.to_owned()))
            != old.file_name().map(|n| n.to_owned())
        {
            codchi_fs::remove_dir_all(old)?;
        }
    }
    let stage = Path::new(RUN).join("stage");
    codchi_fs::create_dir_all(&stage)?;
    mount_bind(&copy, &stage).tried(|| format!("bind `{}`", copy.display()))?;
    take(&stage)
}

/// Puts a mount at `/usr`.
fn put(tree: &OwnedFd, replace: bool) -> Result<()> {
    let onto = |extra: MoveMountFlags| {
        move_mount(tree, "", rustix::fs::CWD, "/usr", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | extra)
    };
    if replace && onto(MoveMountFlags::MOVE_MOUNT_BENEATH).is_ok() {
        // What still runs from the old one keeps it alive.
        return unmount("/usr", UnmountFlags::DETACH).tried(|| "unmount the old `/usr`".to_owned());
    }
    // Older kernels: on top; the old one stays below until the machine restarts.
    onto(MoveMountFlags::empty()).tried(|| "mount `/usr`".to_owned())
}

/// `/bin` and its like lead into `/usr`.
fn links() -> Result<()> {
    for (at, target) in
        [("/bin", "usr/bin"), ("/sbin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")]
    {
        if at == "/lib64" && !Path::new("/usr/lib64").exists() {
            continue;
        }
        if codchi_fs::read_link_if_exists(at).ok().flatten().as_deref() == Some(Path::new(target)) {
            continue;
        }
        let _ = rustix::fs::rmdir(at);
        codchi_fs::symlink_atomic(target, at)?;
    }
    Ok(())
}
