//! The host's side of a machine with a kernel of its own, run by a program of the host.
//!
//! The program is root of the machine's own ids and networks, and nobody on this host. Files reach the machine by virtiofs: a
//! process for each shared folder, as nobody as the program itself. Whatever goes on between host and machine besides goes over
//! one port ([`codchi_sys::mux`]), which a process beside it leads to the agent's socket, to the store's, and to those of the
//! caller's session that are open ([`crate::relay`]).

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use codchi_core::folder::Folder;
use codchi_core::port::Forward;
use codchi_core::protocol::{AGENT_CHANNEL, SESSION_CHANNEL, STORE_CHANNEL};
use codchi_core::session::Channel;
use codchi_fs::Context;
use codchi_secrets::Bundle;
use codchi_sys::mount::{Attributes, NO_SUID, READ_ONLY, set_attributes};
use codchi_sys::mux::{Mux, Side};
use codchi_sys::process::{self, Child, Namespaces};
use codchi_sys::{identity, signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags};
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::Timespec;

use crate::attend::Has;
use crate::connection::Connection;
use crate::error::{Doing, Error, Result};
use crate::ids::{self, Extent};
use crate::lent_folders::{self, InMachine, Lent};
use crate::mounts::{self, Owner};
use crate::network::find_program;
use crate::outer::{OWN_DIR, attach};
use crate::spec::{CALLER_FILE, Launch, Mount, MountKind};
use crate::supervise::{Console, who};
use crate::{folders, outer, relay};

/// The number by which a program knows the first of its descriptors.
pub const FIRST_FD: i32 = 3;
/// The one right of the root that a program is: its network leads low ports, too, to the machine.
const KEPT: &str = "CAP_NET_BIND_SERVICE";
/// The right that whoever shares a folder is without: to make mounts writable again.
const MOUNTS: &str = "CAP_SYS_ADMIN";
/// The socket by which this host reaches the agent: a stream that carries no descriptors.
pub const SOCKET: &str = "stream";

/// A folder of the host that the machine sees.
#[derive(Clone, Debug)]
pub struct Share {
    /// Its name for the machine's kernel.
    pub tag: &'static str,
    /// The folder; none: those of the host that the machine has, which come and go while it runs.
    pub source: Option<PathBuf>,
    /// Where it is in the machine.
    pub target: &'static str,
    /// Whether the machine may not write.
    pub read_only: bool,
    /// Show the host's owners as the machine's.
    pub idmap: bool,
    /// Nothing but the machine changes it while it runs.
    pub still: bool,
}

/// A program to start, with descriptors it knows from [`FIRST_FD`] on.
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Descriptors.
    pub fds: Vec<OwnedFd>,
}

/// What a program of a machine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It said something.
    Word,
    /// It ended.
    End,
}

/// The host's side of one machine.
pub struct Guest {
    dir: PathBuf,
    ids: (Vec<Extent>, Vec<Extent>),
    /// Without root: those of the outer namespace.
    outer_ids: Option<(Vec<Extent>, Vec<Extent>)>,
    owner: Owner,
    folders: Option<Lent>,
    idmap: Option<OwnedFd>,
    secrets: Bundle,
    connection: Connection,
    console: Console,
    /// What the machine cannot be without, and what it is.
    servers: Vec<(String, Child)>,
    _range: Vec<codchi_fs::Lock>,
}

