//! The process that starts QEMU and looks after it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::port::Forward;
use codchi_core::status::Acceleration;
use codchi_runtime::attend::{Engine, Has, Said, Seen, Warn};
use codchi_runtime::guest::{self, FIRST_FD, Guest, Happened, Program, Share};
use codchi_runtime::lent_folders::{self, Change};
use codchi_runtime::spec::Launch;
use codchi_runtime::{Error, Result, still};
use codchi_secrets::Bundle;
use codchi_sys::process::{self, Child};
use rustix::event::{PollFd, PollFlags, poll};

use super::acceleration::{self, Outcome, Trials};
use super::control::{self, Control, End};
use super::kernel::Settings;
use super::probe;
use crate::agent::{self, CaptureLimits, ExecRequest};
use crate::supervised::ask;

/// The port's name in the machine.
const PORT: &str = "codchi.agent";
/// What mounts folders in the machine, and where they are shared.
const BOOT: &str = "/run/codchi/bin/codchi-boot";
const FOLDERS: &str = "/run/codchi/folders";
/// The network between QEMU and the machine; nobody else sees it.
const NETWORK: &str = "net=192.168.231.0/24,host=192.168.231.2,dhcpstart=192.168.231.15,ipv6=off";
/// How long a processor that works takes to begin a kernel at most.
const TRIAL: Duration = Duration::from_secs(4);
/// How long what ends with QEMU may be gone before it.
const MOMENT: Duration = Duration::from_secs(3);
/// What the machine's first program says when it works.
const WORKS: &str = "codchi: it works";
/// What QEMU says when the host's processor cannot do what KVM says it can, and waits for a person.
const FAILS: &str = "KVM internal error";

/// A machine that QEMU is to be started for.
pub(crate) struct Wanted<'a> {
    /// What its attendant is told of it.
    pub launch: &'a Launch,
    /// Its kernel and size.
    pub settings: &'a Settings,
    /// What its processors shall be.
    pub processor: Acceleration,
    /// The image of its kernel.
    pub image: PathBuf,
    /// By which number QEMU knows the machine's first memory.
    pub memory: i32,
    /// The arguments that give it its devices.
    pub devices: Vec<String>,
    /// QEMU's descriptors, whose numbers begin with [`Runner::first`].
    pub fds: Vec<OwnedFd>,
    /// The folders it sees, and the sockets by which they are asked for.
    pub served: Vec<(Share, UnixListener)>,
    /// The host's end of its port.
    pub port: OwnedFd,
    /// Receives what a person should know.
    pub said: &'a mut Vec<String>,
}

/// Who starts QEMU.
pub(crate) trait Runner {
    /// By which number QEMU knows the first of its descriptors.
    fn first(&self) -> i32;
    /// Has QEMU started.
    fn start(&mut self, guest: &mut Guest, wanted: Wanted<'_>) -> Result<Child>;
    /// QEMU has ended.
    fn part(&mut self) {}
    /// Processes of its own.
    fn children(&self) -> Vec<i32> {
        Vec::new()
    }
}

/// The engine, for one machine.
pub struct Attendant {
    runner: Box<dyn Runner>,
    dir: PathBuf,
    /// The runtime directory of Codchi.
    runtime: PathBuf,
    root: PathBuf,
    guest: Option<Guest>,
    child: Option<Child>,
    control: Option<Control>,
    /// Waits for the machine to be up.
    waiting: Option<Child>,
    /// Asks it to power off.
    stopping: Option<Child>,
    forwards: Vec<Forward>,
    /// What a start had to say, until it is said.
    news: Option<Vec<String>>,
    name: String,
    /// Whether the machine was up in this life.
    ready: bool,
    /// Whether it was begun anew since its kernel gave up.
    again: bool,
    /// How QEMU ended.
    ended: Option<process::End>,
    acceleration: Option<Acceleration>,
}

fn unprepared() -> Error {
    Error::Told("nothing is prepared for the machine".into())
}

fn failed(what: &str, e: impl std::fmt::Display) -> Error {
    Error::Told(format!("cannot {what}: {e}"))
}

impl Attendant {
    /// For the machine whose runtime directory is `dir`; `runtime` is that of Codchi.
    pub fn new(launch: &Launch, dir: &Path, runtime: &Path, runner: Box<dyn Runner>) -> Result<Attendant> {
        Settings::read(&launch.engine)?;
        Ok(Attendant {
            runner,
            dir: dir.into(),
            runtime: runtime.into(),
            root: launch.root.clone(),
            guest: None,
            child: None,
            control: None,
            waiting: None,
            stopping: None,
            forwards: Vec::new(),
            news: None,
            name: launch.name.clone(),
            ready: false,
            again: false,
            ended: None,
            acceleration: None,
        })
    }

