//! Root file systems in folders of this host, and trees whose files belong to a machine's users.

use std::path::Path;
use std::process::{Command, Stdio};

use codchi_core::name::MachineName;
use codchi_files::Report;
use codchi_runtime::outer;
use codchi_runtime::spec::CALLER_FILE;

use super::{files, forget};
use crate::{DriverError, Export, Host, Machine, Result};

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

/// Makes the folder of a root file system. Its owner is the supervisor's to set: only it has the machine's ids.
pub fn create(host: &Host, machine: &MachineName) -> Result<()> {
    codchi_fs::create_private_dir(&host.dirs.data)?;
    codchi_fs::create_private_dir(host.dirs.machine_data(machine))?;
    Ok(codchi_fs::create_dir_all(host.dirs.machine_root(machine))?)
}

/// The same, empty, whatever an earlier attempt left.
fn create_afresh(host: &Host, machine: &MachineName) -> Result<()> {
    remove_tree(host.program, &host.dirs.machine_root(machine))?;
    codchi_fs::remove_if_exists(caller_file(host, machine))?;
    create(host, machine)
}

/// Removes it, and what else a machine that is off has on this host.
pub fn remove(host: &Host, machine: &MachineName) -> Result<()> {
    for dir in [&host.dirs.machine_root(machine), &host.dirs.machine_runtime(machine)] {
        remove_tree(host.program, dir)?;
    }
    codchi_fs::remove_if_exists(caller_file(host, machine))?;
    forget(host, machine)
}

/// Copies one to that of a machine that is being made. `still` holds the source still, where it has to be.
pub fn duplicate<T>(
    host: &Host,
    from: &MachineName,
    to: &MachineName,
    still: impl FnOnce() -> Result<T>,
) -> Result<Report> {
    create_afresh(host, to)?;
    let source = host.dirs.machine_root(from);
    if source.symlink_metadata().is_err() {
        // It never started.
        return Ok(Report::default());
    }
    // Which of the owners on disk is the caller.
    if let Some(account) = codchi_fs::read_if_exists(caller_file(host, from))? {
        codchi_fs::write_atomic(caller_file(host, to), account, 0o600)?;
    }
    let _still = still()?;
    files::copy(host, &source, &host.dirs.machine_root(to))
}

/// Writes one as a tar.
pub fn pack(host: &Host, machine: &Machine, export: &Export, to: std::fs::File) -> Result<Report> {
    let caller = caller(host, machine.name)?;
    files::pack(host, &host.dirs.machine_root(machine.name), caller, export, to)
}

/// Makes one from a tar.
pub fn unpack(host: &Host, machine: &Machine, from: std::fs::File, without: &str) -> Result<Report> {
    create_afresh(host, machine.name)?;
    files::unpack(host, &host.dirs.machine_root(machine.name), without, from)
}

fn caller_file(host: &Host, machine: &MachineName) -> std::path::PathBuf {
    host.dirs.machine_data(machine).join(CALLER_FILE)
}

/// Whose files of the machine are the caller's on disk, as [`CALLER_FILE`] says: a user and a group.
fn caller(host: &Host, machine: &MachineName) -> Result<Option<(u32, u32)>> {
    let text = codchi_fs::read_if_exists(caller_file(host, machine))?.unwrap_or_default();
    let mut ids = text.split_whitespace().map_while(|word| word.parse().ok());
    Ok(ids.next().zip(ids.next()))
}
