//! The process that looks after a machine on another host: all it has of this one comes by a stream through the engine.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::folder::FolderState;
use codchi_runtime::attend::{Engine, Has, Said, Seen, Warn};
use codchi_runtime::guest;
use codchi_runtime::spec::Launch;
use codchi_runtime::{Error, Result};
use codchi_secrets::Bundle;
use codchi_sys::process::{self, Child};
use rustix::fs::Mode;
use serde_json::Value;

use super::api::{Api, ApiError};
use super::attendant::{self, Apart};
use super::dialect::Dialect;
use super::ports::Ports;
use super::stream::{self, Program};
use crate::supervised::ask;

/// How long the engine may be out of reach, or take from the end of one PID 1 to the next.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an instance that is off may be about to start again.
const BETWEEN_LIVES: Duration = Duration::from_secs(5);
/// Why it has none.
pub const NO_FOLDERS: &str = "folders of this computer cannot be there";
/// How long to wait until it is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// The engine, for one machine.
pub struct Attendant {
    dialect: &'static Dialect,
    api: Api,
    apart: Apart,
    name: String,
    /// The machine's user, by its number.
    user: u32,
    dir: PathBuf,
    secrets: Bundle,
    /// Leads to the machine: it stands for the machine's PID 1, and ends when that does.
    bridge: Option<Child>,
    /// Serves the agent's socket on this host.
    port: Option<Child>,
    /// Waits for the machine to be up.
    waiting: Option<Child>,
    /// Ports of this host that lead into it.
    ports: Ports,
    /// Whether it was up once: then it may be out of reach, and goes on.
    was_up: bool,
}

fn failed(what: &str, e: impl std::fmt::Display) -> Error {
    Error::Told(format!("cannot {what}: {e}"))
}

impl Attendant {
    /// For the machine whose runtime directory is `dir`.
    pub fn new(dialect: &'static Dialect, launch: &Launch, dir: &Path) -> Result<Attendant> {
        let said = attendant::said(launch)?;
        let api = attendant::api(dialect, &said)?;
        let apart = said.apart.ok_or_else(|| Error::Settings("the machine is on this host".into()))?;
        Ok(Attendant {
            dialect,
            api,
            apart,
            name: launch.name.clone(),
            user: launch.user.uid,
            dir: dir.into(),
            secrets: Bundle::new(),
            bridge: None,
            port: None,
            waiting: None,
            ports: Ports::new(dir.join("agent")),
            was_up: false,
        })
    }

    fn told(&self, e: ApiError, what: &str) -> Error {
        attendant::told(self.dialect, e, format!("{what} on `{}`", self.apart.remote))
    }

    fn instance(&self) -> Result<Value, ApiError> {
        self.api.get(&format!("/1.0/instances/{}", self.name))
    }

    fn program(&self, name: &str) -> String {
        self.apart.stocked.programs.join(name).display().to_string()
    }

    /// Gives the machine, while it waits, what it has of this host.
    fn give(&self) -> Result<()> {
        // Of this size from the beginning, so that no copy of a secret is left behind in memory that grew.
        let secrets = self.secrets.iter().map(|(name, value)| value.len() + name.len() + 64).sum::<usize>();
        let mut all = Vec::with_capacity(secrets + 4096);
        let address = self.apart.stocked.network.as_ref().and_then(|n| n.address);
        put(&mut all, "host/resolv.conf", address.map(|a| a.resolver()).unwrap_or_default().as_bytes());
        if let Some(address) = address {
            put(&mut all, "host/network", address.commands().as_bytes());
        }
        for (name, value) in self.secrets.iter() {
            put(&mut all, &format!("credentials/{name}"), value);
        }
        let boot = self.program("codchi-boot");
        let given =
            stream::run(&self.api, &self.name, &[&boot, "--take"], &mut &all[..], &mut std::io::sink());
        codchi_sys::memory::wipe(&mut all);
        given.map_err(|e| self.told(e, &format!("give `{}` what it needs", self.name)))
    }

    /// Leads to the machine, which runs, and gives the process that does.
    fn join(&mut self) -> Result<i32> {
        self.part();
        self.give()?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| failed("make a connection", e))?;
        let agent = self.program("codchi-agent");
        let (site, dialect, name) = (self.api.site().clone(), self.dialect, self.name.clone());
        let user = self.user.to_string();
        let remote = self.apart.remote.clone();
        let bridge = process::fork(move || {
            let kill = Some(rustix::process::Signal::KILL);
            if rustix::process::set_parent_process_death_signal(kill).is_err() {
                return 1;
            }
            let api = Api::at(dialect, &site).apart(remote);
            match lead(&api, &name, &[&agent, "--bridge", &user], theirs) {
                Ok(()) => 0,
                Err(_) => 1,
            }
        });
        let bridge = bridge.map_err(|e| failed("start a process", e))?;
        let pid = bridge.pid;
        self.bridge = Some(bridge);
        self.port = Some(guest::serve_port(&self.dir, ours.into())?);
        self.waiting = Some(ask(&self.dir.join("agent"), &["is-system-running", "--wait"])?);
        Ok(pid)
    }

    fn has(&mut self, launch: &Launch) -> Has {
        self.ports.lead(&launch.ports);
        let folders = launch.folders.iter();
        let folders =
            folders.map(|f| FolderState { folder: f.clone(), problem: Some(NO_FOLDERS.into()) }).collect();
        Has { ports: self.ports.states(), folders, network: None }
    }
}

/// One thing, as codchi-boot reads it.
fn put(to: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    to.extend((name.len() as u32).to_le_bytes());
    to.extend(name.as_bytes());
    to.extend((bytes.len() as u64).to_le_bytes());
    to.extend(bytes);
}

