//! How much of the disk a tree takes whose files belong to a machine's users.

use std::collections::HashSet;
use std::ffi::CString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use codchi_runtime::outer::{self, OuterConfig, Role};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::{DriverError, Result};

/// Bytes that a tree takes of the disk, whoever of the machine's users owns what is in it; files with several names count once.
pub fn measure_tree(program: &Path, path: &Path) -> Result<u64> {
    if path.symlink_metadata().is_err() {
        return Ok(0);
    }
    // Entering a namespace needs a process with one thread, and so does a working folder that changes.
    let what = || format!("measure `{}`", path.display());
    let out = Command::new(program)
        .args(["plumbing", "measure-tree"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| DriverError::Helper { what: what(), reason: e.to_string() })?;
    let said = String::from_utf8_lossy(&out.stdout);
    match (out.status.success(), said.trim().parse()) {
        (true, Ok(bytes)) => Ok(bytes),
        _ => {
            let said = String::from_utf8_lossy(&out.stderr);
            Err(DriverError::Helper {
                what: what(),
                reason: said.trim().trim_start_matches("error: ").into(),
            })
        }
    }
}

/// What [`measure_tree`] runs; this process must have one thread.
pub fn measure_tree_here(path: &Path) -> Result<()> {
    let failed = |e: Errno| DriverError::Helper {
        what: format!("measure `{}`", path.display()),
        reason: std::io::Error::from(e).to_string(),
    };
    let bytes = if outer::is_privileged() {
        measure(path).map_err(failed)?
    } else {
        let told = outer::run(&OuterConfig::default(), Role::Maintainer, |_| {
            let bytes = measure(path).map_err(|e| codchi_runtime::Error::Told(failed(e).to_string()))?;
            Ok(bytes.to_le_bytes().to_vec())
        })?;
        told.try_into().map_or(0, u64::from_le_bytes)
    };
    // Whoever does not listen does not need to know.
    let _ = writeln!(std::io::stdout(), "{bytes}");
    Ok(())
}

/// A folder on the way down: which it is, and those in it that were not looked into yet.
struct Level {
    id: (u64, u64),
    folders: Vec<CString>,
}

/// From folder to folder, so that no path grows too long for the system: a machine can make trees of any depth.
fn measure(path: &Path) -> rustix::io::Result<u64> {
    let (mut sum, mut seen) = (0, HashSet::new());
    rustix::process::chdir(path)?;
    let mut levels = vec![read_here(&mut sum, &mut seen)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.folders.pop() else {
            levels.pop();
            let Some(above) = levels.last() else { break };
            rustix::process::chdir("..")?;
            // The running machine moved it: what is above now may be no part of it.
            if id(&rustix::fs::statat(CWD, ".", AtFlags::empty())?) != above.id {
                return Err(Errno::STALE);
            }
            continue;
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What went meanwhile takes nothing.
        let Ok(folder) = rustix::fs::openat(CWD, &name, flags, Mode::empty()) else { continue };
        rustix::process::fchdir(&folder)?;
        drop(folder);
        levels.push(read_here(&mut sum, &mut seen)?);
    }
    Ok(sum)
}

fn id(stat: &rustix::fs::Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn read_here(sum: &mut u64, seen: &mut HashSet<(u64, u64)>) -> rustix::io::Result<Level> {
    let here =
        rustix::fs::openat(CWD, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut level = Level { id: id(&rustix::fs::fstat(&here)?), folders: Vec::new() };
    for entry in Dir::read_from(&here)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(&here, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if folder {
            level.folders.push(name.to_owned());
        }
        if folder || stat.st_nlink < 2 || seen.insert(id(&stat)) {
            *sum += stat.st_blocks as u64 * 512;
        }
    }
    Ok(level)
}
