//! Running a command for its output, within limits.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use codchi_core::protocol::{self, Credit, Exit, FrameType, WINDOW};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use super::ExecRequest;
use super::channel::{self, Channel};
use super::error::AgentError;

/// Bytes moved at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// What a machine may do with a captured call.
#[derive(Clone, Copy, Debug)]
pub struct CaptureLimits {
    /// Bytes on each of standard output and error.
    pub bytes: usize,
    /// From the request to the end.
    pub timeout: Duration,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        CaptureLimits { bytes: 16 << 20, timeout: Duration::from_secs(60) }
    }
}

/// What a command gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Its status; 128 and the number for a signal.
    pub status: u8,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Runs a command with `stdin`, and returns its output when it has ended and closed its streams.
///
/// # Errors
/// [`AgentError::Limit`] when it says or takes more than `limits`; the command is hung up on.
pub fn capture(
    agent_dir: &Path,
    request: ExecRequest,
    stdin: &[u8],
    limits: CaptureLimits,
) -> Result<Captured, AgentError> {
    let deadline = Instant::now() + limits.timeout;
    let mut channel = Channel::connect(agent_dir)?;
    channel.send_exec(&request.message(None, false))?;
    let mut greeted = false;
    let mut fds = loop {
        match channel.next_frame()? {
            Some(frame) if greeted => {
                channel::started(&frame)?;
                if channel.streams {
                    return in_frames(channel, stdin, limits, deadline);
                }
                break channel.take_streams(false, false)?.into_iter();
            }
            Some(frame) => {
                channel::hello(&frame)?;
                greeted = true;
            }
            None => {
                if !channel::ready(rustix::fd::AsFd::as_fd(&channel), PollFlags::IN, deadline) {
                    return Err(AgentError::Limit("did not start in time"));
                }
                if !channel.fill()? {
                    return Err(AgentError::Lost);
                }
            }
        }
    };
    let mut input = fds.next().map(|to| (to, stdin));
    let mut outputs = [(fds.next(), Vec::new()), (fds.next(), Vec::new())];
    let stage = Stage::new()?;
    let mut status = None;
    loop {
        while let Some(frame) = channel.next_frame()? {
            match frame.kind {
                FrameType::Exit => {
                    status = Some(frame.json::<Exit>("exit")?.status());
                    input = None;
                }
                FrameType::Failure => return Err(channel::failure(&frame)),
                kind => return Err(AgentError::Protocol(format!("{kind:?} while a command runs"))),
            }
        }
        let open = outputs.iter().any(|(fd, _)| fd.is_some());
        if let (Some(status), false) = (status, open) {
            let [(_, stdout), (_, stderr)] = outputs;
            return Ok(Captured { status, stdout, stderr });
        }
        if input.as_ref().is_some_and(|(_, rest)| rest.is_empty()) {
            input = None;
        }
        let (heard, writable, mut readable);
        {
            let mut watched = Vec::with_capacity(4);
            if status.is_none() {
                watched.push(PollFd::new(&channel, PollFlags::IN));
            }
            let first = watched.len();
            watched.extend(
                outputs.iter().filter_map(|(fd, _)| fd.as_ref()).map(|fd| PollFd::new(fd, PollFlags::IN)),
            );
            let last = watched.len();
            watched.extend(input.as_ref().map(|(fd, _)| PollFd::new(fd, PollFlags::OUT)));
            match poll(&mut watched, Some(&channel::timeout(deadline))) {
                Ok(0) => return Err(AgentError::Limit("did not end in time")),
                Err(Errno::INTR) => continue,
                r => r.map_err(AgentError::stream("wait for the command"))?,
            };
            heard = status.is_none() && !watched[0].revents().is_empty();
            readable =
                watched[first..last].iter().map(|w| !w.revents().is_empty()).collect::<Vec<_>>().into_iter();
            writable = watched.get(last).is_some_and(|w| !w.revents().is_empty());
        }
        for (fd, into) in outputs.iter_mut().filter(|(fd, _)| fd.is_some()) {
            if readable.next() != Some(true) {
                continue;
            }
            let Some(from) = fd.as_ref() else { continue };
            if !stage.read(from, into)? {
                *fd = None;
            }
            if into.len() > limits.bytes {
                return Err(AgentError::Limit("says more than is read"));
            }
        }
        if writable && let Some((to, rest)) = &mut input {
            match stage.write(to, rest)? {
                Some(n) => *rest = &rest[n..],
                None => input = None,
            }
        }
        if heard && !channel.fill()? {
            while let Some(frame) = channel.next_frame()? {
                match frame.kind {
                    FrameType::Exit => {
                        status = Some(frame.json::<Exit>("exit")?.status());
                        input = None;
                    }
                    FrameType::Failure => return Err(channel::failure(&frame)),
                    _ => {}
                }
            }
            if status.is_none() {
                return Err(AgentError::Lost);
            }
        }
    }
}

