//! The listener: accepts connections of the host and forks a session for each.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use codchi_core::protocol::{AGENT_CHANNEL as AGENT, SESSION_CHANNEL as SESSION, STORE_CHANNEL as STORE};
use codchi_fs::Context as _;
use codchi_sys::mux::{Mux, Side};
use codchi_sys::spawn;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::cgroup::Cgroups;
use crate::channels::Sockets;
use crate::connection::Connection;
use crate::error::Error;
use crate::session;

/// Where the listener's socket is, for host and machine alike.
const DIRECTORY: &str = "/run/codchi/agent";
/// The argument with which it serves a port.
pub const PORT: &str = "--port";
/// The argument with which it leads a stream of the engine's to the socket, where the host is another one.
pub const BRIDGE: &str = "--bridge";
/// The argument with which it leads its input and output to a port of the machine.
pub const CONNECT: &str = "--connect";
/// That the host is another one: what its engine starts in the machine, as root, comes in its place.
const APART: &str = "/run/codchi/host/apart";
/// Where login environments are kept; for root alone.
const CACHE: &str = "/run/codchi-agent";
/// Where the socket of the host's store is.
const STORE_DIRECTORY: &str = "/nix/var/nix/daemon-socket";
/// Connections served at once.
const MAX_SESSIONS: usize = 512;

/// What every session needs to know.
pub struct Settings {
    /// Who runs commands when the host names nobody.
    pub default_user: Option<String>,
    /// Folder of cached login environments.
    pub cache: PathBuf,
    /// This program.
    pub program: PathBuf,
    /// Where commands get control groups of their own.
    pub cgroups: Cgroups,
}

/// Serves at the usual place until killed.
pub fn serve() -> Result<Infallible, Error> {
    serve_in(DIRECTORY.as_ref(), CACHE.as_ref())
}

/// Prepares what both ways of serving need.
fn prepare(cache: &Path) -> Result<Settings, Error> {
    spawn::close_on_exec_from(3).map_err(Error::system("close what was inherited"))?;
    let settings = Settings {
        default_user: std::env::var("CODCHI_USER").ok().filter(|u| !u.is_empty()),
        cache: cache.into(),
        program: std::env::current_exe().map_err(Error::system("find this program"))?,
        cgroups: Cgroups::of_this_process(),
    };
    codchi_fs::create_private_dir(cache)?;
    Ok(settings)
}

/// Serves the port of a virtual machine that has this name, until killed; and leads to the host who calls its store, or the
/// session that it lends.
pub fn serve_port(name: &OsStr) -> Result<Infallible, Error> {
    let settings = prepare(CACHE.as_ref())?;
    let port = open_port(name)?;
    let mut mux = Some(Mux::new(port, Side::Machine).map_err(Error::system("use the port"))?);
    let mut store = store_listener()?;
    let mut sockets = Sockets::new(settings.default_user.clone());
    tell_ready();
    let mut sessions: Vec<spawn::Child> = Vec::new();
    loop {
        let Some(trunk) = &mut mux else { return Err(Error::Closed) };
        let mut list = Vec::with_capacity(sessions.len() + 8);
        let watched = trunk.watch(&mut list);
        let first = list.len();
        let mut calling: Vec<(Vec<u8>, &UnixListener)> =
            store.iter().map(|listener| (vec![STORE], listener)).collect();
        calling.extend(
            sockets.listeners().filter_map(|(c, listener)| Some((vec![SESSION, c.number()?], listener))),
        );
        list.extend(calling.iter().map(|(_, listener)| PollFd::new(*listener, PollFlags::IN)));
        list.extend(sessions.iter().map(|s| PollFd::new(&s.pidfd, PollFlags::IN)));
        match poll(&mut list, None) {
            Err(rustix::io::Errno::INTR) => continue,
            r => r.map_err(Error::system("wait for the host"))?,
        };
        let mut seen: Vec<PollFlags> = list.iter().map(PollFd::revents).collect();
        drop(list);
        let others = seen.split_off(first);
        let mut new = Vec::new();
        let mut answer = |what: &[u8]| {
            let (ours, theirs) = UnixStream::pair().ok()?;
            (what == [AGENT]).then(|| new.push(OwnedFd::from(ours))).map(|()| theirs.into())
        };
        trunk
            .turn(&watched, &seen, &mut answer)
            .map_err(|e| Error::System { what: "use the port", source: e })?;
        for ((what, listener), _) in calling.iter().zip(&others).filter(|(_, seen)| !seen.is_empty()) {
            if let Ok((client, _)) = listener.accept() {
                let _ = trunk.open(what, client.into());
            }
        }
        let mut each = others.iter().skip(calling.len());
        sessions.retain(|s| {
            let ended = each.next().is_some_and(|e| !e.is_empty());
            if ended {
                let _ = waitid(WaitId::PidFd(s.pidfd.as_fd()), WaitIdOptions::EXITED);
            }
            !ended
        });
        if sessions.is_empty() {
            settings.cgroups.sweep();
        }
        // A command that the host sent later finds them.
        if let Some(open) = trunk.heard() {
            sockets.follow(&open);
        }
        while let Some(conn) = new.pop() {
            if sessions.len() >= MAX_SESSIONS {
                Connection::new(conn).refuse(&Error::Busy(MAX_SESSIONS));
                continue;
            }
            let mut conn = Some(conn);
            let started = spawn::fork(None, || {
                // A copy of the port's other end, or of another session's, would keep it open.
                mux = None;
                store = None;
                sockets.forget();
                sessions.clear();
                new.clear();
                conn.take().map_or(1, |conn| session::run(conn, &settings))
            });
            match started {
                Ok(child) => sessions.push(child),
                Err(e) => {
                    let _ = writeln!(std::io::stderr(), "codchi-agent: cannot fork: {e}");
                }
            }
        }
    }
}

