//! Looking after a machine that an engine runs: what a supervisor does beside a PID 1 that is not its child.
//!
//! What every such machine has in common is here: one process looks after it and tells its state, services run beside it, it is
//! stopped, and followed into its next life. How it gets what it has of its host is the engine's: one whose machines share
//! the host's kernel uses [`Attached`](crate::attached::Attached). An attendant that is killed takes nothing with it: the next one
//! finds the machine running.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::folder::FolderState;
use codchi_core::port::PortState;
use codchi_core::status::Acceleration;
use codchi_secrets::Bundle;
use codchi_sys::process;
use codchi_sys::signal::{self, Signals};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Doing, Error, Result};
use crate::keep::Keeper;
use crate::network::Way;
pub use crate::notify::Said;
use crate::relay::{self, Relay};
use crate::services::{self, Running, Service};
use crate::spec::{Launch, User};
use crate::start::Event;
use crate::state::{self, State, Supervisor};
use crate::supervise::{Begun, STARTING_PATIENCE, Teller, block_signals, life, lock};
use crate::{ids, mounts, outer};

/// Receives what a person should know.
pub type Warn<'a> = dyn FnMut(String) + 'a;

/// What runs a machine's PID 1, or the process that stands for it: a virtual machine's.
pub trait Engine {
    /// Prepares what is beside the machine for as long as it is looked after, in the namespace of the process that does that.
    fn open(&mut self, launch: &Launch, secrets: Bundle) -> Result<()>;
    /// Where this host has the machine's root file system, where that is not what its PID 1 sees.
    fn root(&self) -> Option<PathBuf> {
        None
    }
    /// What the processors of a virtual machine are, once it was started.
    fn acceleration(&self) -> Option<Acceleration> {
        None
    }
    /// The machine's user by the host's ids, where that itself uses what the session has in the runtime directory.
    fn user(&self, _: &Launch) -> Option<User> {
        None
    }
    /// Where a machine's secrets end with its memory: those its next life gets.
    fn secrets(&mut self) -> Option<&mut Bundle> {
        None
    }
    /// PID 1, by the host's ids; none when the machine is off.
    fn leader(&mut self) -> Result<Option<i32>>;
    /// Starts the machine as `launch` says, and gives its PID 1.
    fn start(&mut self, launch: &Launch) -> Result<i32>;
    /// A machine was found running: gives it again what whoever looked after it before took along.
    fn find(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<Has>;
    /// What to wait for.
    fn events(&self) -> Vec<BorrowedFd<'_>>;
    /// Something happened, perhaps one of the events.
    fn look(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<Seen>;
    /// Brings what a running machine has of its host from what `old` says to what `new` says.
    fn change(&mut self, leader: i32, old: &Launch, new: &Launch, warn: &mut Warn<'_>) -> Result<Has>;
    /// Processes of its own, which are not strays.
    fn children(&self) -> Vec<i32>;
    /// Asks the machine to power off, or kills it; whether it has ended is seen by its PID 1.
    fn stop(&mut self, force: bool) -> Result<()>;
    /// PID 1 has ended: takes back what it was given.
    fn part(&mut self);
    /// After the end of `last`: the PID 1 that follows when the machine restarts, none when it is off. `asked`: it was asked
    /// to power off, so nothing should follow.
    fn next(&mut self, last: i32, asked: bool) -> Result<Option<i32>>;
    /// Whether a machine of which it is not known that it is up is stopped, and not one that was only out of reach.
    fn stops_when_lost(&self) -> bool {
        true
    }
    /// The last lines of its console.
    fn console(&mut self) -> Vec<String>;
    /// Writes what it keeps of the console to a file; best effort.
    fn save_console(&mut self, file: &Path);
    /// Nobody looks after the machine any more.
    fn close(&mut self);
}

/// What a machine has of its host.
#[derive(Clone, Debug, Default)]
pub struct Has {
    /// How it reaches others.
    pub network: Option<Way>,
    /// Ports that lead into it.
    pub ports: Vec<PortState>,
    /// Folders of the host in it.
    pub folders: Vec<FolderState>,
}

/// What an engine saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// What PID 1 said.
    pub said: Said,
    /// What the machine has of its host, where that is something else now.
    pub has: Option<Has>,
}

/// How long a machine may take to go down before it is killed.
const PATIENCE: Duration = Duration::from_secs(90);

/// Looks after the machine whose runtime directory is `dir` until it is off, and starts it when it is. This process must have
/// one thread. `begin`: as for [`supervise`](crate::supervise::supervise).
///
/// # Errors
/// What kept the machine from starting; the same is sent to whoever started it, and remembered for those who look later.
pub fn attend(
    dir: &Path,
    begin: impl FnOnce(bool) -> Result<Begun>,
    engine: impl FnOnce(&Launch, &Path) -> Result<Box<dyn Engine>>,
) -> Result<()> {
    life(dir, begin, |teller, mut services, secrets| {
        let mut a = Attendance::begin(dir, engine, secrets)?;
        // Else no account of the machine's uses them: what serves its port does, which is the caller.
        let caller = if outer::is_privileged() { 0 } else { ids::CALLER };
        let user = a.engine.user(&a.launch).unwrap_or(User { uid: caller, gid: caller });
        services.push(Box::new(Relay { dir: dir.into(), user }));
        let done = a.run(&mut services, teller);
        if done.is_err() && a.began && a.told.state == State::Starting && a.engine.stops_when_lost() {
            a.take_down();
        }
        a.end(done.is_err());
        done
    })
}

struct Attendance {
    dir: PathBuf,
    launch: Launch,
    engine: Box<dyn Engine>,
    signals: Signals,
    told: Supervisor,
    running: Vec<Running>,
    /// Whether its life began under these eyes: one that was found is left as it is.
    began: bool,
    keeper: Option<Keeper>,
    _lock: codchi_fs::Lock,
}

impl Attendance {
    fn begin(
        dir: &Path,
        engine: impl FnOnce(&Launch, &Path) -> Result<Box<dyn Engine>>,
        secrets: Bundle,
    ) -> Result<Attendance> {
        let launch = Launch::read(dir)?;
        let lock = lock(dir, &launch.name)?;
        let signals = block_signals()?;
        let outer = outer::enter(&launch.outer)?;
        let me = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(me)).doing("become a subreaper")?;
        if outer.privileged {
            mounts::open_devices(&launch.devices);
        }
        let mut engine = engine(&launch, dir)?;
        engine.open(&launch, secrets)?;
        let keeper = engine.secrets().is_some().then(|| Keeper::open(dir)).transpose()?;
        let told = Supervisor {
            state: State::Starting,
            root: engine.root(),
            revision: launch.revision,
            ..Supervisor::of_this_process()
        };
        told.write(dir)?;
        Ok(Attendance {
            dir: dir.into(),
            launch,
            engine,
            signals,
            told,
            running: Vec::new(),
            began: false,
            keeper,
            _lock: lock,
        })
    }

    /// Tells whoever waits, and writes it down for those who look later.
    fn warn(&mut self, messages: Vec<String>, teller: &mut Teller) -> Result<()> {
        let known = self.told.warnings.len();
        for message in messages {
            if !self.told.warnings.contains(&message) {
                teller.tell(&Event::Warning { message: message.clone() });
                self.told.warnings.push(message);
            }
        }
        if self.told.warnings.len() > known { self.told.write(&self.dir) } else { Ok(()) }
    }

    fn has(&mut self, has: Has) -> Result<()> {
        self.told.network = has.network;
        self.told.ports = has.ports;
        self.told.folders = has.folders;
        self.told.write(&self.dir)
    }

    fn run(&mut self, services: &mut [Box<dyn Service>], teller: &mut Teller) -> Result<()> {
        let session = !self.launch.channels.is_empty();
        services::start_wanted(&mut self.running, services, |name| name != relay::NAME || session)?;
        let found = self.engine.leader()?;
        let mut leader = match found {
            Some(leader) => leader,
            None => {
                self.began = true;
                self.engine.start(&self.launch)?
            }
        };
        if found.is_some() {
            // It said so to an earlier attendant, or to nobody.
            self.told.state = State::Running;
            let mut said = Vec::new();
            let has = self.engine.find(leader, &self.launch, &mut |m| said.push(m));
            self.warn(said, teller)?;
            self.has(has?)?;
        }
        loop {
            let done = self.one_life(leader, services, teller);
            self.engine.part();
            self.told.leader = None;
            done?;
            self.engine.save_console(&self.launch.console_log);
            match self.engine.next(leader, self.told.state == State::Stopping)? {
                None if self.told.state == State::Starting => {
                    return Err(Error::Start {
                        name: self.launch.name.clone(),
                        why: "it powered itself off before it was ready".into(),
                        console: self.engine.console(),
                    });
                }
                None => return Ok(()),
                Some(next) => {
                    leader = next;
                    if self.told.state == State::Stopping {
                        self.engine.stop(true)?;
                        continue;
                    }
                    self.began = true;
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
        services: &mut [Box<dyn Service>],
        teller: &mut Teller,
    ) -> Result<()> {
        let Ok(process) = process::pidfd_open(leader) else { return Ok(()) };
        self.told.leader = Some(leader);
        self.told.leader_start_time = state::start_time(leader);
        self.told.acceleration = self.engine.acceleration();
        self.told.write(&self.dir)?;
        teller.tell(&Event::Started { leader });
        if self.told.state == State::Running {
            teller.tell(&Event::Ready);
        }
        let mut deadline: Option<Instant> = None;
        // Whether it was asked to power off before it could hear.
        let mut unheard = false;
        loop {
            let ended = self.wait(&process, deadline)?;
            if let Some((keeper, kept)) = self.keeper.as_ref().zip(self.engine.secrets()) {
                keeper.hear(&mut |news, others_stay| kept.renew(news, others_stay));
            }
            let ready = self.look(leader, teller)?;
            if ended {
                return Ok(());
            }
            if ready && std::mem::take(&mut unheard) {
                // PID 1 gets no signal it has not prepared for.
                deadline = Some(Instant::now() + PATIENCE);
                self.engine.stop(false)?;
            }
            while let Some(s) = self.signals.next_pending() {
                match s {
                    signal::SIGTERM | signal::SIGINT if deadline.is_none() => {
                        unheard = self.told.state == State::Starting;
                        let patience = if unheard { STARTING_PATIENCE } else { PATIENCE };
                        deadline = Some(Instant::now() + patience);
                        self.told.state = State::Stopping;
                        self.told.write(&self.dir)?;
                        self.engine.stop(false)?;
                    }
                    signal::SIGQUIT => {
                        self.told.state = State::Stopping;
                        self.engine.stop(true)?;
                    }
                    signal::SIGHUP => self.reload(leader, services, teller)?,
                    _ => {}
                }
            }
            if deadline.is_some_and(|d| d <= Instant::now()) {
                deadline = Some(Instant::now() + PATIENCE);
                self.engine.stop(true)?;
            }
            self.look_after(services, teller)?;
        }
    }

    /// Waits until something happens, and answers whether PID 1 has ended.
    fn wait(&self, process: &OwnedFd, deadline: Option<Instant>) -> Result<bool> {
        let timeout = deadline.map(|d| {
            let left = d.saturating_duration_since(Instant::now());
            rustix::time::Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
        });
        let events = self.engine.events();
        let mut fds = vec![PollFd::new(process, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(events.iter().map(|e| PollFd::new(e, PollFlags::IN)));
        fds.extend(self.keeper.iter().map(|k| PollFd::new(k, PollFlags::IN)));
        fds.extend(self.running.iter().map(|r| PollFd::new(&r.child, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).doing("wait"),
        }
        let mut now = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(poll(&mut now, Some(&at_once)) == Ok(1))
    }

    /// Has the engine look, and takes in what it saw. Answers whether PID 1 said that it is ready.
    fn look(&mut self, leader: i32, teller: &mut Teller) -> Result<bool> {
        let mut said = Vec::new();
        let seen = self.engine.look(leader, &self.launch, &mut |m| said.push(m));
        // Also when it failed: they may say why.
        self.warn(said, teller)?;
        let seen = seen?;
        if let Some(has) = seen.has {
            self.has(has)?;
        }
        let news = self.told.learn(&seen.said);
        if news.any() {
            self.told.write(&self.dir)?;
        }
        teller.tell_news(news, &self.told);
        Ok(seen.said.ready)
    }

    /// Brings what the machine has of its host to what its settings say now; the rest of them is for its next life.
    fn reload(&mut self, leader: i32, services: &mut [Box<dyn Service>], teller: &mut Teller) -> Result<()> {
        match Launch::read(&self.dir) {
            Ok(new) => {
                let mut said = Vec::new();
                let has = self.engine.change(leader, &self.launch, &new, &mut |m| said.push(m));
                self.warn(said, teller)?;
                let has = has?;
                // A relay that runs reads the settings itself.
                let is_wanted = |name: &str| name == relay::NAME && !new.channels.is_empty();
                if let Err(e) = services::start_wanted(&mut self.running, services, is_wanted) {
                    self.warn(vec![e.to_string()], teller)?;
                }
                self.launch = new;
                self.told.revision = self.launch.revision;
                self.has(has)
            }
            // Nobody writes such a file but by hand; the machine goes on as it was.
            Err(e) => self.warn(vec![e.to_string()], teller),
        }
    }

    /// Restarts what ended, reaps what was left to us.
    fn look_after(&mut self, services: &mut [Box<dyn Service>], teller: &mut Teller) -> Result<()> {
        let mut said = Vec::new();
        let done = services::restart_ended(&mut self.running, services, &mut |m| said.push(m));
        self.warn(said, teller)?;
        done?;
        let mut keep: Vec<i32> = self.running.iter().map(|r| r.child.pid).collect();
        keep.extend(self.engine.children());
        process::reap_strays(&keep).doing("reap")
    }

    /// Stops a machine that did not get what it needs to come up: nobody would look after it.
    fn take_down(&mut self) {
        if let Ok(Some(leader)) = self.engine.leader()
            && self.engine.stop(true).is_ok()
        {
            // Whoever starts it again finds it off.
            let _ = self.engine.next(leader, true);
        }
    }

    /// Leaves nothing.
    fn end(mut self, failed: bool) {
        services::end(&mut self.running);
        if let Some(keeper) = &self.keeper {
            keeper.close(&self.dir);
        }
        self.engine.close();
        if failed {
            self.told.state = State::Failed;
            self.told.leader = None;
            let _ = self.told.write(&self.dir);
        } else {
            let _ = codchi_fs::remove_if_exists(self.dir.join(state::FILE));
        }
    }
}
