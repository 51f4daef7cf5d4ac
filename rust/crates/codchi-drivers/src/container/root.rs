//! Removing trees whose files belong to a machine's users.

use std::path::Path;
use std::process::{Command, Stdio};

use codchi_runtime::outer;

use crate::{DriverError, Result};

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
