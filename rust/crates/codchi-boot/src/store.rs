//! The store of a host on which only an engine acts: what is in it, what comes, what goes.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::path::Path;

const STORE: &str = "/nix/store";

/// Carries out what the other host asks.
pub fn run(verb: &str) -> Result<(), String> {
    match verb {
        "names" => names(Path::new(STORE), &mut io::stdout().lock()),
        "import" => import(Path::new(STORE), io::stdin().lock()),
        "keep" => keep(Path::new(STORE), io::stdin().lock()),
        _ => return Err(format!("a store does nothing that is called `{verb}`")),
    }
    .map_err(|e| e.to_string())
}

/// What is in it, a line each.
fn names(store: &Path, to: &mut dyn Write) -> io::Result<()> {
    for entry in entries(store)? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') {
            writeln!(to, "{name}")?;
        }
    }
    Ok(())
}

/// Takes in paths, as a tar of the store's folder. Each is there when it is whole.
fn import(store: &Path, tar: impl io::Read) -> io::Result<()> {
    // Whoever made the folder: all users of machines look into it.
    codchi_fs::set_mode(store, 0o755).map_err(io::Error::other)?;
    // What was cut short is begun anew: the host lets one in at a time.
    for entry in entries(store)? {
        if entry.file_name().to_string_lossy().starts_with(".new-") {
            remove(&entry.path())?;
        }
    }
    let new = store.join(format!(".new-{}", std::process::id()));
    codchi_fs::create_private_dir(&new).map_err(io::Error::other)?;
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    let unpacked = archive.unpack(&new);
    let moved = unpacked.and_then(|()| {
        rustix::fs::sync();
        for entry in entries(&new)? {
            let to = store.join(entry.file_name());
            if to.symlink_metadata().is_err() {
                codchi_fs::rename(entry.path(), to).map_err(io::Error::other)?;
            }
        }
        Ok(())
    });
    let removed = remove(&new);
    moved.and(removed)
}

/// Removes everything that is not named on standard input.
fn keep(store: &Path, names: impl BufRead) -> io::Result<()> {
    let kept: BTreeSet<String> = names.lines().collect::<io::Result<_>>()?;
    for entry in entries(store)? {
        if !kept.contains(&*entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> io::Result<Vec<std::fs::DirEntry>> {
    codchi_fs::read_dir(dir).map_err(io::Error::other)
}

/// Removes a path with all below it.
fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(meta) if meta.is_dir() => codchi_fs::remove_dir_all(path).map_err(io::Error::other),
        Ok(_) => codchi_fs::remove_file(path).map_err(io::Error::other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("codchi-boot-{name}-{}", std::process::id()));
        codchi_fs::remove_dir_all(&dir).unwrap();
        codchi_fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn listed(store: &Path) -> Vec<String> {
        let mut out = Vec::new();
        names(store, &mut out).unwrap();
        let mut all: Vec<_> = String::from_utf8(out).unwrap().lines().map(String::from).collect();
        all.sort();
        all
    }

    #[test]
    fn paths_come_whole_or_not_at_all_and_go_when_nobody_names_them() {
        let (from, to) = (scratch("from"), scratch("to"));
        codchi_fs::create_dir_all(from.join("a")).unwrap();
        codchi_fs::write(from.join("a/run"), "x").unwrap();
        codchi_fs::set_mode(from.join("a/run"), 0o555).unwrap();
        codchi_fs::symlink_atomic("../a/run", from.join("b")).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        tar.follow_symlinks(false);
        tar.append_dir_all("a", from.join("a")).unwrap();
        tar.append_path_with_name(from.join("b"), "b").unwrap();
        let tar = tar.into_inner().unwrap();
        // Cut off in the middle: nothing of it is seen.
        assert!(import(&to, &tar[..700]).is_err());
        assert_eq!(listed(&to), Vec::<String>::new());
        import(&to, &tar[..]).unwrap();
        assert_eq!(listed(&to), ["a", "b"]);
        assert_eq!(to.join("a/run").metadata().unwrap().permissions().mode() & 0o777, 0o555);
        assert_eq!(std::fs::read_link(to.join("b")).unwrap(), Path::new("../a/run"));
        import(&to, &tar[..]).unwrap();
        keep(&to, &b"b\n"[..]).unwrap();
        assert_eq!(listed(&to), ["b"]);
        assert_eq!(codchi_fs::read_dir(&to).unwrap().len(), 1);
        for dir in [from, to] {
            codchi_fs::remove_dir_all(dir).unwrap();
        }
    }
}
