//! A connection of the host, in frames.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use codchi_core::protocol::{self, Decoder, Frame, FrameType, Hello, MAX_MESSAGE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::Error;

/// How long the host may take to ask for something, or to take an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A connection of the host. It never blocks but where it says so.
pub struct Connection {
    fd: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    greeted: bool,
}

impl Connection {
    /// Takes over an accepted connection.
    pub fn new(fd: OwnedFd) -> Self {
        let _ = rustix::io::ioctl_fionbio(&fd, true);
        Connection { fd, decoder: Decoder::new(MAX_MESSAGE), out: Vec::new(), sent: 0, greeted: false }
    }

    /// Reads what has arrived. False: the host has gone.
    pub fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                self.decoder.push(&buffer[..n]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// The next frame that has arrived whole.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        Ok(self.decoder.next_frame()?)
    }

    /// Waits for a frame, until a deadline.
    pub fn wait_frame(&mut self, deadline: Instant) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            if !wait(self.fd.as_fd(), PollFlags::IN, deadline) || !self.fill() {
                return Err(Error::Closed);
            }
        }
    }

    /// Queues bytes, which are whole frames.
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
    ) -> Result<(), Error> {
        let mut result = Ok(());
        self.queue(|out| result = protocol::put_json(out, kind, what, value));
        Ok(result?)
    }

    /// Queues the greeting, once.
    pub fn greet(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.greeted, true) {
            return Ok(());
        }
        self.queue_json(FrameType::Hello, "hello", &Hello { proto: protocol::VERSION, streams: false })
    }

    /// Bytes queued and not sent.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Sends what can be sent at once. False: the host has gone.
    pub fn flush(&mut self) -> bool {
        while self.unsent() > 0 {
            match rustix::io::write(&self.fd, &self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Sends all that is queued, waiting for a slow host, but not for ever.
    pub fn flush_all(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.unsent() > 0 {
            if !self.flush() || (self.unsent() > 0 && !wait(self.fd.as_fd(), PollFlags::OUT, deadline)) {
                return false;
            }
        }
        true
    }

    /// Sends all that is queued, with descriptors.
    pub fn flush_with(&mut self, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(fds));
        let n = sendmsg(&self.fd, &[IoSlice::new(&self.out[self.sent..])], &mut control, SendFlags::NOSIGNAL)
            .map_err(Error::system("hand out the command's streams"))?;
        self.sent += n;
        if self.flush_all() { Ok(()) } else { Err(Error::Closed) }
    }

    /// Tells the host why its command does not run, and ends.
    pub fn refuse(mut self, error: &Error) {
        let _ = self.greet();
        let _ = self.queue_json(FrameType::Failure, "failure", &error.failure());
        self.flush_all();
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until a descriptor is ready. False: the deadline has passed.
pub fn wait(fd: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(fd, what)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
