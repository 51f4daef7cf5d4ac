//! Between frames and local pipes, for connections that carry no descriptors: the relay works on the pipes.

use std::os::fd::OwnedFd;

use codchi_core::protocol::{Credit, Frame, FrameType, ProtocolError, WINDOW};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::channel::Channel;
use super::error::AgentError;
use super::relay::{Ends, put};

/// Bytes read at once, and bytes that may wait for the connection before reading stops.
const CHUNK: usize = 32 << 10;

struct Output {
    kind: FrameType,
    fd: Option<OwnedFd>,
    waiting: Vec<u8>,
    end: bool,
}

/// The pipes' other ends.
pub struct Bridge {
    stdin: Option<OwnedFd>,
    /// Bytes the agent is ready to take.
    credit: usize,
    outputs: Vec<Output>,
}

/// What one descriptor given to poll is.
#[derive(Clone, Copy)]
pub enum Watched {
    /// Data for the command.
    Stdin,
    /// Room for its output.
    Output(usize),
}

impl Bridge {
    /// Makes the pipes.
    pub fn new(tty: bool, stderr_apart: bool) -> Result<(Self, Ends), AgentError> {
        let pipe = || -> Result<_, AgentError> {
            pipe_with(PipeFlags::CLOEXEC).map_err(AgentError::stream("make a pipe"))
        };
        let non_blocking = |fd: OwnedFd| -> Result<OwnedFd, AgentError> {
            rustix::io::ioctl_fionbio(&fd, true).map_err(AgentError::stream("set up a pipe"))?;
            Ok(fd)
        };
        let (stdin, to_command) = pipe()?;
        let (from_command, stdout) = pipe()?;
        let output = |kind, fd| -> Result<Output, AgentError> {
            Ok(Output { kind, fd: Some(non_blocking(fd)?), waiting: Vec::new(), end: false })
        };
        let mut outputs = vec![output(FrameType::Stdout, stdout)?];
        let mut stderr = None;
        if !tty || stderr_apart {
            let (read, write) = pipe()?;
            outputs.push(output(FrameType::Stderr, write)?);
            stderr = Some(read);
        }
        let bridge = Bridge { stdin: Some(non_blocking(stdin)?), credit: WINDOW, outputs };
        Ok((bridge, Ends { stdin: to_command, stdout: from_command, stderr }))
    }

    /// Adds the descriptors that can move now.
    pub fn watch<'a>(&'a self, list: &mut Vec<PollFd<'a>>, unsent: usize) -> Vec<Watched> {
        let mut added = Vec::new();
        if let Some(fd) = &self.stdin
            && self.credit > 0
            && unsent < CHUNK
        {
            list.push(PollFd::new(fd, PollFlags::IN));
            added.push(Watched::Stdin);
        }
        for (i, output) in self.outputs.iter().enumerate() {
            if let Some(fd) = &output.fd {
                // Without data the interest is only in its reader going away.
                let events = if output.waiting.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
                list.push(PollFd::new(fd, events));
                added.push(Watched::Output(i));
            }
        }
        added
    }

    /// Moves data on the descriptors that are ready.
    pub fn turn(&mut self, channel: &mut Channel, watched: &[Watched], seen: &[PollFlags]) {
        for (what, _) in watched.iter().zip(seen).filter(|(_, seen)| !seen.is_empty()) {
            match what {
                Watched::Stdin => self.read(channel),
                Watched::Output(i) => self.write(channel, *i, true),
            }
        }
    }

    fn read(&mut self, channel: &mut Channel) {
        let Some(fd) = &self.stdin else { return };
        let mut buffer = [0; CHUNK];
        match rustix::io::read(fd, &mut buffer[..self.credit.min(CHUNK)]) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => {
                self.stdin = None;
                put(channel, FrameType::Stdin, &[]);
            }
            Ok(n) => {
                self.credit -= n;
                put(channel, FrameType::Stdin, &buffer[..n]);
            }
        }
    }

    fn write(&mut self, channel: &mut Channel, i: usize, ready: bool) {
        let output = &mut self.outputs[i];
        let Some(fd) = &output.fd else { return };
        let mut gone = ready && output.waiting.is_empty();
        let mut done = 0;
        while done < output.waiting.len() {
            match rustix::io::write(fd, &output.waiting[done..]) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        output.waiting.drain(..done);
        if done > 0 {
            channel.queue(|out| Credit { stream: output.kind, bytes: done as u32 }.put(out));
        }
        if gone {
            put(channel, output.kind, &[]);
        }
        if gone || (output.end && output.waiting.is_empty()) {
            output.fd = None;
            output.waiting = Vec::new();
        }
    }

    /// Takes a frame of the agent.
    pub fn take(&mut self, frame: &Frame, channel: &mut Channel) -> Result<(), AgentError> {
        match frame.kind {
            FrameType::Stdout | FrameType::Stderr => {
                let Some(i) = self.outputs.iter().position(|o| o.kind == frame.kind) else {
                    return Err(ProtocolError::Unexpected(frame.kind).into());
                };
                let output = &mut self.outputs[i];
                if output.waiting.len() + frame.payload.len() > WINDOW {
                    return Err(ProtocolError::Unexpected(frame.kind).into());
                }
                if frame.payload.is_empty() {
                    output.end = true;
                } else if output.fd.is_some() {
                    output.waiting.extend_from_slice(&frame.payload);
                }
                self.write(channel, i, false);
            }
            // The command reads no more.
            FrameType::Stdin if frame.payload.is_empty() => self.stdin = None,
            FrameType::Credit => {
                let credit = Credit::parse(&frame.payload)?;
                if credit.stream == FrameType::Stdin {
                    self.credit = self.credit.saturating_add(credit.bytes as usize).min(WINDOW);
                }
            }
            kind => return Err(ProtocolError::Unexpected(kind).into()),
        }
        Ok(())
    }

    /// Exit has come, after the last data.
    pub fn command_ended(&mut self) {
        self.stdin = None;
        for output in &mut self.outputs {
            output.end = true;
            if output.waiting.is_empty() {
                output.fd = None;
            }
        }
    }

    /// Whether all output has gone into the pipes.
    pub fn drained(&self) -> bool {
        self.outputs.iter().all(|o| o.fd.is_none())
    }
}
