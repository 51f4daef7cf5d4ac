//! What machines run on: the driver contract and its adapters.
//!
//! Nothing outside a driver's own module asks for a driver by name: [`find`] is the registry, and what a driver is able to do is
//! data ([`Info`]).

pub mod agent;
pub mod capability;
mod error;
mod incus;
mod instances;
mod libvirt;
mod lxd;
mod native;
mod oci;
mod qemu;
mod supervised;
mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use codchi_core::dirs::Dirs;
use codchi_core::folder::{self, Folder, FolderState};
use codchi_core::machine::{Host as Attachment, IdRange};
use codchi_core::manifest::Manifest;
use codchi_core::name::{DriverName, MachineName};
use codchi_core::port::{self, Forward, PortState};
use codchi_core::progress::Progress;
pub use codchi_core::protocol::Delivered;
use codchi_core::remote::Remote;
use codchi_core::session::Session;
use codchi_core::settings::Settings;
use codchi_core::status::{Acceleration, Finding, State};
use codchi_files::{Compression, Report};
use codchi_secrets::Bundle;
use codchi_store::Store;
use serde::{Deserialize, Serialize};

pub use error::DriverError;
pub use libvirt::become_emulator;
pub use supervised::{
    copy_tree_here, hold_here, measure_tree_here, pack_tree_here, probe_here, remove_tree, remove_tree_here,
    unpack_tree_here,
};

/// Result of a driver's verb.
pub type Result<T, E = DriverError> = std::result::Result<T, E>;

/// The drivers, one line each.
static DRIVERS: [&'static dyn Driver; 6] =
    [&native::NATIVE, &incus::INCUS, &lxd::LXD, &oci::OCI, &qemu::QEMU, &libvirt::LIBVIRT];

/// All drivers.
pub fn all() -> impl Iterator<Item = &'static dyn Driver> {
    DRIVERS.into_iter()
}

/// The driver of a name.
pub fn find(name: &DriverName) -> Result<&'static dyn Driver> {
    all().find(|d| d.info().name == name.as_str()).ok_or_else(|| DriverError::Unknown {
        given: name.to_string(),
        known: all().map(|d| d.info().name.to_string()).collect(),
    })
}

/// What a tar of a machine holds beside its files.
#[derive(Debug)]
pub struct Export<'a> {
    /// A folder with what comes first in the tar.
    pub head: &'a Path,
    /// Where that lies in the tar.
    pub at: &'a str,
    /// Further folders, and where they lie in the tar.
    pub inputs: &'a [(PathBuf, String)],
    /// How the tar is compressed.
    pub compression: Compression,
}

/// What kind of thing a driver runs machines in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// It shares the host's kernel.
    Container,
    /// It has a kernel of its own.
    Vm,
    /// It makes images that others run.
    Image,
}

/// What a driver is, as data.
#[derive(Debug)]
pub struct Info {
    /// Its name: the attribute of `nixosConfigurations` and the folder in `drivers/`.
    pub name: &'static str,
    /// What it runs machines in.
    pub kind: Flavour,
}

/// The host as drivers see it.
pub struct Host<'a> {
    /// Where things are.
    pub dirs: &'a Dirs,
    /// The person's settings.
    pub settings: &'a Settings,
    /// The `codchi` program, for what has to run in a process of its own.
    pub program: &'a Path,
    /// The folder of the static programs; empty until the first machine is made.
    pub bin: &'a Path,
    /// What is mounted at `/nix` (an own store); none: the host's `/nix`.
    pub nix: Option<&'a Path>,
    /// Where this host reads `/nix/store`.
    pub store_dir: &'a Path,
    /// The store; none for verbs that do without.
    pub store: Option<&'a Store>,
    /// Receives what a person who waits wants to know.
    pub progress: &'a dyn Progress,
}

/// A machine as drivers see it.
pub struct Machine<'a> {
    /// Its name.
    pub name: &'a MachineName,
    /// Where it is attached on this host.
    pub attachment: &'a Attachment,
    /// The system to run; none before there is one.
    pub system: Option<System>,
    /// Its secrets, which a start hands over.
    pub secrets: &'a Bundle,
}