/// The character device of a port, found by its name: nothing makes links for names here.
fn open_port(name: &OsStr) -> Result<OwnedFd, Error> {
    let ports = Path::new("/sys/class/virtio-ports");
    for port in codchi_fs::read_dir(ports)? {
        let told = codchi_fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if OsStr::new(told.trim()) == name {
            let device = Path::new("/dev").join(port.file_name());
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
            return Ok(rustix::fs::open(&device, flags, Mode::empty()).at("open", &device)?);
        }
    }
    Err(Error::Closed)
}

/// Where Nix in the machine finds its daemon; none where the machine has no part in the store.
fn store_listener() -> Result<Option<UnixListener>, Error> {
    let dir = Path::new(STORE_DIRECTORY);
    if !dir.is_dir() {
        return Ok(None);
    }
    codchi_fs::remove_if_exists(dir.join("socket"))?;
    listen(dir, "socket", 0o666, None).map(Some)
}

/// Serves on `dir/socket` until killed.
pub fn serve_in(dir: &Path, cache: &Path) -> Result<Infallible, Error> {
    let settings = prepare(cache)?;
    let mut listener = Some(listen(dir, "socket", 0o666, None)?);
    tell_ready();
    let mut sessions: Vec<spawn::Child> = Vec::new();
    loop {
        let Some(socket) = &listener else { return Err(Error::Closed) };
        let mut watched = Vec::with_capacity(sessions.len() + 1);
        watched.push(PollFd::new(socket, PollFlags::IN));
        watched.extend(sessions.iter().map(|s| PollFd::new(&s.pidfd, PollFlags::IN)));
        match poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            r => r.map_err(Error::system("wait for connections"))?,
        };
        let called = !watched[0].revents().is_empty();
        let ended: Vec<bool> = watched[1..].iter().map(|w| !w.revents().is_empty()).collect();
        let mut each = ended.into_iter();
        sessions.retain(|s| {
            let ended = each.next().unwrap_or(false);
            if ended {
                let _ = waitid(WaitId::PidFd(s.pidfd.as_fd()), WaitIdOptions::EXITED);
            }
            !ended
        });
        if sessions.is_empty() {
            settings.cgroups.sweep();
        }
        if !called {
            continue;
        }
        let Ok((conn, _)) = socket.accept() else { continue };
        if !is_host(&conn) {
            continue;
        }
        let conn = OwnedFd::from(conn);
        if sessions.len() >= MAX_SESSIONS {
            Connection::new(conn).refuse(&Error::Busy(MAX_SESSIONS));
            continue;
        }
        let mut conn = Some(conn);
        let started = spawn::fork(None, || {
            listener = None;
            sessions.clear();
            conn.take().map_or(1, |conn| session::run(conn, &settings))
        });
        match started {
            Ok(child) => sessions.push(child),
            Err(e) => {
                let _ = writeln!(std::io::stderr(), "codchi-agent: cannot fork: {e}");
            }
        }
    }
}

/// Whoever is visible in this pid namespace lives in the machine, and is not the host. Where that is another one, the machine's root
/// speaks for it, who may do anything here.
fn is_host(conn: &UnixStream) -> bool {
    match spawn::peer(conn) {
        Ok((0, _)) => true,
        Ok((_, uid)) => uid == 0 && Path::new(APART).exists(),
        Err(_) => false,
    }
}

