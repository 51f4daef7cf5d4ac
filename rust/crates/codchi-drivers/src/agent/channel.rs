//! The connection to an agent: safe to open, bounded to read.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use codchi_core::protocol::{
    self, Decoder, Delivered, Delivery, Exec, Failure, Frame, FrameType, Hello, Started,
};
use codchi_sys::memory::{Private, wipe};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use super::error::AgentError;

/// Name of the socket in the machine's agent folder.
const SOCKET: &str = "socket";
/// The same for a machine that is reached by a byte stream, in which data travels in frames.
const STREAM: &str = codchi_runtime::guest::SOCKET;
/// Largest message an agent may send, in bytes.
const MAX_ANSWER: usize = protocol::MAX_PAYLOAD;
/// How long an agent may take to greet, beyond what computing a login environment takes.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Characters of an agent's text that are shown.
const MAX_TEXT: usize = 1000;

/// A connection to an agent.
pub struct Channel {
    fd: OwnedFd,
    decoder: Decoder,
    /// Descriptors that came with [`FrameType::Started`].
    received: Vec<OwnedFd>,
    /// Whether data travels in frames.
    pub streams: bool,
    out: Vec<u8>,
    sent: usize,
}

impl Channel {
    /// Connects to the socket in a machine's agent folder, which the machine may have filled with anything.
    pub fn connect(agent_dir: &Path) -> Result<Self, AgentError> {
        let path = agent_dir.join(SOCKET);
        let none = |why: String| AgentError::NoSocket { path: path.clone(), why };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(agent_dir, flags | OFlags::DIRECTORY, Mode::empty())
            .map_err(|e| none(e.to_string()))?;
        let open = |name| rustix::fs::openat(&dir, name, flags, Mode::empty());
        let (file, streams) = match (open(SOCKET), open(STREAM)) {
            (Err(Errno::NOENT), Ok(file)) => (file, true),
            (file, _) => (file.map_err(|e| none(e.to_string()))?, false),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| none(e.to_string()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(none("it is not a socket".into()));
        }
        let open = || -> Result<OwnedFd, Errno> {
            let fd = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // Against a listener that never accepts.
            rustix::net::sockopt::set_socket_timeout(
                &fd,
                rustix::net::sockopt::Timeout::Send,
                Some(PATIENCE),
            )?;
            let through = SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
            rustix::net::connect(&fd, &through)?;
            Ok(fd)
        };
        let fd = open().map_err(|e| AgentError::Connect { path: path.clone(), source: e.into() })?;
        Ok(Channel {
            fd,
            decoder: Decoder::new(MAX_ANSWER),
            received: Vec::new(),
            streams,
            out: Vec::new(),
            sent: 0,
        })
    }

    /// Uses a byte stream that carries no descriptors.
    pub fn over_stream(fd: OwnedFd) -> Self {
        Channel {
            fd,
            decoder: Decoder::new(MAX_ANSWER),
            received: Vec::new(),
            streams: true,
            out: Vec::new(),
            sent: 0,
        }
    }

    /// Queues whole frames.
    pub fn queue(&mut self, with: impl FnOnce(&mut Vec<u8>)) {
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        with(&mut self.out);
    }

    /// Queues a frame with a JSON payload.
    pub fn queue_json<T: serde::Serialize>(
        &mut self,
        kind: FrameType,
        what: &'static str,
        value: &T,
    ) -> Result<(), AgentError> {
        let mut result = Ok(());
        self.queue(|out| result = protocol::put_json(out, kind, what, value));
        Ok(result?)
    }

    /// Bytes queued and not sent.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Sends what can be sent at once.
    pub fn flush(&mut self) -> Result<(), AgentError> {
        while self.unsent() > 0 {
            let bytes = &self.out[self.sent..];
            let sent = match rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Err(Errno::NOTSOCK) => rustix::io::write(&self.fd, bytes),
                r => r,
            };
            match sent {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                // Why it closed may already be on its way here.
                Err(Errno::PIPE | Errno::CONNRESET) => self.sent = self.out.len(),
                Err(e) => return Err(AgentError::stream("speak to the agent")(e)),
            }
        }
        Ok(())
    }