/// The same of a command that runs, where its data travels in frames.
fn in_frames(
    mut channel: Channel,
    mut input: &[u8],
    limits: CaptureLimits,
    deadline: Instant,
) -> Result<Captured, AgentError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (mut credit, mut done) = (WINDOW, false);
    loop {
        while let Some(frame) = channel.next_frame()? {
            let into = match frame.kind {
                FrameType::Stdout => &mut stdout,
                FrameType::Stderr => &mut stderr,
                FrameType::Stdin => {
                    done = true;
                    continue;
                }
                FrameType::Credit => {
                    credit = credit.saturating_add(Credit::parse(&frame.payload)?.bytes as usize).min(WINDOW);
                    continue;
                }
                FrameType::Exit => {
                    return Ok(Captured { status: frame.json::<Exit>("exit")?.status(), stdout, stderr });
                }
                FrameType::Failure => return Err(channel::failure(&frame)),
                kind => return Err(AgentError::Protocol(format!("{kind:?} while a command runs"))),
            };
            into.extend_from_slice(&frame.payload);
            if into.len() > limits.bytes {
                return Err(AgentError::Limit("says more than is read"));
            }
            if !frame.payload.is_empty() {
                let taken = Credit { stream: frame.kind, bytes: frame.payload.len() as u32 };
                channel.queue(|out| taken.put(out));
            }
        }
        if !done && credit > 0 && channel.unsent() < CHUNK {
            let (now, rest) = input.split_at(input.len().min(credit).min(CHUNK));
            channel.queue(|out| protocol::put(out, FrameType::Stdin, now));
            (input, credit) = (rest, credit - now.len());
            // An empty one was the end.
            done = now.is_empty();
        }
        channel.flush()?;
        let more = !done && credit > 0 && channel.unsent() == 0;
        let sending = if more || channel.unsent() > 0 { PollFlags::OUT } else { PollFlags::empty() };
        if !channel::ready(rustix::fd::AsFd::as_fd(&channel), PollFlags::IN | sending, deadline) {
            return Err(AgentError::Limit("did not end in time"));
        }
        if !channel.fill()? {
            return Err(AgentError::Lost);
        }
    }
}

/// A pipe of our own between us and the machine's pipes: splice can be told not to block, whatever the machine does to the
/// mode of its pipe or to what is in it.
struct Stage {
    read: OwnedFd,
    write: OwnedFd,
}

impl Stage {
    fn new() -> Result<Self, AgentError> {
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(AgentError::stream("make a pipe"))?;
        Ok(Stage { read, write })
    }

    /// False: there will be no more.
    fn read(&self, from: &OwnedFd, into: &mut Vec<u8>) -> Result<bool, AgentError> {
        match splice(from, None, &self.write, None, CHUNK, SpliceFlags::NONBLOCK) {
            Ok(0) => Ok(false),
            Ok(_) => self.empty(into).map(|()| true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(e) => Err(AgentError::stream("read the command's output")(e)),
        }
    }

    fn empty(&self, into: &mut Vec<u8>) -> Result<(), AgentError> {
        let mut buffer = [0; 16 << 10];
        loop {
            match rustix::io::read(&self.read, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(n) => into.extend_from_slice(&buffer[..n]),
                Err(Errno::INTR) => {}
                Err(e) => return Err(AgentError::stream("read a pipe")(e)),
            }
        }
    }

    /// How much was taken; none: nobody reads any more.
    fn write(&self, to: &OwnedFd, bytes: &[u8]) -> Result<Option<usize>, AgentError> {
        let offered = &bytes[..bytes.len().min(CHUNK)];
        let staged = rustix::io::write(&self.write, offered).map_err(AgentError::stream("write a pipe"))?;
        let taken = match splice(&self.read, None, to, None, staged, SpliceFlags::NONBLOCK) {
            Ok(n) => Some(n),
            Err(Errno::AGAIN | Errno::INTR) => Some(0),
            Err(Errno::PIPE) => None,
            Err(e) => return Err(AgentError::stream("write the command's input")(e)),
        };
        // What was not taken is offered again.
        self.empty(&mut Vec::new())?;
        Ok(taken)
    }
}
