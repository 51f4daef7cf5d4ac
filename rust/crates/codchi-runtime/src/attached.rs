//! What a container of an engine has of its host, given to it by way of its namespaces.
//!
//! The engine mounts folders of the machine's runtime directory; codchi-boot, its first process, puts them in their places, says
//! that it waits, and goes on when its word is repeated in `host/ready`. Meanwhile the machine is connected, and gets its
//! secrets and folders.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use codchi_core::folder::{Folder, FolderState};
use codchi_fs::Context;
use codchi_secrets::Bundle;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::UnmountFlags;

use crate::attend::{Has, Seen, Warn};
use crate::connection::Connection;
use crate::error::{Doing, Error, Result};
use crate::mounts::{self, CREDENTIALS, Owner};
use crate::outer::{attach, clone_tree};
use crate::spec::{Launch, Mount, MountKind, User};
use crate::{folders, notify};

/// Where the agent of a machine listens.
const AGENT: &str = "/run/codchi/agent";
/// What statfs(2) says of a tmpfs.
const TMPFS: i64 = 0x0102_1994;
/// Folders of the runtime directory that the machine sees, and the one that shows this host its agent.
const FOLDERS: [&str; 4] = ["agent", "daemon", "notify", "host"];

/// The host's side of one machine.
pub struct Attached {
    dir: PathBuf,
    owner: Owner,
    notify: OwnedFd,
    connection: Connection,
    folders: Vec<FolderState>,
    /// The last word that was repeated: it is said again until it is.
    answered: Option<String>,
}

impl Attached {
    /// Lays out the runtime directory and holds the secrets. `root` is the machine's root by the host's ids.
    ///
    /// # Errors
    /// Also when a folder is missing that the machine cannot do without.
    pub fn open(dir: &Path, launch: &Launch, root: u32, secrets: &Bundle) -> Result<Attached> {
        folders::require(&launch.name, &launch.folders)?;
        let owner = Owner { uid: root, gid: root };
        // A machine that runs has them mounted, so they are never made anew.
        for name in FOLDERS {
            let d = dir.join(name);
            codchi_fs::create_dir_all(&d)?;
            rustix::fs::chmod(&d, Mode::from_raw_mode(0o755)).at("change the mode of", &d)?;
        }
        codchi_fs::remove_if_exists(dir.join("notify/socket"))?;
        let memory = Mount {
            // Never swapped out.
            kind: MountKind::Ramfs,
            source: None,
            target: CREDENTIALS.into(),
            options: ["mode=0700", "nosuid", "nodev", "noexec"].map(String::from).to_vec(),
            idmap: false,
            outer: true,
            closure: false,
            optional: false,
        };
        mounts::hold_credentials(&memory, owner, secrets)?;
        Ok(Attached {
            dir: dir.into(),
            owner,
            notify: notify::socket(dir)?,
            connection: Connection::new(dir, owner, false)?,
            folders: Vec::new(),
            answered: None,
        })
    }

    /// An account of the machine by the host's ids.
    pub fn on_host(&self, user: User) -> User {
        User { uid: self.owner.uid + user.uid, gid: self.owner.gid + user.gid }
    }

