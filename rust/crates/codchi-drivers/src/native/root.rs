//! Root file systems: made and removed, also where their files belong to subordinate ids.

use std::path::Path;
use std::process::{Command, Stdio};

use codchi_runtime::{ids, outer};

use crate::{DriverError, Result};

/// Makes an empty root file system. Its owner is the supervisor's to set: only it has the machine's ids.
pub fn create(_program: &Path, path: &Path, base: Option<u32>) -> Result<()> {
    create_root_here(path, base)
}

/// The same in this process.
pub fn create_root_here(path: &Path, _base: Option<u32>) -> Result<()> {
    Ok(codchi_fs::create_dir_all(path)?)
}

/// Removes a tree in this process, which must have one thread.
pub fn remove_tree_here(path: &Path) -> Result<()> {
    Ok(outer::remove_tree(path)?)
}

/// Removes a tree, whoever of the machine's users owns what is in it.
pub fn remove_tree(program: &Path, path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    if outer::is_root() {
        return Ok(codchi_fs::remove_dir_all(path)?);
    }
    // Entering a namespace needs a process with one thread.
    let what = || format!("remove `{}`", path.display());
    let out = Command::new(program)
        .args(["plumbing", "remove-tree"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| DriverError::Helper { what: what(), reason: e.to_string() })?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(DriverError::Helper { what: what(), reason: said.trim().trim_start_matches("error: ").into() })
}

/// The first id of a range for a new machine of root: not in `taken`, and not used by a machine that runs, whosever it is.
pub fn choose_ids(taken: &[u32]) -> Result<u32> {
    let mut taken = taken.to_vec();
    loop {
        let base = ids::choose_base(&taken)?;
        match ids::lock_base(base, "codchi init") {
            Ok(_free) => return Ok(base),
            Err(_) if taken.len() < 1000 => taken.push(base),
            Err(e) => return Err(e.into()),
        }
    }
}
