//! Entering a machine by its namespaces: what is left when its agent is gone.
//!
//! No descriptor of the host goes in. A copy of this process joins the machine and makes a terminal or pipes there,
//! owned by the user; what passes between those and ours is relayed.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use codchi_sys::process::{self, Child, End, Namespaces};
use codchi_sys::signal::{self, Signals};
use codchi_sys::{identity, spawn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, Gid, Mode, OFlags, Uid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::error::{Doing, Error, Result};
use crate::inside::{hear, say};
use crate::spec::{Launch, Spec};
use crate::{caps, cgroup, filter, outer, state};

/// What to run in a machine.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The command; empty: the user's login shell.
    pub argv: Vec<OsString>,
    /// Variables over the few that are set anyway.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; none: the user's home.
    pub cwd: Option<PathBuf>,
    /// Whose account.
    pub user: String,
    /// With a terminal of its own.
    pub tty: bool,
}

/// An account of the machine.
#[derive(Debug, PartialEq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
    shell: String,
}

const FAILED: &[u8] = b"failed: ";
const NO_USER: &[u8] = b"no user";
const ENDS: &[u8] = b"ends";

/// Runs a command in a running machine, with this process's standard streams, and answers its status (128 and the
/// signal's number when one ended it). This process must have one thread.
pub fn enter(dir: &Path, request: &Request) -> Result<u8> {
    let name = || dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let leader = state::status(dir)?.leader.ok_or_else(|| Error::NotRunning(name()))?;
    let spec = Launch::read(dir)?.spec(dir)?;
    let machine = process::pidfd_open(leader).doing("find the machine's first process")?;
    let signals = Signals::block(&[
        signal::SIGINT,
        signal::SIGTERM,
        signal::SIGHUP,
        signal::SIGQUIT,
        signal::SIGUSR1,
        signal::SIGUSR2,
        signal::SIGWINCH,
        signal::SIGPIPE,
    ])
    .doing("block signals")?;
    let group = cgroup::for_entering(leader);
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .doing("make a socket")?;
    let hidden = std::os::fd::AsRawFd::as_raw_fd(&ours);
    let joined = process::clone(Namespaces::NONE, group.as_ref().map(AsFd::as_fd), || {
        process::close_one(hidden);
        let tell = |w: &[u8]| drop(say(theirs.as_fd(), w, &[]));
        match join(&theirs, &machine, &spec, request) {
            Ok(()) => 0,
            Err(Error::NoUser(_)) => {
                tell(NO_USER);
                1
            }
            Err(e) => {
                tell(&[FAILED, e.to_string().as_bytes()].concat());
                1
            }
        }
    })
    .doing("enter the machine")?;
    drop(theirs);
    let done = match hear(ours.as_fd()).doing("hear from the machine")? {
        Some((w, ends)) if w == ENDS => relay(&ours, ends, &signals, request.tty),
        Some((w, _)) if w == NO_USER => Err(Error::NoUser(request.user.clone())),
        Some((w, _)) => {
            Err(Error::Told(String::from_utf8_lossy(w.strip_prefix(FAILED).unwrap_or(&w)).into_owned()))
        }
        None => Err(Error::NotRunning(name())),
    };
    if done.is_err() {
        let _ = joined.signal(signal::SIGKILL);
    }
    let _ = joined.wait();
    done
}

