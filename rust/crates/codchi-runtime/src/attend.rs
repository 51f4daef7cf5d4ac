//! Looking after a machine that an engine runs: what a supervisor does beside a PID 1 that is not its child.
//!
//! The machine's network, its endpoint and its resolver file are the same as under [`mod@crate::supervise`]; the engine starts
//! and stops PID 1, which waits in codchi-boot until the host has done its part. An attendant that is killed takes nothing
//! with it: the next one finds the machine running.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_fs::Context;
use codchi_sys::process;
use codchi_sys::signal::{self, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Gid, Mode, Uid};

use crate::error::{Doing, Error, Result};
use crate::mounts::{self, Owner};
use crate::network::{self, Network};
use crate::services::{self, Running, Service};
use crate::spec::Launch;
use crate::start::Event;
use crate::state::{State, Supervisor};
use crate::supervise::{Teller, notification_socket, stop_program};
use crate::{outer, ports, resolver, state};

/// What runs a machine's PID 1.
pub trait Engine {
    /// PID 1, by the host's ids; none when the machine is off.
    fn leader(&mut self) -> Result<Option<i32>>;
    /// The host's id of the machine's root.
    fn root_id(&mut self) -> Result<u32>;
    /// Starts the machine as `launch` says, and gives its PID 1.
    fn start(&mut self, launch: &Launch) -> Result<i32>;
    /// Asks the machine to power off, or kills it; whether it has ended is seen by its PID 1.
    fn stop(&mut self, force: bool) -> Result<()>;
    /// After the end of `last`: the PID 1 that follows when the machine restarts, none when it is off. `asked`: it was asked
    /// to power off, so nothing should follow.
    fn next(&mut self, last: i32, asked: bool) -> Result<Option<i32>>;
    /// The last lines of its console.
    fn console(&mut self) -> Vec<String>;
    /// Writes what it keeps of the console to a file; best effort.
    fn save_console(&mut self, file: &Path);
}

/// How long a machine may take to go down before it is killed.
const PATIENCE: Duration = Duration::from_secs(90);
/// Notifications that are heard before everything else has its turn.
const NOTIFICATIONS: usize = 64;

/// Looks after the machine whose runtime directory is `dir` until it is off, and starts it when it is. This process must have
/// one thread.
///
/// # Errors
/// What kept the machine from starting; the same is sent to whoever started it.
pub fn attend(dir: &Path, engine: &mut dyn Engine, mut services: Vec<Box<dyn Service>>) -> Result<()> {
    // Fails only where this is done already (a service manager, a shell's job).
    let _ = rustix::process::setsid();
    let mut teller = Teller::connect(dir);
    let done = Attendance::begin(dir, engine).and_then(|mut a| {
        let done = a.run(engine, &mut services, &mut teller);
        a.end(done.is_err());
        done
    });
    if let Err(e) = &done {
        teller.tell_failure(e);
    }
    done
}

struct Attendance {
    dir: PathBuf,
    launch: Launch,
    signals: Signals,
    notify: OwnedFd,
    owner: Owner,
    told: Supervisor,
    running: Vec<Running>,
    resolver: OwnedFd,
    _lock: codchi_fs::Lock,
}