    fn guest(&mut self) -> Result<&mut Guest> {
        self.guest.as_mut().ok_or_else(unprepared)
    }

    /// Whether the last that the kernel said is that it cannot go on.
    fn gave_up(&mut self) -> bool {
        self.console().iter().any(|line| line.contains("Kernel panic"))
    }

    /// That the machine ended as nobody wanted, with its console where that tells why.
    fn failure(&mut self, why: String) -> Error {
        match self.ready {
            true => Error::Told(format!("the machine `{}` ended: {why}", self.name)),
            false => Error::Start { name: self.name.clone(), why, console: self.console() },
        }
    }

    /// Has QEMU's own network lead into the machine what arrives in it.
    fn lead(&mut self, has: &Has) {
        let Some(control) = &mut self.control else { return };
        let wanted = control::led(&has.ports);
        for port in self.forwards.iter().filter(|p| !wanted.contains(p)) {
            control.forward(port, false);
        }
        for port in wanted.iter().filter(|p| !self.forwards.contains(p)) {
            control.forward(port, true);
        }
        self.forwards = wanted;
    }

    /// Whether QEMU has ended, or says it does, within a moment.
    fn ends(&mut self) -> bool {
        let until = Instant::now() + MOMENT;
        while let Some(child) = &self.child {
            let said = self.control.as_ref().filter(|c| !c.is_over());
            let mut fds = vec![PollFd::new(child, PollFlags::IN)];
            fds.extend(said.map(|c| PollFd::new(c, PollFlags::IN)));
            match poll(&mut fds, Some(&guest::left(until))) {
                Ok(0) | Err(_) => return false,
                Ok(_) if !fds[0].revents().is_empty() => return true,
                Ok(_) => {}
            }
            if let Some(control) = &mut self.control {
                control.hear();
                if control.end.is_some() {
                    return true;
                }
            }
        }
        true
    }

    /// Why the machine's processor is emulated; none where KVM works. What is remembered of it is no condition of a start.
    fn emulated(
        &mut self,
        settings: &Settings,
        launch: &Launch,
        said: &mut Vec<String>,
    ) -> Result<Option<String>> {
        if let Some(obstacle) = acceleration::obstacle() {
            return Ok(Some(obstacle.why));
        }
        let (qemu, image) = (qemu()?, settings.image()?);
        let trials = Trials::of(&self.runtime, &qemu)?;
        let mut told = |e: Error| said.push(format!("what came of trying KVM is not remembered: {e}"));
        let known = |told: &mut dyn FnMut(Error)| match trials.known(&image) {
            Ok(known) => known,
            Err(e) => {
                told(e);
                None
            }
        };
        let why = |outcome: Outcome| Ok(outcome.why().map(String::from));
        if let Some(outcome) = known(&mut told) {
            return why(outcome);
        }
        let _lock = trials.lock().map_err(&mut told).ok();
        if let Some(outcome) = known(&mut told) {
            return why(outcome);
        }
        match self.try_kvm(&qemu, &image, settings, launch)? {
            Ok(outcome) => {
                let _ = trials.remember(&image, outcome).map_err(told);
                why(outcome)
            }
            Err(ended) => Ok(Some(ended)),
        }
    }