    /// Sends all that is queued; an agent that does not read it in time is given up.
    fn flush_all(&mut self) -> Result<(), AgentError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.flush()?;
            if self.unsent() == 0 {
                return Ok(());
            }
            if !ready(self.fd.as_fd(), PollFlags::OUT, deadline) {
                return Err(AgentError::Silent);
            }
        }
    }

    /// Greets without asking for anything.
    pub fn send_hello(&mut self) -> Result<(), AgentError> {
        let hello = Hello { proto: protocol::VERSION, streams: self.streams };
        self.queue_json(FrameType::Hello, "hello", &hello)?;
        self.flush_all()
    }

    /// Greets and asks for a command, in one write.
    pub fn send_exec(&mut self, exec: &Exec) -> Result<(), AgentError> {
        let hello = Hello { proto: protocol::VERSION, streams: self.streams };
        self.queue_json(FrameType::Hello, "hello", &hello)?;
        self.queue_json(FrameType::Exec, "request", exec)?;
        self.flush_all()
    }

    /// Greets and hands over secrets; nothing of them is left in this process's buffers.
    pub fn send_delivery(&mut self, delivery: &Delivery<'_>) -> Result<(), AgentError> {
        let hello = Hello { proto: protocol::VERSION, streams: self.streams };
        self.queue_json(FrameType::Hello, "hello", &hello)?;
        self.flush_all()?;
        let no_memory = AgentError::stream("get memory for secrets");
        let mut payload = Private::zeroed(delivery.encoded_len()).map_err(no_memory)?;
        let mut at = 0;
        delivery.encode(&mut |piece| {
            payload[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        });
        // A buffer that grew would leave copies behind.
        self.out = Vec::with_capacity(
            payload.len() + (payload.len() / protocol::MAX_PAYLOAD + 1) * protocol::HEADER,
        );
        self.sent = 0;
        protocol::put(&mut self.out, FrameType::Deliver, &payload);
        let sent = self.flush_all();
        wipe(&mut self.out);
        sent
    }

    /// Waits for what came of a delivery.
    pub fn expect_delivered(&mut self, patience: Duration) -> Result<Delivered, AgentError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.next_frame()? {
                Some(frame) if frame.kind == FrameType::Delivered => {
                    let told: Delivered = frame.json("delivered")?;
                    let all = |list: Vec<String>| list.iter().map(|t| plain(t)).collect();
                    return Ok(Delivered { restarted: all(told.restarted), warnings: all(told.warnings) });
                }
                Some(frame) if frame.kind == FrameType::Failure => return Err(failure(&frame)),
                Some(frame) => {
                    return Err(AgentError::Protocol(format!("{:?} after a delivery", frame.kind)));
                }
                None => {}
            }
            if !ready(self.fd.as_fd(), PollFlags::IN, deadline) {
                return Err(AgentError::Silent);
            }
            if !self.fill()? {
                return Err(AgentError::Lost);
            }
        }
    }

    /// Reads what has arrived; call it when the connection is readable. False: the agent has gone.
    pub fn fill(&mut self) -> Result<bool, AgentError> {
        let mut buffer = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got =
            match rustix::net::recvmsg(&self.fd, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags) {
                Ok(message) => Ok(message.bytes),
                Err(Errno::NOTSOCK) => rustix::io::read(&self.fd, &mut buffer),
                Err(e) => Err(e),
            };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.received.extend(fds);
            }
        }
        if self.received.len() > 3 {
            return Err(AgentError::Protocol("too many descriptors".into()));
        }
        match got {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.decoder.push(&buffer[..n]);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(Errno::CONNRESET) => Ok(false),
            Err(e) => Err(AgentError::stream("hear the agent")(e)),
        }
    }

    /// The next frame that has arrived whole.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, AgentError> {
        Ok(self.decoder.next_frame()?)
    }

    /// Waits for the agent's greeting.
    pub fn expect_hello(&mut self, patience: Duration) -> Result<(), AgentError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.next_frame()? {
                return hello(&frame);
            }
            if !ready(self.fd.as_fd(), PollFlags::IN, deadline) {
                return Err(AgentError::Silent);
            }
            if !self.fill()? {
                return Err(AgentError::Lost);
            }
        }
    }

    /// The descriptors that came with Started, checked to be what they must be.
    pub fn take_streams(&mut self, tty: bool, stderr_apart: bool) -> Result<Vec<OwnedFd>, AgentError> {
        let fds = std::mem::take(&mut self.received);
        let expected: &[FileType] = match (tty, stderr_apart) {
            (false, _) => &[FileType::Fifo; 3],
            (true, false) => &[FileType::CharacterDevice],
            (true, true) => &[FileType::CharacterDevice, FileType::Fifo],
        };
        let right = |fd: &OwnedFd, kind: &FileType| {
            rustix::fs::fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == *kind)
        };
        if fds.len() != expected.len() || !fds.iter().zip(expected).all(|(fd, kind)| right(fd, kind)) {
            return Err(AgentError::Protocol("its streams are no pipes and no terminal".into()));
        }
        Ok(fds)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads a greeting.
pub fn hello(frame: &Frame) -> Result<(), AgentError> {
    match frame.kind {
        FrameType::Hello => {
            frame.json::<Hello>("hello")?;
            Ok(())
        }
        kind => Err(AgentError::Protocol(format!("{kind:?} before a greeting"))),
    }
}

/// Reads the answer to a request: the warning of a command that runs, or why it does not.
pub fn started(frame: &Frame) -> Result<Option<String>, AgentError> {
    match frame.kind {
        FrameType::Started => Ok(frame.json::<Started>("started")?.warning.map(|w| plain(&w))),
        FrameType::Failure => Err(failure(frame)),
        kind => Err(AgentError::Protocol(format!("{kind:?} as an answer"))),
    }
}

/// Reads why a command does not run.
pub fn failure(frame: &Frame) -> AgentError {
    match frame.json::<Failure>("failure") {
        Ok(Failure { code, message }) => AgentError::Refused { code, message: plain(&message) },
        Err(e) => e.into(),
    }
}

/// A machine's text, without what would move a cursor or fill a screen.
fn plain(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Waits until a descriptor is ready. False: the deadline has passed.
pub fn ready(fd: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> bool {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(fd, what)], Some(&timeout(deadline))) {
            Ok(0) => return false,
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return true,
        }
    }
}

/// The time left until a deadline, for poll.
pub fn timeout(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
}

/// Whether an I/O error only says that the other side has gone.
pub fn is_end(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_text_cannot_control_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\r\n"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
        assert_eq!(plain(&"x".repeat(5000)).len(), MAX_TEXT);
    }

    #[test]
    fn what_is_no_socket_is_not_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let why = |dir: &Path| match Channel::connect(dir) {
            Err(AgentError::NoSocket { why, .. }) => why,
            other => panic!("{:?}", other.err()),
        };
        assert!(why(dir.path()).contains("No such file"));
        codchi_fs::write(dir.path().join("socket"), "").unwrap();
        assert!(why(dir.path()).contains("not a socket"));
        codchi_fs::remove_file(dir.path().join("socket")).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(elsewhere.path().join("real")).unwrap();
        codchi_fs::symlink_atomic(elsewhere.path().join("real"), dir.path().join("socket")).unwrap();
        assert!(why(dir.path()).contains("not a socket"), "a link was followed");
    }
}
