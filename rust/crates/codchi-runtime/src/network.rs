//! A machine's way out: a user-mode network program beside it, so that neither root nor a bridge is needed.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::port::{Forward, PortState, Protocol};
use codchi_fs::Context;
use codchi_sys::process::{Child, Namespaces};
use codchi_sys::{identity, process};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};
use crate::mounts::Owner;
use crate::outer::OWN_DIR;
use crate::ports;

/// How a machine reaches others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// By pasta(1).
    Pasta,
    /// By slirp4netns(1).
    Slirp4netns,
    /// Not at all.
    Loopback,
}

impl Way {
    /// The address at which the program answers questions for names, on behalf of a resolver on the host's loopback.
    pub(crate) fn resolver(self) -> Option<&'static str> {
        match self {
            Way::Pasta => Some(PASTA_RESOLVER),
            Way::Slirp4netns => Some("10.0.2.3"),
            Way::Loopback => None,
        }
    }
}

/// Link-local, so that it hides nobody's network.
const PASTA_RESOLVER: &str = "169.254.1.53";
/// The option of pasta that lets connections from the host's loopback arrive on the machine's.
const LOOPBACK_OPTION: &str = "--host-lo-to-ns-lo";
/// Where slirp4netns listens, beside the other files of the network.
const SLIRP_SOCKET: &str = "slirp4netns";
/// How long a network program may take to be ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way out of one machine.
pub(crate) struct Network {
    pub way: Way,
    pub program: Option<Child>,
    /// The host's resolver that it asks on the machine's behalf.
    pub forwards: Option<String>,
    /// Ports of the host that lead into the machine.
    pub ports: Vec<PortState>,
}

impl Network {
    /// None.
    pub fn loopback(ports: &[Forward]) -> Network {
        let problem = Some("the machine has no network program".to_string());
        let ports = ports.iter().map(|f| PortState { forward: *f, problem: problem.clone() }).collect();
        Network { way: Way::Loopback, program: None, forwards: None, ports }
    }
}

/// The host's resolver file.
pub(crate) fn host_resolvers() -> Result<String> {
    Ok(codchi_fs::read_if_exists("/etc/resolv.conf")?.unwrap_or_default())
}

/// A program by its name, as a shell finds it, or where distributions put it.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin", "/run/current-system/sw/bin"];
    let dirs = std::env::split_paths(&path).chain(usual.iter().map(PathBuf::from));
    dirs.map(|d| d.join(name)).find(|p| {
        p.is_absolute() && p.is_file() && rustix::fs::access(p, rustix::fs::Access::EXEC_OK).is_ok()
    })
}

/// Connects the network namespace of a machine, whose runtime directory is `machine`. What did not work is said, but for
/// ports: what became of each is in the answer.
pub(crate) fn connect(
    leader: i32,
    owner: Owner,
    machine: &Path,
    ports: &[Forward],
    warn: &mut dyn FnMut(String),
) -> Result<Network> {
    let mut tried = Vec::new();
    let log = &machine.join("network.log");
    let mut ports_to_try = ports::examine(machine, ports);
    let forwards = forwarded(&host_resolvers()?);
    for (way, name) in [(Way::Pasta, "pasta"), (Way::Slirp4netns, "slirp4netns")] {
        let Some(program) = find_program(name) else {
            tried.push(format!("`{name}` is not installed"));
            continue;
        };
        let forward = forwards.is_some();
        let late = way == Way::Pasta && !ports.is_empty() && is_late_pasta(&program);
        if way == Way::Pasta && !late {
            refuse_translated_datagrams(&mut ports_to_try);
        }
        let mut started =
            start(way, &program, leader, owner, log, &Wanted { forward, ports: &ports_to_try, late })?;
        if let Err(why) = &started
            && ports_to_try.iter().any(|p| p.problem.is_none())
        {
            // A port that was taken just now, or that this version cannot forward, must not cost the machine its network.
            let problem = format!("`{name}` {why}");
            for port in ports_to_try.iter_mut().filter(|p| p.problem.is_none()) {
                port.problem = Some(problem.clone());
            }
            started =
                start(way, &program, leader, owner, log, &Wanted { forward, ports: &ports_to_try, late })?;
        }
        match started {
            Ok(child) => {
                if way == Way::Slirp4netns {
                    ask_for_ports(&mut ports_to_try);
                }
                return Ok(Network { way, program: Some(child), forwards, ports: ports_to_try });
            }
            Err(why) => tried.push(format!("`{name}` {why}")),
        }
    }
    warn(format!("the machine has no network but its own loopback: {}", tried.join(", ")));
    Ok(Network::loopback(ports))
}

