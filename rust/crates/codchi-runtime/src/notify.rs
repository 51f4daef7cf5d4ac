//! What PID 1 of a machine says of itself: sd_notify(3) on a socket of its runtime directory.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use codchi_fs::Context;
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::error::{Doing, Result};

/// Notifications that are heard before everything else has its turn.
const AT_ONCE: usize = 64;
/// How codchi-boot says that it waits for the host, with a word that is to be repeated.
const WAITING: &str = "X_CODCHI_WAITING=";

/// What was heard.
#[derive(Debug, Default)]
pub struct Said {
    /// It is ready.
    pub ready: bool,
    /// It goes down.
    pub stopping: bool,
    /// What it does, in its words.
    pub text: Option<String>,
    /// It waits until this word is repeated.
    pub waiting: Option<String>,
}

impl Said {
    fn take(&mut self, message: &str) {
        let clean = |s: &str, most| s.chars().filter(|c| !c.is_control()).take(most).collect::<String>();
        for line in message.lines() {
            self.ready |= line == "READY=1";
            self.stopping |= line == "STOPPING=1";
            if let Some(text) = line.strip_prefix("STATUS=") {
                self.text = Some(clean(text, 200));
            }
            if let Some(word) = line.strip_prefix(WAITING) {
                self.waiting = Some(clean(word, 64));
            }
        }
    }
}

/// Drains the socket; only PID 1's own words count.
pub(crate) fn hear(socket: &OwnedFd, leader: i32) -> Said {
    let mut said = Said::default();
    // Everyone in the machine can write there, endlessly: what is left is heard the next time.
    for _ in 0..AT_ONCE {
        let Some((message, pid)) = receive(socket) else { break };
        if pid == leader {
            said.take(&message);
        }
    }
    said
}

/// One datagram, and the process that sent it.
fn receive(socket: &OwnedFd) -> Option<(String, i32)> {
    let mut text = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let n = {
        let mut into = [IoSliceMut::new(&mut text)];
        rustix::net::recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
            .ok()?
            .bytes
    };
    let mut pid = 0;
    for m in control.drain() {
        if let RecvAncillaryMessage::ScmCredentials(c) = m {
            pid = c.pid.as_raw_nonzero().get();
        }
        // Descriptors that came with it are closed here.
    }
    Some((String::from_utf8_lossy(text.get(..n)?).into_owned(), pid))
}

/// Makes the socket in a machine's runtime directory.
pub(crate) fn socket(dir: &Path) -> Result<OwnedFd> {
    let at = dir.join("notify");
    let parent = rustix::fs::open(&at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", &at)?;
    // By way of the descriptor: a socket's path has room for 107 bytes only.
    let path = format!("/proc/self/fd/{}/socket", parent.as_raw_fd());
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .doing("make a socket")?;
    rustix::net::sockopt::set_socket_passcred(&socket, true).doing("make a socket")?;
    let address = rustix::net::SocketAddrUnix::new(&path).doing("make a socket")?;
    rustix::net::bind(&socket, &address).doing("make the notification socket")?;
    rustix::fs::chmod(at.join("socket"), Mode::from_raw_mode(0o666)).at("change the mode of", at)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_taken_by_line_and_cleaned() {
        let mut said = Said::default();
        said.take("STATUS=a\u{1b}[31mb\nREADY=1\nX_CODCHI_WAITING=12ab\nREADY=0");
        assert!(said.ready && !said.stopping);
        assert_eq!(said.text.as_deref(), Some("a[31mb"));
        assert_eq!(said.waiting.as_deref(), Some("12ab"));
    }
}
