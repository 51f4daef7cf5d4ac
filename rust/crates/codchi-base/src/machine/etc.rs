//! `/etc`: links into the system, copies where a file must be one, and what a person made stays.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use codchi_fs::Context as _;
use serde::Deserialize;

use super::users::Accounts;
use super::{System, say};
use crate::Result;

/// The link to the running system's `etc`.
const STATIC: &str = "/etc/static";
/// Which paths are ours, so that what a later system lacks goes away.
const MANIFEST: &str = "/etc/.codchi-base";

/// A file that is a copy.
#[derive(Debug, Deserialize)]
pub struct Copy {
    mode: String,
    user: String,
    group: String,
}

/// Makes `/etc` that of a system.
pub fn apply(system: &System) -> Result<()> {
    let etc = system.path.join("etc");
    let unchanged = codchi_fs::read_link_if_exists(STATIC)?.as_deref() == Some(&etc);
    if unchanged && Path::new(MANIFEST).exists() {
        return Ok(());
    }
    let mut paths = BTreeSet::new();
    let mut folders = Vec::new();
    collect(&etc, Path::new(""), &mut paths, &mut folders)?;
    codchi_fs::symlink_atomic(&etc, STATIC)?;

    let before: BTreeSet<PathBuf> =
        codchi_fs::read_if_exists(MANIFEST)?.unwrap_or_default().lines().map(PathBuf::from).collect();
    for gone in before.difference(&paths) {
        remove(gone, &paths)?;
    }
    for folder in &folders {
        let at = Path::new("/etc").join(folder);
        if at.symlink_metadata().is_ok_and(|m| !m.is_dir()) {
            codchi_fs::remove_file(&at)?;
        }
        codchi_fs::create_dir_all(&at)?;
    }
    let accounts = Accounts::read()?;
    for path in &paths {
        let at = Path::new("/etc").join(path);
        clear_folder(&at)?;
        match path.to_str().and_then(|p| system.plan.copies.get(p)) {
            Some(copy) => put_copy(&etc.join(path), &at, copy, &accounts)?,
            None => {
                let target = Path::new(STATIC).join(path);
                if codchi_fs::read_link_if_exists(&at).ok().flatten().as_deref() != Some(&target) {
                    codchi_fs::symlink_atomic(&target, &at)?;
                }
            }
        }
    }
    let list: String = paths.iter().map(|p| format!("{}\n", p.display())).collect();
    codchi_fs::write_atomic(MANIFEST, list, 0o644)?;
    // Programs look for it to tell what kind of system this is.
    codchi_fs::write("/etc/NIXOS", "")?;
    Ok(())
}

fn collect(dir: &Path, at: &Path, paths: &mut BTreeSet<PathBuf>, folders: &mut Vec<PathBuf>) -> Result<()> {
    for e in codchi_fs::read_dir(dir)? {
        let below = at.join(e.file_name());
        if below == Path::new(".base") {
            continue;
        }
        if e.file_type().at("look at", e.path())?.is_dir() {
            folders.push(below.clone());
            collect(&e.path(), &below, paths, folders)?;
        } else {
            paths.insert(below);
        }
    }
    Ok(())
}

/// Removes a path that was ours; one that a person replaced stays.
fn remove(path: &Path, now: &BTreeSet<PathBuf>) -> Result<()> {
    let at = Path::new("/etc").join(path);
    let ours = match codchi_fs::read_link_if_exists(&at) {
        Ok(Some(target)) => target.starts_with(STATIC),
        Ok(None) => false,
        // Not a link: a copy of ours.
        Err(_) => at.is_file(),
    };
    if ours && !now.iter().any(|n| n.starts_with(path)) {
        codchi_fs::remove_if_exists(&at)?;
        let mut parent = at.parent();
        while let Some(p) = parent.filter(|p| *p != Path::new("/etc")) {
            if rustix::fs::rmdir(p).is_err() {
                break;
            }
            parent = p.parent();
        }
    }
    Ok(())
}

/// Where a file of ours comes, a folder of ours that was there before is removed; anyone else's is moved aside.
fn clear_folder(at: &Path) -> Result<()> {
    if !at.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        return Ok(());
    }
    if only_ours(at)? {
        return Ok(codchi_fs::remove_dir_all(at)?);
    }
    let aside = PathBuf::from(format!("{}.before-codchi", at.display()));
    say(format!("`{}` is in the way; it is now `{}`", at.display(), aside.display()));
    Ok(codchi_fs::rename(at, aside)?)
}

fn only_ours(dir: &Path) -> Result<bool> {
    for e in codchi_fs::read_dir(dir)? {
        let kind = e.file_type().at("look at", e.path())?;
        let ours = if kind.is_dir() {
            only_ours(&e.path())?
        } else {
            kind.is_symlink()
                && codchi_fs::read_link_if_exists(e.path())?.is_some_and(|t| t.starts_with(STATIC))
        };
        if !ours {
            return Ok(false);
        }
    }
    Ok(true)
}

fn put_copy(from: &Path, to: &Path, copy: &Copy, accounts: &Accounts) -> Result<()> {
    let mode = u32::from_str_radix(&copy.mode, 8).unwrap_or(0o644);
    let new = PathBuf::from(format!("{}.codchi-new", to.display()));
    codchi_fs::remove_if_exists(&new)?;
    codchi_fs::write(&new, codchi_fs::read(from)?)?;
    std::os::unix::fs::chown(&new, accounts.uid(&copy.user), accounts.gid(&copy.group))
        .at("change owner of", &new)?;
    std::fs::set_permissions(&new, PermissionsExt::from_mode(mode)).at("change mode of", &new)?;
    Ok(codchi_fs::rename(&new, to)?)
}