/// In the copy: joins, makes the command's streams, starts it and waits for it.
fn join(ctl: &OwnedFd, machine: &OwnedFd, spec: &Spec, request: &Request) -> Result<()> {
    let kill = Some(rustix::process::Signal::KILL);
    let all = Namespaces::USER
        .and(Namespaces::MOUNT)
        .and(Namespaces::UTS)
        .and(Namespaces::IPC)
        .and(Namespaces::NET)
        .and(Namespaces::PID)
        .and(Namespaces::CGROUP);
    process::setns(machine.as_fd(), all).doing("join the machine's namespaces")?;
    identity::set_groups(&[]).doing("drop groups")?;
    identity::set_gid(0).doing("become root of the machine")?;
    identity::set_uid(0).doing("become root of the machine")?;
    rustix::process::set_parent_process_death_signal(kill).doing("tie to the caller")?;
    let read = |p| codchi_fs::read_if_exists(p).map(Option::unwrap_or_default);
    let account = account(&read("/etc/passwd")?, &read("/etc/group")?, &request.user)
        .ok_or_else(|| Error::NoUser(request.user.clone()))?;
    let owner = (Some(Uid::from_raw(account.uid)), Some(Gid::from_raw(account.gid)));

    let (ends, streams) = if request.tty {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).doing("make a terminal")?;
        rustix::pty::unlockpt(&master).doing("make a terminal")?;
        let name = rustix::pty::ptsname(&master, Vec::new()).doing("make a terminal")?;
        let terminal = rustix::fs::open(&name, flags, Mode::empty()).doing("open the terminal")?;
        rustix::fs::fchown(&terminal, owner.0, None).doing("give the terminal to the user")?;
        (vec![master], vec![terminal])
    } else {
        let (mut ours, mut its) = (Vec::new(), Vec::new());
        for n in 0..3 {
            let (r, w) = outer::pipe()?;
            // A pipe that belongs to another cannot be opened again by way of /dev/stdout.
            rustix::fs::fchown(&r, owner.0, owner.1).doing("give a pipe to the user")?;
            let (mine, theirs) = if n == 0 { (w, r) } else { (r, w) };
            ours.push(mine);
            its.push(theirs);
        }
        (ours, its)
    };
    let borrowed: Vec<BorrowedFd<'_>> = ends.iter().map(AsFd::as_fd).collect();
    say(ctl.as_fd(), ENDS, &borrowed).doing("speak to the caller")?;
    drop(borrowed);
    drop(ends);

    let child = process::fork(|| match become_command(spec, request, &account, &streams) {
        Ok(never) => match never {},
        Err(e) => {
            let _ = rustix::io::write(rustix::stdio::stderr(), format!("{e}\n").as_bytes());
            match e {
                Error::Os { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 127,
                _ => 126,
            }
        }
    })
    .doing("start the command")?;
    drop(streams);
    attend(ctl, &child)
}

/// Passes signals on, and at the end the status.
fn attend(ctl: &OwnedFd, child: &Child) -> Result<()> {
    let mut open = true;
    loop {
        if let Some(end) = child.try_wait().doing("wait for the command")? {
            let _ = say(ctl.as_fd(), format!("end {}", end.shell_status()).as_bytes(), &[]);
            return Ok(());
        }
        let mut fds = vec![PollFd::new(child, PollFlags::IN)];
        if open {
            fds.push(PollFd::new(ctl, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).doing("wait"),
        }
        if !open || fds[1].revents().is_empty() {
            continue;
        }
        let heard = hear(ctl.as_fd()).ok().flatten();
        let number = match &heard {
            Some((w, _)) => std::str::from_utf8(w).ok().and_then(|w| w.strip_prefix("signal ")?.parse().ok()),
            None => {
                open = false;
                Some(signal::SIGHUP)
            }
        };
        if let Some(n) = number
            && let Some(group) = rustix::process::Pid::from_raw(child.pid)
        {
            // It leads a session: the whole of its group hears it.
            let _ = signal::kill_group(group, n);
        }
    }
}

fn become_command(
    spec: &Spec,
    request: &Request,
    account: &Account,
    streams: &[OwnedFd],
) -> Result<std::convert::Infallible> {
    rustix::process::setsid().doing("begin a session")?;
    identity::new_session_keyring().doing("make a session keyring")?;
    for n in 0..3usize {
        let fd =
            streams.get(n).or(streams.first()).ok_or(std::io::ErrorKind::NotFound).doing("find a stream")?;
        process::stdio(fd.as_fd(), n as i32).doing("connect a stream")?;
    }
    if request.tty {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).doing("take the terminal")?;
    }
    for n in caps::numbers(&spec.capabilities.drop)? {
        identity::drop_bounding(n).doing("drop a capability")?;
    }
    let program = filter::program(&spec.seccomp)?;
    if !program.is_empty() {
        codchi_sys::seccomp::install(&program).doing("install the system call filter")?;
    }
    identity::set_groups(&account.groups).doing("set groups")?;
    identity::set_gid(account.gid).doing("set the group")?;
    identity::set_uid(account.uid).doing("set the user")?;
    process::close_from(3).doing("close descriptors")?;
    signal::reset();

    let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
    let path = "/run/wrappers/bin:/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    for (k, v) in [
        ("PATH", path),
        ("HOME", &account.home),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("SHELL", &account.shell),
    ] {
        env.insert(k.into(), v.into());
    }
    env.extend(request.env.iter().cloned());
    match &request.cwd {
        Some(d) => rustix::process::chdir(d).doing(format!("change to `{}`", d.display()))?,
        None => rustix::process::chdir(account.home.as_str())
            .or_else(|_| rustix::process::chdir("/"))
            .doing("change directory")?,
    }
    let text =
        |s: &OsStr| CString::new(s.as_bytes()).map_err(std::io::Error::other).doing("read an argument");
    let (file, argv) = match request.argv.split_first() {
        Some((program, _)) => {
            let all = request.argv.iter().map(|a| text(a)).collect::<Result<Vec<_>>>()?;
            (find(program, env.get(OsStr::new("PATH")))?, all)
        }
        None => {
            let base = Path::new(&account.shell).file_name().unwrap_or(OsStr::new("sh"));
            let mut zero = OsString::from("-");
            zero.push(base);
            (PathBuf::from(&account.shell), vec![text(&zero)?])
        }
    };
    let env: Vec<CString> = env
        .iter()
        .map(|(k, v)| {
            let mut kv = k.clone();
            kv.push("=");
            kv.push(v);
            text(&kv)
        })
        .collect::<Result<_>>()?;
    match spawn::execve(&text(file.as_os_str())?, &argv, &env) {
        Ok(never) => match never {},
        Err(e) => Err(e).doing(format!("run `{}`", file.display())),
    }
}