/// Runs the agent's bridge in the machine, and leads a connection through it.
fn lead(api: &Api, name: &str, bridge: &[&str], connection: UnixStream) -> std::result::Result<(), String> {
    let (mut from, mut to) = (connection.try_clone().map_err(|e| e.to_string())?, connection);
    let ends = to.try_clone().map_err(|e| e.to_string())?;
    let program = Program::start(api, name, bridge).map_err(|e| e.to_string())?;
    let ended = || drop(ends.shutdown(Shutdown::Both));
    let done = program.run(&mut from, &mut to, &ended);
    let _ = to.flush();
    done.map(drop).map_err(|e| e.to_string())
}

impl Engine for Attendant {
    fn open(&mut self, _: &Launch, secrets: Bundle) -> Result<()> {
        self.secrets = secrets;
        for name in ["agent", "daemon", "host"] {
            let d = self.dir.join(name);
            codchi_fs::create_dir_all(&d)?;
            rustix::fs::chmod(&d, Mode::from_raw_mode(0o755))
                .map_err(|e| failed("change the mode of a folder", e))?;
        }
        Ok(())
    }

    fn secrets(&mut self) -> Option<&mut Bundle> {
        Some(&mut self.secrets)
    }

    fn leader(&mut self) -> Result<Option<i32>> {
        if let Some(bridge) = &self.bridge {
            return Ok(Some(bridge.pid));
        }
        let instance = self.instance().map_err(|e| self.told(e, "look at the instance"))?;
        if instance["status"] == "Running" { self.join().map(Some) } else { Ok(None) }
    }

    fn start(&mut self, launch: &Launch) -> Result<i32> {
        attendant::configure(&self.api, launch, &self.dir)?;
        let console = || attendant::console(&self.api, &self.name);
        attendant::start(&self.api, &self.name, |e| self.told(e, "start the instance"), console)?;
        self.join().inspect_err(|_| {
            // One that did not get what it needs is not left up, for nobody looks after it.
            let _ = attendant::stop(&self.api, &self.name, true);
        })
    }

    fn stops_when_lost(&self) -> bool {
        !self.was_up
    }

    fn find(&mut self, _: i32, launch: &Launch, _: &mut Warn<'_>) -> Result<Has> {
        self.was_up = true;
        Ok(self.has(launch))
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.port.iter().chain(&self.waiting).map(AsFd::as_fd).collect()
    }

    fn look(&mut self, _: i32, launch: &Launch, _: &mut Warn<'_>) -> Result<Seen> {
        let mut seen = Seen::default();
        if let Some(waiting) = &self.waiting
            && waiting.try_wait().map_err(|e| failed("wait for the machine", e))?.is_some()
        {
            self.waiting = None;
            self.was_up = true;
            seen.said = Said { ready: true, ..Said::default() };
            seen.has = Some(self.has(launch));
        }
        if let Some(port) = &self.port
            && port.try_wait().map_err(|e| failed("wait for a process", e))?.is_some()
        {
            // It ends with the bridge, or takes that along: then both are made anew.
            self.port = None;
            if let Some(bridge) = &self.bridge {
                let _ = bridge.signal(codchi_sys::signal::SIGKILL);
            }
        }
        Ok(seen)
    }

    fn change(&mut self, _: i32, _: &Launch, new: &Launch, _: &mut Warn<'_>) -> Result<Has> {
        Ok(self.has(new))
    }

    fn children(&self) -> Vec<i32> {
        let own = self.bridge.iter().chain(&self.port).chain(&self.waiting);
        own.chain(self.ports.children()).map(|c| c.pid).collect()
    }

    fn stop(&mut self, force: bool) -> Result<()> {
        attendant::begin_stop(&self.api, &self.name, force).map_err(|e| self.told(e, "stop the instance"))
    }

    fn part(&mut self) {
        self.ports.close();
        for child in [self.waiting.take(), self.port.take(), self.bridge.take()].into_iter().flatten() {
            let _ = child.signal(codchi_sys::signal::SIGKILL);
            let _ = child.wait();
        }
    }

    fn next(&mut self, _: i32, asked: bool) -> Result<Option<i32>> {
        let until = Instant::now() + PATIENCE;
        let mut off_since = None;
        loop {
            std::thread::sleep(AGAIN);
            match self.instance() {
                // The connection broke, or the machine restarted. One that was asked to go down is on its way.
                Ok(i) if i["status"] == "Running" && !asked => match self.join() {
                    Ok(pid) => return Ok(Some(pid)),
                    Err(e) if Instant::now() > until => return Err(e),
                    Err(_) => {}
                },
                Ok(i) if i["status"] == "Stopped" => {
                    let since = *off_since.get_or_insert_with(Instant::now);
                    if asked || since.elapsed() > BETWEEN_LIVES {
                        return Ok(None);
                    }
                }
                Err(e) if e.is_not_found() => return Ok(None),
                _ => {}
            }
            if Instant::now() > until {
                return match self.instance() {
                    // It does not go down by itself.
                    Ok(i) if i["status"] == "Running" && asked => {
                        attendant::stop(&self.api, &self.name, true)
                            .map_err(|e| self.told(e, "stop the instance"))?;
                        Ok(None)
                    }
                    Ok(_) => Ok(None),
                    Err(e) => Err(self.told(e, "look at the instance")),
                };
            }
        }
    }

    fn console(&mut self) -> Vec<String> {
        attendant::console(&self.api, &self.name)
    }

    fn save_console(&mut self, file: &Path) {
        attendant::save_console(&self.api, &self.name, file);
    }

    fn close(&mut self) {
        self.part();
    }
}
