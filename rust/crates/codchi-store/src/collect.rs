//! Collecting garbage where anybody's process may be in sight.
//!
//! Nix takes what processes use for roots, and gives up (2.26) when it cannot read where one of them is, such as in a folder
//! deeper than a path may be long: any user of a machine can have one. So this looks itself, passes over what it cannot read, writes
//! what it found down as roots, and lets Nix see no process.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use codchi_nix::StorePath;
use codchi_runtime::outer;
use codchi_sys::process;
use rustix::mount::{MountFlags, mount_bind, mount_bind_recursive};

use crate::error::Tried;
use crate::{Result, shell};

/// Where the roots of a collection that runs are, each collection's in a folder of its own.
const RUNNING: &str = "/nix/var/nix/gcroots/codchi/running";

/// Runs a collecting program, in the outer namespace and as the store's owner, and gives its exit status.
pub(crate) fn run(program: &OsStr, args: &[std::ffi::OsString]) -> Result<u8> {
    forget_dead()?;
    let roots = Path::new(RUNNING).join(std::process::id().to_string());
    codchi_fs::create_dir_all(&roots)?;
    for path in in_use(Path::new("/proc")) {
        let name = path.base_name();
        if Path::new("/nix/store").join(name).symlink_metadata().is_ok() {
            codchi_fs::symlink_atomic(path.as_path(), roots.join(name))?;
        }
    }
    let hidden = || -> Result<std::convert::Infallible> {
        process::unshare(process::Namespaces::MOUNT).tried("make a mount namespace")?;
        shell::die_with_parent()?;
        hide_processes()?;
        let mut c = Command::new(program);
        shell::as_owner(&mut c);
        Err(std::os::unix::process::CommandExt::exec(c.args(args)))
            .tried(format!("run `{}`", program.display()))
    };
    let child = process::fork(|| match hidden() {
        Ok(never) => match never {},
        Err(e) => {
            shell::complain(&e);
            127
        }
    })
    .tried("start a process")?;
    let end = child.wait().tried("wait for a program")?;
    codchi_fs::remove_dir_all(&roots)?;
    Ok(end.shell_status())
}

/// Covers /proc by one in which this process is, and no other.
fn hide_processes() -> Result<()> {
    let what = "hide the processes";
    let own = Path::new(outer::OWN_DIR).join("proc");
    codchi_fs::create_dir_all(&own)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", &own, "tmpfs", flags, None).tried(what)?;
    codchi_fs::create_dir_all(own.join("self"))?;
    mount_bind("/proc/self", own.join("self")).tried(what)?;
    for file in ["cpuinfo", "meminfo", "stat"] {
        codchi_fs::write(own.join(file), "")?;
        mount_bind(Path::new("/proc").join(file), own.join(file)).tried(what)?;
    }
    mount_bind_recursive(&own, "/proc").tried(what)
}

/// Removes what killed collections left.
fn forget_dead() -> Result<()> {
    let entries = match codchi_fs::read_dir(RUNNING) {
        Err(e) if e.is_not_found() => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            codchi_fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The store paths that processes use: as their program, folder, open files, mapped files, or in their environment. What cannot be
/// read does not count.
fn in_use(proc: &Path) -> BTreeSet<StorePath> {
    let mut all = BTreeSet::new();
    let folders = codchi_fs::read_dir(proc).unwrap_or_default();
    for folder in folders.iter().filter(|e| e.file_name().as_bytes().iter().all(u8::is_ascii_digit)) {
        let at = folder.path();
        let mut links = vec![at.join("exe"), at.join("cwd"), at.join("root")];
        links.extend(codchi_fs::read_dir(at.join("fd")).unwrap_or_default().iter().map(|e| e.path()));
        for link in links {
            if let Ok(Some(to)) = codchi_fs::read_link_if_exists(link) {
                mentioned(to.as_os_str().as_bytes(), &mut all);
            }
        }
        for file in ["maps", "environ"] {
            mentioned(&codchi_fs::read(at.join(file)).unwrap_or_default(), &mut all);
        }
    }
    all
}

/// Adds the store paths that a text mentions.
fn mentioned(text: &[u8], all: &mut BTreeSet<StorePath>) {
    const STORE: &[u8] = b"/nix/store/";
    let mut rest = text;
    while let Some(at) = rest.windows(STORE.len()).position(|w| w == STORE) {
        rest = &rest[at + STORE.len()..];
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"+-._?=".contains(b);
        let end = rest.iter().position(|b| !is_name(b)).unwrap_or(rest.len());
        let name = String::from_utf8_lossy(&rest[..end]);
        all.extend(format!("/nix/store/{name}").parse::<StorePath>().ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_paths_are_found_wherever_they_stand() {
        let (a, b) = ("0c0i0mxfn1h6ncxyf2vfzjhx5gn9fqza-a.b", "1c0i0mxfn1h6ncxyf2vfzjhx5gn9fqza-c+d");
        let mut all = BTreeSet::new();
        let text = format!("PATH=/nix/store/{a}/bin:/x\0Y=/nix/store/{b}\0/nix/store/short /nix/store/");
        mentioned(text.as_bytes(), &mut all);
        assert_eq!(all.iter().map(StorePath::base_name).collect::<Vec<_>>(), [a, b]);
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for d in ["1/fd", "2", "x"] {
            codchi_fs::create_dir_all(at(d)).unwrap();
        }
        let name = "0c0i0mxfn1h6ncxyf2vfzjhx5gn9fqza-a";
        codchi_fs::symlink_atomic(format!("/nix/store/{name}/f"), at("1/fd/3")).unwrap();
        codchi_fs::create_dir_all(at("2/exe")).unwrap();
        codchi_fs::create_dir_all(at("2/maps")).unwrap();
        let all = in_use(dir.path());
        assert_eq!(all.iter().map(StorePath::base_name).collect::<Vec<_>>(), [name]);
    }
}
