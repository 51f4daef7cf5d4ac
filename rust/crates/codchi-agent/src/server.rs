//! The listener: accepts connections of the host and forks a session for each.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use codchi_fs::Context as _;
use codchi_sys::spawn;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::cgroup::Cgroups;
use crate::connection::Connection;
use crate::error::Error;
use crate::session;

/// Where the listener's socket is, for host and machine alike.
const DIRECTORY: &str = "/run/codchi/agent";
/// Where login environments are kept; for root alone.
const CACHE: &str = "/run/codchi-agent";
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

/// Serves on `dir/socket` until killed.
pub fn serve_in(dir: &Path, cache: &Path) -> Result<Infallible, Error> {
    spawn::close_on_exec_from(3).map_err(Error::system("close what was inherited"))?;
    let settings = Settings {
        default_user: std::env::var("CODCHI_USER").ok().filter(|u| !u.is_empty()),
        cache: cache.into(),
        program: std::env::current_exe().map_err(Error::system("find this program"))?,
        cgroups: Cgroups::of_this_process(),
    };
    codchi_fs::create_private_dir(cache)?;
    let mut listener = Some(listen(dir)?);
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
        // Whoever is visible in this pid namespace lives in the machine, and is not the host.
        if spawn::peer_pid(&conn).ok() != Some(0) {
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

/// A socket at its final name that already listens with its final mode: whoever sees it can use it.
fn listen(dir: &Path) -> Result<UnixListener, Error> {
    let temporary = dir.join(format!(".socket.{}", std::process::id()));
    codchi_fs::remove_if_exists(&temporary)?;
    let listener = UnixListener::bind(&temporary).at("listen on", &temporary)?;
    rustix::fs::chmodat(CWD, &temporary, Mode::from(0o666), rustix::fs::AtFlags::empty())
        .at("set the mode of", &temporary)?;
    codchi_fs::rename(&temporary, dir.join("socket"))?;
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