    /// What comes of a trial; or how it ended, where that says nothing of the next one.
    fn try_kvm(
        &mut self,
        qemu: &Path,
        image: &Path,
        settings: &Settings,
        launch: &Launch,
    ) -> Result<Result<Outcome, String>> {
        let guest = self.guest()?;
        let memory = guest.memory(&launch.bin.join("codchi-boot"), &[], "try\n")?;
        let mut args = machine(Acceleration::Kvm, settings);
        args.extend(kernel(image, FIRST_FD));
        let program = Program { path: qemu.into(), args, fds: vec![memory] };
        let child = guest.start_alone(&program)?;
        let until = Instant::now() + TRIAL;
        let (mut outcome, console) = loop {
            let happened = guest.hear(&child, until)?;
            let console = guest.console();
            let says = |what: &str| console.iter().any(|line| line.contains(what));
            let outcome = match happened {
                _ if says(WORKS) => Some(Outcome::Works),
                _ if says(FAILS) => Some(Outcome::Fails),
                None => Some(Outcome::Late),
                Some(Happened::End) => None,
                Some(Happened::Word) => continue,
            };
            break (outcome, console);
        };
        let _ = child.signal(codchi_sys::signal::SIGKILL);
        let end = child.wait().map_err(|e| failed("wait for QEMU", e))?;
        // What it said is not said of the machine.
        guest.forget_console();
        outcome = outcome.or_else(|| Outcome::of_end(end, &console));
        let last = || console.last().map(|l| format!(": {l}")).unwrap_or_default();
        Ok(outcome.ok_or_else(|| format!("QEMU ended while it was tried, {}{}", how(Some(end)), last())))
    }
}

/// Has the machine mount a folder that is shared with it, or unmount it.
fn in_machine(agent: &Path, change: Change<'_>) -> std::result::Result<(), String> {
    let (folder, words) = match change {
        Change::Mount(number, folder) => (folder, vec!["--show".into(), number.to_string()]),
        Change::Unmount(folder) => (folder, vec!["--hide".to_owned()]),
    };
    let command = [BOOT.to_owned()].into_iter().chain(words).map(std::ffi::OsString::from);
    let command = command.chain([folder.target.clone().into_os_string()]);
    let request = ExecRequest { user: Some("root".into()), ..ExecRequest::command(command) };
    let done = agent::capture(agent, request, b"", CaptureLimits::default()).map_err(|e| e.to_string())?;
    match done.status {
        0 => Ok(()),
        _ => Err(String::from_utf8_lossy(&done.stderr).trim().trim_start_matches("codchi-boot: ").into()),
    }
}

/// How QEMU ended, in words.
fn how(end: Option<process::End>) -> String {
    match end {
        Some(process::End::Code(code)) => format!("with status {code}"),
        Some(process::End::Signal(signal)) => format!("by signal {signal}"),
        None => "nobody knows how".into(),
    }
}

pub(crate) fn qemu() -> Result<PathBuf> {
    probe::program().ok_or_else(|| Error::Host { what: "QEMU is not installed".into(), hints: vec![] })
}

fn words<'a>(list: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    list.into_iter().map(String::from).collect()
}

/// The machine itself, its console where QEMU's output goes.
pub(crate) fn machine(processor: Acceleration, settings: &Settings) -> Vec<String> {
    let memory = settings.memory >> 20;
    let accel = match processor {
        Acceleration::Kvm => "kvm",
        Acceleration::Tcg => "tcg,thread=multi",
    };
    let cpu = match processor {
        Acceleration::Kvm => "host",
        Acceleration::Tcg => "max",
    };
    let mut args = words([
        "-M",
        // Not `microvm`: Debian's kernel finds no clock there without KVM.
        "q35,usb=off,sata=off,smbus=off,vmport=off,memory-backend=mem",
        "-accel",
        accel,
        "-cpu",
        cpu,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]);
    args.extend(["-m".into(), format!("{memory}M"), "-smp".into(), settings.cpus.to_string()]);
    args.extend(["-object".into(), format!("memory-backend-memfd,id=mem,size={memory}M,share=on")]);
    args
}

