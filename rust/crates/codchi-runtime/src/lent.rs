//! A machine's program that another process starts, such as a daemon: it asks whoever looks after the machine for the machine's
//! namespaces and for descriptors, and becomes the program there.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use codchi_sys::identity;
use codchi_sys::process::{self, Child};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Doing, Error, Result};
use crate::guest::{self, left};
use crate::inside::{hear, say};

/// The variable that names the socket.
pub const VARIABLE: &str = "CODCHI_MACHINE_SOCKET";
/// The number by which the program knows the first descriptor: beyond those of whoever starts it.
pub const FIRST_FD: i32 = 200;
/// A word that begins with the number of descriptors that follow.
const COUNT: &str = "descriptors ";

/// Waits for the program to call, and lends it namespaces and descriptors: its process. None: `meanwhile` has something to say first.
///
/// # Errors
/// Nobody called in time.
pub fn lend(
    listener: &UnixListener,
    holder: &Child,
    fds: &[OwnedFd],
    meanwhile: BorrowedFd<'_>,
    until: Instant,
) -> Result<Option<Child>> {
    loop {
        let mut waited =
            [PollFd::new(listener, PollFlags::IN), PollFd::from_borrowed_fd(meanwhile, PollFlags::IN)];
        match poll(&mut waited, Some(&left(until))) {
            Ok(0) => return Err(Error::Told("nobody starts the machine's program".into())),
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e).doing("wait for the machine's program"),
            Ok(_) => {}
        }
        if waited[0].revents().is_empty() {
            return Ok(None);
        }
        break;
    }
    let (stream, _) = listener.accept().doing("take a call")?;
    let process = rustix::net::sockopt::socket_peercred(&stream).doing("see who calls")?.pid;
    let child = Child::adopt(process.as_raw_nonzero().get()).doing("watch the machine's program")?;
    say(stream.as_fd(), format!("{COUNT}{}", fds.len()).as_bytes(), &[holder.as_fd()])
        .doing("lend namespaces")?;
    for fd in fds {
        // One for each word that is answered, so that no two come together.
        if !matches!(hear(stream.as_fd()), Ok(Some(_))) {
            return Err(Error::Told("the machine's program has ended".into()));
        }
        say(stream.as_fd(), b"x", &[fd.as_fd()]).doing("lend a descriptor")?;
    }
    Ok(Some(child))
}

/// Becomes the program in the namespaces that are lent to it; `args` gives its arguments for the number of descriptors it has. This
/// process must have one thread.
///
/// # Errors
/// What kept it from that.
pub fn become_program(program: &Path, args: impl FnOnce(usize) -> Vec<OsString>) -> Result<Infallible> {
    let socket = std::env::var_os(VARIABLE).ok_or_else(|| Error::Told(format!("`{VARIABLE}` is not set")))?;
    let stream = UnixStream::connect(&socket).doing("ask for the machine's namespaces")?;
    let odd = || Error::Told("whoever looks after the machine says nothing of use".into());
    let (text, mut first) = hear(stream.as_fd()).doing("ask for namespaces")?.ok_or_else(odd)?;
    let count: usize =
        String::from_utf8_lossy(&text).strip_prefix(COUNT).and_then(|n| n.parse().ok()).ok_or_else(odd)?;
    let holder = first.pop().ok_or_else(odd)?;
    let mut fds = Vec::with_capacity(count);
    for _ in 0..count {
        say(stream.as_fd(), b"x", &[]).doing("ask for a descriptor")?;
        let (_, got) = hear(stream.as_fd()).doing("ask for a descriptor")?.ok_or_else(odd)?;
        fds.extend(got);
    }
    if fds.len() != count {
        return Err(odd());
    }
    let text = |word: Vec<u8>| CString::new(word).map_err(io::Error::other).doing("name a program");
    let path = text(program.as_os_str().as_bytes().to_vec())?;
    let mut argv = vec![path.clone()];
    for word in args(count) {
        argv.push(text(word.into_vec())?);
    }
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os().filter(|(name, _)| name != VARIABLE) {
        environment.push(text([name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    process::setns(holder.as_fd(), guest::namespaces()).doing("join the machine's namespaces")?;
    guest::keep_little()?;
    identity::set_groups(&[]).doing("drop groups")?;
    identity::set_gid(0).doing("become root of the machine")?;
    identity::set_uid(0).doing("become root of the machine")?;
    for (fd, number) in fds.iter().zip(FIRST_FD..) {
        process::give_descriptor(fd.as_fd(), number).doing("pass a descriptor")?;
    }
    match codchi_sys::spawn::execve(&path, &argv, &environment) {
        Ok(never) => match never {},
        Err(e) => Err(e).doing(format!("run `{}`", program.display())),
    }
}