/// Has slirp4netns forward the ports that are not refused already.
fn ask_for_ports(ports: &mut [PortState]) {
    let socket = own_dir().join(SLIRP_SOCKET);
    for port in ports.iter_mut().filter(|p| p.problem.is_none()) {
        port.problem = match ports::slirp(&socket, &port.forward) {
            Ok(done) => done.err(),
            Err(e) => Some(e.to_string()),
        };
    }
}

fn refuse_translated_datagrams(ports: &mut [PortState]) {
    for port in ports.iter_mut().filter(|p| p.problem.is_none()) {
        if port.forward.protocol == Protocol::Udp && port.forward.host != port.forward.guest {
            port.problem = Some(
                "pasta before 2024-10 leads datagrams only to a port of the same number (newer: Debian 13 has it)"
                    .into(),
            );
        }
    }
}

/// Where the network programs find what they need, and leave what we need.
fn own_dir() -> PathBuf {
    Path::new(OWN_DIR).join("network")
}

/// Whether this pasta keeps connections from the host's loopback on the machine's only when it is told so. Earlier ones always
/// do, and lose the answers to datagrams for a port of another number.
fn is_late_pasta(program: &Path) -> bool {
    let help = std::process::Command::new(program)
        .arg("--help")
        .stdin(std::process::Stdio::null())
        .output()
        .map(|o| [o.stdout, o.stderr].concat())
        .unwrap_or_default();
    String::from_utf8_lossy(&help).contains(LOOPBACK_OPTION)
}

/// What a network program is to do.
struct Wanted<'a> {
    /// Ask the host's resolver on the machine's behalf.
    forward: bool,
    /// Lead these ports into the machine.
    ports: &'a [PortState],
    /// It is a pasta with [`LOOPBACK_OPTION`].
    late: bool,
}

