//! A machine's connection to the host's network, kept up for as long as the machine runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use codchi_core::folder::FolderState;
use codchi_core::port::Forward;
use codchi_sys::signal;

use crate::attend::Has;
use crate::error::{Doing, Result};
use crate::mounts::Owner;
use crate::network::{self, Network};
use crate::spec::Launch;
use crate::{ports, resolver};

/// The connection of one machine.
pub(crate) struct Connection {
    dir: PathBuf,
    owner: Owner,
    /// It has no network but its own loopback, and shall have none.
    alone: bool,
    resolver: OwnedFd,
    network: Option<Network>,
}

impl Connection {
    /// None yet; `dir` is the machine's runtime directory.
    pub fn new(dir: &Path, owner: Owner, alone: bool) -> Result<Connection> {
        Ok(Connection { dir: dir.into(), owner, alone, resolver: resolver::watch()?, network: None })
    }

    /// Connects the machine, and says which of its ports cannot be reached.
    pub fn try_connect(&mut self, leader: i32, launch: &Launch, warn: &mut dyn FnMut(String)) -> Result<()> {
        self.stop_program();
        let network = match self.alone {
            true => Network::loopback(&launch.ports),
            false => network::connect(leader, self.owner, &self.dir, &launch.ports, warn)?,
        };
        self.take(network, launch, warn);
        Ok(())
    }

    /// The same; without a network the machine is still there.
    pub fn connect(&mut self, leader: i32, launch: &Launch, warn: &mut dyn FnMut(String)) {
        if let Err(e) = self.try_connect(leader, launch, warn) {
            warn(e.to_string());
            self.take(Network::loopback(&launch.ports), launch, warn);
        }
    }

    fn take(&mut self, network: Network, launch: &Launch, warn: &mut dyn FnMut(String)) {
        network.ports.iter().filter_map(|p| ports::warning(&launch.name, p)).for_each(&mut *warn);
        if let Err(e) = resolver::write(&self.dir, network.way) {
            warn(e.to_string());
        }
        self.network = Some(network);
    }

    /// Leads other ports into the machine than those of `old`. Whether the network is another one now.
    pub fn change(
        &mut self,
        leader: i32,
        old: &[Forward],
        new: &Launch,
        warn: &mut dyn FnMut(String),
    ) -> bool {
        let told: &[_] = self.network.as_ref().map_or(&[], |n| &n.ports);
        let changes = ports::to_change(&self.dir, old, &new.ports, told);
        if changes {
            self.connect(leader, new, warn);
        }
        changes
    }

    /// Follows the host's resolver, and restarts the network program. Whether the network is another one now.
    ///
    /// # Errors
    /// The program cannot be looked at.
    pub fn follow(&mut self, leader: i32, launch: &Launch, warn: &mut dyn FnMut(String)) -> Result<bool> {
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

    /// What wakes whoever looks after the machine.
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let program = self.network.as_ref().and_then(|n| n.program.as_ref());
        [self.resolver.as_fd()].into_iter().chain(program.map(AsFd::as_fd))
    }

    /// The network program.
    pub fn child(&self) -> Option<i32> {
        Some(self.network.as_ref()?.program.as_ref()?.pid)
    }

    /// What the machine has of its host, with these folders.
    pub fn has(&self, folders: Vec<FolderState>) -> Has {
        let network = self.network.as_ref();
        Has {
            network: network.map(|n| n.way),
            ports: network.map(|n| n.ports.clone()).unwrap_or_default(),
            folders,
        }
    }

    /// The machine has ended, and its namespaces with it.
    pub fn part(&mut self) {
        self.stop_program();
        self.network = None;
        network::forget();
    }

    fn stop_program(&mut self) {
        if let Some(program) = self.network.as_mut().and_then(|n| n.program.take()) {
            let _ = program.signal(signal::SIGKILL);
            let _ = program.wait();
        }
    }
}