impl Guest {
    /// Prepares what lasts for as long as the machine is looked after.
    ///
    /// # Errors
    /// That the host lacks something.
    pub fn open(dir: &Path, launch: &Launch, secrets: Bundle) -> Result<Guest> {
        if !crate::cgroup::is_private(&launch.root)? {
            return Err(Error::Host {
                what: format!("`{}` can be reached by other users of this host", launch.root.display()),
                hints: vec![],
            });
        }
        let privileged = outer::is_privileged();
        let base = launch.uid_base.unwrap_or(0);
        let range = match (privileged, launch.uid_base) {
            (true, Some(base)) => ids::lock_range(base, launch.uid_count, &who(&launch.name))?,
            (true, None) => return Err(Error::Settings("a machine of root needs `uidBase`".into())),
            (false, _) => Vec::new(),
        };
        let owner = if privileged { Owner { uid: base, gid: base } } else { Owner { uid: 0, gid: 0 } };
        let idmap = privileged.then(|| mounts::mapping_namespace(base, launch.uid_count)).transpose()?;
        let own = [Extent { inside: 0, outside: base, count: launch.uid_count }];
        let map = |file| -> Result<Vec<Extent>> { Ok(ids::parse_map(&codchi_fs::read_to_string(file)?)) };
        let outer_ids = match privileged {
            true => None,
            false => Some((map("/proc/self/uid_map")?, map("/proc/self/gid_map")?)),
        };
        let ids = match &outer_ids {
            None => (own.to_vec(), own.to_vec()),
            Some((uids, gids)) => (ids::child_of(uids, None), ids::child_of(gids, None)),
        };
        folders::require(&launch.name, &launch.folders)?;
        mounts::prepare_root(&launch.root, Owner { uid: 0, gid: 0 })?;
        if !privileged {
            // The program has the whole host in sight: nothing it is may be the caller.
            folders::part_from_caller(&launch.root, &launch.root.with_file_name(CALLER_FILE))?;
        }
        for name in ["agent", "daemon", "host"] {
            let d = dir.join(name);
            codchi_fs::create_dir_all(&d)?;
            rustix::fs::chmod(&d, Mode::from_raw_mode(0o755)).at("change the mode of", &d)?;
        }
        Ok(Guest {
            dir: dir.into(),
            ids,
            outer_ids,
            owner,
            folders: None,
            idmap,
            secrets,
            connection: Connection::new(dir, owner, false)?,
            console: Console::open(&launch.console_log)?,
            servers: Vec::new(),
            _range: range,
        })
    }

    /// The machine's secrets, which each life gets.
    pub fn secrets(&mut self) -> &mut Bundle {
        &mut self.secrets
    }

    /// The folder in which the host leaves what the machine sees of it.
    pub fn host_dir(&self) -> PathBuf {
        self.dir.join("host")
    }

    /// The memory that the machine's kernel starts with, as a file: its first program, its kernel modules, what that program is
    /// told, and the machine's secrets.
    ///
    /// # Errors
    /// A module or the program cannot be read.
    pub fn memory(&self, init: &Path, modules: &[PathBuf], told: &str) -> Result<OwnedFd> {
        let mut archive = Archive::default();
        for folder in ["dev", "proc", "sys", "root", "modules", "credentials"] {
            archive.put(folder, 0o040_755, (0, 0), &[]);
        }
        archive.put("dev/console", 0o020_600, (5, 1), &[]);
        archive.put("init", 0o100_755, (0, 0), &codchi_fs::read(init)?);
        archive.put("guest", 0o100_600, (0, 0), told.as_bytes());
        for (n, module) in modules.iter().enumerate() {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.put(&format!("modules/{n:02}-{name}"), 0o100_600, (0, 0), &codchi_fs::read(module)?);
        }
        let flags = MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("memory", flags).doing("make memory for the machine")?;
        let mut file = std::fs::File::from(file);
        let mut write = |bytes: &[u8]| file.write_all(bytes).doing("fill the machine's memory");
        write(&archive.0)?;
        for (name, value) in self.secrets.iter() {
            let mut one = Archive::default();
            one.put(&format!("credentials/{name}"), 0o100_400, (0, 0), value);
            let written = write(&one.0);
            codchi_sys::memory::wipe(&mut one.0);
            written?;
        }
        let mut end = Archive::default();
        end.put("TRAILER!!!", 0, (0, 0), &[]);
        write(&end.0)?;
        Ok(file.into())
    }

    /// Starts a machine's program, with shared folders, their sockets' other ends, and the host's end of its port. Its output is the
    /// machine's console.
    ///
    /// # Errors
    /// Something of it cannot be started.
    pub fn start(
        &mut self,
        launch: &Launch,
        program: &Program,
        shares: Vec<(Share, UnixListener)>,
        port: OwnedFd,
        warn: &mut dyn FnMut(String),
    ) -> Result<Child> {
        let (go_r, go_w) = outer::pipe()?;
        let leader = self.enter(program, go_r)?;
        let done = self.surround(&leader, launch, shares, port, warn);
        match done.and_then(|()| rustix::io::write(&go_w, b"x").doing("start the machine")) {
            Ok(_) => Ok(leader),
            Err(e) => {
                let _ = leader.signal(signal::SIGKILL);
                let _ = leader.wait();
                self.part();
                Err(e)
            }
        }
    }