fn find(program: &OsStr, path: Option<&OsString>) -> Result<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Ok(program.into());
    }
    let dirs = path.map(|p| std::env::split_paths(p).collect::<Vec<_>>()).unwrap_or_default();
    let found = dirs.iter().map(|d| d.join(program)).find(|p| rustix::fs::access(p, Access::EXEC_OK).is_ok());
    found.ok_or(std::io::ErrorKind::NotFound).doing(format!("run `{}`", program.display()))
}

fn account(passwd: &str, group: &str, user: &str) -> Option<Account> {
    let line = passwd.lines().find(|l| l.split(':').next() == Some(user))?;
    let f: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = f[..] else { return None };
    let gid = gid.parse().ok()?;
    let mut groups = vec![gid];
    for l in group.lines() {
        let f: Vec<&str> = l.split(':').collect();
        if let [_, _, id, members] = f[..]
            && members.split(',').any(|m| m == user)
            && let Ok(id) = id.parse()
            && !groups.contains(&id)
        {
            groups.push(id);
        }
    }
    let shell = if shell.is_empty() { "/bin/sh" } else { shell };
    Some(Account {
        name: name.into(),
        uid: uid.parse().ok()?,
        gid,
        groups,
        home: home.into(),
        shell: shell.into(),
    })
}

/// The caller's terminal in raw mode, until dropped.
struct Raw(Termios);

