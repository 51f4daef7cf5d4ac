//! Sockets in a machine that lead to the session of whoever called last: display, sound, ssh agent, passwords of git.
//!
//! They lie in the folder that the machine sees at `/run/codchi/host`, belong to the machine's user, and stay when what they lead
//! to is restarted or another session's: where that is, is looked up for each connection. To the other side the caller is who
//! speaks, not a machine. To one with a kernel of its own, which no socket reaches, what serves its port leads them
//! ([`crate::guest`]).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use codchi_core::session::{Channel, Display, Session};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::error::{Doing, Result};
use crate::services::Service;
use crate::spec::{Launch, User};
use crate::start::through_descriptor;
use crate::{pulse, x11};

/// The file with the session, in a machine's runtime directory.
const FILE: &str = "session.json";
/// The folder with the sockets, there too.
pub(crate) const FOLDER: &str = "host";
/// How long to wait until those for a new session are open.
const OPENING: Duration = Duration::from_secs(2);
/// Connections at once; a machine can open many.
const MOST: usize = 256;
/// Bytes under way in one direction.
const CHUNK: usize = 64 << 10;
/// How long a first word may take, and a question to git.
const PATIENCE: Duration = Duration::from_secs(10);

/// Remembers where the caller's session is, for the machine with this runtime directory, and waits until the sockets that lead
/// there are open: what the caller runs looks for them when it begins.
pub fn follow(dir: &Path, session: Session) -> Result<()> {
    let path = dir.join(FILE);
    let before = read(dir);
    let now = session.over(before.as_ref().unwrap_or(&Session::default()));
    if before.as_ref() != Some(&now) && dir.exists() {
        let text = serde_json::to_vec(&now).map_err(io::Error::other).doing("write the session")?;
        crate::start::write_quick(&path, &text)?;
    }
    opened(dir, &now)
}

/// Waits for the sockets that are to be open. One that does not come is missed by what looks for it, and by nothing else.
fn opened(dir: &Path, session: &Session) -> Result<()> {
    let folder = dir.join(FOLDER);
    // That one depends on no session: it is open since the machine's start.
    let missing =
        |c: &Channel| *c != Channel::GitCredentials && has(session, *c) && !folder.join(c.file()).exists();
    if !folder.exists() || !Channel::ALL.iter().any(missing) {
        return Ok(());
    }
    let channels = Launch::read(dir)?.channels;
    let until = Instant::now() + OPENING;
    let watch =
        rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).doing("watch a directory")?;
    rustix::fs::inotify::add_watch(&watch, &folder, WatchFlags::MOVED_TO).doing("watch a directory")?;
    while channels.iter().any(missing) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        crate::start::wait(&mut [PollFd::new(&watch, PollFlags::IN)], until)?;
        while rustix::io::read(&watch, &mut [0u8; 4096]).is_ok_and(|n| n > 0) {}
    }
    Ok(())
}

fn read(dir: &Path) -> Option<Session> {
    let text = codchi_fs::read_if_exists(dir.join(FILE)).ok().flatten()?;
    serde_json::from_str(&text).ok()
}

/// The service's name.
pub(crate) const NAME: &str = "sockets of the session";

/// Serves the channels of one machine.
pub(crate) struct Relay {
    /// The machine's runtime directory.
    pub dir: PathBuf,
    /// Who may use them, by the ids of the outer namespace: the machine's user.
    pub user: User,
}

impl Service for Relay {
    fn name(&self) -> &str {
        NAME
    }

    fn run(&mut self, ready: &mut dyn FnMut()) -> Result<(), String> {
        self.serve(ready).map_err(|e| e.to_string())
    }
}

struct Open {
    listener: UnixListener,
    path: PathBuf,
}