/// Starts a network program in the machine's user namespace, but in the host's network namespace, and waits until it
/// is ready. The inner error says why it is not.
fn start(
    way: Way,
    program: &Path,
    leader: i32,
    owner: Owner,
    log: &Path,
    wanted: &Wanted<'_>,
) -> Result<std::result::Result<Child, String>> {
    let dir = own_dir();
    codchi_fs::create_dir_all(&dir)?;
    rustix::fs::chown(&dir, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
        .at("change the owner of", &dir)?;
    let ready = dir.join("ready");
    codchi_fs::remove_if_exists(&ready)?;
    let watch =
        rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).doing("watch a directory")?;
    rustix::fs::inotify::add_watch(&watch, &dir, WatchFlags::CLOSE_WRITE).doing("watch a directory")?;

    let namespace = format!("/proc/{leader}/ns/user");
    let namespace = rustix::fs::open(&namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at("open", namespace)?;
    let target = show_namespace(leader, &dir)?;
    let ready_text = ready.display().to_string();
    let socket = dir.join(SLIRP_SOCKET);
    codchi_fs::remove_if_exists(&socket)?;
    let socket = socket.display().to_string();
    let (tcp, udp) = (ports::pasta(wanted.ports, Protocol::Tcp), ports::pasta(wanted.ports, Protocol::Udp));
    let args: Vec<String> = match way {
        Way::Pasta => {
            let mut a: Vec<&str> = vec!["-q", "-f", "--config-net", "--no-map-gw", "--no-netns-quit"];
            // Its own defaults open the host's loopback to the machine, and the machine's ports on the host.
            a.extend(["-t", &tcp, "-u", &udp, "-T", "none", "-U", "none"]);
            // Development servers often listen on the machine's loopback only.
            if wanted.late {
                a.push(LOOPBACK_OPTION);
            }
            if wanted.forward {
                a.extend(["--dns-forward", PASTA_RESOLVER]);
            }
            a.extend(["-P", &ready_text, "--netns-only", "--netns", &target]);
            a.into_iter().map(String::from).collect()
        }
        _ => {
            let mut a: Vec<&str> = vec!["--configure", "--mtu=65520", "--disable-host-loopback", "-r", "3"];
            a.extend(["--api-socket", &socket, "--netns-type=path", &target, "tap0"]);
            a.into_iter().map(String::from).collect()
        }
    };
    let (ready_r, ready_w) = crate::outer::pipe()?;
    let log_from = std::fs::metadata(log).map_or(0, |m| m.len());
    let child = process::fork(|| match become_program(way, program, &args, &namespace, log, &ready_w) {
        Ok(never) => match never {},
        Err(_) => 127,
    })
    .doing("start a process")?;
    drop(ready_w);

    let until = Instant::now() + PATIENCE;
    let mut pipe_open = way == Way::Slirp4netns;
    let ended = loop {
        if let Some(end) = child.try_wait().doing("wait for a process")? {
            break Some(end);
        }
        if way == Way::Pasta && std::fs::metadata(&ready).is_ok_and(|m| m.len() > 0) {
            break None;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            child.signal(codchi_sys::signal::SIGKILL).doing("end a process")?;
            child.wait().doing("wait for a process")?;
            return Ok(Err(format!("was not ready after {} seconds", PATIENCE.as_secs())));
        }
        let mut fds = vec![PollFd::new(&child, PollFlags::IN), PollFd::new(&watch, PollFlags::IN)];
        if pipe_open {
            fds.push(PollFd::new(&ready_r, PollFlags::IN));
        }
        let left = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: left.min(Duration::from_millis(500)).as_nanos() as _,
        };
        let _ = poll(&mut fds, Some(&left));
        if pipe_open && !fds[2].revents().is_empty() {
            let mut b = [0];
            if rustix::io::read(&ready_r, &mut b) == Ok(1) {
                break None;
            }
            pipe_open = false;
        }
        let _ = rustix::io::read(&watch, &mut [0u8; 4096]);
    };
    Ok(match ended {
        None => Ok(child),
        Some(end) => Err(format!("ended with {}{}", end.shell_status(), last_line(log, log_from))),
    })
}

/// Makes the machine's network namespace a file: the programs drop their rights before they open it, and /proc shows
/// it only to who has more than the machine's root.
fn show_namespace(leader: i32, dir: &Path) -> Result<String> {
    let file = dir.join("namespace");
    let _ = rustix::mount::unmount(&file, rustix::mount::UnmountFlags::DETACH);
    codchi_fs::write(&file, "")?;
    rustix::mount::mount_bind(format!("/proc/{leader}/ns/net"), &file)
        .doing("show the machine's network namespace")?;
    Ok(file.display().to_string())
}

/// Lets go of a machine's network namespace.
pub(crate) fn forget() {
    let file = own_dir().join("namespace");
    let _ = rustix::mount::unmount(&file, rustix::mount::UnmountFlags::DETACH);
}

/// What a program wrote last, for the message.
fn last_line(log: &Path, from: u64) -> String {
    let text = codchi_fs::read(log).unwrap_or_default();
    let new = text.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default();
    let new = String::from_utf8_lossy(new);
    new.lines().rev().find(|l| !l.trim().is_empty()).map(|l| format!(" ({})", l.trim())).unwrap_or_default()
}

