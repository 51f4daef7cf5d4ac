//! The endpoint of a machine: what its `/nix/var/nix/daemon-socket` leads to.
//!
//! Whoever connects is untrusted. A root that a program in the machine registers (a result link, direnv) becomes a root
//! of this host at once: it is resolved through the machine's own root file system, without ever leaving it, and
//! dropped when the link is gone. Of a virtual machine that is the folder its files are in on this host, without what
//! it mounts itself.
//!
//! The daemon of each connection sees the machine's own folder as `gcroots/auto`, an inbox that this process empties:
//! a link there names a path inside the machine, which would mean something else, or nothing, on the host. The real
//! folder stays visible to it as `gcroots/codchi/host`, so that a collection started in the machine keeps what the
//! host holds.
//!
//! A derivation with a fixed output sees its daemon's network and may read its environment. So the daemon of each
//! connection lives in the machine's network, where the host's loopback and its abstract sockets are out of reach, and
//! has none of the variables of the person who started the machine. What a daemon of the host's own builds has that
//! daemon's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use codchi_core::report::Diagnose;
use codchi_fs::Context;
use codchi_nix::StorePath;
use codchi_runtime::ids::IdMap;
use codchi_runtime::outer::{self, Outer, OuterConfig, Role};
use codchi_runtime::services::Service;
use codchi_sys::process::{self, Child, Namespaces};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::error::Tried;
use crate::shell::{self, Trust, complain, daemon_command};
use crate::{Result, StoreError};

const GCROOTS: &str = "/nix/var/nix/gcroots";
/// Connections one machine may hold at a time.
const CONNECTIONS: usize = 128;
/// Roots one machine may hold at a time.
const ROOTS: usize = 4096;
/// Variables of this process that a daemon needs: none of them is a secret.
const VARIABLES: [&str; 14] = [
    "HOME",
    "USER",
    "PATH",
    "XDG_RUNTIME_DIR",
    "NIX_BIN_DIR",
    "NIX_CONF_DIR",
    "NIX_DAEMON_SOCKET_PATH",
    "NIX_LOG_DIR",
    "NIX_REMOTE",
    "NIX_SSL_CERT_FILE",
    "NIX_STATE_DIR",
    "NIX_STORE_DIR",
    "SSL_CERT_FILE",
    "TZ",
];
/// The same, unless they hold a password.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];
/// How often all links are looked at again, for changes nothing told of (a folder above was renamed or unmounted).
const AGAIN: Duration = Duration::from_secs(60);

/// Where the roots of a machine lie in the store that holds them.
pub fn machine_roots(name: &str) -> PathBuf {
    Path::new(GCROOTS).join("codchi/machines").join(name)
}

/// How roots are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootsAt {
    /// As links in this folder below the store's `gcroots`, which this process may write.
    Store(PathBuf),
    /// As indirect roots in this folder, by asking the host's daemon.
    Indirect(PathBuf),
}

/// What an endpoint needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub socket: PathBuf,
    /// The `nix-daemon` to run.
    pub daemon: PathBuf,
    /// A folder of the endpoint's own that lasts.
    pub state: PathBuf,
    /// Where roots go.
    pub roots: RootsAt,
    /// The machine's runtime directory: its supervisor says there which process is the machine's PID 1.
    pub machine: PathBuf,
    /// Changes to the daemon's environment; `None` removes.
    pub environment: Vec<(OsString, Option<OsString>)>,
}

/// The endpoint as a service of a machine's supervisor.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What it does.
    pub config: Config,
    /// As whom. The caller keeps the namespace's rights, which it takes to look into the machine; daemons lose them.
    pub role: Role,
}

impl Service for Endpoint {
    fn name(&self) -> &str {
        "endpoint"
    }

    fn run(&mut self, ready: &mut dyn FnMut()) -> Result<(), String> {
        let outer = Outer { ids: IdMap::default(), privileged: outer::is_privileged() };
        if self.role == Role::Maintainer {
            outer::become_role(&outer, self.role).map_err(|e| e.to_string())?;
        }
        serve(&self.config, ready).map_err(|e| e.to_string())
    }
}

