//! What a container of an engine has of its host, given to it by way of its namespaces.
//!
//! The engine mounts folders of the machine's runtime directory; codchi-boot, its first process, puts them in their places, says
//! that it waits, and goes on when its word is repeated in `host/ready`. Meanwhile the machine is connected, and gets its
//! secrets and folders.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use codchi_core::folder::{Folder, FolderState};
use codchi_core::port::PortState;
use codchi_fs::Context;
use codchi_secrets::Bundle;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::UnmountFlags;

use crate::attend::{Has, Seen, Warn};
use crate::error::{Doing, Error, Result};
use crate::mounts::{self, CREDENTIALS, Owner};
use crate::network::{self, Network};
use crate::outer::{attach, clone_tree};
use crate::spec::{Launch, Mount, MountKind};
use crate::supervise::stop_program;
use crate::{folders, notify, ports, resolver};

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
    resolver: OwnedFd,
    network: Option<Network>,
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
            resolver: resolver::watch()?,
            network: None,
            folders: Vec::new(),
            answered: None,
        })
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
        self.connect(leader, launch, warn);
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
        let program = self.network.as_ref().and_then(|n| n.program.as_ref());
        let mut all = vec![self.notify.as_fd(), self.resolver.as_fd()];
        all.extend(program.map(AsFd::as_fd));
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
        if self.follow(leader, launch, warn)? {
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

    /// Whether the network is another one now.
    fn follow(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<bool> {
        let changed = resolver::changed(&self.resolver);
        let Some(network) = &self.network else { return Ok(false) };
        let ended = match &network.program {
            Some(p) => p.try_wait().doing("wait for the network program")?,
            None => None,
        };
        if let Some(end) = ended {
            warn(format!("the network program ended ({end:?}) and is started again"));
        }
        // The program knows the resolver it asks from its own start only.
        let elsewhere = changed
            && network.program.is_some()
            && network::forwarded(&network::host_resolvers()?) != network.forwards;
        if ended.is_some() || elsewhere {
            self.connect(leader, launch, warn);
            return Ok(true);
        }
        if changed && let Err(e) = resolver::write(&self.dir, network.way) {
            warn(e.to_string());
        }
        Ok(false)
    }

    /// Brings what a running machine has from what `old` says to what `new` says.
    ///
    /// # Errors
    /// None that concern the machine: what it does not get is in the answer.
    pub fn change(&mut self, leader: i32, old: &Launch, new: &Launch, warn: &mut Warn<'_>) -> Result<Has> {
        let none: &[PortState] = &[];
        let told = self.network.as_ref().map_or(none, |n| &n.ports);
        if ports::to_change(&self.dir, &old.ports, &new.ports, told) {
            self.connect(leader, new, warn);
        }
        let machine = self.machine(leader, new);
        self.folders = folders::change(&machine, std::mem::take(&mut self.folders), &new.folders);
        Ok(self.has())
    }

    /// The network program.
    pub fn children(&self) -> Vec<i32> {
        self.network.iter().filter_map(|n| n.program.as_ref()).map(|p| p.pid).collect()
    }

    /// PID 1 has ended, and its namespaces with it.
    pub fn part(&mut self) {
        if let Some(mut network) = self.network.take() {
            let _ = stop_program(&mut network);
        }
        network::forget();
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
        let network = self.network.as_ref();
        Has {
            network: network.map(|n| n.way),
            ports: network.map(|n| n.ports.clone()).unwrap_or_default(),
            folders: self.folders.clone(),
        }
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

    /// Connects the machine; without a network it is still there.
    fn connect(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) {
        if let Some(mut old) = self.network.take() {
            let _ = stop_program(&mut old);
        }
        let network =
            network::connect(leader, self.owner, &self.dir, &launch.ports, warn).unwrap_or_else(|e| {
                warn(e.to_string());
                Network::loopback(&launch.ports)
            });
        network.ports.iter().filter_map(|p| ports::warning(&launch.name, p)).for_each(&mut *warn);
        if let Err(e) = resolver::write(&self.dir, network.way) {
            warn(e.to_string());
        }
        self.network = Some(network);
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
