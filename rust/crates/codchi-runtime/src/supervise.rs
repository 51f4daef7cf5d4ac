//! The parent of a machine's PID 1.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::folder::{Folder, FolderState};
use codchi_core::port::PortState;
use codchi_fs::Context;
use codchi_secrets::Bundle;
use codchi_sys::process::{self, Child, End, Namespaces};
use codchi_sys::signal::{self, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::cgroup::{self, Tree};
use crate::error::{Doing, Error, Result};
use crate::inside::{self, hear, say, word};
use crate::mounts::{self, Owner};
use crate::network::{self, Network, Way};
use crate::outer::{self, Outer};
use crate::spec::{CALLER_FILE, Launch, NetworkMode, Spec, User};
use crate::start::Event;
use crate::state::{State, Supervisor};
use crate::{folders, ids, ports, state};

/// Something that serves a machine for as long as it runs, such as its endpoint at the nix-daemon.
pub trait Service {
    /// For messages.
    fn name(&self) -> &str;
    /// Serves, in a process of its own inside the outer namespace, until SIGTERM. Calls `ready` once it can be used:
    /// PID 1 waits for that. Threads are fine here.
    fn run(&mut self, ready: &mut dyn FnMut()) -> Result<(), String>;
}

/// How often a service that ends is started again before it is given up.
const RESTARTS: u32 = 5;
/// How long a service may take to be ready.
const SERVICE_PATIENCE: Duration = Duration::from_secs(30);
/// Largest size of the console log, of which one older part is kept.
const LOG_SIZE: u64 = 1 << 20;
/// How long a machine that is not ready yet is given to hear that it shall stop.
const STARTING_PATIENCE: Duration = Duration::from_secs(15);
/// Notifications that are heard before everything else has its turn.
const NOTIFICATIONS: usize = 64;
/// Lines of the console that go with the message of a failed start.
const TAIL: usize = 20;

/// What a supervisor begins with.
pub struct Begun {
    /// What serves the machine.
    pub services: Vec<Box<dyn Service>>,
    /// Its secrets, or why it has to wait for a person. Whoever waits for the machine hands them over itself.
    pub secrets: Result<Bundle, String>,
}

impl Default for Begun {
    fn default() -> Self {
        Begun { services: Vec::new(), secrets: Ok(Bundle::new()) }
    }
}

/// Runs the machine whose runtime directory is `dir` until it is off. This process must have one thread.
///
/// `begin` yields what serves the machine, and its secrets where nobody waits. It is told whether somebody waits for the machine, and has written its settings; where
/// a service manager started this process nobody does, and `begin` writes them.
///
/// # Errors
/// What kept the machine from starting; the same is sent to whoever started it, and remembered for those who look later.
pub fn supervise(dir: &Path, begin: impl FnOnce(bool) -> Result<Begun>) -> Result<()> {
    // Fails only where this is done already (a service manager, a shell's job).
    let _ = rustix::process::setsid();
    let mut teller = Teller::connect(dir);
    let done = begin(teller.0.is_some()).and_then(|Begun { mut services, secrets }| {
        let secrets = match (&mut teller.0, secrets) {
            (Some(starter), _) => Bundle::receive(starter).map_err(|e| Error::Told(e.to_string()))?,
            (None, Ok(secrets)) => secrets,
            (None, Err(why)) => return leave(dir, State::NeedsSecrets, &why),
        };
        let mut s = Supervision::begin(dir, &mut teller)?;
        let done = mounts::hold_credentials(&s.spec, s.owner, &secrets).and_then(|()| {
            drop(secrets);
            s.run(&mut services, &mut teller)
        });
        s.end(&services, done.is_err());
        done
    });
    if let Err(e) = &done {
        use codchi_core::report::Diagnose;
        let (message, console) = match e {
            Error::Start { why, console, .. } => (why.clone(), console.clone()),
            other => (other.to_string(), Vec::new()),
        };
        let (host, hints) = match e {
            Error::Host { hints, .. } => (true, hints.clone()),
            other => (other.kind() == codchi_core::report::Kind::Host, Vec::new()),
        };
        if !matches!(e, Error::Running(_)) {
            remember_failure(dir, &message);
        }
        teller.tell(&Event::Failed { message, console, host, hints });
    }
    done
}

/// Leaves a state file that says that the machine failed, and why.
fn remember_failure(dir: &Path, message: &str) {
    if state::living(dir).ok().flatten().is_some_and(|s| s.pid.cast_unsigned() != std::process::id()) {
        return;
    }
    // Where that cannot be written, the journal of the service manager has it.
    let _ = leave(dir, State::Failed, message);
}

/// Leaves a state file that says what became of the machine.
fn leave(dir: &Path, state: State, message: &str) -> Result<()> {
    let told = Supervisor {
        version: 1,
        pid: std::process::id().cast_signed(),
        start_time: state::start_time(std::process::id().cast_signed()).unwrap_or(0),
        leader: None,
        state,
        text: message.into(),
        network: None,
        cgroup: PathBuf::new(),
        warnings: Vec::new(),
        ports: Vec::new(),
        folders: Vec::new(),
        revision: 0,
    };
    let text = serde_json::to_vec_pretty(&told).unwrap_or_default();
    Ok(crate::start::write_quick(&dir.join(state::FILE), &text)?)
}

/// Whoever started us and listens, if anyone does.
struct Teller(Option<std::os::unix::net::UnixStream>);

impl Teller {
    fn connect(dir: &Path) -> Teller {
        Teller(crate::start::connect_events(dir).ok())
    }

    fn tell(&mut self, e: &Event) {
        let Some(s) = &mut self.0 else { return };
        let mut line = serde_json::to_vec(e).unwrap_or_default();
        line.push(b'\n');
        if s.write_all(&line).is_err() {
            self.0 = None;
        }
    }
}

struct Running {
    service: usize,
    child: Child,
    restarts: u32,
}

struct Supervision {
    dir: PathBuf,
    launch: Launch,
    spec: Spec,
    outer: Outer,
    owner: Owner,
    idmap: Option<OwnedFd>,
    /// Rootless: the account of the machine that is the caller on the host.
    caller_is: Option<User>,
    tree: Option<Tree>,
    signals: Signals,
    notify: OwnedFd,
    told: Supervisor,
    running: Vec<Running>,
    resolver: Option<OwnedFd>,
    console: Console,
    _lock: codchi_fs::Lock,
    _range: Vec<codchi_fs::Lock>,
}

/// How PID 1 ended.
enum Outcome {
    Reboot,
    Off,
}

impl Supervision {
    fn begin(dir: &Path, teller: &mut Teller) -> Result<Supervision> {
        let launch = Launch::read(dir)?;
        let who = format!("codchi supervise {} (process {})", launch.name, std::process::id());
        let lock = match codchi_fs::Lock::try_take(dir.join("lock"), &who) {
            Ok(l) => l,
            Err(codchi_fs::LockError::Held { .. }) => return Err(Error::Running(launch.name)),
            Err(codchi_fs::LockError::File(e)) => return Err(e.into()),
        };
        let spec = launch.spec(dir)?;
        if !cgroup::is_private(&launch.root)? {
            return Err(Error::Host {
                what: format!("`{}` can be reached by other users of this host", launch.root.display()),
                hints: vec![format!(
                    "a set-user-id file of a machine must not be reachable: `chmod 700 {}`",
                    launch.root.parent().unwrap_or(&launch.root).display()
                )],
            });
        }
        let range = match (outer::is_privileged(), launch.uid_base) {
            (true, Some(base)) => ids::lock_range(base, launch.uid_count, &who)?,
            (true, None) => return Err(Error::Settings("a machine of root needs `uidBase`".into())),
            (false, _) => Vec::new(),
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
        let outer = outer::enter(&launch.outer)?;
        let me = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(me)).doing("become a subreaper")?;

        let base = launch.uid_base.unwrap_or(0);
        let owner = if outer.privileged { Owner { uid: base, gid: base } } else { Owner { uid: 0, gid: 0 } };
        mounts::prepare_root(&launch.root, Owner { uid: 0, gid: 0 })?;
        folders::require(&launch.name, &launch.folders)?;
        let caller_is = if outer.privileged { None } else { become_caller(&launch)? };
        let idmap =
            if outer.privileged { Some(mounts::mapping_namespace(base, launch.uid_count)?) } else { None };
        if outer.privileged {
            mounts::open_devices();
        }
        let tree = Tree::prepare(&launch.name, outer.privileged)?;
        let notify = lay_out(dir, owner)?;
        let console = Console::open(&launch.console_log)?;
        let told = Supervisor {
            version: 1,
            pid: me.as_raw_nonzero().get(),
            start_time: state::start_time(me.as_raw_nonzero().get()).unwrap_or(0),
            leader: None,
            state: State::Starting,
            text: String::new(),
            network: None,
            ports: Vec::new(),
            folders: Vec::new(),
            revision: launch.revision,
            cgroup: tree.shown(),
            warnings: Vec::new(),
        };
        let s = Supervision {
            dir: dir.into(),
            launch,
            spec,
            outer,
            owner,
            idmap,
            caller_is,
            tree: Some(tree),
            signals,
            notify,
            told,
            running: Vec::new(),
            resolver: None,
            console,
            _lock: lock,
            _range: range,
        };
        s.write_state()?;
        let _ = teller;
        Ok(s)
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

    fn run(&mut self, services: &mut [Box<dyn Service>], teller: &mut Teller) -> Result<()> {
        for (i, s) in services.iter_mut().enumerate() {
            let child = self.start_service(s)?;
            self.running.push(Running { service: i, child, restarts: 0 });
        }
        loop {
            match self.one_life(services, teller)? {
                Outcome::Off => return Ok(()),
                Outcome::Reboot => {
                    // A switch may have put another system in force meanwhile.
                    self.launch = Launch::read(&self.dir)?;
                    self.spec = self.launch.spec(&self.dir)?;
                    folders::require(&self.launch.name, &self.launch.folders)?;
                    if !self.outer.privileged {
                        self.caller_is = become_caller(&self.launch)?;
                    }
                    self.told.revision = self.launch.revision;
                    self.told.state = State::Starting;
                    self.told.leader = None;
                    self.write_state()?;
                }
            }
        }
    }

    fn start_service(&self, service: &mut Box<dyn Service>) -> Result<Child> {
        let name = service.name().to_string();
        let (r, w) = outer::pipe()?;
        let child = process::fork(|| {
            signal::reset();
            let kill = Some(rustix::process::Signal::KILL);
            if rustix::process::set_parent_process_death_signal(kill).is_err() {
                return 1;
            }
            let mut ready = || {
                let _ = rustix::io::write(&w, b"x");
            };
            match service.run(&mut ready) {
                Ok(()) => 0,
                Err(e) => {
                    // Who waits for it hears why; later on standard error is the supervisor's log.
                    let _ = rustix::io::write(&w, e.as_bytes());
                    let _ = writeln!(io::stderr(), "{}: {e}", service.name());
                    1
                }
            }
        })
        .doing("start a service")?;
        drop(w);
        let mut fds = [PollFd::new(&r, PollFlags::IN), PollFd::new(&child, PollFlags::IN)];
        let patience = rustix::time::Timespec { tv_sec: SERVICE_PATIENCE.as_secs() as _, tv_nsec: 0 };
        let n = poll(&mut fds, Some(&patience)).doing("wait for a service")?;
        let mut said = [0u8; 1024];
        let length = if n > 0 { rustix::io::read(&r, &mut said).unwrap_or(0) } else { 0 };
        let said = said.get(..length).unwrap_or_default();
        if said == b"x" {
            return Ok(child);
        }
        child.signal(signal::SIGKILL).doing("end a service")?;
        child.wait().doing("end a service")?;
        let why = if said.is_empty() { "nothing was said".into() } else { String::from_utf8_lossy(said) };
        Err(Error::Told(format!("the service `{name}` of the machine did not start: {why}")))
    }

    /// From making the namespaces to the end of PID 1.
    fn one_life(&mut self, services: &mut [Box<dyn Service>], teller: &mut Teller) -> Result<Outcome> {
        mounts::unstage();
        mounts::stage(&self.spec, self.owner, self.idmap.as_ref().map(AsFd::as_fd))?;
        let mut said = Vec::new();
        let limits = self.spec.resources.clone();
        let tree = self.tree.as_ref().ok_or_else(|| Error::Told("no cgroup".into()))?;
        let cgroup = tree.fresh(self.owner.uid, self.owner.gid, &limits, &mut |m| said.push(m))?;
        for m in said {
            self.warn(m, teller);
        }
        let (leader, mut network) = self.start_leader(&cgroup, teller)?;
        drop(cgroup);
        self.told.leader = Some(leader.pid);
        self.told.network = Some(network.way);
        self.told.ports = network.ports.clone();
        self.write_state()?;
        teller.tell(&Event::Started { leader: leader.pid });
        let outcome = self.watch(&leader, &mut network, services, teller);
        if let Some(p) = network.program.take() {
            let _ = p.signal(signal::SIGKILL);
            let _ = p.wait();
        }
        network::forget();
        if let Some(t) = &self.tree {
            t.clear();
        }
        self.console.drain();
        outcome
    }

    /// Makes the namespaces and starts PID 1 in them.
    fn start_leader(&mut self, cgroup: &OwnedFd, teller: &mut Teller) -> Result<(Child, Network)> {
        let (ctl, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .doing("make a socket")?;
        let spaces = Namespaces::USER
            .and(Namespaces::MOUNT)
            .and(Namespaces::PID)
            .and(Namespaces::UTS)
            .and(Namespaces::IPC)
            .and(Namespaces::NET);
        let spec = &self.spec;
        let ours = ctl.as_raw_fd();
        let child = process::clone(spaces, Some(cgroup.as_fd()), move || {
            // The supervisor's end must not live on in the machine, else neither would notice the other's end.
            process::close_one(ours);
            inside::run(&theirs, spec)
        })
        .doing("make the machine's namespaces")?;
        let done = self.shake_hands(&ctl, &child, teller);
        match done {
            Ok(network) => Ok((child, network)),
            Err(e) => {
                let _ = child.signal(signal::SIGKILL);
                let _ = child.wait();
                Err(e)
            }
        }
    }

    fn shake_hands(&mut self, ctl: &OwnedFd, child: &Child, teller: &mut Teller) -> Result<Network> {
        if self.outer.privileged {
            let all = [ids::Extent { inside: 0, outside: self.owner.uid, count: self.launch.uid_count }];
            mounts::write_maps(child.pid, &all, None)?;
        } else {
            let uids = ids::child_of(&self.outer.ids.uids, self.caller_is.map(|u| u.uid));
            let gids = ids::child_of(&self.outer.ids.gids, self.caller_is.map(|u| u.gid));
            mounts::write_maps(child.pid, &uids, Some(&gids))?;
        }
        let ctl = ctl.as_fd();
        say(ctl, word::MAPPED, &[]).doing("speak to the machine")?;
        self.expect(ctl, word::ROOT)?;
        // The machine mounts while its network is made.
        let network = self.make_network(child.pid, teller)?;
        self.follow_resolver(network.way)?;
        let mut ends = self.expect(ctl, word::CONSOLE)?.into_iter();
        self.console.from = ends.next();
        self.console.other_end = ends.next();
        self.give_all(child.pid)?;
        say(ctl, word::GO, &[]).doing("speak to the machine")?;
        // Its end closes when PID 1 becomes another program.
        match hear(ctl).doing("hear from the machine")? {
            None => Ok(network),
            Some((w, _)) => {
                if let Some(p) = network.program {
                    let _ = p.signal(signal::SIGKILL);
                    let _ = p.wait();
                }
                Err(self.failed(&w))
            }
        }
    }

    fn expect(&self, ctl: std::os::fd::BorrowedFd<'_>, wanted: &[u8]) -> Result<Vec<OwnedFd>> {
        match hear(ctl).doing("hear from the machine")? {
            Some((w, fds)) if w == wanted => Ok(fds),
            Some((w, _)) => Err(self.failed(&w)),
            None => Err(self.failed(b"its first process has gone")),
        }
    }

    fn failed(&self, said: &[u8]) -> Error {
        let why = String::from_utf8_lossy(said.strip_prefix(word::FAILED).unwrap_or(said)).into_owned();
        Error::Start { name: self.launch.name.clone(), why, console: self.console.tail() }
    }

    /// Writes the machine's resolver file and watches the host's.
    fn follow_resolver(&mut self, way: Way) -> Result<()> {
        let host = Path::new("/etc/resolv.conf");
        let watch = rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .doing("watch a directory")?;
        let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE;
        let real = std::fs::canonicalize(host).ok();
        // In the outer namespace /etc may be a private folder with a link to the host's file.
        let dirs = [Some(host), real.as_deref()].into_iter().flatten().filter_map(Path::parent);
        for dir in dirs.chain([Path::new(crate::outer::HOST_ETC)]) {
            let _ = rustix::fs::inotify::add_watch(&watch, dir, flags);
        }
        self.resolver = Some(watch);
        self.write_resolver(way)
    }

    fn write_resolver(&self, way: Way) -> Result<()> {
        let text = network::resolv_conf(&network::host_resolvers()?, way.resolver());
        let path = self.dir.join("host/resolv.conf");
        if codchi_fs::read_if_exists(&path)?.as_deref() != Some(&text) {
            crate::start::write_quick(&path, text.as_bytes())?;
            rustix::fs::chmod(&path, Mode::from_raw_mode(0o644)).at("change the mode of", &path)?;
        }
        Ok(())
    }

    fn watch(
        &mut self,
        leader: &Child,
        network: &mut Network,
        services: &mut [Box<dyn Service>],
        teller: &mut Teller,
    ) -> Result<Outcome> {
        let mut deadline: Option<Instant> = None;
        let mut asked = false;
        loop {
            let timeout = deadline.map(|d| {
                let left = d.saturating_duration_since(Instant::now());
                rustix::time::Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
            });
            {
                let mut fds = vec![
                    PollFd::new(leader, PollFlags::IN),
                    PollFd::new(&self.signals, PollFlags::IN),
                    PollFd::new(&self.notify, PollFlags::IN),
                ];
                fds.extend(self.console.from.as_ref().map(|f| PollFd::new(f, PollFlags::IN)));
                fds.extend(self.resolver.as_ref().map(|f| PollFd::new(f, PollFlags::IN)));
                fds.extend(network.program.as_ref().map(|f| PollFd::new(f, PollFlags::IN)));
                fds.extend(self.running.iter().map(|r| PollFd::new(&r.child, PollFlags::IN)));
                match poll(&mut fds, timeout.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e).doing("wait"),
                }
            }
            self.console.read();
            if self.hear_notifications(leader.pid, teller)? && asked {
                // It was asked before it could hear: the first process of a namespace gets no signal it has not
                // prepared for.
                leader.signal(self.spec.stop.number()?).doing("ask the machine to stop")?;
                deadline = Some(Instant::now() + Duration::from_secs(self.spec.stop.timeout_seconds));
            }
            if let Some(end) = leader.try_wait().doing("wait for the machine")? {
                self.hear_notifications(leader.pid, teller)?;
                self.console.drain();
                return self.judge(end, asked);
            }
            while let Some(s) = self.signals.next_pending() {
                match s {
                    signal::SIGTERM | signal::SIGINT if !asked => {
                        asked = true;
                        let mut patience = Duration::from_secs(self.spec.stop.timeout_seconds);
                        if self.told.state == State::Starting {
                            patience = patience.min(STARTING_PATIENCE);
                        }
                        deadline = Some(Instant::now() + patience);
                        self.told.state = State::Stopping;
                        self.write_state()?;
                        leader.signal(self.spec.stop.number()?).doing("ask the machine to stop")?;
                    }
                    signal::SIGHUP => self.reload(network, teller)?,
                    signal::SIGQUIT => {
                        asked = true;
                        leader.signal(signal::SIGKILL).doing("kill the machine")?;
                    }
                    _ => {}
                }
            }
            if deadline.is_some_and(|d| d <= Instant::now()) {
                deadline = None;
                leader.signal(signal::SIGKILL).doing("kill the machine")?;
            }
            self.look_after(network, services, teller)?;
        }
    }

    /// What PID 1's end means. See reboot(2): in a process namespace, a restart shows as SIGHUP, halt and poweroff as SIGINT.
    fn judge(&self, end: End, asked: bool) -> Result<Outcome> {
        let was_ready = matches!(self.told.state, State::Running | State::Stopping);
        match end {
            End::Signal(signal::SIGHUP) => Ok(if asked { Outcome::Off } else { Outcome::Reboot }),
            _ if asked => Ok(Outcome::Off),
            End::Signal(signal::SIGINT) if was_ready => Ok(Outcome::Off),
            End::Code(0) if was_ready => Ok(Outcome::Off),
            other => Err(Error::Start {
                name: self.launch.name.clone(),
                why: match other {
                    End::Code(c) => format!("its first process ended with {c}"),
                    End::Signal(signal::SIGINT) => "it powered itself off before it was ready".into(),
                    End::Signal(s) => format!("its first process was ended by signal {s}"),
                },
                console: self.console.tail(),
            }),
        }
    }

    /// Restarts what ended, follows the resolver, reaps what was left to us.
    fn look_after(
        &mut self,
        network: &mut Network,
        services: &mut [Box<dyn Service>],
        teller: &mut Teller,
    ) -> Result<()> {
        if let Some(w) = &self.resolver {
            let mut seen = false;
            while rustix::io::read(w, &mut [0u8; 4096]).is_ok_and(|n| n > 0) {
                seen = true;
            }
            if seen {
                if let Err(e) = self.write_resolver(network.way) {
                    self.warn(e.to_string(), teller);
                }
                // The program knows the resolver it asks from its own start only.
                if network.program.is_some()
                    && network::forwarded(&network::host_resolvers()?) != network.forwards
                {
                    stop_program(network)?;
                    self.reconnect(network, teller)?;
                }
            }
        }
        if let Some(p) = &network.program
            && let Some(end) = p.try_wait().doing("wait for the network program")?
        {
            self.warn(format!("the network program ended ({end:?}) and is started again"), teller);
            self.reconnect(network, teller)?;
        }
        for i in 0..self.running.len() {
            if self.running[i].child.try_wait().doing("wait for a service")?.is_none() {
                continue;
            }
            let (service, restarts) = (self.running[i].service, self.running[i].restarts + 1);
            let name = services[service].name().to_string();
            if restarts > RESTARTS {
                self.running.remove(i);
                self.warn(format!("the service `{name}` keeps ending and is given up"), teller);
                self.write_state()?;
                break;
            }
            self.warn(format!("the service `{name}` ended and is started again"), teller);
            match self.start_service(&mut services[service]) {
                Ok(child) => self.running[i] = Running { service, child, restarts },
                Err(e) => {
                    self.running.remove(i);
                    self.warn(e.to_string(), teller);
                    break;
                }
            }
        }
        let mut keep: Vec<i32> = self.running.iter().map(|r| r.child.pid).collect();
        keep.extend(self.told.leader);
        keep.extend(network.program.as_ref().map(|p| p.pid));
        process::reap_strays(&keep).doing("reap")
    }

    fn reconnect(&mut self, network: &mut Network, teller: &mut Teller) -> Result<()> {
        network.program = None;
        *network = self.make_network(self.told.leader.unwrap_or(0), teller).unwrap_or_else(|e| {
            self.warn(e.to_string(), teller);
            Network::loopback(&self.launch.ports)
        });
        self.told.network = Some(network.way);
        self.told.ports = network.ports.clone();
        self.write_resolver(network.way)?;
        self.write_state()
    }

    /// Connects the machine, and says which of its ports cannot be reached.
    fn make_network(&mut self, leader: i32, teller: &mut Teller) -> Result<Network> {
        let mut said = Vec::new();
        let ports = &self.launch.ports;
        let network = match self.spec.network.mode {
            NetworkMode::Private => {
                network::connect(leader, self.owner, &self.dir, ports, &mut |m| said.push(m))?
            }
            NetworkMode::None => Network::loopback(ports),
        };
        said.extend(network.ports.iter().filter_map(|p| ports::warning(&self.launch.name, p)));
        for m in said {
            self.warn(m, teller);
        }
        Ok(network)
    }

    /// Brings what the machine has of its host to what its settings say now; the rest of them is for its next life.
    fn reload(&mut self, network: &mut Network, teller: &mut Teller) -> Result<()> {
        let new = match Launch::read(&self.dir) {
            Ok(new) => new,
            // Nobody writes such a file but by hand; the machine goes on as it was.
            Err(e) => {
                self.warn(e.to_string(), teller);
                return Ok(());
            }
        };
        let freed = |p: &&PortState| {
            p.problem.is_some() && ports::examine(&self.dir, &[p.forward]).iter().all(|p| p.problem.is_none())
        };
        if new.ports != self.launch.ports || self.told.ports.iter().find(freed).is_some() {
            self.launch.ports = new.ports;
            stop_program(network)?;
            self.reconnect(network, teller)?;
        }
        self.change_folders(new.folders);
        self.told.revision = new.revision;
        self.write_state()
    }

    fn folders_of(&self, leader: i32) -> folders::Machine {
        folders::Machine {
            leader,
            owner: self.owner,
            user: self.launch.user,
            count: self.launch.uid_count,
            mapped: self.outer.privileged,
            is_caller: self.caller_is == Some(self.launch.user),
        }
    }

    /// Gives a machine that is about to start its folders.
    fn give_all(&mut self, leader: i32) -> Result<()> {
        let machine = self.folders_of(leader);
        self.told.folders.clear();
        for folder in &self.launch.folders {
            let problem = folders::give(&machine, folder).err();
            if let Some(problem) = problem.as_ref().filter(|_| !folder.optional) {
                return Err(folders::refused(&self.launch.name, folder, problem));
            }
            self.told.folders.push(FolderState { folder: folder.clone(), problem });
        }
        Ok(())
    }

    /// Takes from a running machine the folders it shall not have any more, and gives it the others.
    fn change_folders(&mut self, wanted: Vec<Folder>) {
        let machine = self.folders_of(self.told.leader.unwrap_or(0));
        let (stays, goes): (Vec<_>, Vec<_>) = std::mem::take(&mut self.told.folders)
            .into_iter()
            .filter(|s| s.problem.is_none())
            .partition(|s| wanted.contains(&s.folder));
        for state in goes.iter().rev() {
            if let Err(e) = folders::take(&machine, &state.folder) {
                let _ = writeln!(io::stderr(), "{e}");
            }
        }
        for folder in &wanted {
            let there = stays.iter().any(|s| s.folder == *folder);
            let problem = if there { None } else { folders::give(&machine, folder).err() };
            self.told.folders.push(FolderState { folder: folder.clone(), problem });
        }
        self.launch.folders = wanted;
    }

    /// Drains NOTIFY_SOCKET; only PID 1's own words count. Answers whether it said that it is ready.
    fn hear_notifications(&mut self, leader: i32, teller: &mut Teller) -> Result<bool> {
        let (mut text, mut ready, mut stopping) = (None, false, false);
        // Everyone in the machine can write there, endlessly: what is left is heard the next time.
        for _ in 0..NOTIFICATIONS {
            let Some((message, pid)) = crate::start::receive_notification(&self.notify) else { break };
            if pid != leader {
                continue;
            }
            for l in message.lines() {
                ready |= l == "READY=1";
                stopping |= l == "STOPPING=1";
                if let Some(s) = l.strip_prefix("STATUS=") {
                    text = Some(s.chars().filter(|c| !c.is_control()).take(200).collect::<String>());
                }
            }
        }
        let is_new = ready && self.told.state == State::Starting;
        if is_new {
            self.told.state = State::Running;
        }
        if stopping && self.told.state == State::Running {
            self.told.state = State::Stopping;
        }
        let said = text.is_some();
        if let Some(t) = text {
            self.told.text = t;
        }
        if is_new || stopping || said {
            self.write_state()?;
        }
        if said {
            teller.tell(&Event::Status { text: self.told.text.clone() });
        }
        if is_new {
            teller.tell(&Event::Ready);
        }
        Ok(ready)
    }

    /// Leaves nothing.
    fn end(mut self, services: &[Box<dyn Service>], failed: bool) {
        let _ = services;
        for r in self.running.drain(..) {
            let _ = r.child.signal(signal::SIGTERM);
            let mut fds = [PollFd::new(&r.child, PollFlags::IN)];
            let patience = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
            if poll(&mut fds, Some(&patience)) != Ok(1) {
                let _ = r.child.signal(signal::SIGKILL);
            }
            let _ = r.child.wait();
        }
        mounts::unstage();
        if let Some(t) = self.tree.take() {
            t.leave();
        }
        let _ = rustix::mount::unmount(self.dir.join("agent"), UnmountFlags::DETACH);
        for d in ["agent", "daemon", "notify", "host"] {
            let _ = codchi_fs::remove_dir_all(self.dir.join(d));
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

/// Rootless: makes the machine's user the caller where that is wanted, or was before.
fn become_caller(launch: &Launch) -> Result<Option<User>> {
    let state = launch.root.with_file_name(CALLER_FILE);
    folders::become_caller(&launch.root, &state, launch.user_is_caller.then_some(launch.user))
}

/// Ends the network program, to start it anew.
fn stop_program(network: &mut Network) -> Result<()> {
    if let Some(p) = network.program.take() {
        p.signal(signal::SIGKILL).doing("restart the network program")?;
        p.wait().doing("restart the network program")?;
    }
    Ok(())
}

/// Makes the directories that the machine sees, afresh, and the socket that PID 1 reports to.
fn lay_out(dir: &Path, owner: Owner) -> Result<OwnedFd> {
    for (name, machines) in [("agent", true), ("daemon", false), ("notify", false), ("host", false)] {
        let d = dir.join(name);
        codchi_fs::remove_dir_all(&d)?;
        codchi_fs::create_dir_all(&d)?;
        rustix::fs::chmod(&d, Mode::from_raw_mode(0o755)).at("change the mode of", &d)?;
        if machines {
            // Memory with a limit: the machine may write here, and the host's runtime folder is not the machine's to fill.
            // Only this namespace shows it; the host looks by way of this process ([`state::agent_dir`]).
            let options = format!("mode=0755,size=256k,nr_inodes=64,uid={},gid={}", owner.uid, owner.gid);
            let options = std::ffi::CString::new(options).map_err(io::Error::other).doing("mount memory")?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount("agent", &d, "tmpfs", flags, options.as_c_str())
                .doing(format!("mount memory at `{}`", d.display()))?;
        }
    }
    let at = dir.join("notify");
    let parent = rustix::fs::open(&at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", &at)?;
    // By way of the descriptor: a socket's path has room for 107 bytes only.
    let path = format!("/proc/self/fd/{}/socket", parent.as_raw_fd());
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .doing("make a socket")?;
    rustix::net::sockopt::set_socket_passcred(&socket, true).doing("make a socket")?;
    let address = rustix::net::SocketAddrUnix::new(&path).doing("make a socket")?;
    rustix::net::bind(&socket, &address).doing("make the notification socket")?;
    rustix::fs::chmod(at.join("socket"), Mode::from_raw_mode(0o666)).at("change the mode of", at)?;
    Ok(socket)
}

/// The machine's console: read always, written to a log of bounded size.
struct Console {
    from: Option<OwnedFd>,
    other_end: Option<OwnedFd>,
    path: PathBuf,
    file: std::fs::File,
    size: u64,
    last: VecDeque<u8>,
}

impl Console {
    fn open(path: &Path) -> Result<Console> {
        if let Some(p) = path.parent() {
            codchi_fs::create_private_dir(p)?;
        }
        let file = Self::append(path)?;
        let size = file.metadata().at("examine", path)?.len();
        Ok(Console { from: None, other_end: None, path: path.into(), file, size, last: VecDeque::new() })
    }

    fn append(path: &Path) -> Result<std::fs::File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).at("open", path)?.into())
    }

    /// Takes what is there, without waiting. Losing a line when the disk is full beats blocking PID 1.
    fn read(&mut self) {
        let Some(from) = &self.from else { return };
        let mut fds = [PollFd::new(from, PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&now)) != Ok(1) {
            return;
        }
        let mut b = vec![0u8; 16384];
        match rustix::io::read(from, &mut b) {
            Ok(n) if n > 0 => {
                b.truncate(n);
                b.retain(|c| *c != b'\r');
                self.last.extend(&b);
                let over = self.last.len().saturating_sub(8192);
                self.last.drain(..over);
                if self.size + b.len() as u64 > LOG_SIZE {
                    self.roll();
                }
                if self.file.write_all(&b).is_ok() {
                    self.size += b.len() as u64;
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            _ => self.from = None,
        }
    }

    fn roll(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        if codchi_fs::rename(&self.path, Path::new(&old)).is_ok()
            && let Ok(f) = Self::append(&self.path)
        {
            self.file = f;
            self.size = 0;
        }
    }

    fn drain(&mut self) {
        let mut before = None;
        while self.from.is_some() && before != Some(self.size + self.last.len() as u64) {
            before = Some(self.size + self.last.len() as u64);
            self.read();
        }
    }

    fn tail(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.last.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let clean = |l: &str| l.chars().filter(|c| !c.is_control()).collect::<String>();
        let lines: Vec<String> = text.lines().map(clean).filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL)..].to_vec()
    }
}