impl Config {
    /// The arguments of `codchi store serve` that say the same.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--socket".into(), self.socket.clone().into()];
        args.extend(["--daemon".into(), self.daemon.clone().into()]);
        args.extend(["--state".into(), self.state.clone().into()]);
        args.extend(["--machine".into(), self.machine.clone().into()]);
        match &self.roots {
            RootsAt::Store(dir) => args.extend(["--roots".into(), dir.clone().into()]),
            RootsAt::Indirect(dir) => args.extend(["--indirect-roots".into(), dir.clone().into()]),
        }
        args
    }

    fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Config, Option<Once>)> {
        let usage = |what: String| StoreError::Usage(format!("`store serve`: {what}"));
        let (mut fields, mut forget, mut keep) = (BTreeMap::new(), false, false);
        let mut args = args.into_iter();
        while let Some(a) = args.next() {
            let name = a.to_string_lossy().into_owned();
            match name.as_str() {
                "--forget" => forget = true,
                "--keep" => keep = true,
                "--socket" | "--daemon" | "--state" | "--machine" | "--roots" | "--indirect-roots"
                | "--nix" | "--to-roots" | "--to-state" => {
                    let value = args.next().ok_or_else(|| usage(format!("`{name}` needs a value")))?;
                    fields.insert(name, PathBuf::from(value));
                }
                _ => return Err(usage(format!("unknown option `{name}`"))),
            }
        }
        let mut take = |name: &str| fields.remove(name).ok_or_else(|| usage(format!("`{name}` is missing")));
        let config = Config {
            socket: take("--socket")?,
            daemon: take("--daemon")?,
            state: take("--state")?,
            machine: take("--machine")?,
            environment: Vec::new(),
            roots: match take("--roots") {
                Ok(dir) => RootsAt::Store(dir),
                Err(_) => RootsAt::Indirect(take("--indirect-roots")?),
            },
        };
        let nix = fields.remove("--nix");
        let what = match (fields.remove("--to-roots"), fields.remove("--to-state")) {
            (Some(roots), Some(state)) => Some(What::HandOver { roots, state, keep }),
            _ => forget.then_some(What::Forget),
        };
        Ok((config, what.map(|what| Once { nix, what })))
    }
}

/// Something to do instead of serving; done in an outer namespace of its own.
struct Once {
    nix: Option<PathBuf>,
    what: What,
}

enum What {
    /// Drop everything.
    Forget,
    /// Give the roots to another machine: as copies, or only to it.
    HandOver { roots: PathBuf, state: PathBuf, keep: bool },
}

/// The plumbing verb: what the supervisor does by [`Endpoint`], by hand and in an outer namespace of one's own. The
/// process must have one thread. `ready` is written to stdout when the endpoint can be connected to.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let done = Config::parse(args).and_then(|(config, once)| match once {
        Some(once) => do_once(&config, once),
        None => serve(&config, &mut || {
            let mut out = std::io::stdout();
            // Whoever does not listen does not need to know.
            let _ = out.write_all(b"ready\n").and_then(|()| out.flush());
        }),
    });
    match done {
        Ok(()) => 0,
        Err(e) => {
            complain(&e);
            e.kind().exit_status()
        }
    }
}

fn do_once(config: &Config, once: Once) -> Result<()> {
    if matches!(config.roots, RootsAt::Store(_)) {
        let outer = outer::enter(&OuterConfig { nix: once.nix })?;
        outer::become_role(&outer, Role::Maintainer)?;
    }
    match once.what {
        What::Forget => forget(config),
        What::HandOver { roots, state, keep } => {
            hand_over(config, &roots, &state)?;
            if keep { Ok(()) } else { forget(config) }
        }
    }
}

fn forget(config: &Config) -> Result<()> {
    codchi_fs::remove_dir_all(dir(&config.roots))?;
    Ok(codchi_fs::remove_dir_all(&config.state)?)
}