impl Machine<'_> {
    /// The ports of the host that shall lead into it: what its module asks for, and what the person says to that.
    pub fn ports(&self) -> Vec<Forward> {
        let none = BTreeMap::new();
        let asked = self.system.as_ref().map_or(&none, |s| &s.manifest.needs.ports);
        port::wanted(asked, &self.attachment.ports).into_iter().map(|(forward, _)| forward).collect()
    }

    /// The folders of the host that it shall have, outer ones first.
    pub fn folders(&self, home: &Path) -> Result<Vec<Folder>> {
        let none = BTreeMap::new();
        let asked = self.system.as_ref().map_or(&none, |s| &s.manifest.needs.mounts);
        let all = folder::wanted(asked, &self.attachment.mounts, home)
            .map_err(|e| DriverError::Settings(e.to_string()))?;
        Ok(all.into_iter().map(|(folder, _)| folder).collect())
    }
}

/// What a running machine has of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Ports that lead into it, and those that do not although they were asked for.
    pub ports: Vec<PortState>,
    /// Folders of the host in it, and those that are not although they were asked for.
    pub folders: Vec<FolderState>,
    /// What it should have and does not, and what to do about that, for people.
    pub refusals: Vec<String>,
}

/// A built system.
#[derive(Clone, Debug)]
pub struct System {
    /// Its store path.
    pub toplevel: String,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// What a switch did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Switched {
    /// Exit status of the switch; 0: all is well, 4: units failed.
    pub status: i32,
    /// What it printed.
    pub output: String,
    /// Units that were stopped, started, restarted, reloaded, as it told them.
    pub units: Vec<UnitChange>,
}

/// A unit that a switch touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitChange {
    /// What was done, such as `restarted`.
    pub action: String,
    /// The unit.
    pub unit: String,
}

/// What [`Driver::supervise`] begins with.
pub struct Begun {
    /// The store.
    pub store: Store,
    /// The machine's secrets, or why it has to wait for a person; whoever waits for it hands them over itself.
    pub secrets: std::result::Result<Bundle, String>,
}

/// What a machine does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// In a word.
    pub state: State,
    /// Whether somebody looks after it. One that runs and is not has neither network nor store: to start it mends that.
    pub attended: bool,
    /// Host process id of its PID 1.
    pub leader: Option<u32>,
    /// What a virtual machine's processors are.
    pub acceleration: Option<Acceleration>,
    /// Why it is not up, where it failed.
    pub reason: Option<String>,
}

impl Running {
    /// Whether it runs, with all it needs.
    pub fn is_up(&self) -> bool {
        self.state == State::Running && self.attended
    }

    /// Off.
    pub fn stopped() -> Running {
        Running { state: State::Stopped, attended: true, leader: None, acceleration: None, reason: None }
    }
}

/// Those who tell that something happened to machines, for as long as this process lives.
pub struct Watchers {
    tell: Arc<dyn Fn() + Send + Sync>,
    known: BTreeSet<String>,
}

impl Watchers {
    /// Nobody yet; `tell` is called from any thread.
    pub fn new(tell: Arc<dyn Fn() + Send + Sync>) -> Watchers {
        Watchers { tell, known: BTreeSet::new() }
    }

    /// Adds one, unless it is known by that name already: `listen` hears one thing after the other until it ends, and is called again
    /// after a while.
    fn add(&mut self, name: String, listen: impl Fn(&dyn Fn()) + Send + 'static) {
        if !self.known.insert(name) {
            return;
        }
        let tell = self.tell.clone();
        std::thread::spawn(move || {
            loop {
                listen(&*tell);
                // What happened meanwhile nobody told.
                std::thread::sleep(LISTEN_AGAIN);
                tell();
            }
        });
    }
}

/// How long after somebody does not tell any more he is asked again.
const LISTEN_AGAIN: Duration = Duration::from_secs(3);

