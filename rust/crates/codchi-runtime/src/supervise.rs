//! The parent of a machine's PID 1.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::folder::Folder;
use codchi_fs::Context;
use codchi_secrets::Bundle;
use codchi_sys::process::{self, Child, End, Namespaces};
use codchi_sys::signal::{self, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::cgroup::{self, Fresh, Tree};
use crate::connection::Connection;
use crate::error::{Doing, Error, Result};
use crate::inside::{self, hear, say, word};
use crate::mounts::{self, Owner};
use crate::outer::{self, Outer};
use crate::relay::{self, Relay};
use crate::services::{self, Running, Service};
use crate::spec::{CALLER_FILE, Launch, NetworkMode, Spec, User};
use crate::start::Event;
use crate::state::{News, State, Supervisor};
use crate::{closure, folders, ids, notify, state};

mod runtime;

/// Largest size of the console log, of which one older part is kept.
const LOG_SIZE: u64 = 1 << 20;
/// How long a machine that is not ready yet is given to hear that it shall stop.
pub(crate) const STARTING_PATIENCE: Duration = Duration::from_secs(15);
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
    life(dir, begin, |teller, mut services, secrets| {
        let mut s = Supervision::begin(dir)?;
        services.push(Box::new(s.relay()));
        let held =
            mounts::credentials(&s.spec).map_or(Ok(()), |m| mounts::hold_credentials(m, s.owner, &secrets));
        let done = held.and_then(|()| {
            drop(secrets);
            s.run(&mut services, teller)
        });
        s.end(done.is_err());
        done
    })
}

/// What looking after a machine has in common, whatever runs it: whoever waits is told of its end, those who look later find why.
pub(crate) fn life(
    dir: &Path,
    begin: impl FnOnce(bool) -> Result<Begun>,
    work: impl FnOnce(&mut Teller, Vec<Box<dyn Service>>, Bundle) -> Result<()>,
) -> Result<()> {
    // Fails only where this is done already (a service manager, a shell's job).
    let _ = rustix::process::setsid();
    let mut teller = Teller::connect(dir);
    let done = begin(teller.0.is_some()).and_then(|Begun { services, secrets }| {
        let secrets = match (&mut teller.0, secrets) {
            (Some(starter), _) => Bundle::receive(starter).map_err(|e| Error::Told(e.to_string()))?,
            (None, Ok(secrets)) => secrets,
            (None, Err(why)) => return leave(dir, State::NeedsSecrets, &why),
        };
        work(&mut teller, services, secrets)
    });
    if let Err(e) = &done {
        if !matches!(e, Error::Running(_)) {
            remember_failure(dir, &reason(e));
        }
        teller.tell_failure(e);
    }
    done
}