/// What the kernel is told.
pub(crate) const LINE: &str = "console=ttyS0 panic=-1 quiet loglevel=4 systemd.show_status=false";

/// Its kernel; `memory` is the number of the descriptor with the first memory.
pub(crate) fn kernel(image: &Path, memory: i32) -> Vec<String> {
    let mut args = vec!["-kernel".into(), image.display().to_string()];
    args.extend(["-initrd".into(), guest::descriptor(memory)]);
    args.extend(["-append".into(), LINE.into()]);
    args
}

impl Engine for Attendant {
    fn open(&mut self, launch: &Launch, secrets: Bundle) -> Result<()> {
        self.guest = Some(Guest::open(&self.dir, launch, secrets)?);
        Ok(())
    }

    fn root(&self) -> Option<PathBuf> {
        // What QEMU sees is this host.
        Some(self.root.clone())
    }

    fn secrets(&mut self) -> Option<&mut Bundle> {
        self.guest.as_mut().map(Guest::secrets)
    }

    fn acceleration(&self) -> Option<Acceleration> {
        self.acceleration
    }

    fn leader(&mut self) -> Result<Option<i32>> {
        // It ends with whoever looks after it.
        Ok(self.child.as_ref().map(|c| c.pid))
    }

    fn start(&mut self, launch: &Launch) -> Result<i32> {
        let settings = Settings::read(&launch.engine)?;
        let mut said = Vec::new();
        if self.again {
            said.push(
                "the machine's kernel gave up, which an emulated processor may bring about; it begins anew"
                    .into(),
            );
        }
        let emulated = self.emulated(&settings, launch, &mut said)?;
        let processor = if emulated.is_some() { Acceleration::Tcg } else { Acceleration::Kvm };
        let first = self.runner.first();
        let guest = self.guest()?;
        let share = |tag, source: Option<&Path>, target, read_only, idmap, still| Share {
            tag,
            source: source.map(Into::into),
            target,
            read_only,
            idmap,
            still,
        };
        let shares = [
            share("root", Some(&launch.root), "/", false, true, true),
            // The host adds to it, and takes away what nobody has, but changes nothing.
            share("store", Some(&launch.store), "/nix/store", true, true, true),
            share("bin", Some(&launch.bin), "/run/codchi/bin", true, false, true),
            share("host", Some(&guest.host_dir()), "/run/codchi/told", true, false, false),
            share("folders", None, FOLDERS, false, false, false),
        ];
        let mut told = format!("name {}\ninit {}/init\n", launch.name, launch.toplevel.display());
        let mut args = Vec::new();
        let mut fds: Vec<OwnedFd> = Vec::new();
        let mut served = Vec::new();
        for share in shares {
            let how = if share.read_only { "ro" } else { "rw" };
            told.push_str(&format!("share {} {} {how}\n", share.tag, share.target));
            let (socket, ours) = guest::connected(share.tag)?;
            let (tag, number) = (share.tag, first + fds.len() as i32);
            args.extend(["-chardev".into(), format!("socket,id={tag},fd={number}")]);
            args.extend([
                "-device".into(),
                format!("vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=512"),
            ]);
            fds.push(ours);
            served.push((share, socket));
        }
        told.extend(launch.folders.iter().enumerate().filter_map(|(n, f)| lent_folders::told(n, f)));
        let (port, theirs) = UnixStream::pair().map_err(|e| failed("make a port", e))?;
        args.extend(words(["-device", "virtio-serial-pci"]));
        args.extend(["-chardev".into(), format!("socket,id=agent,fd={}", first + fds.len() as i32)]);
        args.extend(["-device".into(), format!("virtserialport,chardev=agent,name={PORT}")]);
        fds.push(theirs.into());
        let (control, theirs) = Control::new().map_err(|e| failed("make a port", e))?;
        args.extend(["-chardev".into(), format!("socket,id=control,fd={}", first + fds.len() as i32)]);
        args.extend(words(["-mon", "chardev=control,mode=control"]));
        fds.push(theirs);
        let wanted: Vec<_> = launch
            .ports
            .iter()
            .map(|f| codchi_core::port::PortState { forward: *f, problem: None })
            .collect();
        let forwards = control::led(&wanted);
        let rules: String = forwards.iter().map(|f| format!(",hostfwd={}", control::rule(f))).collect();
        args.extend(["-netdev".into(), format!("user,id=net,{NETWORK}{rules}")]);
        args.extend(words(["-device", "virtio-net-pci,netdev=net,romfile="]));
        args.extend(words(["-device", "virtio-rng-pci"]));
        let memory = guest.memory(&launch.bin.join("codchi-boot"), &settings.files()?, &told)?;
        fds.push(memory);
        let wanted = Wanted {
            launch,
            settings: &settings,
            processor,
            image: settings.image()?,
            memory: first + fds.len() as i32 - 1,
            devices: args,
            fds,
            served,
            port: port.into(),
            said: &mut said,
        };
        let guest = self.guest.as_mut().ok_or_else(unprepared)?;
        let child = self.runner.start(guest, wanted)?;
        let pid = child.pid;
        self.child = Some(child);
        self.acceleration = Some(processor);
        (self.ready, self.ended) = (false, None);
        self.control = Some(control);
        self.forwards = forwards;
        self.waiting = Some(ask(&self.dir.join("agent"), &["is-system-running", "--wait"])?);
        if let Some(why) = emulated {
            said.push(format!(
                "the machine's processor is emulated, and slow: {why} (`codchi doctor` says what mends it)"
            ));
        }
        self.news = Some(said);
        Ok(pid)
    }