/// Leads standard input to what `send` is an end of, and what comes of it to standard output. Who gives nothing more may still get.
fn lead<S: Read + Write + Send + 'static>(
    mut receive: S,
    mut send: S,
    no_more: impl FnOnce(&S) + Send + 'static,
) -> std::thread::JoinHandle<S> {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut send);
        no_more(&send);
    });
    std::thread::spawn(move || {
        let mut out = std::io::stdout().lock();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n) = receive.read(&mut buffer)
            && n > 0
            && out.write_all(buffer.get(..n).unwrap_or_default()).is_ok()
            && out.flush().is_ok()
        {}
        receive
    })
}

/// Leads standard input and output to a port of the machine, where what serves it listens on one of the loopback's addresses.
pub fn connect(port: &OsStr) -> Result<(), Error> {
    let port: u16 = port.to_str().and_then(|p| p.parse().ok()).ok_or(Error::Usage)?;
    let addresses: [std::net::SocketAddr; 2] =
        [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    let stream = TcpStream::connect(&addresses[..]).map_err(Error::system("connect to the port"))?;
    let send = stream.try_clone().map_err(Error::system("use a connection"))?;
    let ended = lead(stream, send, |s: &TcpStream| drop(s.shutdown(Shutdown::Write)));
    let _ = ended.join();
    Ok(())
}

/// Leads what comes on standard input to the socket, and back to standard output, until one of them ends; and leads to the host who
/// calls the session that it lends to this user.
pub fn bridge(user: OsString) -> Result<(), Error> {
    spawn::close_on_exec_from(3).map_err(Error::system("close what was inherited"))?;
    let (trunk, ours) = UnixStream::pair().map_err(Error::system("make a connection"))?;
    let send = ours.try_clone().map_err(Error::system("use a connection"))?;
    // The host is gone without its end of it.
    lead(ours, send, |s: &UnixStream| drop(s.shutdown(Shutdown::Both)));
    let mut mux = Mux::new(trunk.into(), Side::Machine).map_err(Error::system("use the connection"))?;
    let socket = Path::new(DIRECTORY).join("socket");
    let mut sockets = Sockets::new(user.into_string().ok());
    let mut answer = |what: &[u8]| {
        let wanted = what == [AGENT];
        wanted.then(|| UnixStream::connect(&socket).ok()).flatten().map(OwnedFd::from)
    };
    loop {
        let mut list = Vec::new();
        let watched = mux.watch(&mut list);
        let calling: Vec<([u8; 2], &UnixListener)> =
            sockets.listeners().filter_map(|(c, l)| Some(([SESSION, c.number()?], l))).collect();
        list.extend(calling.iter().map(|(_, listener)| PollFd::new(*listener, PollFlags::IN)));
        match poll(&mut list, None) {
            Err(rustix::io::Errno::INTR) => continue,
            r => r.map_err(Error::system("wait for the host"))?,
        };
        let mut seen: Vec<PollFlags> = list.iter().map(PollFd::revents).collect();
        drop(list);
        let others = seen.split_off(watched.len());
        if mux.turn(&watched, &seen, &mut answer).is_err() {
            return Ok(());
        }
        for ((what, listener), _) in calling.iter().zip(&others).filter(|(_, seen)| !seen.is_empty()) {
            if let Ok((client, _)) = listener.accept() {
                let _ = mux.open(what, client.into());
            }
        }
        if let Some(open) = mux.heard() {
            sockets.follow(&open);
        }
    }
}

/// A socket at its final name that already listens, with its final owner and mode: whoever sees it can use it.
pub fn listen(dir: &Path, name: &str, mode: u32, owner: Option<(Uid, Gid)>) -> Result<UnixListener, Error> {
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    codchi_fs::remove_if_exists(&temporary)?;
    let listener = UnixListener::bind(&temporary).at("listen on", &temporary)?;
    rustix::fs::chmodat(CWD, &temporary, Mode::from(mode), AtFlags::empty())
        .at("set the mode of", &temporary)?;
    if let Some((uid, gid)) = owner {
        rustix::fs::chownat(CWD, &temporary, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .at("set the owner of", &temporary)?;
    }
    codchi_fs::rename(&temporary, dir.join(name))?;
    Ok(listener)
}

/// Tells the service manager, if it asked, that connections are taken from now on (sd_notify(3)).
fn tell_ready() {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = |address: OsString| -> std::io::Result<()> {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        let socket = UnixDatagram::unbound()?;
        let message = b"READY=1";
        match address.as_bytes().strip_prefix(b"@") {
            Some(name) => {
                socket.send_to_addr(message, &std::os::unix::net::SocketAddr::from_abstract_name(name)?)?
            }
            None => socket.send_to(message, Path::new(&address))?,
        };
        Ok(())
    };
    if let Err(e) = send(address) {
        let _ = writeln!(std::io::stderr(), "codchi-agent: cannot tell the service manager: {e}");
    }
}