/// The lock of whoever looks after a machine. One who was killed has it until the last of those that served beside it is gone,
/// too, which takes a moment; nothing may tell of that one any more.
pub(crate) fn lock(dir: &Path, name: &str) -> Result<codchi_fs::Lock> {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match codchi_fs::Lock::try_take(dir.join("lock"), &who(name)) {
            Ok(l) => return Ok(l),
            Err(codchi_fs::LockError::Held { .. }) => {
                let living = state::living(dir)?.is_some_and(|s| s.pid.cast_unsigned() != std::process::id());
                if living || Instant::now() > until {
                    return Err(Error::Running(name.into()));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(codchi_fs::LockError::File(e)) => return Err(e.into()),
        }
    }
}

pub(crate) fn who(name: &str) -> String {
    format!("codchi supervise {name} (process {})", std::process::id())
}

/// What a supervisor is told by signals, to be read when it has time for them.
pub(crate) fn block_signals() -> Result<Signals> {
    Signals::block(&[
        signal::SIGTERM,
        signal::SIGINT,
        signal::SIGQUIT,
        signal::SIGHUP,
        signal::SIGCHLD,
        signal::SIGPIPE,
    ])
    .doing("block signals")
}

/// Why a machine is not up, without its console.
fn reason(error: &Error) -> String {
    match error {
        Error::Start { why, .. } => why.clone(),
        other => other.to_string(),
    }
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
    let told = Supervisor { state, text: message.into(), ..Supervisor::of_this_process() };
    told.write(dir)
}

/// Whoever started us and listens, if anyone does.
pub(crate) struct Teller(Option<std::os::unix::net::UnixStream>);

impl Teller {
    /// Why the machine is not up.
    pub(crate) fn tell_failure(&mut self, error: &Error) {
        use codchi_core::report::Diagnose;
        let console = match error {
            Error::Start { console, .. } => console.clone(),
            _ => Vec::new(),
        };
        let (host, hints) = match error {
            Error::Host { hints, .. } => (true, hints.clone()),
            other => (other.kind() == codchi_core::report::Kind::Host, Vec::new()),
        };
        self.tell(&Event::Failed { message: reason(error), console, host, hints });
    }

    /// What PID 1 said of itself.
    pub(crate) fn tell_news(&mut self, news: News, told: &Supervisor) {
        if news.text {
            self.tell(&Event::Status { text: told.text.clone() });
        }
        if news.ready {
            self.tell(&Event::Ready);
        }
    }

    fn connect(dir: &Path) -> Teller {
        Teller(crate::start::connect_events(dir).ok())
    }

    pub(crate) fn tell(&mut self, e: &Event) {
        let Some(s) = &mut self.0 else { return };
        let mut line = serde_json::to_vec(e).unwrap_or_default();
        line.push(b'\n');
        if s.write_all(&line).is_err() {
            self.0 = None;
        }
    }
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
    connection: Connection,
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
    fn begin(dir: &Path) -> Result<Supervision> {
        let launch = Launch::read(dir)?;
        let lock = lock(dir, &launch.name)?;
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
            (true, Some(base)) => ids::lock_range(base, launch.uid_count, &who(&launch.name))?,
            (true, None) => return Err(Error::Settings("a machine of root needs `uidBase`".into())),
            (false, _) => Vec::new(),
        };
        let signals = block_signals()?;
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
            mounts::open_devices(&launch.devices);
        }
        let tree = Tree::prepare(&launch.name, &launch.root, outer.privileged)?;
        let notify = lay_out(dir, owner)?;
        let console = Console::open(&launch.console_log)?;
        let connection = Connection::new(dir, owner, spec.network.mode == NetworkMode::None)?;
        let told = Supervisor {
            state: State::Starting,
            revision: launch.revision,
            cgroup: tree.shown(),
            ..Supervisor::of_this_process()
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
            connection,
            console,
            _lock: lock,
            _range: range,
        };
        s.write_state()?;
        Ok(s)
    }

    fn write_state(&self) -> Result<()> {
        self.told.write(&self.dir)
    }

    fn warn_all(&mut self, messages: Vec<String>, teller: &mut Teller) {
        messages.into_iter().for_each(|m| self.warn(m, teller));
    }

    fn warn(&mut self, message: String, teller: &mut Teller) {
        if !self.told.warnings.contains(&message) {
            teller.tell(&Event::Warning { message: message.clone() });
            self.told.warnings.push(message);
        }
    }

    /// What serves the sockets of the session.
    fn relay(&self) -> Relay {
        let User { uid, gid } = self.launch.user;
        let user = match self.caller_is {
            Some(user) if user == self.launch.user => User { uid: ids::CALLER, gid: ids::CALLER },
            _ => User { uid: self.owner.uid + uid, gid: self.owner.gid + gid },
        };
        Relay { dir: self.dir.clone(), user }
    }

    fn run(&mut self, services: &mut [Box<dyn Service>], teller: &mut Teller) -> Result<()> {
        let session = !self.launch.channels.is_empty();
        services::start_wanted(&mut self.running, services, |name| name != relay::NAME || session)?;
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

    /// From making the namespaces to the end of PID 1.
    fn one_life(&mut self, services: &mut [Box<dyn Service>], teller: &mut Teller) -> Result<Outcome> {
        mounts::unstage();
        let idmap = self.idmap.as_ref().map(AsFd::as_fd);
        mounts::stage(&self.spec, &self.launch.closure, self.owner, idmap)?;
        let mut said = Vec::new();
        let limits = self.spec.resources.clone();
        let tree = self.tree.as_ref().ok_or_else(|| Error::Told("no cgroup".into()))?;
        let fresh = tree.fresh(self.owner.uid, self.owner.gid, &limits, &mut |m| said.push(m))?;
        self.warn_all(said, teller);
        let leader = match self.spec.config.clone() {
            None => self.start_leader(&fresh, teller)?,
            Some(config) => {
                let created = self.create_leader(&config, teller);
                created.map_err(|e| self.not_started(e))?
            }
        };
        drop(fresh);
        self.told.leader = Some(leader.pid);
        self.connected()?;
        teller.tell(&Event::Started { leader: leader.pid });
        let outcome = self.watch(&leader, services, teller);
        self.connection.part();
        self.delete_container();
        if let Some(t) = &self.tree {
            t.clear();
        }
        self.console.drain();
        outcome
    }

    /// Makes the namespaces and starts PID 1 in them.
    fn start_leader(&mut self, cgroup: &Fresh, teller: &mut Teller) -> Result<Child> {
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
        let (ours, tasks) = (ctl.as_raw_fd(), cgroup.unheld);
        let child = cgroup::while_limited(tasks, || {
            process::clone(spaces, Some(cgroup.dir.as_fd()), move || {
                // The supervisor's end must not live on in the machine, else neither would notice the other's end.
                process::close_one(ours);
                inside::run(&theirs, spec, tasks)
            })
        })?
        .doing("make the machine's namespaces")?;
        let done = self.shake_hands(&ctl, &child, teller);
        match done {
            Ok(()) => Ok(child),
            Err(e) => {
                self.connection.part();
                let _ = child.signal(signal::SIGKILL);
                let _ = child.wait();
                Err(e)
            }
        }
    }

    fn shake_hands(&mut self, ctl: &OwnedFd, child: &Child, teller: &mut Teller) -> Result<()> {
        let (uids, gids) = self.maps();
        mounts::write_maps(child.pid, &uids, Some(&gids))?;
        let ctl = ctl.as_fd();
        say(ctl, word::MAPPED, &[]).doing("speak to the machine")?;
        self.expect(ctl, word::ROOT)?;
        // The machine mounts while its network is made.
        self.connect(child.pid, teller)?;
        let mut ends = self.expect(ctl, word::CONSOLE)?.into_iter();
        self.console.from = ends.next();
        self.console.other_end = ends.next();
        self.give_all(child.pid)?;
        say(ctl, word::GO, &[]).doing("speak to the machine")?;
        // Its end closes when PID 1 becomes another program.
        match hear(ctl).doing("hear from the machine")? {
            None => Ok(()),
            Some((w, _)) => Err(self.failed(&w)),
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

    /// What kept a machine from being made, with its console.
    fn not_started(&mut self, error: Error) -> Error {
        self.console.drain();
        match error {
            Error::Told(why) => {
                Error::Start { name: self.launch.name.clone(), why, console: self.console.tail() }
            }
            other => other,
        }
    }

    /// Connects the machine, and says what does not work of that.
    fn connect(&mut self, leader: i32, teller: &mut Teller) -> Result<()> {
        let mut said = Vec::new();
        let done = self.connection.try_connect(leader, &self.launch, &mut |m| said.push(m));
        self.warn_all(said, teller);
        done
    }

    /// Writes down how the machine is connected.
    fn connected(&mut self) -> Result<()> {
        let has = self.connection.has(Vec::new());
        (self.told.network, self.told.ports) = (has.network, has.ports);
        self.write_state()
    }

    fn watch(
        &mut self,
        leader: &Child,
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
                let events: Vec<_> = self.connection.events().collect();
                fds.extend(events.iter().map(|e| PollFd::new(e, PollFlags::IN)));
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
                    signal::SIGHUP => self.reload(leader.pid, services, teller)?,
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
            self.look_after(leader.pid, services, teller)?;
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
        leader: i32,
        services: &mut [Box<dyn Service>],
        teller: &mut Teller,
    ) -> Result<()> {
        let mut said = Vec::new();
        let another = self.connection.follow(leader, &self.launch, &mut |m| said.push(m));
        self.warn_all(said, teller);
        if another? {
            self.connected()?;
        }
        let mut said = Vec::new();
        services::restart_ended(&mut self.running, services, &mut |m| said.push(m))?;
        self.warn_all(said, teller);
        let mut keep: Vec<i32> = self.running.iter().map(|r| r.child.pid).collect();
        keep.extend(self.told.leader);
        keep.extend(self.connection.child());
        process::reap_strays(&keep).doing("reap")
    }

    /// Brings what the machine has of its host to what its settings say now; the rest of them is for its next life.
    fn reload(&mut self, leader: i32, services: &mut [Box<dyn Service>], teller: &mut Teller) -> Result<()> {
        let new = match Launch::read(&self.dir) {
            Ok(new) => new,
            // Nobody writes such a file but by hand; the machine goes on as it was.
            Err(e) => {
                self.warn(e.to_string(), teller);
                return Ok(());
            }
        };
        let mut said = Vec::new();
        if self.connection.change(leader, &self.launch.ports, &new, &mut |m| said.push(m)) {
            self.launch.ports.clone_from(&new.ports);
            self.connected()?;
        }
        self.warn_all(said, teller);
        self.change_folders(new.folders);
        if let Err(e) = self.extend_closure(&new.closure) {
            self.warn(e.to_string(), teller);
        }
        // A relay that runs reads the settings itself.
        let is_wanted = |name: &str| name == relay::NAME && !new.channels.is_empty();
        if let Err(e) = services::start_wanted(&mut self.running, services, is_wanted) {
            self.warn(e.to_string(), teller);
        }
        (self.launch.channels, self.launch.git_hosts) = (new.channels, new.git_hosts);
        self.told.revision = new.revision;
        self.write_state()
    }

    /// Shows a machine that sees only a part of the store what of it is new. What it saw stays until its next life: something in it
    /// may still run from there.
    fn extend_closure(&mut self, wanted: &[String]) -> Result<()> {
        let Some(m) = self.spec.closure() else { return Ok(()) };
        let new: Vec<String> = wanted.iter().filter(|n| !self.launch.closure.contains(n)).cloned().collect();
        let machine = self.folders_of(self.told.leader.unwrap_or(0));
        closure::extend(&machine, m, &new, self.idmap.as_ref().map(AsFd::as_fd))?;
        self.launch.closure.extend(new);
        Ok(())
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
        self.told.folders = folders::give_all(&machine, &self.launch.name, &self.launch.folders)?;
        Ok(())
    }

    /// Takes from a running machine the folders it shall not have any more, and gives it the others.
    fn change_folders(&mut self, wanted: Vec<Folder>) {
        let machine = self.folders_of(self.told.leader.unwrap_or(0));
        self.told.folders = folders::change(&machine, std::mem::take(&mut self.told.folders), &wanted);
        self.launch.folders = wanted;
    }

    /// Drains NOTIFY_SOCKET. Answers whether PID 1 said that it is ready.
    fn hear_notifications(&mut self, leader: i32, teller: &mut Teller) -> Result<bool> {
        let said = notify::hear(&self.notify, leader);
        let news = self.told.learn(&said);
        if news.any() {
            self.write_state()?;
        }
        teller.tell_news(news, &self.told);
        Ok(said.ready)
    }

    /// Leaves nothing.
    fn end(mut self, failed: bool) {
        services::end(&mut self.running);
        mounts::unstage();
        if let Some(t) = self.tree.take() {
            t.leave();
        }
        let _ = rustix::mount::unmount(self.dir.join("agent"), UnmountFlags::DETACH);
        for d in ["agent", "daemon", "notify", "host"].iter().chain(&runtime::FOLDERS) {
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
    notify::socket(dir)
}

/// The machine's console: read always, written to a log of bounded size.
pub(crate) struct Console {
    pub(crate) from: Option<OwnedFd>,
    other_end: Option<OwnedFd>,
    path: PathBuf,
    file: std::fs::File,
    size: u64,
    last: VecDeque<u8>,
}

impl Console {
    pub(crate) fn open(path: &Path) -> Result<Console> {
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
    pub(crate) fn read(&mut self) {
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

    pub(crate) fn drain(&mut self) {
        let mut before = None;
        while self.from.is_some() && before != Some(self.size + self.last.len() as u64) {
            before = Some(self.size + self.last.len() as u64);
            self.read();
        }
    }

    /// What was said is not shown any more.
    pub(crate) fn forget(&mut self) {
        self.last.clear();
    }

    pub(crate) fn tail(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.last.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let clean = |l: &str| l.chars().filter(|c| !c.is_control()).collect::<String>();
        let lines: Vec<String> = text.lines().map(clean).filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL)..].to_vec()
    }
}