    /// Gives a machine everything, and shows this host its agent.
    ///
    /// # Errors
    /// That it does not get what it cannot do without.
    pub fn give(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<Has> {
        self.show_agent(leader)?;
        let secrets = clone_tree(&mounts::credentials_dir(), false).doing("show the secrets")?;
        let secrets = folders::Tree { tree: secrets, is_dir: true, target: CREDENTIALS.into() };
        folders::mount(&self.machine(leader, launch), vec![secrets])?;
        self.connection.connect(leader, launch, warn);
        let machine = self.machine(leader, launch);
        self.folders = folders::give_all(&machine, &launch.name, &launch.folders)?;
        Ok(self.has())
    }

    /// The same for one that is found running. What it had of folders it may still have: those are given anew.
    ///
    /// # Errors
    /// None that concern the machine: what it does not get is said.
    pub fn find(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<Has> {
        self.take(leader, launch, &launch.folders, warn);
        // One that has only just been started by hand has nothing yet; it says when it waits for it.
        if let Err(e) = self.give(leader, launch, warn) {
            warn(e.to_string());
        }
        Ok(self.has())
    }

    /// What wakes whoever looks after the machine.
    pub fn events(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.notify.as_fd()];
        all.extend(self.connection.events());
        all
    }

    /// Hears PID 1, lets it go on when it waits, follows the host's resolver, restarts the network program.
    ///
    /// # Errors
    /// As for [`give`](Attached::give).
    pub fn look(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<Seen> {
        let said = notify::hear(&self.notify, leader);
        let mut has = None;
        if let Some(word) = said.waiting.as_ref().filter(|w| self.answered.as_ref() != Some(*w)) {
            // One that was found while it waited has them already.
            let had = std::mem::take(&mut self.folders).into_iter().filter(|s| s.problem.is_none());
            self.take(leader, launch, &had.map(|s| s.folder).collect::<Vec<_>>(), warn);
            has = Some(self.give(leader, launch, warn)?);
            // Its folder is read-only in the machine, and the name is new with each start.
            crate::start::write_quick(&self.dir.join("host/ready"), word.as_bytes())?;
            self.answered = Some(word.clone());
        }
        if self.connection.follow(leader, launch, warn)? {
            has = Some(self.has());
        }
        Ok(Seen { said, has })
    }

    /// Takes folders back.
    fn take(&self, leader: i32, launch: &Launch, folders: &[Folder], warn: &mut Warn<'_>) {
        let machine = self.machine(leader, launch);
        for folder in folders.iter().rev() {
            if let Err(e) = folders::take(&machine, folder) {
                warn(e);
            }
        }
    }

    /// Brings what a running machine has from what `old` says to what `new` says.
    ///
    /// # Errors
    /// None that concern the machine: what it does not get is in the answer.
    pub fn change(&mut self, leader: i32, old: &Launch, new: &Launch, warn: &mut Warn<'_>) -> Result<Has> {
        self.connection.change(leader, &old.ports, new, warn);
        let machine = self.machine(leader, new);
        self.folders = folders::change(&machine, std::mem::take(&mut self.folders), &new.folders);
        Ok(self.has())
    }

    /// The network program.
    pub fn children(&self) -> Vec<i32> {
        self.connection.child().into_iter().collect()
    }

    /// PID 1 has ended, and its namespaces with it.
    pub fn part(&mut self) {
        self.connection.part();
        self.folders.clear();
        let _ = codchi_fs::remove_if_exists(self.dir.join("host/ready"));
        self.hide_agent();
    }

    /// Leaves nothing but the folders the engine mounts: it can start the machine without us.
    pub fn close(&mut self) {
        self.part();
        for file in ["daemon/socket", "notify/socket"] {
            let _ = codchi_fs::remove_if_exists(self.dir.join(file));
        }
    }

    fn has(&self) -> Has {
        self.connection.has(self.folders.clone())
    }

    fn machine(&self, leader: i32, launch: &Launch) -> folders::Machine {
        folders::Machine {
            leader,
            owner: self.owner,
            count: launch.uid_count,
            user: launch.user,
            mapped: true,
            is_caller: false,
        }
    }

    /// Shows the folder in which the machine's agent listens to this host, by way of this process ([`crate::state::agent_dir`]).
    /// It is memory of the machine's own: what fills it is the machine's. Nothing else is taken for it.
    fn show_agent(&self, leader: i32) -> Result<()> {
        self.hide_agent();
        let tree = folders::copy_mount(leader, Path::new(AGENT))?;
        let foreign = || Error::Told(format!("`{AGENT}` of the machine is not what it was given"));
        if rustix::fs::fstatfs(&tree).doing("examine the agent's folder")?.f_type as i64 != TMPFS {
            return Err(foreign());
        }
        // What the machine mounted there while it was copied.
        let how = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match rustix::fs::openat2(&tree, "socket", flags, Mode::empty(), how) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => {}
            Err(_) => return Err(foreign()),
        }
        let at = self.dir.join("agent");
        let target = rustix::fs::open(&at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .at("open", &at)?;
        attach(&tree, &target).doing("show the agent's folder")
    }

    fn hide_agent(&self) {
        let _: io::Result<()> =
            rustix::mount::unmount(self.dir.join("agent"), UnmountFlags::DETACH).map_err(Into::into);
    }
}