    /// Starts a program as one of a machine, with nothing around it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_alone(&mut self, program: &Program) -> Result<Child> {
        let (go_r, go_w) = outer::pipe()?;
        let child = self.enter(program, go_r)?;
        rustix::io::write(&go_w, b"x").doing("start a program")?;
        Ok(child)
    }

    /// A process in namespaces of its own that becomes the program when it is told to.
    fn enter(&mut self, program: &Program, go: OwnedFd) -> Result<Child> {
        let (console_r, console_w) = outer::pipe()?;
        let command = Command::of(program)?;
        let child = process::clone(namespaces(), None, || {
            let kill = Some(rustix::process::Signal::KILL);
            if rustix::process::set_parent_process_death_signal(kill).is_err() {
                return 1;
            }
            if rustix::io::read(&go, &mut [0]) != Ok(1) {
                return 1;
            }
            let run = || -> Result<std::convert::Infallible> {
                process::loopback_up().doing("start the network")?;
                // It writes no file. Without the host's root, an own store is of the same id as this.
                seal(None)?;
                keep_little()?;
                command.become_it(console_w.as_fd())
            };
            match run() {
                Ok(never) => match never {},
                Err(e) => {
                    let _ = rustix::io::write(&console_w, format!("{e}\n").as_bytes());
                    127
                }
            }
        })
        .doing("start the machine")?;
        mounts::write_maps(child.pid, &self.ids.0, Some(&self.ids.1))?;
        self.console.from = Some(console_r);
        Ok(child)
    }

    /// The machine's namespaces, kept by a process that does nothing else, for a program that another process starts.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn hold(&mut self) -> Result<Child> {
        // One that knows nothing: what shares folders has the right to look into it.
        let sleep = find_program("sleep").ok_or_else(|| Error::Told("there is no program `sleep`".into()))?;
        let text = |word: &[u8]| CString::new(word).map_err(io::Error::other).doing("name a program");
        let argv = [text(sleep.as_os_str().as_bytes())?, c"infinity".to_owned()];
        begin_apart(namespaces(), &self.ids, || {
            process::loopback_up().doing("start the network")?;
            seal(None)?;
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .doing("open /dev/null")?;
            for number in 0..3 {
                process::stdio(null.as_fd(), number).doing("redirect")?;
            }
            process::close_from(3).doing("close descriptors")?;
            signal::reset();
            match codchi_sys::spawn::execve(&argv[0], &argv, &[]) {
                Ok(never) => match never {},
                Err(e) => Err(e).doing("wait"),
            }
        })
    }

    /// An end of the machine's console for a program that another process starts.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn console_end(&mut self) -> Result<OwnedFd> {
        let (from, to) = outer::pipe()?;
        // It opens it anew, by the descriptor's name.
        rustix::fs::fchmod(&to, Mode::from_raw_mode(0o622)).doing("make a console")?;
        self.console.from = Some(from);
        Ok(to)
    }

    /// Starts what is beside a machine's program: `leader` is that, or keeps its namespaces.
    ///
    /// # Errors
    /// Something of it cannot be started.
    pub fn surround(
        &mut self,
        leader: &Child,
        launch: &Launch,
        shares: Vec<(Share, UnixListener)>,
        port: OwnedFd,
        warn: &mut dyn FnMut(String),
    ) -> Result<()> {
        let namespace = format!("/proc/{}/ns/user", leader.pid);
        let namespace = rustix::fs::open(&namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at("open", namespace)?;
        let server = Server::find()?;
        let log = self.dir.join("shares.log");
        for (share, socket) in shares {
            let Some(source) = &share.source else {
                self.share_folders(&server, &share, socket, launch, &log)?;
                continue;
            };
            let at = self.show(&share, source)?;
            let program = server.program(&share, &at, socket.into());
            let written = (!share.read_only).then_some(at.as_path());
            let child = run_beside(&namespace, &program, written, &log)?;
            self.servers.push((format!("virtiofsd for `{}`", share.target), child));
        }
        self.connection.connect(leader.pid, launch, warn);
        let child = serve_port(&self.dir, port)?;
        self.servers.push(("the process that serves its port".into(), child));
        Ok(())
    }

    /// Starts what shares the host's folders, and shares those that the machine begins with.
    fn share_folders(
        &mut self,
        server: &Server,
        share: &Share,
        socket: UnixListener,
        launch: &Launch,
        log: &Path,
    ) -> Result<()> {
        let at = Path::new(OWN_DIR).join("shares").join(share.tag);
        codchi_fs::create_dir_all(&at)?;
        let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("folders", &at, "tmpfs", flags, c"mode=0700,size=1m").doing("show folders")?;
        let owner = (rustix::fs::Uid::from_raw(self.owner.uid), rustix::fs::Gid::from_raw(self.owner.gid));
        rustix::fs::chown(&at, Some(owner.0), Some(owner.1)).at("change the owner of", &at)?;
        let program = server.program(share, &at, socket.into());
        let ids = lent_folders::ids_of(&self.ids, self.outer_ids.as_ref(), launch.user);
        let child = run_apart(&ids, &program, log)?;
        let mut lent = Lent::new(&child, at, launch, self.owner, self.idmap.is_some());
        self.servers.push(("virtiofsd for the host's folders".into(), child));
        lent.begin(launch)?;
        self.folders = Some(lent);
        Ok(())
    }

    /// Brings the folders of a running machine to what it shall have.
    pub fn change_folders(&mut self, wanted: &[Folder], in_machine: &mut InMachine<'_>) {
        if let Some(lent) = &mut self.folders {
            lent.change(wanted, in_machine);
        }
    }

    /// Mounts a folder where the process that shares it finds it.
    fn show(&self, share: &Share, source: &Path) -> Result<PathBuf> {
        let at = Path::new(OWN_DIR).join("shares").join(share.tag);
        codchi_fs::create_dir_all(&at)?;
        let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
        let option = if share.read_only { "ro" } else { "rw" };
        let mount = Mount {
            kind: MountKind::Bind,
            source: Some(source.into()),
            target: share.target.into(),
            options: vec![option.into(), "nodev".into()],
            idmap: share.idmap,
            outer: false,
            optional: false,
            closure: false,
        };
        let tree = mounts::bound(&mount, source, self.idmap.as_ref().map(AsFd::as_fd))?;
        attach(&tree, &mounts::open_dir(&at)?).doing(format!("show `{}`", source.display()))?;
        Ok(at)
    }

    /// Connects the machine to other ports. Whether it did.
    pub fn change(
        &mut self,
        leader: i32,
        old: &[Forward],
        new: &Launch,
        warn: &mut dyn FnMut(String),
    ) -> bool {
        self.connection.change(leader, old, new, warn)
    }

    /// What wakes whoever looks after the machine.
    pub fn events(&self) -> Vec<BorrowedFd<'_>> {
        let mut all: Vec<_> = self.connection.events().collect();
        all.extend(self.console.from.as_ref().map(AsFd::as_fd));
        all.extend(self.servers.iter().map(|(_, s)| s.as_fd()));
        all
    }

    /// Takes what the console says, follows the host's resolver, restarts the network program. Whether the network is another one.
    ///
    /// # Errors
    /// The program cannot be looked at.
    pub fn look(&mut self, leader: i32, launch: &Launch, warn: &mut dyn FnMut(String)) -> Result<bool> {
        self.console.read();
        self.connection.follow(leader, launch, warn)
    }

    /// Something beside the machine that has ended, which it does not go on without; told once.
    ///
    /// # Errors
    /// A process cannot be looked at.
    pub fn lost(&mut self) -> Result<Option<String>> {
        for (at, (_, server)) in self.servers.iter().enumerate() {
            if let Some(end) = server.try_wait().doing("wait for what is beside the machine")? {
                let (what, _) = self.servers.remove(at);
                return Ok(Some(format!("{what} ended ({end:?})")));
            }
        }
        Ok(None)
    }

    /// What the machine has of its host.
    pub fn has(&self) -> Has {
        self.connection.has(self.folders.as_ref().map(Lent::states).unwrap_or_default())
    }

    /// Processes beside the machine.
    pub fn children(&self) -> Vec<i32> {
        self.servers.iter().map(|(_, s)| s.pid).chain(self.connection.child()).collect()
    }

    /// Waits until a program says something or ends; none: until then it did neither.
    ///
    /// # Errors
    /// That cannot be waited for.
    pub fn hear(&mut self, program: &Child, until: Instant) -> Result<Option<Happened>> {
        let mut fds = vec![PollFd::new(program, PollFlags::IN)];
        fds.extend(self.console.from.as_ref().map(|f| PollFd::new(f, PollFlags::IN)));
        loop {
            match poll(&mut fds, Some(&left(until))) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).doing("wait for a program"),
            }
        }
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        self.console.read();
        Ok(Some(if ended { Happened::End } else { Happened::Word }))
    }

    /// Of what was said until now, nothing is the machine's.
    pub fn forget_console(&mut self) {
        self.console.forget();
    }

    /// The last lines of the console.
    pub fn console(&mut self) -> Vec<String> {
        self.console.drain();
        self.console.tail()
    }

    /// The machine has ended.
    pub fn part(&mut self) {
        self.folders = None;
        self.console.drain();
        self.connection.part();
        for (_, server) in self.servers.drain(..) {
            let _ = server.signal(signal::SIGKILL);
            let _ = server.wait();
        }
        let _ = codchi_fs::remove_if_exists(self.dir.join("agent").join(SOCKET));
    }

    /// Nobody looks after the machine any more.
    pub fn close(&mut self) {
        self.part();
        let _ = codchi_fs::remove_if_exists(self.dir.join("daemon/socket"));
    }
}