impl Raw {
    fn set() -> Option<Raw> {
        let fd = rustix::stdio::stdin();
        let before = tcgetattr(fd).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(fd, OptionalActions::Now, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// One of the machine's ends that is read, and where it goes.
struct Out {
    from: Option<OwnedFd>,
    to: BorrowedFd<'static>,
}

fn relay(ctl: &OwnedFd, ends: Vec<OwnedFd>, signals: &Signals, tty: bool) -> Result<u8> {
    let mut ends = ends.into_iter();
    let first = ends.next().ok_or(std::io::ErrorKind::UnexpectedEof).doing("take the command's streams")?;
    let _raw = if tty && std::io::stdin().is_terminal() { Raw::set() } else { None };
    let (mut input, mut outs) = if tty {
        let again = first.try_clone().doing("use the terminal")?;
        (Some(first), vec![Out { from: Some(again), to: rustix::stdio::stdout() }])
    } else {
        let to = [rustix::stdio::stdout(), rustix::stdio::stderr()];
        (Some(first), ends.zip(to).map(|(from, to)| Out { from: Some(from), to }).collect())
    };
    let resize = |input: &Option<OwnedFd>| {
        if let (true, Some(t), Ok(size)) = (tty, input, tcgetwinsize(rustix::stdio::stdin())) {
            let _ = tcsetwinsize(t, size);
        }
    };
    resize(&input);
    if let Some(i) = &input {
        rustix::io::ioctl_fionbio(i, true).doing("use the command's input")?;
    }
    let mut waiting: Vec<u8> = Vec::new();
    let mut source_open = true;
    let mut end = None;
    loop {
        // With a terminal the command's end is the end; without, whoever still has its output may write on.
        if end.is_some() && (tty || outs.iter().all(|o| o.from.is_none())) {
            break;
        }
        let want_source = source_open && waiting.is_empty() && input.is_some();
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        let control = end.is_none().then_some(fds.len());
        fds.extend(end.is_none().then(|| PollFd::new(ctl, PollFlags::IN)));
        let source = want_source.then_some(fds.len());
        let stdin = rustix::stdio::stdin();
        if want_source {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        let sink = (!waiting.is_empty()).then_some(input.as_ref()).flatten().map(|i| {
            fds.push(PollFd::new(i, PollFlags::OUT));
            fds.len() - 1
        });
        let firsts: Vec<Option<usize>> = outs
            .iter()
            .map(|o| {
                o.from.as_ref().map(|f| {
                    fds.push(PollFd::new(f, PollFlags::IN));
                    fds.len() - 1
                })
            })
            .collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).doing("wait"),
        }
        let hot = |i: Option<usize>| i.is_some_and(|i| !fds[i].revents().is_empty());
        let (hot_control, hot_source, hot_sink) = (hot(control), hot(source), hot(sink));
        let hot_outs: Vec<bool> = firsts.iter().map(|i| hot(*i)).collect();
        drop(fds);

        while let Some(n) = signals.next_pending() {
            match n {
                signal::SIGWINCH => resize(&input),
                signal::SIGPIPE => {}
                n => drop(say(ctl.as_fd(), format!("signal {n}").as_bytes(), &[])),
            }
        }
        for (o, _) in outs.iter_mut().zip(hot_outs).filter(|(_, hot)| *hot) {
            copy_out(o);
        }
        if hot_source {
            let mut b = vec![0u8; 65536];
            match rustix::io::read(stdin, &mut b) {
                Ok(n) if n > 0 => waiting.extend(&b[..n]),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                _ => source_open = false,
            }
        }
        if (hot_sink || hot_source) && !waiting.is_empty() {
            match input.as_ref().map(|i| rustix::io::write(i, &waiting)) {
                Some(Ok(n)) => drop(waiting.drain(..n)),
                Some(Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN)) => {}
                _ => {
                    waiting.clear();
                    source_open = false;
                }
            }
        }
        if !source_open && waiting.is_empty() && !tty {
            input = None;
        }
        if hot_control {
            let heard = hear(ctl.as_fd()).doing("hear from the machine")?;
            let status =
                heard.and_then(|(w, _)| std::str::from_utf8(&w).ok()?.strip_prefix("end ")?.parse().ok());
            // Without a last word the machine went away under the command.
            end = Some(status.unwrap_or(End::Signal(signal::SIGKILL).shell_status()));
        }
    }
    if tty {
        for o in &mut outs {
            drain(o);
        }
    }
    Ok(end.unwrap_or(255))
}

/// Moves what is there; forgets an end that is over.
fn copy_out(o: &mut Out) {
    let Some(from) = &o.from else { return };
    let mut b = vec![0u8; 65536];
    match rustix::io::read(from, &mut b) {
        Ok(n) if n > 0 => {
            let mut rest = &b[..n];
            while !rest.is_empty() {
                match rustix::io::write(o.to, rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => {
                        let _ = poll(&mut [PollFd::from_borrowed_fd(o.to, PollFlags::OUT)], None);
                    }
                    // Nobody reads any more: the command gets its own SIGPIPE.
                    Err(_) => return o.from = None,
                }
            }
        }
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
        _ => o.from = None,
    }
}

/// What a terminal still holds after its command has ended.
fn drain(o: &mut Out) {
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    while let Some(from) = &o.from {
        if poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&now)) != Ok(1) {
            return;
        }
        copy_out(o);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_the_groups_it_is_a_member_of() {
        let passwd = "root:x:0:0::/root:/bin/bash\nann:x:1000:100:Ann:/home/ann:\nbroken:x\n";
        let group = "users:x:100:\nwheel:x:1:bob,ann\naudio:x:2:joann\n";
        let a = account(passwd, group, "ann").unwrap();
        assert_eq!((a.uid, a.gid, &a.groups[..], a.shell.as_str()), (1000, 100, &[100, 1][..], "/bin/sh"));
        assert_eq!(account(passwd, group, "broken"), None);
        assert_eq!(account(passwd, group, "an"), None);
    }
}