impl Attendance {
    fn begin(dir: &Path, engine: &mut dyn Engine) -> Result<Attendance> {
        let launch = Launch::read(dir)?;
        let who = format!("codchi supervise {} (process {})", launch.name, std::process::id());
        let lock = match codchi_fs::Lock::try_take(dir.join("lock"), &who) {
            Ok(l) => l,
            Err(codchi_fs::LockError::Held { .. }) => return Err(Error::Running(launch.name)),
            Err(codchi_fs::LockError::File(e)) => return Err(e.into()),
        };
        let signals = Signals::block(&[
            signal::SIGTERM,
            signal::SIGINT,
            signal::SIGQUIT,
            signal::SIGHUP,
            signal::SIGCHLD,
            signal::SIGPIPE,
        ])
        .doing("block signals")?;
        let root = engine.root_id()?;
        let outer = outer::enter(&launch.outer)?;
        let me = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(me)).doing("become a subreaper")?;
        if outer.privileged {
            mounts::open_devices();
        }
        let owner = Owner { uid: root, gid: root };
        folders(dir, owner, outer.privileged)?;
        let me = me.as_raw_nonzero().get();
        let revision = launch.revision;
        let attendance = Attendance {
            dir: dir.into(),
            launch,
            signals,
            notify: notification_socket(dir)?,
            owner,
            told: Supervisor {
                version: 1,
                pid: me,
                start_time: state::start_time(me).unwrap_or(0),
                leader: None,
                state: State::Starting,
                text: String::new(),
                network: None,
                ports: Vec::new(),
                revision,
                cgroup: PathBuf::new(),
                warnings: Vec::new(),
            },
            running: Vec::new(),
            resolver: resolver::watch()?,
            _lock: lock,
        };
        attendance.write_state()?;
        Ok(attendance)
    }

    fn write_state(&self) -> Result<()> {
        let text =
            serde_json::to_vec_pretty(&self.told).map_err(io::Error::other).doing("write the state")?;
        Ok(crate::start::write_quick(&self.dir.join(state::FILE), &text)?)
    }

    fn warn(&mut self, message: String, teller: &mut Teller) {
        if !self.told.warnings.contains(&message) {
            teller.tell(&Event::Warning { message: message.clone() });
            self.told.warnings.push(message);
        }
    }

    fn run(
        &mut self,
        engine: &mut dyn Engine,
        services: &mut [Box<dyn Service>],
        teller: &mut Teller,
    ) -> Result<()> {
        for (service, s) in services.iter_mut().enumerate() {
            let child = services::start(s)?;
            self.running.push(Running { service, child, restarts: 0 });
        }
        let mut leader = match engine.leader()? {
            Some(leader) => {
                // It said so to an earlier attendant, or to nobody.
                self.told.state = State::Running;
                leader
            }
            None => {
                self.not_ready()?;
                engine.start(&self.launch)?
            }
        };
        loop {
            self.one_life(leader, engine, services, teller)?;
            self.not_ready()?;
            engine.save_console(&self.launch.console_log);
            match engine.next(leader, self.told.state == State::Stopping)? {
                None if self.told.state == State::Starting => {
                    return Err(Error::Start {
                        name: self.launch.name.clone(),
                        why: "it powered itself off before it was ready".into(),
                        console: engine.console(),
                    });
                }
                None => return Ok(()),
                Some(_) if self.told.state == State::Stopping => engine.stop(true)?,
                Some(next) => {
                    leader = next;
                    self.launch = Launch::read(&self.dir)?;
                    self.told.revision = self.launch.revision;
                    self.told.state = State::Starting;
                }
            }
        }
    }

    /// From PID 1's beginning to its end.
    fn one_life(
        &mut self,
        leader: i32,
        engine: &mut dyn Engine,
        services: &mut [Box<dyn Service>],
        teller: &mut Teller,
    ) -> Result<()> {
        let Ok(process) = process::pidfd_open(leader) else { return Ok(()) };
        self.told.leader = Some(leader);
        let mut network = self.connect(teller);
        self.ready()?;
        self.write_state()?;
        teller.tell(&Event::Started { leader });
        if self.told.state == State::Running {
            teller.tell(&Event::Ready);
        }
        let done = self.watch(&process, leader, &mut network, engine, services, teller);
        let _ = stop_program(&mut network);
        network::forget();
        self.told.leader = None;
        done
    }

    /// Connects the machine; without a network it is still there.
    fn connect(&mut self, teller: &mut Teller) -> Network {
        let mut said = Vec::new();
        let (leader, ports) = (self.told.leader.unwrap_or(0), &self.launch.ports);
        let network = network::connect(leader, self.owner, &self.dir, ports, &mut |m| said.push(m))
            .unwrap_or_else(|e| {
                said.push(e.to_string());
                Network::loopback(ports)
            });
        said.extend(network.ports.iter().filter_map(|p| ports::warning(&self.launch.name, p)));
        said.extend(resolver::write(&self.dir, network.way).err().map(|e| e.to_string()));
        for m in said {
            self.warn(m, teller);
        }
        self.told.network = Some(network.way);
        self.told.ports = network.ports.clone();
        network
    }

    /// Lets PID 1 go on.
    fn ready(&self) -> Result<()> {
        Ok(codchi_fs::write(self.dir.join("host/ready"), "")?)
    }

    /// The next PID 1 has to wait.
    fn not_ready(&self) -> Result<()> {
        codchi_fs::remove_if_exists(self.dir.join("host/ready"))?;
        Ok(())
    }

    fn watch(
        &mut self,
        process: &OwnedFd,
        leader: i32,
        network: &mut Network,
        engine: &mut dyn Engine,
        services: &mut [Box<dyn Service>],
        teller: &mut Teller,
    ) -> Result<()> {
        let mut deadline: Option<Instant> = None;
        loop {
            let timeout = deadline.map(|d| {
                let left = d.saturating_duration_since(Instant::now());
                rustix::time::Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
            });
            let ended = {
                let mut fds = vec![
                    PollFd::new(process, PollFlags::IN),
                    PollFd::new(&self.signals, PollFlags::IN),
                    PollFd::new(&self.notify, PollFlags::IN),
                    PollFd::new(&self.resolver, PollFlags::IN),
                ];
                fds.extend(network.program.as_ref().map(|f| PollFd::new(f, PollFlags::IN)));
                fds.extend(self.running.iter().map(|r| PollFd::new(&r.child, PollFlags::IN)));
                match poll(&mut fds, timeout.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e).doing("wait"),
                }
                !fds[0].revents().is_empty()
            };
            self.hear_notifications(leader, teller)?;
            if ended {
                return Ok(());
            }
            while let Some(s) = self.signals.next_pending() {
                match s {
                    signal::SIGTERM | signal::SIGINT if deadline.is_none() => {
                        deadline = Some(Instant::now() + PATIENCE);
                        self.told.state = State::Stopping;
                        self.write_state()?;
                        engine.stop(false)?;
                    }
                    signal::SIGQUIT => {
                        self.told.state = State::Stopping;
                        engine.stop(true)?;
                    }
                    signal::SIGHUP => self.reload(network, teller)?,
                    _ => {}
                }
            }
            if deadline.is_some_and(|d| d <= Instant::now()) {
                deadline = Some(Instant::now() + PATIENCE);
                engine.stop(true)?;
            }
            self.look_after(network, services, teller)?;
        }
    }

    /// Brings what the machine has of its host to what its settings say now; the rest of them is for its next life.
    fn reload(&mut self, network: &mut Network, teller: &mut Teller) -> Result<()> {
        let new = Launch::read(&self.dir)?;
        if ports::to_change(&self.dir, &self.launch.ports, &new.ports, &self.told.ports) {
            self.launch.ports = new.ports;
            stop_program(network)?;
            *network = self.connect(teller);
        }
        self.told.revision = new.revision;
        self.write_state()
    }

    /// Restarts what ended, follows the resolver, reaps what was left to us.
    fn look_after(
        &mut self,
        network: &mut Network,
        services: &mut [Box<dyn Service>],
        teller: &mut Teller,
    ) -> Result<()> {
        if resolver::changed(&self.resolver) {
            if network.program.is_some()
                && network::forwarded(&network::host_resolvers()?) != network.forwards
            {
                stop_program(network)?;
                *network = self.connect(teller);
            }
            if let Err(e) = resolver::write(&self.dir, network.way) {
                self.warn(e.to_string(), teller);
            }
        }
        if let Some(p) = &network.program
            && let Some(end) = p.try_wait().doing("wait for the network program")?
        {
            self.warn(format!("the network program ended ({end:?}) and is started again"), teller);
            *network = self.connect(teller);
            self.write_state()?;
        }
        let mut said = Vec::new();
        services::restart_ended(&mut self.running, services, &mut |m| said.push(m))?;
        for m in said {
            self.warn(m, teller);
        }
        let mut keep: Vec<i32> = self.running.iter().map(|r| r.child.pid).collect();
        keep.extend(network.program.as_ref().map(|p| p.pid));
        process::reap_strays(&keep).doing("reap")
    }

    /// Drains NOTIFY_SOCKET; only PID 1's own words count.
    fn hear_notifications(&mut self, leader: i32, teller: &mut Teller) -> Result<()> {
        for _ in 0..NOTIFICATIONS {
            let Some((message, pid)) = crate::start::receive_notification(&self.notify) else { break };
            if pid == leader && self.told.state == State::Starting && message.lines().any(|l| l == "READY=1")
            {
                self.told.state = State::Running;
                self.write_state()?;
                teller.tell(&Event::Ready);
            }
        }
        Ok(())
    }

    /// Leaves nothing but the folders the engine mounts: it can start the machine without us.
    fn end(mut self, failed: bool) {
        services::end(&mut self.running);
        for file in ["agent/socket", "daemon/socket", "notify/socket", "host/ready"] {
            let _ = codchi_fs::remove_if_exists(self.dir.join(file));
        }
        if failed {
            self.told.state = State::Failed;
            self.told.leader = None;
            let _ = self.write_state();
        } else {
            let _ = codchi_fs::remove_if_exists(self.dir.join(state::FILE));
        }
    }
}

/// The folders that the machine sees. A machine that runs has them mounted, so they are never made anew.
fn folders(dir: &Path, owner: Owner, privileged: bool) -> Result<()> {
    for name in ["agent", "daemon", "notify", "host"] {
        let d = dir.join(name);
        codchi_fs::create_dir_all(&d)?;
        rustix::fs::chmod(&d, Mode::from_raw_mode(0o755)).at("change the mode of", &d)?;
    }
    codchi_fs::remove_if_exists(dir.join("notify/socket"))?;
    let agent = dir.join("agent");
    if privileged {
        rustix::fs::chown(&agent, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
            .at("change the owner of", &agent)?;
    }
    Ok(())
}