/// Those that a machine's program has of its own.
pub(crate) fn namespaces() -> Namespaces {
    Namespaces::USER.and(Namespaces::NET).and(Namespaces::IPC).and(Namespaces::UTS).and(Namespaces::MOUNT)
}

/// Has what is run from now on no right but that which a machine's program needs.
pub(crate) fn keep_little() -> Result<()> {
    let kept = crate::caps::numbers(&[KEPT.into()])?;
    for capability in (0..64).filter(|c| !kept.contains(c)) {
        identity::drop_bounding(capability).doing("drop capabilities")?;
    }
    Ok(())
}

/// A program's line as execve(2) takes it.
struct Command<'a> {
    argv: Vec<CString>,
    fds: &'a [OwnedFd],
}

impl Command<'_> {
    fn of(program: &Program) -> Result<Command<'_>> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other).doing("name a program");
        let mut argv = vec![text(program.path.as_os_str().as_bytes())?];
        for a in &program.args {
            argv.push(text(a.as_bytes())?);
        }
        Ok(Command { argv, fds: &program.fds })
    }

    /// Becomes the program, as root of the user namespace that this process is in. It ends with whoever started it.
    fn become_it(&self, output: BorrowedFd<'_>) -> Result<std::convert::Infallible> {
        // Until then it is a copy of the supervisor, secrets and all, which no program of the machine's root may look into.
        identity::set_dumpable(false).doing("close this process to others")?;
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .doing("open /dev/null")?;
        process::stdio(null.as_fd(), 0).doing("redirect")?;
        process::stdio(output, 1).doing("redirect")?;
        process::stdio(output, 2).doing("redirect")?;
        identity::set_groups(&[]).doing("drop groups")?;
        identity::set_gid(0).doing("become root of the machine")?;
        identity::set_uid(0).doing("become root of the machine")?;
        let kill = Some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(kill).doing("tie to the supervisor")?;
        process::close_from(3).doing("close descriptors")?;
        // First out of the way of the numbers they get.
        let high = self.fds.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 100));
        let high = high.collect::<Result<Vec<_>, _>>().doing("pass a descriptor")?;
        for (fd, number) in high.iter().zip(FIRST_FD..) {
            process::give_descriptor(fd.as_fd(), number).doing("pass a descriptor")?;
        }
        signal::reset();
        let name = || String::from_utf8_lossy(self.argv[0].as_bytes()).into_owned();
        let environment = [c"PATH=/usr/bin:/bin".to_owned(), c"LC_ALL=C.UTF-8".to_owned()];
        match codchi_sys::spawn::execve(&self.argv[0], &self.argv, &environment) {
            Ok(never) => match never {},
            Err(e) => Err(e).doing(format!("run `{}`", name())),
        }
    }
}