fn become_program(
    way: Way,
    program: &Path,
    args: &[String],
    namespace: &OwnedFd,
    log: &Path,
    ready: &OwnedFd,
) -> Result<std::convert::Infallible> {
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing("open /dev/null")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let log = rustix::fs::open(log, flags, Mode::from_raw_mode(0o600)).doing("open the log")?;
    process::stdio(null.as_fd(), 0).doing("redirect")?;
    process::stdio(log.as_fd(), 1).doing("redirect")?;
    process::stdio(log.as_fd(), 2).doing("redirect")?;
    process::setns(namespace.as_fd(), Namespaces::USER).doing("join the machine's user namespace")?;
    identity::set_groups(&[]).doing("drop groups")?;
    identity::set_gid(0).doing("become root of the machine")?;
    identity::set_uid(0).doing("become root of the machine")?;
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).doing("tie to the supervisor")?;
    process::close_from(3).doing("close descriptors")?;
    if way == Way::Slirp4netns {
        process::give_descriptor(ready.as_fd(), 3).doing("pass a descriptor")?;
    }
    codchi_sys::signal::reset();
    let text = |s: &OsStr| CString::new(s.as_bytes()).map_err(std::io::Error::other);
    let path = text(program.as_os_str()).doing("name the program")?;
    let mut argv = vec![path.clone()];
    for a in args {
        argv.push(text(OsStr::new(a)).doing("name an argument")?);
    }
    match codchi_sys::spawn::execve(&path, &argv, &[]) {
        Ok(never) => match never {},
        Err(e) => Err(e).doing("start the network program"),
    }
}

fn servers(host: &str) -> impl Iterator<Item = &str> {
    host.lines().filter_map(|l| {
        let mut w = l.split_whitespace();
        (w.next() == Some("nameserver")).then(|| w.next()).flatten()
    })
}

/// A resolver that only the host itself can reach: on its loopback, or by one of its links.
fn only_hosts(server: &str) -> bool {
    server.starts_with("127.") || server == "::1" || server == "0.0.0.0" || server.contains('%')
}

/// The resolver that has to be asked on the machine's behalf: the host's first, when one of them is the host's alone.
/// (Not always: an early pasta mixes up the answers of a resolver that is asked in both ways.)
pub(crate) fn forwarded(host: &str) -> Option<String> {
    servers(host).any(only_hosts).then(|| servers(host).next().map(String::from)).flatten()
}

/// The machine's resolver file: the host's, with its first resolver asked through `forwarder` where that is needed.
pub(crate) fn resolv_conf(host: &str, forwarder: Option<&str>) -> String {
    let asked = forwarded(host);
    let mut out = String::new();
    for l in host.lines() {
        let l = l.trim();
        if !l.starts_with("nameserver") && !l.starts_with(['#', ';']) && !l.is_empty() {
            out.push_str(l);
            out.push('\n');
        }
    }
    for s in servers(host) {
        let s = if asked.as_deref() == Some(s) { forwarder } else { Some(s).filter(|s| !only_hosts(s)) };
        if let Some(s) = s.filter(|s| !out.contains(&format!("nameserver {s}\n"))) {
            out.push_str(&format!("nameserver {s}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_on_the_hosts_loopback_is_reached_through_the_forwarder() {
        let host =
            "# by resolved\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver 127.0.0.54\nsearch a.b\n";
        let f = Some("1.2.3.4");
        assert_eq!(resolv_conf(host, f), "search a.b\nnameserver 1.2.3.4\nnameserver 10.0.0.1\n");
        assert_eq!(resolv_conf(host, None), "search a.b\nnameserver 10.0.0.1\n");
        assert_eq!(forwarded(host).as_deref(), Some("127.0.0.53"));
        let later = "nameserver 10.0.0.1\nnameserver fe80::1%eth0\n";
        assert_eq!(resolv_conf(later, f), "nameserver 1.2.3.4\n");
        let plain = "nameserver 10.0.0.1\nnameserver 10.0.0.2\noptions edns0";
        assert_eq!(forwarded(plain), None);
        assert_eq!(resolv_conf(plain, f), "options edns0\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n");
        assert_eq!(resolv_conf("", f), "");
    }
}