/// Makes the roots of another machine, whose files are the same, from those of this one. May be repeated.
fn hand_over(config: &Config, roots: &Path, state: &Path) -> Result<()> {
    let links = config.state.join("links");
    let known = match codchi_fs::read_dir(&links) {
        Ok(known) => known,
        Err(e) if e.is_not_found() => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let new = match &config.roots {
        RootsAt::Store(_) => RootsAt::Store(roots.into()),
        RootsAt::Indirect(_) => RootsAt::Indirect(roots.into()),
    };
    for made in [roots, &state.join("links")] {
        match new {
            RootsAt::Store(_) => codchi_fs::create_dir_all(made)?,
            RootsAt::Indirect(_) => codchi_fs::create_private_dir(made)?,
        }
    }
    let store_program = config.daemon.with_file_name("nix-store");
    for entry in known {
        let name = entry.file_name();
        let held = codchi_fs::read_link_if_exists(dir(&config.roots).join(&name))?;
        let (Some(name), Some(link), Some(target)) = (
            name.to_str(),
            codchi_fs::read_link_if_exists(entry.path())?,
            held.and_then(|t| t.to_str()?.parse().ok()),
        ) else {
            continue;
        };
        hold(&new, &state.join("links"), &store_program, name, &link, &target)?;
    }
    Ok(())
}

fn serve(config: &Config, ready: &mut dyn FnMut()) -> Result<()> {
    // Becoming another user forgot that.
    shell::die_with_parent()?;
    let inbox = match &config.roots {
        RootsAt::Store(roots) => {
            let inbox = config.state.join("auto");
            for dir in [roots.as_path(), &inbox, &config.state.join("links")] {
                codchi_fs::create_dir_all(dir)?;
            }
            own_gcroots(&inbox)?;
            inbox
        }
        RootsAt::Indirect(roots) => {
            for dir in [roots.as_path(), &config.state.join("links")] {
                codchi_fs::create_private_dir(dir)?;
            }
            Path::new(GCROOTS).join("auto")
        }
    };
    codchi_fs::remove_if_exists(&config.socket)?;
    let listener = UnixListener::bind(&config.socket).at("listen at", &config.socket)?;
    // Anyone in the machine may connect; nobody else can reach the folder.
    rustix::fs::chmod(&config.socket, Mode::from_raw_mode(0o666)).at("change the mode of", &config.socket)?;
    listener.set_nonblocking(true).at("listen at", &config.socket)?;
    let mut roots = Roots::new(config, inbox)?;
    ready();
    Server { config, listener, daemons: Vec::new() }.run(&mut roots)
}

/// Puts the machine's inbox over `gcroots/auto`, for this process and the daemons it starts.
fn own_gcroots(inbox: &Path) -> Result<()> {
    let gcroots = Path::new(GCROOTS);
    let (auto, host) = (gcroots.join("auto"), gcroots.join("codchi/host"));
    codchi_fs::create_dir_all(&auto)?;
    codchi_fs::create_dir_all(&host)?;
    process::unshare(Namespaces::MOUNT).tried("make a mount namespace")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .tried("keep mounts private")?;
    mount_bind(&auto, &host).tried("show the host's roots")?;
    mount_bind(inbox, &auto).tried("mount the machine's roots")
}

struct Server<'a> {
    config: &'a Config,
    listener: UnixListener,
    daemons: Vec<Child>,
}

impl Server<'_> {
    /// Serves until a signal ends this process; its daemons end with it.
    fn run(mut self, roots: &mut Roots) -> Result<()> {
        loop {
            let full = self.daemons.len() >= CONNECTIONS;
            let mut fds = vec![PollFd::new(&roots.inotify, PollFlags::IN)];
            fds.extend(self.daemons.iter().map(|c| PollFd::new(c, PollFlags::IN)));
            if !full {
                fds.push(PollFd::new(&self.listener, PollFlags::IN));
            }
            let timeout = roots.next_check().map(|d| rustix::event::Timespec {
                tv_sec: d.as_secs() as i64,
                tv_nsec: d.subsec_nanos().into(),
            });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).tried("wait for calls"),
            }
            let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
            drop(fds);
            let count = self.daemons.len();
            // What daemons registered is taken in before they are forgotten: until then they hold it themselves.
            if ready[0] {
                roots.events();
            }
            self.daemons.retain(|c| !matches!(c.try_wait(), Ok(Some(_))));
            if !full && ready[1 + count] {
                self.accept(roots)?;
            }
            roots.check_if_due();
        }
    }

    fn accept(&mut self, roots: &mut Roots) -> Result<()> {
        let stream = match self.listener.accept() {
            Ok((s, _)) => s,
            // The caller is gone again, or there is nothing to take.
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::ConnectionAborted
                ) =>
            {
                return Ok(());
            }
            Err(e) => return Err(e).tried("take a call"),
        };
        stream.set_nonblocking(false).tried("take a call")?;
        // `--process-ops`: towards another daemon, Nix would else pass everything on with our own rights.
        let more: &[&str] = match self.config.roots {
            RootsAt::Store(_) => &[],
            RootsAt::Indirect(_) => &["--extra-experimental-features", "mounted-ssh-store", "--process-ops"],
        };
        let mut c = daemon_command(&self.config.daemon, Trust::None, more);
        let own = matches!(self.config.roots, RootsAt::Store(_));
        let kept: Vec<_> = environment(std::env::vars_os(), c.get_envs(), &self.config.environment);
        c.env_clear().envs(kept);
        if own {
            // What was learnt of caches by way of a machine's network is not for others.
            c.env("XDG_CACHE_HOME", self.config.state.join("cache"));
        }
        c.stderr(Stdio::null());
        // It may call before its supervisor has told who it is.
        roots.ask_supervisor();
        let network = roots.network.as_ref();
        let resolver = self.config.machine.join("host/resolv.conf");
        let before = || if own { move_into_machine(network, &resolver) } else { Ok(()) };
        self.daemons.push(shell::start_daemon(c, &stream, before)?);
        Ok(())
    }
}

