//! Host folders in a machine with a kernel of its own: one virtiofsd shares memory in which they are mounted, each under a number, and
//! the machine mounts them from there to their places.
//!
//! The virtiofsd has ids and mounts of its own. What is mounted for it while it runs is locked as in a container's
//! namespace ([`folders`]); the memory itself is read-only there.

use std::path::PathBuf;

use codchi_core::folder::{Folder, FolderState};
use codchi_sys::process::Child;
use rustix::fs::Mode;

use crate::error::{Doing, Result};
use crate::folders::{self, Machine};
use crate::ids;
use crate::mounts::Owner;
use crate::spec::{Launch, User};

/// Has the machine mount what is shared under a number at its place, or unmount what is there.
pub type InMachine<'a> = dyn FnMut(Change<'_>) -> std::result::Result<(), String> + 'a;

/// What the machine does about a folder.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// It mounts what has this number.
    Mount(usize, &'a Folder),
    /// It unmounts it.
    Unmount(&'a Folder),
}

/// The folders of a machine that runs.
pub(crate) struct Lent {
    machine: Machine,
    /// The memory, as this process sees it and as the server does.
    at: PathBuf,
    next: usize,
    has: Vec<(FolderState, usize)>,
}

impl Lent {
    /// Of a machine whose folders this process shares.
    pub(crate) fn new(server: &Child, at: PathBuf, launch: &Launch, owner: Owner, mapped: bool) -> Lent {
        let machine = Machine {
            leader: server.pid,
            owner,
            count: launch.uid_count,
            user: launch.user,
            mapped,
            is_caller: !mapped,
        };
        Lent { machine, at, next: 0, has: Vec::new() }
    }

    /// Shares what a machine is started with, by numbers in its order.
    ///
    /// # Errors
    /// The first that it cannot do without and does not get.
    pub(crate) fn begin(&mut self, launch: &Launch) -> Result<()> {
        for folder in &launch.folders {
            let number = self.number();
            let problem = self.show(folder, number).err();
            if let Some(problem) = problem.as_ref().filter(|_| !folder.optional) {
                return Err(folders::refused(&launch.name, folder, problem));
            }
            self.has.push((FolderState { folder: folder.clone(), problem }, number));
        }
        Ok(())
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    /// Mounts a folder for the server.
    fn show(&self, folder: &Folder, number: usize) -> std::result::Result<(), String> {
        let at = self.at.join(number.to_string());
        let kind = std::fs::metadata(&folder.source).map(|m| m.is_dir());
        let make = || -> Result<()> {
            match kind {
                // What it is, is looked at again when it is opened.
                Ok(false) => codchi_fs::write(&at, "")?,
                _ => codchi_fs::create_dir_all(&at)?,
            }
            rustix::fs::chmod(&at, Mode::from_raw_mode(0o755)).doing("show a folder")?;
            Ok(())
        };
        make().map_err(|e| e.to_string())?;
        let there = Folder { target: at.clone(), ..folder.clone() };
        let given = folders::give(&self.machine, &there);
        if given.is_err() {
            self.clear(number);
        }
        given
    }

    fn clear(&self, number: usize) {
        let at = self.at.join(number.to_string());
        let _ = codchi_fs::remove_if_exists(&at).or_else(|_| codchi_fs::remove_dir_all(&at));
    }

    /// Brings what a running machine has to what it shall have.
    pub(crate) fn change(&mut self, wanted: &[Folder], in_machine: &mut InMachine<'_>) {
        let has = std::mem::take(&mut self.has).into_iter().filter(|(s, _)| s.problem.is_none());
        let (stays, goes): (Vec<_>, Vec<_>) = has.partition(|(s, _)| wanted.contains(&s.folder));
        for (state, number) in goes.iter().rev() {
            // The machine may have unmounted it itself; what counts is that it is shared no more.
            let _ = in_machine(Change::Unmount(&state.folder));
            let there = Folder { target: self.at.join(number.to_string()), ..state.folder.clone() };
            let _ = folders::take(&self.machine, &there);
            self.clear(*number);
        }
        for folder in wanted {
            if let Some(there) = stays.iter().find(|(s, _)| s.folder == *folder) {
                self.has.push(there.clone());
                continue;
            }
            let number = self.number();
            let given = self.show(folder, number).and_then(|()| in_machine(Change::Mount(number, folder)));
            self.has.push((FolderState { folder: folder.clone(), problem: given.err() }, number));
        }
    }

    /// What the machine has.
    pub(crate) fn states(&self) -> Vec<FolderState> {
        self.has.iter().map(|(state, _)| state.clone()).collect()
    }
}

/// The ids of the server, by those of the machine: without root, the machine's user is the caller there.
pub(crate) fn ids_of(
    own: &(Vec<ids::Extent>, Vec<ids::Extent>),
    outer: Option<&(Vec<ids::Extent>, Vec<ids::Extent>)>,
    user: User,
) -> (Vec<ids::Extent>, Vec<ids::Extent>) {
    match outer {
        None => own.clone(),
        Some((uids, gids)) => (ids::child_of(uids, Some(user.uid)), ids::child_of(gids, Some(user.gid))),
    }
}

/// What a virtual machine is told of a folder before its init: `folder NUMBER TARGET`. None where it cannot be told.
pub fn told(number: usize, folder: &Folder) -> Option<String> {
    let target = folder.target.to_str().filter(|t| !t.contains('\n'))?;
    Some(format!("folder {number} {target}\n"))
}
