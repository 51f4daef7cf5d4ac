//! Nix's official binary tarball: store paths, and what the data base is to know of them.

use std::io::{BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use codchi_nix::StorePath;

use crate::error::Tried;
use crate::{Result, StoreError, shell};

/// A root of the store, and the link by which its Nix is found.
pub const LINK: &str = "/nix/var/nix/gcroots/codchi/nix";

/// Puts the tarball's paths into the store. Runs as the store's owner, where /nix is the store's.
///
/// Each path appears when it is whole, so one that is there need not be looked at again.
pub fn unpack(file: &Path) -> Result<()> {
    let store = Path::new("/nix/store");
    let staging = store.join(".unpack");
    codchi_fs::create_dir_all(store)?;
    codchi_fs::remove_dir_all(&staging)?;
    codchi_fs::create_dir_all(&staging)?;
    let reginfo = extract(file, &staging)?;
    let mut nix = None;
    for entry in codchi_fs::read_dir(&staging)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path: StorePath = format!("/nix/store/{name}").parse()?;
        if entry.path().join("bin/nix-daemon").symlink_metadata().is_ok() {
            nix = Some(path.clone());
        }
        if path.as_path().symlink_metadata().is_err() {
            codchi_fs::rename(entry.path(), path.as_path())?;
        }
    }
    codchi_fs::remove_dir_all(&staging)?;
    let odd = |reason: &str| StoreError::Package { path: file.into(), reason: reason.into() };
    let nix = nix.ok_or_else(|| odd("it has no Nix"))?;
    codchi_fs::create_dir_all(Path::new(LINK).parent().unwrap_or(store))?;
    codchi_fs::symlink_atomic(nix.as_path(), LINK)?;
    register(&nix, &reginfo.ok_or_else(|| odd("it has no `.reginfo`"))?)
}

/// Extracts what is below `*/store/` and gives the content of `*/.reginfo`.
fn extract(file: &Path, staging: &Path) -> Result<Option<Vec<u8>>> {
    let bad = |e: std::io::Error| StoreError::Package { path: file.into(), reason: e.to_string() };
    let data = liblzma::read::XzDecoder::new(BufReader::new(codchi_fs::open(file)?));
    let mut archive = tar::Archive::new(data);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    let mut reginfo = None;
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let path = entry.path().map_err(bad)?.into_owned();
        match place(&path) {
            Some(Place::Store(to)) => {
                // Links between files are named from the top of the archive.
                let linked =
                    entry.link_name().map_err(bad)?.filter(|_| entry.header().entry_type().is_hard_link());
                if let Some(linked) = linked {
                    let Some(Place::Store(from)) = place(&linked) else { continue };
                    codchi_fs::link_or_copy(staging.join(from), staging.join(to))?;
                    continue;
                }
                let to = staging.join(to);
                if let Some(parent) = to.parent() {
                    codchi_fs::create_dir_all(parent)?;
                }
                entry.unpack(&to).map_err(bad)?;
            }
            Some(Place::Registration) => {
                let mut text = Vec::new();
                entry.read_to_end(&mut text).map_err(bad)?;
                reginfo = Some(text);
            }
            None => {}
        }
    }
    Ok(reginfo)
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Below the store.
    Store(PathBuf),
    /// What the data base is to know.
    Registration,
}

/// What an entry is; none for what is of no use, or tries to leave.
fn place(path: &Path) -> Option<Place> {
    let mut parts = path.components().filter(|c| *c != Component::CurDir);
    let normal = |c: Component<'_>| matches!(c, Component::Normal(_));
    parts.next().filter(|c| normal(*c))?;
    let second = parts.next()?;
    if second.as_os_str() == ".reginfo" && parts.next().is_none() {
        return Some(Place::Registration);
    }
    let rest: Vec<_> = parts.collect();
    (second.as_os_str() == "store" && !rest.is_empty() && rest.iter().all(|c| normal(*c)))
        .then(|| Place::Store(rest.iter().collect()))
}

/// Tells Nix's data base of the paths.
fn register(nix: &StorePath, reginfo: &[u8]) -> Result<()> {
    let mut c = Command::new(nix.as_path().join("bin/nix-store"));
    shell::as_owner(&mut c);
    c.arg("--load-db").stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = c.spawn().tried("run the Nix that was unpacked")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(reginfo).tried("register the paths of Nix")?;
    }
    let out = child.wait_with_output().tried("register the paths of Nix")?;
    if out.status.success() {
        return Ok(());
    }
    Err(StoreError::DoesNotRun(String::from_utf8_lossy(&out.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_store_paths_and_their_registration_are_taken() {
        let store = |p: &str| Some(Place::Store(p.into()));
        assert_eq!(place(Path::new("nix-2/store/a/b")), store("a/b"));
        assert_eq!(place(Path::new("./nix-2/store/a")), store("a"));
        assert_eq!(place(Path::new("nix-2/.reginfo")), Some(Place::Registration));
        for bad in [
            "nix-2/install",
            "nix-2/store",
            "nix-2/store/../x",
            "../store/x",
            "/nix-2/store/x",
            "nix-2/store/a/../../x",
            "",
        ] {
            assert_eq!(place(Path::new(bad)), None, "{bad}");
        }
    }
}