/// The environment of a daemon: what of this process's is known to be harmless, then the changes.
fn environment<'a>(
    ours: impl Iterator<Item = (OsString, OsString)>,
    set: impl Iterator<Item = (&'a OsStr, Option<&'a OsStr>)>,
    more: &[(OsString, Option<OsString>)],
) -> Vec<(OsString, OsString)> {
    let harmless = |name: &OsStr, value: &OsStr| {
        let proxy = |n: &str| PROXIES.iter().any(|p| p.eq_ignore_ascii_case(n));
        VARIABLES.iter().any(|v| name == *v)
            || (name.to_str().is_some_and(proxy) && !value.as_bytes().contains(&b'@'))
    };
    let mut all: BTreeMap<OsString, OsString> = ours.filter(|(n, v)| harmless(n, v)).collect();
    let set = set.map(|(n, v)| (n.to_owned(), v.map(OsStr::to_owned)));
    for (name, value) in set.chain(more.iter().cloned()) {
        match value {
            Some(v) => all.insert(name, v),
            None => all.remove(&name),
        };
    }
    all.into_iter().collect()
}

/// Takes this process to where the machine is: its network, or none while there is none, and its resolver.
fn move_into_machine(network: Option<&OwnedFd>, resolver: &Path) -> Result<()> {
    process::unshare(Namespaces::MOUNT).tried("make a mount namespace")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .tried("keep mounts private")?;
    if resolver.is_file() && Path::new("/etc/resolv.conf").is_file() {
        mount_bind(resolver, "/etc/resolv.conf").tried("show the machine's resolver")?;
    }
    match network {
        Some(n) => process::setns(n.as_fd(), Namespaces::NET).tried("enter the machine's network"),
        None => process::unshare(Namespaces::NET).tried("leave the host's network"),
    }
}

/// One root: the link in the machine, and what it points to.
#[derive(Debug)]
struct Root {
    link: PathBuf,
    target: Option<StorePath>,
    watch: Option<i32>,
}

struct Roots {
    at: RootsAt,
    store_program: PathBuf,
    inbox: PathBuf,
    /// Links named as in the inbox, to the path in the machine: what lasts of [`Root`].
    links: PathBuf,
    all: BTreeMap<String, Root>,
    inotify: OwnedFd,
    /// None inside a machine: its daemon's folder is not to be seen there.
    inbox_watch: Option<i32>,
    supervisor: PathBuf,
    supervisor_watch: i32,
    leader: Option<i32>,
    machine: Option<OwnedFd>,
    network: Option<OwnedFd>,
    due: Option<Instant>,
}

/// What became of a link when it was looked at.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It points to this.
    Path(StorePath),
    /// It is gone, or is no link into the store.
    Nothing,
    /// That cannot be told now.
    Unknown,
}