    fn find(&mut self, _: i32, _: &Launch, _: &mut Warn<'_>) -> Result<Has> {
        Ok(self.guest()?.has())
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = self.guest.as_ref().map(Guest::events).unwrap_or_default();
        all.extend(self.control.as_ref().map(AsFd::as_fd));
        all.extend(self.waiting.as_ref().map(AsFd::as_fd));
        all
    }

    fn look(&mut self, leader: i32, launch: &Launch, warn: &mut Warn<'_>) -> Result<Seen> {
        if let Some(control) = &mut self.control {
            control.hear();
        }
        let mut seen = Seen::default();
        if let Some(news) = self.news.take() {
            news.into_iter().for_each(&mut *warn);
            seen.has = Some(self.guest()?.has());
        }
        if let Some(waiting) = &self.waiting
            && waiting.try_wait().map_err(|e| failed("wait for the machine", e))?.is_some()
        {
            self.waiting = None;
            (self.ready, self.again) = (true, false);
            seen.said = Said { ready: true, ..Said::default() };
        }
        // All of it ends with QEMU.
        if let Some(lost) = self.guest()?.lost()?
            && !self.ends()
        {
            return Err(self.failure(lost));
        }
        if self.guest()?.look(leader, launch, warn)? {
            let has = self.guest()?.has();
            self.lead(&has);
            seen.has = Some(has);
        }
        Ok(seen)
    }

    fn change(&mut self, leader: i32, old: &Launch, new: &Launch, warn: &mut Warn<'_>) -> Result<Has> {
        let changed = self.guest()?.change(leader, &old.ports, new, warn);
        let agent = self.dir.join("agent");
        self.guest()?.change_folders(&new.folders, &mut |change| in_machine(&agent, change));
        let has = self.guest()?.has();
        if changed {
            self.lead(&has);
        }
        Ok(has)
    }

    fn children(&self) -> Vec<i32> {
        let own = self.child.iter().chain(&self.waiting).chain(&self.stopping).map(|c| c.pid);
        own.chain(self.guest.iter().flat_map(Guest::children)).chain(self.runner.children()).collect()
    }