impl Relay {
    fn serve(&self, ready: &mut dyn FnMut()) -> Result<()> {
        let watch = rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .doing("watch a directory")?;
        rustix::fs::inotify::add_watch(&watch, &self.dir, WatchFlags::MOVED_TO).doing("watch a directory")?;
        let mut open: BTreeMap<Channel, Open> = BTreeMap::new();
        let busy = Arc::new(AtomicUsize::new(0));
        let mut hosts = Arc::new(Vec::new());
        let mut ready = Some(ready);
        loop {
            // Of what is not whole yet the next change tells.
            if let Ok(launch) = Launch::read(&self.dir) {
                let session = read(&self.dir).unwrap_or_default();
                hosts = Arc::new(launch.git_hosts.clone());
                let wanted = |c: &Channel| launch.channels.contains(c) && has(&session, *c);
                open.retain(|c, o| wanted(c) || codchi_fs::remove_if_exists(&o.path).is_err());
                for channel in Channel::ALL.into_iter().filter(wanted) {
                    if let Entry::Vacant(free) = open.entry(channel) {
                        free.insert(self.listen(channel)?);
                    }
                }
            }
            if let Some(ready) = ready.take() {
                ready();
            }
            let mut fds = vec![PollFd::new(&watch, PollFlags::IN)];
            fds.extend(open.values().map(|o| PollFd::new(&o.listener, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e).doing("wait"),
            }
            let called: Vec<bool> = fds[1..].iter().map(|f| !f.revents().is_empty()).collect();
            drop(fds);
            while rustix::io::read(&watch, &mut [0u8; 4096]).is_ok_and(|n| n > 0) {}
            for ((channel, open), _) in open.iter().zip(called).filter(|(_, called)| *called) {
                let Ok((from, _)) = open.listener.accept() else { continue };
                if busy.fetch_add(1, Ordering::Relaxed) >= MOST {
                    busy.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (dir, channel, hosts, done) = (self.dir.clone(), *channel, hosts.clone(), busy.clone());
                std::thread::spawn(move || {
                    // Whoever called sees that the connection ends; why is nothing a machine should be told.
                    let _ = connect(&dir, channel, &hosts, from);
                    done.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    }

    /// A socket that the machine's user may use, and its root.
    fn listen(&self, channel: Channel) -> Result<Open> {
        let host = self.dir.join(FOLDER);
        let path = host.join(channel.file());
        let doing = || format!("listen at `{}`", path.display());
        // By another name until it is the user's: nobody sees it half made.
        let name = format!("{}.new", channel.file());
        let new = host.join(&name);
        codchi_fs::remove_if_exists(&new)?;
        let listener = through_descriptor(&host, &name, UnixListener::bind)?;
        rustix::fs::chmod(&new, Mode::from_raw_mode(0o600)).doing(doing())?;
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        rustix::fs::chownat(CWD, &new, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).doing(doing())?;
        codchi_fs::rename(&new, &path)?;
        listener.set_nonblocking(true).doing(doing())?;
        Ok(Open { listener, path })
    }
}

/// Whether a session has what a channel leads to.
fn has(session: &Session, channel: Channel) -> bool {
    match channel {
        Channel::X11 => session.x_server().is_some(),
        Channel::GitCredentials => true,
        other => place(session, other).is_some(),
    }
}

fn place(session: &Session, channel: Channel) -> Option<&Path> {
    match channel {
        Channel::Wayland => session.wayland.as_deref(),
        Channel::Pipewire => session.pipewire.as_deref(),
        Channel::Pulse => session.pulse.as_deref(),
        Channel::SshAgent => session.ssh_agent.as_deref(),
        Channel::X11 | Channel::GitCredentials => None,
    }
}

fn connect(dir: &Path, channel: Channel, hosts: &[String], from: UnixStream) -> io::Result<()> {
    from.set_nonblocking(false)?;
    let session = read(dir).unwrap_or_default();
    match channel {
        Channel::GitCredentials => credentials(hosts, from),
        Channel::X11 => {
            let display = session.x_server().ok_or(io::ErrorKind::NotFound)?;
            let number = match &display {
                Display::Local(n) | Display::Remote(_, n) => *n,
                Display::Socket(_) => 0,
            };
            let cookies =
                session.xauthority.as_ref().and_then(|f| codchi_fs::read(f).ok()).unwrap_or_default();
            let greeting = greeting(&from, |c| x11::authorized(c, x11::cookie(&cookies, number)))?;
            match display {
                Display::Local(n) => {
                    let to =
                        UnixStream::connect(format!("/tmp/.X11-unix/X{n}")).or_else(|_| abstract_x(n))?;
                    (&to).write_all(&greeting)?;
                    pump(from, OwnedFd::from(to), false)
                }
                Display::Socket(path) => {
                    let to = UnixStream::connect(path)?;
                    (&to).write_all(&greeting)?;
                    pump(from, OwnedFd::from(to), false)
                }
                Display::Remote(host, n) => {
                    let port = u16::try_from(6000 + n).map_err(io::Error::other)?;
                    let to = std::net::TcpStream::connect((host.as_str(), port))?;
                    (&to).write_all(&greeting)?;
                    pump(from, OwnedFd::from(to), false)
                }
            }
        }
        Channel::Pulse => {
            let path = place(&session, channel).ok_or(io::ErrorKind::NotFound)?;
            let greeting = greeting(&from, |c| pulse::without_memory(c))?;
            let to = UnixStream::connect(path)?;
            (&to).write_all(&greeting)?;
            pump(from, OwnedFd::from(to), false)
        }
        other => {
            let path = place(&session, other).ok_or(io::ErrorKind::NotFound)?;
            pump(from, OwnedFd::from(UnixStream::connect(path)?), other.carries_descriptors())
        }
    }
}

/// What a client says first, as the other side is to hear it.
fn greeting(
    from: &UnixStream,
    read: impl FnOnce(&mut &UnixStream) -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    from.set_read_timeout(Some(PATIENCE))?;
    let greeting = read(&mut &*from)?;
    from.set_read_timeout(None)?;
    Ok(greeting)
}

fn abstract_x(number: u32) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("/tmp/.X11-unix/X{number}");
    UnixStream::connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
}

/// Carries bytes both ways until both have ended.
fn pump(machine: UnixStream, host: OwnedFd, descriptors: bool) -> io::Result<()> {
    let machine = OwnedFd::from(machine);
    std::thread::scope(|scope| {
        let back = scope.spawn(|| carry(host.as_fd(), machine.as_fd(), descriptors));
        let there = carry(machine.as_fd(), host.as_fd(), descriptors);
        let _ = back.join();
        there
    })
}

fn carry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, descriptors: bool) -> io::Result<()> {
    let done = carry_all(from, to, descriptors);
    // The other direction may still have something to say, unless this one cannot be heard any more.
    let how = if done.is_ok() { rustix::net::Shutdown::Write } else { rustix::net::Shutdown::Both };
    let _ = rustix::net::shutdown(to, how);
    if done.is_err() {
        let _ = rustix::net::shutdown(from, rustix::net::Shutdown::Both);
    }
    done
}

fn carry_all(from: BorrowedFd<'_>, to: BorrowedFd<'_>, descriptors: bool) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    // As many as the kernel lets a message have.
    let mut room = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut out = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let got = {
            let mut into = [IoSliceMut::new(&mut buffer)];
            match rustix::net::recvmsg(from, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(m) => m.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
        };
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(all) = message {
                fds.extend(all);
            }
        }
        if got == 0 {
            return Ok(());
        }
        // Memory and pipes are what these protocols are made of. A folder would be a way into the other's files.
        fds.retain(|fd| descriptors && rustix::fs::fstat(fd).is_ok_and(|s| !is_folder(s.st_mode)));
        let mut rest = buffer.get(..got).unwrap_or_default();
        while !rest.is_empty() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            let mut control = SendAncillaryBuffer::new(&mut out);
            if !borrowed.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&borrowed));
            }
            match rustix::net::sendmsg(to, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            drop(borrowed);
            fds.clear();
        }
    }
}