/// Makes every file of this mount namespace read-only, but those of the mount at `written`, and what the host mounts from now
/// on unseen.
fn seal(written: Option<&Path>) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty()).at("open", path);
    let sealed =
        Attributes { set: READ_ONLY | NO_SUID, private: true, recursive: true, ..Attributes::default() };
    set_attributes(open(Path::new("/"))?.as_fd(), &sealed).doing("make the host's files read-only")?;
    if let Some(path) = written {
        let opened = Attributes { clear: READ_ONLY, ..Attributes::default() };
        set_attributes(open(path)?.as_fd(), &opened).doing("open what is shared to the machine")?;
    }
    Ok(())
}

/// Starts a program in the machine's user namespace, with no network, that writes to the mount at `written` only.
fn run_beside(namespace: &OwnedFd, program: &Program, written: Option<&Path>, log: &Path) -> Result<Child> {
    let command = Command::of(program)?;
    let dropped = crate::caps::numbers(&[MOUNTS.into()])?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let log = rustix::fs::open(log, flags, Mode::from_raw_mode(0o600)).at("open", log)?;
    process::fork(|| {
        let run = || -> Result<std::convert::Infallible> {
            identity::set_dumpable(false).doing("close this process to others")?;
            process::setns(namespace.as_fd(), Namespaces::USER).doing("join the machine's ids")?;
            process::unshare(Namespaces::NET.and(Namespaces::MOUNT))
                .doing("leave the host's network and mounts")?;
            seal(written)?;
            become_server(&command, &dropped, log.as_fd())
        };
        match run() {
            Ok(never) => match never {},
            Err(e) => {
                let _ = rustix::io::write(&log, format!("{e}\n").as_bytes());
                127
            }
        }
    })
    .doing("start a process")
}