    fn stop(&mut self, force: bool) -> Result<()> {
        if force {
            if let Some(control) = &mut self.control {
                control.quit();
            }
            if let Some(child) = &self.child {
                child.signal(codchi_sys::signal::SIGKILL).map_err(|e| failed("end QEMU", e))?;
            }
            return Ok(());
        }
        // Whoever held it still may be no more.
        let _ = still::go_on(&self.dir);
        self.stopping = Some(ask(&self.dir.join("agent"), &["poweroff", "--no-block"])?);
        Ok(())
    }

    fn part(&mut self) {
        if let Some(control) = &mut self.control {
            control.hear();
        }
        if let Some(child) = self.child.take() {
            let _ = child.signal(codchi_sys::signal::SIGKILL);
            // It need not be a child of this process.
            let _ =
                poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&guest::left(Instant::now() + MOMENT)));
            self.ended = child.wait().ok();
        }
        self.runner.part();
        for asking in [self.waiting.take(), self.stopping.take()].into_iter().flatten() {
            let _ = asking.signal(codchi_sys::signal::SIGKILL);
            let _ = asking.wait();
        }
        if let Some(guest) = &mut self.guest {
            guest.part();
        }
    }

    fn next(&mut self, _: i32, asked: bool) -> Result<Option<i32>> {
        let end = self.control.take().and_then(|c| c.end);
        if asked || end == Some(End::Off) {
            return Ok(None);
        }
        match end {
            Some(_) if self.ready => {}
            // An emulated processor that is slow at the wrong moment runs a word of the kernel while that is changed.
            Some(_) if !self.again && self.acceleration == Some(Acceleration::Tcg) && self.gave_up() => {
                self.again = true;
            }
            // Nothing says that it gets further the next time.
            Some(_) => return Err(self.failure("it restarted itself before it was ready".into())),
            None => {
                return Err(self.failure(format!("QEMU ended by itself ({})", how(self.ended))));
            }
        }
        let launch = Launch::read(&self.dir)?;
        self.start(&launch).map(Some)
    }

    fn console(&mut self) -> Vec<String> {
        self.guest.as_mut().map(Guest::console).unwrap_or_default()
    }

    fn save_console(&mut self, _: &Path) {
        // It is written as it comes.
    }

    fn close(&mut self) {
        self.part();
        if let Some(guest) = &mut self.guest {
            guest.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows an end: as QEMU tells it, and as the kernel tells of QEMU.
    fn after(told: Option<End>, ended: process::End, ready: bool, asked: bool) -> String {
        let (mut control, _theirs) = Control::new().unwrap();
        control.end = told;
        let mut a = Attendant {
            runner: Box::new(crate::qemu::Own),
            dir: "/nonexistent".into(),
            runtime: "/nonexistent".into(),
            root: "/nonexistent/root".into(),
            guest: None,
            child: None,
            control: Some(control),
            waiting: None,
            stopping: None,
            forwards: Vec::new(),
            news: None,
            name: "m".into(),
            ready,
            again: false,
            ended: Some(ended),
            acceleration: None,
        };
        match a.next(1, asked) {
            Ok(_) => "off".into(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn an_end_that_nobody_asked_for_is_told() {
        use process::End::{Code, Signal};
        assert_eq!(after(Some(End::Off), Code(0), true, false), "off");
        assert_eq!(after(None, Signal(9), true, true), "off");
        assert_eq!(
            after(Some(End::Reset), Code(0), false, false),
            "`m` did not start: it restarted itself before it was ready"
        );
        assert_eq!(
            after(None, Code(1), false, false),
            "`m` did not start: QEMU ended by itself (with status 1)"
        );
        assert_eq!(
            after(None, Signal(9), true, false),
            "the machine `m` ended: QEMU ended by itself (by signal 9)"
        );
        // It is started anew, which this one cannot be.
        assert!(after(Some(End::Reset), Code(0), true, false).contains("/nonexistent/"));
    }
}
