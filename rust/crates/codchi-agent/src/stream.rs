//! A command's data in frames, for connections that cannot carry descriptors.

use std::os::fd::{AsFd, OwnedFd};

use codchi_core::protocol::{self, Credit, Frame, FrameType, ProtocolError, WINDOW};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::connection::Connection;
use crate::error::Error;

/// Bytes read at once, and bytes that may wait for the connection before reading stops.
const CHUNK: usize = 32 << 10;

/// One output of the command.
struct Output {
    kind: FrameType,
    fd: Option<OwnedFd>,
    /// Bytes the host is ready to take.
    credit: usize,
}

/// Carries a command's streams over its connection.
pub struct Relay {
    stdin: Option<OwnedFd>,
    /// Bytes for standard input that it has not taken yet, and whether its end has come.
    waiting: Vec<u8>,
    end: bool,
    outputs: Vec<Output>,
    terminal: bool,
    ended: bool,
}

/// What one descriptor given to poll is.
pub enum Watched {
    Stdin,
    Output(usize),
}

impl Relay {
    /// Takes the host's ends of the streams, as the agent would hand them out.
    pub fn new(host: &[OwnedFd], terminal: bool) -> Result<Self, Error> {
        let copy = |fd: &OwnedFd| -> Result<OwnedFd, Error> {
            rustix::io::ioctl_fionbio(fd, true).map_err(Error::system("make a stream non-blocking"))?;
            fd.try_clone().map_err(Error::system("copy a descriptor"))
        };
        let stdin = host.first().map(copy).transpose()?;
        let from = if terminal { 0 } else { 1 };
        let kinds = [FrameType::Stdout, FrameType::Stderr];
        let outputs = host[from..]
            .iter()
            .zip(kinds)
            .map(|(fd, kind)| Ok(Output { kind, fd: Some(copy(fd)?), credit: WINDOW }))
            .collect::<Result<_, Error>>()?;
        Ok(Relay { stdin, waiting: Vec::new(), end: false, outputs, terminal, ended: false })
    }

    /// Adds the descriptors that can move now.
    pub fn watch<'a>(&'a self, list: &mut Vec<PollFd<'a>>, unsent: usize) -> Vec<Watched> {
        let mut added = Vec::new();
        if let Some(fd) = &self.stdin {
            // Without data the interest is only in its reader going away.
            let events = if self.waiting.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            list.push(PollFd::new(fd, events));
            added.push(Watched::Stdin);
        }
        for (i, output) in self.outputs.iter().enumerate() {
            if let Some(fd) = &output.fd
                && output.credit > 0
                && unsent < CHUNK
            {
                list.push(PollFd::new(fd, PollFlags::IN));
                added.push(Watched::Output(i));
            }
        }
        added
    }

    /// Moves data on the descriptors that are ready.
    pub fn turn(&mut self, conn: &mut Connection, watched: &[Watched], ready: &[bool]) {
        for (what, _) in watched.iter().zip(ready).filter(|(_, ready)| **ready) {
            match what {
                Watched::Stdin => self.write(conn, true),
                Watched::Output(i) => self.read(conn, *i),
            }
        }
    }

    fn read(&mut self, conn: &mut Connection, i: usize) {
        let output = &mut self.outputs[i];
        let Some(fd) = &output.fd else { return };
        let mut buffer = [0; CHUNK];
        let most = output.credit.min(CHUNK);
        match rustix::io::read(fd, &mut buffer[..most]) {
            Ok(n) if n > 0 => {
                output.credit -= n;
                let kind = output.kind;
                conn.queue(|out| protocol::put(out, kind, &buffer[..n]));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The end: of a pipe, or (EIO) of a terminal that nobody holds.
            Ok(_) | Err(_) => {
                output.fd = None;
                let kind = output.kind;
                conn.queue(|out| protocol::put(out, kind, &[]));
            }
        }
    }

    fn write(&mut self, conn: &mut Connection, ready: bool) {
        let Some(fd) = &self.stdin else { return };
        let mut gone = ready && self.waiting.is_empty();
        let mut done = 0;
        while done < self.waiting.len() {
            match rustix::io::write(fd, &self.waiting[done..]) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        self.waiting.drain(..done);
        if done > 0 {
            conn.queue(|out| Credit { stream: FrameType::Stdin, bytes: done as u32 }.put(out));
        }
        if gone {
            conn.queue(|out| protocol::put(out, FrameType::Stdin, &[]));
        }
        if gone || (self.end && self.waiting.is_empty()) {
            self.stdin = None;
            self.waiting = Vec::new();
        }
    }

    /// Takes a frame of the host.
    pub fn take(&mut self, frame: &Frame, conn: &mut Connection) -> Result<(), Error> {
        match frame.kind {
            FrameType::Stdin if frame.payload.is_empty() => {
                self.end = true;
                self.write(conn, false);
            }
            FrameType::Stdin => {
                if self.end || self.waiting.len() + frame.payload.len() > WINDOW {
                    return Err(ProtocolError::Unexpected(frame.kind).into());
                }
                if self.stdin.is_some() {
                    self.waiting.extend_from_slice(&frame.payload);
                    self.write(conn, false);
                }
            }
            FrameType::Credit => {
                let credit = Credit::parse(&frame.payload)?;
                for output in self.outputs.iter_mut().filter(|o| o.kind == credit.stream) {
                    output.credit = output.credit.saturating_add(credit.bytes as usize).min(WINDOW);
                }
            }
            // Nobody reads this any more: the command's next write fails as it would on a closed pipe.
            FrameType::Stdout | FrameType::Stderr if frame.payload.is_empty() => {
                self.outputs.iter_mut().filter(|o| o.kind == frame.kind).for_each(|o| o.fd = None);
            }
            kind => return Err(ProtocolError::Unexpected(kind).into()),
        }
        Ok(())
    }

    /// The command itself has ended; others may still hold its streams.
    pub fn command_ended(&mut self) {
        self.ended = true;
        self.stdin = None;
    }

    /// Whether all there is to carry has been queued: every pipe at its end, or a terminal with nothing left in it.
    pub fn finished(&self) -> bool {
        if !self.terminal {
            return self.outputs.iter().all(|o| o.fd.is_none());
        }
        self.ended
            && self.outputs.iter().filter(|o| o.kind == FrameType::Stdout || o.fd.is_some()).all(|o| match &o
                .fd
            {
                None => true,
                Some(fd) => {
                    let mut one = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
                    let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                    !matches!(rustix::event::poll(&mut one, Some(&none)), Ok(n) if n > 0)
                }
            })
    }
}