/// Starts a program with ids of its own, in mounts of its own that are all read-only, with no network.
fn run_apart(ids: &(Vec<Extent>, Vec<Extent>), program: &Program, log: &Path) -> Result<Child> {
    let command = Command::of(program)?;
    let dropped = crate::caps::numbers(&[MOUNTS.into()])?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let log = rustix::fs::open(log, flags, Mode::from_raw_mode(0o600)).at("open", log)?;
    let namespaces = Namespaces::USER.and(Namespaces::NET).and(Namespaces::MOUNT);
    begin_apart(namespaces, ids, || {
        identity::set_dumpable(false).doing("close this process to others")?;
        seal(None)?;
        become_server(&command, &dropped, log.as_fd())
    })
}

/// The last steps of what shares folders.
fn become_server(
    command: &Command<'_>,
    dropped: &[u32],
    log: BorrowedFd<'_>,
) -> Result<std::convert::Infallible> {
    for capability in dropped {
        identity::drop_bounding(*capability).doing("drop capabilities")?;
    }
    // A descriptor for each file that the machine's kernel remembers.
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    command.become_it(log)
}

/// A process in namespaces and with ids of its own, tied to this one. It is there when it has become a program.
fn begin_apart(
    namespaces: Namespaces,
    ids: &(Vec<Extent>, Vec<Extent>),
    become_it: impl FnOnce() -> Result<std::convert::Infallible>,
) -> Result<Child> {
    const WHAT: &str = "start a process with ids of its own";
    let (go_r, go_w) = outer::pipe()?;
    let (said_r, said_w) = outer::pipe()?;
    let child = process::clone(namespaces, None, || {
        let run = || -> Result<std::convert::Infallible> {
            let kill = Some(rustix::process::Signal::KILL);
            rustix::process::set_parent_process_death_signal(kill).doing("tie to the supervisor")?;
            // Its ids are written from outside.
            if rustix::io::read(&go_r, &mut [0]) != Ok(1) {
                return Err(Error::Told("nobody wants it".into()));
            }
            become_it()
        };
        match run() {
            Ok(never) => match never {},
            Err(e) => {
                let _ = rustix::io::write(&said_w, e.to_string().as_bytes());
                127
            }
        }
    })
    .doing(WHAT)?;
    drop(said_w);
    mounts::write_maps(child.pid, &ids.0, Some(&ids.1))?;
    rustix::io::write(&go_w, b"x").doing(WHAT)?;
    // It is closed when the program runs.
    let mut said = [0; 1024];
    match rustix::io::read(&said_r, &mut said).doing(WHAT)? {
        0 => Ok(child),
        length => {
            let _ = child.wait();
            Err(Error::Told(String::from_utf8_lossy(&said[..length]).into_owned()))
        }
    }
}