fn is_folder(mode: u32) -> bool {
    FileType::from_raw_mode(mode).is_dir()
}

/// Answers what git's credential helper in the machine asks, with what git on the host remembers, for servers that were granted.
fn credentials(hosts: &[String], mut from: UnixStream) -> io::Result<()> {
    const LIMIT: u64 = 8 << 10;
    from.set_read_timeout(Some(PATIENCE))?;
    let mut question = String::new();
    (&from).take(LIMIT).read_to_string(&mut question)?;
    let field = |name: &str| {
        question.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).filter(|v| !v.contains('\0'))
    };
    let (Some("https"), Some(host)) = (field("protocol"), field("host")) else { return Ok(()) };
    if !hosts.iter().any(|h| h.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    // Nothing else of what the machine says reaches git.
    let mut asked = format!("protocol=https\nhost={host}\n");
    if let Some(user) = field("username") {
        asked.push_str(&format!("username={user}\n"));
    }
    asked.push('\n');
    let mut git = git(std::env::vars_os().map(|(name, _)| name))
        .args(["credential", "fill"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = git.stdin.take() {
        stdin.write_all(asked.as_bytes())?;
    }
    let out = git.wait_with_output()?;
    if out.status.success() {
        from.write_all(&out.stdout)?;
    }
    Ok(())
}

/// git in no repository, whose configuration could name a helper, whatever the caller's `variables` say; it asks nobody.
fn git(variables: impl Iterator<Item = OsString>) -> Command {
    let mut git = Command::new("git");
    git.current_dir("/");
    for name in variables.filter(|name| name.as_bytes().starts_with(b"GIT_")) {
        git.env_remove(name);
    }
    git.env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "").env("SSH_ASKPASS", "");
    git
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::fd::AsRawFd;

    #[test]
    fn bytes_and_descriptors_go_both_ways_and_folders_do_not() {
        let (ours, machine) = UnixStream::pair().unwrap();
        let (host, theirs) = UnixStream::pair().unwrap();
        let done = std::thread::spawn(move || pump(machine, OwnedFd::from(host), true));
        let send = |what: &OwnedFd| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [what.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&fds));
            rustix::net::sendmsg(&ours, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut into = [IoSliceMut::new(&mut byte)];
            rustix::net::recvmsg(&theirs, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
            assert_eq!(byte, *b"x");
            control.drain().filter(|m| matches!(m, RecvAncillaryMessage::ScmRights(_))).count()
        };
        assert_eq!(send(&OwnedFd::from(codchi_fs::open("/proc/self/status").unwrap())), 1);
        assert_eq!(send(&OwnedFd::from(codchi_fs::open("/").unwrap())), 0);
        (&theirs).write_all(b"answer").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = String::new();
        (&ours).read_to_string(&mut got).unwrap();
        assert_eq!(got, "answer");
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        done.join().unwrap().unwrap();
        assert!(theirs.as_raw_fd() >= 0);
    }

    #[test]
    fn a_socket_may_lie_deep() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("d".repeat(120));
        codchi_fs::create_dir_all(dir.join("host")).unwrap();
        let user = User { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        let open = Relay { dir: dir.clone(), user }.listen(Channel::SshAgent).unwrap();
        assert_eq!(open.path, dir.join("host/ssh-agent"));
        through_descriptor(&dir.join("host"), "ssh-agent", UnixStream::connect).unwrap();
        open.listener.accept().unwrap();
    }

    #[test]
    fn git_believes_no_repository_of_the_caller() {
        let variables = ["GIT_DIR", "GIT_CONFIG_COUNT", "GIT_ASKPASS", "HOME"].map(OsString::from);
        let git = git(variables.into_iter());
        assert_eq!(git.get_current_dir(), Some(Path::new("/")));
        let set: BTreeMap<_, _> = git.get_envs().collect();
        let set = |name: &str| set.get(OsStr::new(name)).copied();
        assert_eq!([set("GIT_DIR"), set("GIT_CONFIG_COUNT")], [Some(None), Some(None)]);
        assert_eq!(set("GIT_ASKPASS"), Some(Some(OsStr::new(""))));
        assert_eq!(set("HOME"), None);
    }

    #[test]
    fn git_is_asked_for_granted_servers_only() {
        let (ours, machine) = UnixStream::pair().unwrap();
        (&ours).write_all(b"protocol=https\nhost=evil.example\n\n").unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        credentials(&["good.example".into()], machine).unwrap();
        let mut got = String::new();
        (&ours).read_to_string(&mut got).unwrap();
        assert_eq!(got, "");
    }
}