impl Roots {
    fn new(config: &Config, inbox: PathBuf) -> Result<Roots> {
        let links = config.state.join("links");
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).tried("watch for roots")?;
        let inbox_watch =
            match inotify::add_watch(&inotify, &inbox, WatchFlags::CREATE | WatchFlags::MOVED_TO) {
                Err(rustix::io::Errno::NOENT) if matches!(config.roots, RootsAt::Indirect(_)) => None,
                watch => Some(watch.at("watch", &inbox)?),
            };
        let told = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        let supervisor_watch =
            inotify::add_watch(&inotify, &config.machine, told).at("watch", &config.machine)?;
        let mut all = BTreeMap::new();
        for entry in codchi_fs::read_dir(&links)? {
            let (Some(name), Some(link)) = (
                entry.file_name().to_str().map(str::to_owned),
                codchi_fs::read_link_if_exists(entry.path())?,
            ) else {
                continue;
            };
            all.insert(name, Root { link, target: None, watch: None });
        }
        let store_program = config.daemon.with_file_name("nix-store");
        let mut roots = Roots {
            at: config.roots.clone(),
            store_program,
            inbox,
            links,
            all,
            inotify,
            inbox_watch,
            supervisor: config.machine.join("supervisor.json"),
            supervisor_watch,
            leader: None,
            machine: None,
            network: None,
            due: None,
        };
        for (name, root) in &mut roots.all {
            let link = codchi_fs::read_link_if_exists(dir(&roots.at).join(name))?;
            root.target = link.and_then(|l| l.to_str()?.parse().ok());
        }
        roots.ask_supervisor();
        Ok(roots)
    }

    /// Learns which process is the machine's PID 1, and takes hold of its root file system.
    fn ask_supervisor(&mut self) {
        let text = codchi_fs::read_if_exists(&self.supervisor).ok().flatten().unwrap_or_default();
        let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let leader = said["leader"].as_i64().and_then(|p| i32::try_from(p).ok());
        if leader == self.leader {
            return;
        }
        self.leader = leader;
        let root = |pid| said["root"].as_str().map_or_else(|| format!("/proc/{pid}/root"), str::to_owned);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.machine = leader.and_then(|pid| rustix::fs::open(root(pid), flags, Mode::empty()).ok());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        self.network =
            leader.and_then(|pid| rustix::fs::open(format!("/proc/{pid}/ns/net"), flags, Mode::empty()).ok());
        for root in self.all.values_mut() {
            root.watch = None;
        }
        self.read_inbox();
        // Not at once: what the machine mounts itself (a home of its own) is not there yet.
        self.due = self.machine.is_some().then(|| Instant::now() + 2 * AGAIN);
    }

    fn next_check(&self) -> Option<Duration> {
        self.due.map(|d| d.saturating_duration_since(Instant::now()))
    }

    fn check_if_due(&mut self) {
        if self.due.is_some_and(|d| d <= Instant::now()) {
            self.check_all();
            self.due = (self.machine.is_some() && !self.all.is_empty()).then(|| Instant::now() + AGAIN);
        }
    }

    fn check_all(&mut self) {
        let names: Vec<String> = self.all.keys().cloned().collect();
        for name in names {
            self.check(&name);
        }
    }

    fn events(&mut self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut touched = Vec::new();
        let (mut inbox, mut supervisor) = (false, false);
        let mut reader = inotify::Reader::new(self.inotify.as_fd(), &mut buffer);
        while let Ok(event) = reader.next() {
            let overflow = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            inbox |= overflow || Some(event.wd()) == self.inbox_watch;
            supervisor |= overflow || event.wd() == self.supervisor_watch;
            touched.push((event.wd(), overflow));
        }
        if supervisor {
            self.ask_supervisor();
        }
        if inbox {
            self.read_inbox();
        }
        if touched.iter().any(|(_, overflow)| *overflow) {
            return self.check_all();
        }
        let names: Vec<String> = self
            .all
            .iter()
            .filter(|(_, r)| r.watch.is_some_and(|w| touched.iter().any(|(t, _)| *t == w)))
            .map(|(n, _)| n.clone())
            .collect();
        for name in names {
            self.check(&name);
        }
    }

    /// Takes in what daemons have registered.
    fn read_inbox(&mut self) {
        let own = matches!(self.at, RootsAt::Store(_));
        if self.machine.is_none() {
            return;
        }
        for entry in codchi_fs::read_dir(&self.inbox).unwrap_or_default() {
            let name = entry.file_name();
            let Some(name) =
                name.to_str().filter(|n| n.len() == 32 && n.bytes().all(|b| b.is_ascii_alphanumeric()))
            else {
                continue;
            };
            let Ok(Some(link)) = codchi_fs::read_link_if_exists(entry.path()) else { continue };
            if !own && (self.all.get(name).is_some_and(|r| r.link == link) || link.exists()) {
                // In a folder shared with the host: known already, or the host's own.
                continue;
            }
            if link.is_absolute() && (self.all.contains_key(name) || self.all.len() < ROOTS) {
                let new = Root { link, target: None, watch: None };
                let old = self.all.insert(name.to_owned(), new);
                if let (Some(old), Some(new)) = (old, self.all.get_mut(name)) {
                    new.target = old.target;
                }
                self.check(name);
            }
            if own {
                // The inbox is emptied so that it never grows; what cannot be removed is seen again.
                let _ = codchi_fs::remove_if_exists(entry.path());
            }
        }
        if !self.all.is_empty() && self.due.is_none() {
            self.due = Some(Instant::now() + AGAIN);
        }
    }

    /// Looks at one link in the machine, and makes, moves or drops its root.
    fn check(&mut self, name: &str) {
        let (Some(machine), Some(root)) = (&self.machine, self.all.get(name)) else { return };
        let link = root.link.clone();
        let before = root.watch;
        // The watch comes first, so that a change after the look is told of.
        let (found, watch) = look(machine, &link, &self.inotify);
        match found {
            Found::Path(path) if Path::new(path.as_str()).symlink_metadata().is_ok() => {
                if let Some(root) = self.all.get_mut(name) {
                    root.watch = watch;
                }
                let known = self.all.get(name).is_some_and(|r| r.target.as_ref() == Some(&path));
                let held = || hold(&self.at, &self.links, &self.store_program, name, &link, &path);
                if (known || held().is_ok())
                    && let Some(root) = self.all.get_mut(name)
                {
                    root.target = Some(path);
                }
            }
            Found::Unknown => {}
            _ => {
                self.all.remove(name);
                let _ = codchi_fs::remove_if_exists(dir(&self.at).join(name));
                let _ = codchi_fs::remove_if_exists(self.links.join(name));
            }
        }
        for watch in [before, watch].into_iter().flatten() {
            self.forget_watch(watch);
        }
    }

    /// Ends a watch that no root needs: the kernel lends a person only so many, and a machine could use them up.
    fn forget_watch(&self, watch: i32) {
        let needed = Some(watch) == self.inbox_watch
            || watch == self.supervisor_watch
            || self.all.values().any(|r| r.watch == Some(watch));
        if !needed {
            // It may have gone with its folder.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }
}

/// Holds what a link in a machine points to.
fn hold(
    at: &RootsAt,
    links: &Path,
    store_program: &Path,
    name: &str,
    link: &Path,
    target: &StorePath,
) -> Result<()> {
    codchi_fs::symlink_atomic(link, links.join(name))?;
    match at {
        RootsAt::Store(dir) => codchi_fs::symlink_atomic(target.as_path(), dir.join(name))?,
        RootsAt::Indirect(dir) => {
            let mut c = std::process::Command::new(store_program);
            c.args(["--realise", target.as_str(), "--add-root"]).arg(dir.join(name));
            let out = c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !out.is_ok_and(|s| s.success()) {
                return Err(StoreError::System {
                    what: format!("hold `{target}`"),
                    source: std::io::Error::other("the daemon refused"),
                });
            }
        }
    }
    Ok(())
}

fn dir(at: &RootsAt) -> &Path {
    match at {
        RootsAt::Store(d) | RootsAt::Indirect(d) => d,
    }
}

/// Reads a link in the machine, never leaving its root file system, and watches the folder it is in.
fn look(machine: &OwnedFd, link: &Path, inotify: &OwnedFd) -> (Found, Option<i32>) {
    let (Some(parent), Some(name)) = (link.parent(), link.file_name()) else { return (Found::Nothing, None) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let parent = match rustix::fs::openat2(machine, parent, flags, Mode::empty(), resolve) {
        Ok(fd) => fd,
        Err(e) => return (missing(e), None),
    };
    // The descriptor's own path: the folder itself, whatever its name leads to by now.
    let itself = format!("/proc/self/fd/{}", parent.as_raw_fd());
    let changes = WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::CREATE
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    let watch = inotify::add_watch(inotify, itself, changes).ok();
    let target = match rustix::fs::readlinkat(&parent, name, Vec::new()) {
        Ok(t) => t,
        Err(e) => return (missing(e), watch),
    };
    let path = std::str::from_utf8(target.as_bytes()).ok().and_then(StorePath::containing);
    (path.map_or(Found::Nothing, Found::Path), watch)
}

/// Whether an error means that there is no such link.
fn missing(e: rustix::io::Errno) -> Found {
    use rustix::io::Errno;
    match e {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::NAMETOOLONG => Found::Nothing,
        _ => Found::Unknown,
    }
}