/// The program that shares folders: there are two, of one name.
struct Server {
    path: PathBuf,
    /// That of QEMU's own sources, before version 8.
    early: bool,
}

/// Where distributions keep it.
const SERVERS: [&str; 4] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/local/libexec/virtiofsd",
];

impl Server {
    fn find() -> Result<Server> {
        let path = server_path().ok_or_else(|| Error::Host {
            what: "virtiofsd is not installed, which shares files with virtual machines".into(),
            hints: vec![
                "Debian 13: `sudo apt install virtiofsd`; Debian 12 has it in `qemu-system-common`".into(),
            ],
        })?;
        let help =
            std::process::Command::new(&path).arg("--help").stdin(std::process::Stdio::null()).output();
        let help = help.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
        let early = !String::from_utf8_lossy(&help).contains("--shared-dir");
        Ok(Server { path, early })
    }

    fn program(&self, share: &Share, at: &Path, socket: OwnedFd) -> Program {
        let at = at.display();
        let cache = if share.still { "always" } else { "auto" };
        let mut args = vec![format!("--fd={FIRST_FD}")];
        if self.early {
            args.extend(["-f", "--rlimit-nofile=0", "-o"].map(String::from));
            let xattr = if share.read_only { "no_xattr" } else { "xattr" };
            let mut options =
                format!("source={at},sandbox=chroot,cache={cache},{xattr},no_posix_lock,no_flock");
            if share.source.is_none() {
                options.push_str(",announce_submounts");
            }
            // A name that the host took away and made again is the new one soon.
            if share.read_only && share.still {
                options.push_str(",timeout=20");
            }
            args.push(options);
        } else {
            args.extend(["--sandbox=chroot", "--rlimit-nofile=0"].map(String::from));
            args.extend([format!("--shared-dir={at}"), format!("--cache={cache}")]);
            if !share.read_only {
                args.push("--xattr".into());
            }
            if share.source.is_none() {
                args.push("--announce-submounts".into());
            }
        }
        Program { path: self.path.clone(), args, fds: vec![socket] }
    }
}

/// The program that shares folders with virtual machines, where the host has it.
pub fn server_path() -> Option<PathBuf> {
    find_program("virtiofsd").or_else(|| SERVERS.iter().map(PathBuf::from).find(|p| p.is_file()))
}

/// A program of the host by its name.
pub fn program_path(name: &str) -> Option<PathBuf> {
    find_program(name)
}

/// Leads the machine's port to sockets in the runtime directory `dir`: the agent's, the store's and those of the session.
///
/// # Errors
/// The socket or a process cannot be made.
pub fn serve_port(dir: &Path, port: OwnedFd) -> Result<Child> {
    codchi_fs::remove_if_exists(dir.join("agent").join(SOCKET))?;
    let listener = crate::start::through_descriptor(&dir.join("agent"), SOCKET, UnixListener::bind)?;
    let (store, session) = (dir.join("daemon"), dir.join(relay::FOLDER));
    let child = process::fork(move || {
        let kill = Some(rustix::process::Signal::KILL);
        if rustix::process::set_parent_process_death_signal(kill).is_err() {
            return 1;
        }
        match pump(port, &listener, &store, &session) {
            Ok(()) => 0,
            Err(_) => 1,
        }
    });
    child.doing("start a process")
}