/// A command to run inside.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The command and its arguments; empty: the user's login shell.
    pub argv: Vec<OsString>,
    /// Variables laid over the login environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; none: the user's home.
    pub cwd: Option<PathBuf>,
    /// User; none: the machine's.
    pub user: Option<String>,
    /// Whether to make a terminal; none: when stdin and stdout are one.
    pub tty: Option<bool>,
}

/// What machines run on. Each verb is idempotent: what is so already is not an error.
pub trait Driver: Sync {
    /// What it is.
    fn info(&self) -> &'static Info;
    /// What this host has and lacks for it.
    fn probe(&self, host: &Host) -> Vec<Finding>;
    /// That new machines can be on another host, where it has machines on other hosts at all.
    fn reach(&self, _: &Host, _: &Remote) -> Option<Result<()>> {
        None
    }
    /// The range of ids that a new machine shall have on this host, where that is chosen beforehand; `taken` are those of
    /// the other machines.
    fn ids(&self, taken: &[IdRange]) -> Result<Option<IdRange>>;
    /// Makes what a machine needs before its first start.
    fn create(&self, host: &Host, machine: &Machine) -> Result<()>;
    /// Switches a running machine to `machine.system`.
    fn update(&self, host: &Host, machine: &Machine) -> Result<Switched>;
    /// Brings what a running machine has of its host to what `machine` says now, without touching the machine.
    fn give(&self, host: &Host, machine: &Machine) -> Result<Given>;
    /// Why a machine may not have this folder, for people; none where it may.
    fn refusal(&self, _: &Host, _: &MachineName, _: &Folder) -> Option<String> {
        None
    }
    /// Lets what a machine has of its host's session (display, sound, ssh agent) lead to the caller's from now on. Cheap: every
    /// command does it.
    fn follow(&self, _: &Host, _: &MachineName, _: Session) -> Result<()> {
        Ok(())
    }
    /// What a machine has of its host now; nothing when it is off.
    fn given(&self, host: &Host, machine: &MachineName) -> Result<Given> {
        let status = codchi_runtime::state::status(&host.dirs.machine_runtime(machine))?;
        Ok(supervised::given(machine, status))
    }
    /// Starts it and waits until it is up.
    fn start(&self, host: &Host, machine: &Machine) -> Result<()>;
    /// Stops it and waits until it is off.
    fn stop(&self, host: &Host, machine: &MachineName) -> Result<()>;
    /// What it does now. Cheap: no process is started.
    fn state(&self, host: &Host, machine: &MachineName) -> Result<Running>;
    /// What several machines do now, in their order: an engine that can list is asked once.
    fn states(&self, host: &Host, machines: &[MachineName]) -> Vec<Result<Running>> {
        machines.iter().map(|machine| self.state(host, machine)).collect()
    }
    /// Has whoever tells of what becomes of a machine, beside the files of this host, tell it from now on.
    fn watch(&self, _: &Host, _: &MachineName, _: &mut Watchers) {}
    /// The system that a machine was started with or switched to last, where that is known; none when it is off.
    fn running_system(&self, host: &Host, machine: &MachineName) -> Result<Option<String>> {
        if self.state(host, machine)?.state == State::Stopped {
            return Ok(None);
        }
        Ok(supervised::launched(host, machine).map(|l| l.toplevel.to_string_lossy().into_owned()))
    }
    /// The addresses of a running machine.
    fn addresses(&self, running: &Running) -> Vec<String> {
        running.leader.map(codchi_runtime::state::addresses_v4).unwrap_or_default()
    }
    /// Runs a command in a running machine with this process's streams and gives its exit status.
    fn attach(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<u8>;
    /// Runs a command in a running machine and gives its exit status and what it printed.
    fn capture(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<(u8, String)> {
        supervised::capture(host, machine, exec)
    }
    /// Puts secrets in place in a running machine, restarts the services whose secret changed, and tells which. Secrets that are
    /// not among them are removed unless `keep_others`.
    fn deliver(
        &self,
        host: &Host,
        machine: &MachineName,
        secrets: &Bundle,
        keep_others: bool,
    ) -> Result<Delivered> {
        supervised::deliver(host, machine, secrets, keep_others)
    }
    /// Whether the files of its machines are a folder of this host (`Dirs::machine_root`), with the machine's owners: drivers of
    /// which this is true have them in common.
    fn keeps_folder(&self) -> bool {
        false
    }
    /// Fails where the files of a machine cannot be read as a whole, so that it can neither be exported nor move.
    fn can_pack(&self, _: &Host, _: &MachineName) -> Result<()> {
        Ok(())
    }
    /// Removes what a machine has by this driver beside its files, where another driver has these now.
    fn leave(&self, host: &Host, machine: &MachineName) -> Result<()> {
        self.stop(host, machine)?;
        remove_tree(host.program, &host.dirs.machine_runtime(machine))?;
        supervised::forget(host, machine)
    }
    /// Removes everything the machine has beyond its folder, generations and logs.
    fn remove(&self, host: &Host, machine: &MachineName) -> Result<()>;
    /// Whether the host's service manager starts the machine by itself.
    fn is_on_boot(&self, host: &Host, machine: &MachineName) -> Result<bool> {
        Ok(supervised::is_on_boot(host, machine))
    }
    /// What a person added to the machine by means of its driver, in words: no other driver can have it.
    fn extras(&self, _: &Host, _: &MachineName) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// Has the host's service manager start the machine by itself, or no longer.
    fn on_boot(&self, host: &Host, machine: &MachineName, on: bool) -> Result<()> {
        supervised::on_boot(host, machine, on)
    }
    /// Writes down what [`Driver::supervise`] runs where nobody waits for it, because a service manager starts it.
    fn prepare(&self, host: &Host, machine: &Machine) -> Result<()>;
    /// Looks after a machine until it is off: the process that `codchi supervise NAME` is. It must have one thread. `begin` yields
    /// the store and, where nobody waits, the secrets; it is told whether somebody waits for the machine, and calls [`Driver::prepare`] where nobody does.
    fn supervise(
        &self,
        host: &Host,
        machine: &MachineName,
        begin: &mut dyn FnMut(bool) -> Result<Begun>,
    ) -> Result<()>;
    /// Makes the files of a machine that is being made: those of `from`, but for what makes that one itself (machine id, keys of
    /// its ssh server). One that runs is held still meanwhile.
    fn duplicate(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<Report>;
    /// Whether a machine has anything at a path of its root file system.
    fn holds(&self, host: &Host, machine: &MachineName, path: &str) -> Result<bool> {
        Ok(host.dirs.machine_root(machine).join(path.trim_start_matches('/')).symlink_metadata().is_ok())
    }
    /// Writes the files of a machine as a tar, with what `export` adds. One that runs is held still meanwhile.
    fn pack(&self, host: &Host, machine: &Machine, export: &Export, to: std::fs::File) -> Result<Report>;
    /// Makes the files of a machine that is being made from such a tar, but for what is below `without`.
    fn unpack(&self, host: &Host, machine: &Machine, from: std::fs::File, without: &str) -> Result<Report>;
    /// Bytes that the machine's own files take of the disk; none where that cannot be told.
    fn size(&self, host: &Host, machine: &MachineName) -> Result<Option<u64>> {
        supervised::measure_tree(host.program, &host.dirs.machine_root(machine)).map(Some)
    }
    /// Gives everything that a stopped machine has beyond its folder, generations and logs to another name: the folder of
    /// its data, and what the driver keeps elsewhere.
    fn rename(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_found_by_its_name_and_an_unknown_one_lists_what_there_is() {
        for driver in all() {
            let name: DriverName = driver.info().name.parse().unwrap();
            assert_eq!(find(&name).unwrap().info().name, driver.info().name);
        }
        let Err(e) = find(&"nothing".parse().unwrap()) else { panic!("found") };
        assert!(e.to_string().contains("`nothing`"), "{e}");
    }
}