fn pump(port: OwnedFd, listener: &UnixListener, store: &Path, session: &Path) -> Result<()> {
    let mut mux = Mux::new(port, Side::Host).doing("use the port")?;
    let watch =
        rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).doing("watch a directory")?;
    let comes_and_goes = WatchFlags::MOVED_TO | WatchFlags::DELETE;
    rustix::fs::inotify::add_watch(&watch, session, comes_and_goes).doing("watch a directory")?;
    // A machine names nothing of the host: it says which of the few that there can be, and reaches what the relay has opened.
    let mut answer = |what: &[u8]| {
        let (dir, name) = match what {
            [STORE_CHANNEL] => (store, "socket"),
            [SESSION_CHANNEL, number] => (session, Channel::numbered(*number)?.file()),
            _ => return None,
        };
        crate::start::through_descriptor(dir, name, connect_at_once).ok()
    };
    let mut open = open_in(session);
    mux.say(open.clone());
    let mut pause = None;
    loop {
        let mut list = Vec::new();
        let watched = mux.watch(&mut list);
        let calls = mux.is_met() && pause.is_none();
        list.push(PollFd::new(listener, if calls { PollFlags::IN } else { PollFlags::empty() }));
        list.push(PollFd::new(&watch, PollFlags::IN));
        match poll(&mut list, pause.take().as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            r => r.doing("wait")?,
        };
        let mut seen: Vec<PollFlags> = list.iter().map(PollFd::revents).collect();
        drop(list);
        let others = seen.split_off(watched.len());
        if mux.turn(&watched, &seen, &mut answer).is_err() {
            return Ok(());
        }
        // Before whoever calls, who may have waited for it.
        if others[1].contains(PollFlags::IN) {
            while rustix::io::read(&watch, &mut [0u8; 4096]).is_ok_and(|n| n > 0) {}
            let now = open_in(session);
            if now != open {
                open.clone_from(&now);
                mux.say(now);
            }
        }
        if others[0].contains(PollFlags::IN) {
            match listener.accept() {
                Ok((client, _)) => mux.open(&[AGENT_CHANNEL], client.into()).doing("use a connection")?,
                // It still calls: no descriptor is free, say.
                Err(_) => pause = Some(Timespec { tv_sec: 0, tv_nsec: 100_000_000 }),
            }
        }
    }
}

/// The sockets of the session that are open, by the numbers that a machine has for them.
fn open_in(session: &Path) -> Vec<u8> {
    let open = |c: &Channel| session.join(c.file()).symlink_metadata().is_ok();
    Channel::ALL.into_iter().filter(open).filter_map(Channel::number).collect()
}

/// Connects to a socket that has room for one more: nobody else is to wait for that.
fn connect_at_once(path: String) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A cpio archive in the form that Linux takes for its first memory (newc).
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn put(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        let head = |out: &mut Vec<u8>, v: u32| out.extend_from_slice(format!("{v:08x}").as_bytes());
        let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
        // Nothing is written twice here, so that no copy of a secret is left behind in memory that grew.
        self.0.reserve(110 + name.len() + data.len() + 8);
        self.0.extend_from_slice(b"070701");
        let links = u32::from(FileType::from_raw_mode(mode).is_dir()) + 1;
        let length = data.len() as u32;
        let ino = if mode == 0 { 0 } else { 1 };
        for v in [ino, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, name.len() as u32 + 1, 0] {
            head(&mut self.0, v);
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        pad(&mut self.0);
        self.0.extend_from_slice(data);
        pad(&mut self.0);
    }
}

/// A socket that a program beside the machine listens on, and its other end, connected.
///
/// # Errors
/// No socket can be made.
pub fn connected(tag: &str) -> Result<(UnixListener, OwnedFd)> {
    let dir = Path::new(OWN_DIR).join("sockets");
    codchi_fs::create_private_dir(&dir)?;
    let path = dir.join(tag);
    codchi_fs::remove_if_exists(&path)?;
    let listener = UnixListener::bind(&path).at("listen on", &path)?;
    let other = UnixStream::connect(&path).at("connect to", &path)?;
    codchi_fs::remove_if_exists(&path)?;
    Ok((listener, other.into()))
}

/// The time that is left, as system calls take it.
pub fn left(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
}

/// The name by which a process opens one of its descriptors.
pub fn descriptor(number: i32) -> String {
    format!("/proc/self/fd/{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let mut a = Archive::default();
        a.put("guest", 0o100_600, (0, 0), b"name x\n");
        a.put("dev/console", 0o020_600, (5, 1), &[]);
        a.put("TRAILER!!!", 0, (0, 0), &[]);
        assert_eq!(a.0.len() % 4, 0);
        let text = String::from_utf8_lossy(&a.0);
        assert_eq!(text.matches("070701").count(), 3);
        assert!(text.contains("guest\0") && text.contains("name x\n"));
    }
}
