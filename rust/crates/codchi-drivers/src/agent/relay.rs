//! Relays a command's streams, terminal and signals between the caller and the machine.
//!
//! The streams move in threads that block: the caller's descriptors are shared with other programs and keep their modes,
//! and a caller that does not read never keeps a signal from the command. A thread starts when there is something to move.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Instant;

use codchi_core::protocol::{self, Exec, Exit, FrameType, Signal, WindowSize};
use codchi_sys::signal::{self, Signals};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::bridge::Bridge;
use super::channel::{self as wire, Channel, is_end};
use super::error::AgentError;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGUSR1: i32 = 10;
const SIGUSR2: i32 = 12;
const SIGPIPE: u8 = 13;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;
const SIGWINCH: i32 = 28;
const SIGNALS: &[i32] = &[SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM, SIGCONT, SIGTSTP, SIGWINCH];

/// Bytes moved by one call.
const CHUNK: usize = 1 << 20;
/// Bytes copied by one call, where they cannot be spliced.
const COPY: usize = 64 << 10;
/// End of file on a terminal's input.
const EOT: u8 = 4;

/// Runs a command over a channel, to its status.
pub fn run(mut channel: Channel, exec: &Exec, warn: &mut dyn FnMut(&str)) -> Result<u8, AgentError> {
    // What the caller ignores (nohup, a shell's background job) stays ignored: a blocked signal would come through.
    let wanted: Vec<i32> = SIGNALS.iter().copied().filter(|s| !signal::is_ignored(*s)).collect();
    let signals = Signals::block(&wanted).map_err(AgentError::stream("block signals"))?;
    channel.send_exec(exec)?;
    if let Some(warning) = wait_started(&mut channel, &signals)? {
        warn(&warning);
    }
    let tty = exec.tty.is_some();
    let (bridge, ends) = if channel.streams {
        let (bridge, ends) = Bridge::new(tty, exec.stderr_apart)?;
        (Some(bridge), ends)
    } else {
        (None, Ends::of(channel.take_streams(tty, exec.stderr_apart)?, tty)?)
    };
    let stdin = rustix::stdio::stdin();
    let terminal = if tty { Terminal::raw(stdin)? } else { None };
    let mut conversation = Conversation {
        size: exec.tty,
        stdin: Flow::new(End::Caller(stdin), End::Own(ends.stdin), tty && terminal.is_none()),
        outputs: vec![Flow::new(End::Own(ends.stdout), End::Caller(rustix::stdio::stdout()), false)],
        stop_stdin: stop()?,
        stop_outputs: stop()?,
        finished: stop()?,
        channel,
        signals,
        bridge,
        terminal,
        status: None,
    };
    if let Some(stderr) = ends.stderr {
        conversation.outputs.push(Flow::new(End::Own(stderr), End::Caller(rustix::stdio::stderr()), false));
    }
    conversation.run()
}

/// The caller's size of terminal.
pub fn window_size(fd: BorrowedFd<'_>) -> Option<WindowSize> {
    let size = tcgetwinsize(fd).or_else(|_| tcgetwinsize(rustix::stdio::stdin())).ok()?;
    Some(WindowSize { cols: size.ws_col, rows: size.ws_row })
}

fn wait_started(channel: &mut Channel, signals: &Signals) -> Result<Option<String>, AgentError> {
    let deadline = Instant::now() + wire::PATIENCE;
    let mut greeted = false;
    loop {
        while let Some(frame) = channel.next_frame()? {
            match (greeted, frame.kind) {
                (false, _) => {
                    wire::hello(&frame)?;
                    greeted = true;
                }
                (true, _) => return wire::started(&frame),
            }
        }
        let mut watched = [PollFd::new(channel, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        // Once it has greeted, it may be waiting for a login shell.
        let timeout = wire::timeout(deadline);
        match poll(&mut watched, if greeted { None } else { Some(&timeout) }) {
            Ok(0) => return Err(AgentError::Silent),
            Err(Errno::INTR) => continue,
            r => r.map_err(AgentError::stream("wait for the agent"))?,
        };
        let heard = !watched[0].revents().is_empty();
        while let Some(signal) = signals.next_pending() {
            match signal {
                SIGINT | SIGTERM | SIGHUP | SIGQUIT => return Err(AgentError::Interrupted(signal as u8)),
                SIGTSTP => suspend(),
                _ => {}
            }
        }
        if heard && !channel.fill()? {
            return Err(AgentError::Lost);
        }
    }
}

/// Stops this process as SIGTSTP would have.
fn suspend() {
    let _ = signal::kill_process(rustix::process::getpid(), SIGSTOP);
}

/// The machine's ends of the streams.
pub struct Ends {
    /// To the command.
    pub stdin: OwnedFd,
    /// From the command, or its terminal.
    pub stdout: OwnedFd,
    /// From the command, unless its terminal carries it.
    pub stderr: Option<OwnedFd>,
}

impl Ends {
    fn of(fds: Vec<OwnedFd>, tty: bool) -> Result<Self, AgentError> {
        let missing = || AgentError::Protocol("it left out a stream".into());
        let mut fds = fds.into_iter();
        let first = fds.next().ok_or_else(missing)?;
        let second = if tty {
            first.try_clone().map_err(AgentError::stream("copy a descriptor"))?
        } else {
            fds.next().ok_or_else(missing)?
        };
        Ok(Ends { stdin: first, stdout: second, stderr: fds.next() })
    }
}

/// The caller's terminal in raw mode, as it was again when dropped.
struct Terminal {
    fd: BorrowedFd<'static>,
    before: Termios,
}

impl Terminal {
    /// None: it is no terminal.
    fn raw(fd: BorrowedFd<'static>) -> Result<Option<Self>, AgentError> {
        let Ok(before) = tcgetattr(fd) else { return Ok(None) };
        let terminal = Terminal { fd, before };
        terminal.enter().map_err(AgentError::stream("set the terminal to raw mode"))?;
        Ok(Some(terminal))
    }

    fn enter(&self) -> Result<(), Errno> {
        let mut raw = self.before.clone();
        raw.make_raw();
        tcsetattr(self.fd, OptionalActions::Now, &raw)
    }

    fn leave(&self) {
        let _ = tcsetattr(self.fd, OptionalActions::Now, &self.before);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave();
    }
}

/// One side of a flow: a descriptor of ours, or one of the caller's.
enum End {
    Own(OwnedFd),
    Caller(BorrowedFd<'static>),
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            End::Own(fd) => fd.as_fd(),
            End::Caller(fd) => *fd,
        }
    }
}

/// How a flow ended well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Its source has no more.
    Source,
    /// Its sink takes no more.
    Sink,
    /// It was told to.
    Told,
}

/// A stream on its way from one descriptor to another.
enum Flow {
    /// Nothing has arrived yet.
    Idle { from: End, to: End, eot: bool },
    /// A thread moves it, and will tell here how that ended.
    Moving(Receiver<Result<Ended, io::Error>>),
    /// Over.
    Done(Result<Ended, io::Error>),
}

impl Flow {
    fn new(from: End, to: End, eot: bool) -> Self {
        Flow::Idle { from, to, eot }
    }

    fn done(&self) -> bool {
        matches!(self, Flow::Done(_))
    }

    /// Starts to move, or sees at once that there will never be anything.
    fn wake(&mut self, seen: PollFlags, stop: &Arc<OwnedFd>, finished: &Arc<OwnedFd>, at_once: bool) {
        let Flow::Idle { .. } = self else { return };
        let Flow::Idle { from, to, eot } = std::mem::replace(self, Flow::Done(Ok(Ended::Source))) else {
            return;
        };
        // Hung up, and nothing to read.
        if !seen.contains(PollFlags::IN) && !eot {
            return;
        }
        let (stop, finished) = (stop.clone(), finished.clone());
        let (told, result) = channel();
        let body = move || {
            let result = pump(&from, &to, &stop, at_once, eot);
            drop((from, to));
            let _ = told.send(result);
            tell(&finished);
        };
        // Little of a stack is used, and `exec -- true` pays for making it.
        *self = match std::thread::Builder::new().stack_size(256 << 10).spawn(body) {
            Ok(_) => Flow::Moving(result),
            Err(e) => Flow::Done(Err(e)),
        };
    }

    /// Notices that its thread is done.
    fn settle(&mut self) {
        if let Flow::Moving(result) = self {
            match result.try_recv() {
                Ok(result) => *self = Flow::Done(result),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => *self = Flow::Done(Err(io::Error::other("a thread died"))),
            }
        }
    }
}

fn stop() -> Result<Arc<OwnedFd>, AgentError> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    Ok(Arc::new(eventfd(0, flags).map_err(AgentError::stream("make an event"))?))
}

fn tell(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Moves bytes until one side ends. `stop`: ends it, at once or when nothing is left to read.
fn pump(from: &End, to: &End, stop: &OwnedFd, at_once: bool, eot: bool) -> Result<Ended, io::Error> {
    let (mut spliced, mut buffer, mut last) = (!eot, Vec::new(), b'\n');
    loop {
        let mut watched = [
            PollFd::new(from, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(to, PollFlags::empty()),
        ];
        match poll(&mut watched, None) {
            Err(Errno::INTR) => continue,
            r => r?,
        };
        let [seen, told, gone] = watched.each_ref().map(|w| w.revents());
        if !told.is_empty() && (at_once || !seen.contains(PollFlags::IN)) {
            return Ok(Ended::Told);
        }
        if gone.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Ok(Ended::Sink);
        }
        if seen.is_empty() {
            continue;
        }
        if spliced {
            match splice(from, None, to, None, CHUNK, SpliceFlags::MOVE) {
                Ok(0) => return Ok(Ended::Source),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_writable(to)?,
                Err(Errno::PIPE) => return Ok(Ended::Sink),
                // Not between these two, such as a terminal, or a file opened to append.
                Err(_) => {
                    spliced = false;
                    buffer = vec![0; COPY];
                }
            }
            continue;
        }
        if buffer.is_empty() {
            buffer = vec![0; COPY];
        }
        let n = match rustix::io::read(from, &mut buffer) {
            Ok(n) => n,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // How a terminal says that nobody is at its other end.
            Err(Errno::IO) => 0,
            Err(e) => return Err(e.into()),
        };
        if n == 0 {
            if eot {
                // Typed twice where a line is not finished: the first only hands the line over (termios(3), VEOF).
                let _ = write_all(to, if last == b'\n' { &[EOT] } else { &[EOT, EOT] });
            }
            return Ok(Ended::Source);
        }
        last = buffer[n - 1];
        match write_all(to, &buffer[..n]) {
            Err(e) if is_end(&e) => return Ok(Ended::Sink),
            r => r?,
        }
    }
}

fn write_all(to: &End, mut bytes: &[u8]) -> Result<(), io::Error> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(to)?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// For a sink that its owner has set non-blocking.
fn wait_writable(to: &End) -> Result<(), io::Error> {
    match poll(&mut [PollFd::new(to, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A command that runs, and all that belongs to it here.
struct Conversation {
    /// The command's terminal, as last told.
    size: Option<WindowSize>,
    stdin: Flow,
    outputs: Vec<Flow>,
    stop_stdin: Arc<OwnedFd>,
    stop_outputs: Arc<OwnedFd>,
    finished: Arc<OwnedFd>,
    channel: Channel,
    signals: Signals,
    bridge: Option<Bridge>,
    terminal: Option<Terminal>,
    status: Option<u8>,
}

impl Conversation {
    fn run(mut self) -> Result<u8, AgentError> {
        let status = self.converse();
        // Leaves what was typed ahead to whoever reads next.
        tell(&self.stop_stdin);
        let status = status?;
        for (flow, what) in self.outputs.iter_mut().zip(["write standard output", "write standard error"]) {
            if let Flow::Done(Err(e)) = flow {
                let source = std::mem::replace(e, io::ErrorKind::Other.into());
                return Err(AgentError::Stream { what, source });
            }
        }
        Ok(status)
    }

    fn converse(&mut self) -> Result<u8, AgentError> {
        loop {
            self.hear()?;
            let bridged = self.bridge.as_ref().is_none_or(Bridge::drained);
            if let Some(status) = self.status
                && bridged
                && self.outputs.iter().all(Flow::done)
            {
                return Ok(status);
            }
            // A terminal that nobody sees any more.
            if self.size.is_some()
                && matches!(self.outputs[0], Flow::Done(Ok(Ended::Sink)) | Flow::Done(Err(_)))
            {
                return Ok(self.status.unwrap_or(128 + SIGPIPE));
            }
            if let Some(status) = self.turn()? {
                return Ok(status);
            }
        }
    }

    /// Takes the frames that have arrived.
    fn hear(&mut self) -> Result<(), AgentError> {
        while let Some(frame) = self.channel.next_frame()? {
            match (frame.kind, &mut self.bridge) {
                (FrameType::Exit, bridge) => {
                    self.status = Some(frame.json::<Exit>("exit")?.status());
                    tell(&self.stop_stdin);
                    match bridge {
                        Some(bridge) => bridge.command_ended(),
                        // Only a terminal is given up while someone else still holds it.
                        None if self.size.is_some() => tell(&self.stop_outputs),
                        None => {}
                    }
                }
                (FrameType::Failure, _) => return Err(wire::failure(&frame)),
                (_, Some(bridge)) => bridge.take(&frame, &mut self.channel)?,
                (kind, None) => return Err(AgentError::Protocol(format!("{kind:?} while a command runs"))),
            }
        }
        Ok(())
    }

    /// Waits for something to happen, and deals with it. A status ends the conversation.
    fn turn(&mut self) -> Result<Option<u8>, AgentError> {
        let mut seen = [PollFlags::empty(); 6];
        let mut bridge_seen = Vec::new();
        let mut bridge_watched = Vec::new();
        {
            let mut watched = Vec::with_capacity(10);
            let mut places = [None; 6];
            if self.status.is_none() {
                let sending = if self.channel.unsent() > 0 { PollFlags::OUT } else { PollFlags::empty() };
                places[0] = Some(watched.len());
                watched.push(PollFd::new(&self.channel, PollFlags::IN | sending));
            }
            places[1] = Some(watched.len());
            watched.push(PollFd::new(&self.signals, PollFlags::IN));
            places[2] = Some(watched.len());
            watched.push(PollFd::new(&*self.finished, PollFlags::IN));
            if let (Flow::Idle { from, .. }, None) = (&self.stdin, self.status) {
                places[3] = Some(watched.len());
                watched.push(PollFd::new(from, PollFlags::IN));
            }
            for (i, flow) in self.outputs.iter().enumerate() {
                if let Flow::Idle { from, .. } = flow {
                    places[4 + i] = Some(watched.len());
                    watched.push(PollFd::new(from, PollFlags::IN));
                }
            }
            let first = watched.len();
            if let Some(bridge) = &self.bridge {
                bridge_watched = bridge.watch(&mut watched, self.channel.unsent());
            }
            // After a terminal's command has ended, what nobody has written is not waited for.
            let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let ended = self.status.is_some() && self.size.is_some() && self.bridge.is_none();
            let idle = self.outputs.iter().any(|f| matches!(f, Flow::Idle { .. }));
            match poll(&mut watched, if ended && idle { Some(&none) } else { None }) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(AgentError::stream("wait for the command")(e)),
            }
            for (seen, place) in seen.iter_mut().zip(places) {
                *seen = place.map_or(PollFlags::empty(), |p| watched[p].revents());
            }
            bridge_seen.extend(watched[first..].iter().map(|w| w.revents()));
            if ended {
                for (i, flow) in self.outputs.iter().enumerate() {
                    if matches!(flow, Flow::Idle { .. }) && seen[4 + i].is_empty() {
                        seen[4 + i] = PollFlags::HUP;
                    }
                }
            }
        }
        let [channel, signals, finished, stdin, outputs @ ..] = seen;
        if !signals.is_empty()
            && let Some(status) = self.signalled()?
        {
            return Ok(Some(status));
        }
        if !stdin.is_empty() {
            self.stdin.wake(stdin, &self.stop_stdin, &self.finished, true);
        }
        for (flow, seen) in self.outputs.iter_mut().zip(outputs).filter(|(_, seen)| !seen.is_empty()) {
            flow.wake(seen, &self.stop_outputs, &self.finished, false);
        }
        if !finished.is_empty() {
            let _ = rustix::io::read(&*self.finished, &mut [0; 8]);
            self.stdin.settle();
            self.outputs.iter_mut().for_each(Flow::settle);
        }
        if let Some(bridge) = &mut self.bridge {
            bridge.turn(&mut self.channel, &bridge_watched, &bridge_seen);
        }
        self.channel.flush()?;
        if channel.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !self.channel.fill()? {
            self.hear()?;
            if self.status.is_none() {
                return Err(AgentError::Lost);
            }
        }
        Ok(None)
    }

    /// Deals with the caller's signals. A status ends the conversation.
    fn signalled(&mut self) -> Result<Option<u8>, AgentError> {
        while let Some(signal) = self.signals.next_pending() {
            match signal {
                SIGWINCH => self.resize()?,
                SIGTSTP => {
                    match &self.terminal {
                        Some(terminal) => terminal.leave(),
                        // The command's group is an orphan for its kernel, which ignores SIGTSTP's default there.
                        None => self.forward(SIGSTOP)?,
                    }
                    self.channel.flush()?;
                    suspend();
                }
                SIGCONT => {
                    match &self.terminal {
                        Some(terminal) => {
                            let _ = terminal.enter();
                        }
                        None => self.forward(SIGCONT)?,
                    }
                    self.resize()?;
                }
                // The command has ended; only its streams were waited for.
                _ if self.status.is_some() => return Ok(self.status),
                // Closing the connection hangs up on all of the command's session.
                SIGHUP => return Ok(Some(128 + SIGHUP as u8)),
                _ => self.forward(signal)?,
            }
        }
        Ok(None)
    }

    fn forward(&mut self, signal: i32) -> Result<(), AgentError> {
        self.channel.queue_json(FrameType::Signal, "signal", &Signal { signal: signal as u8 })
    }

    fn resize(&mut self) -> Result<(), AgentError> {
        let Some(known) = self.size else { return Ok(()) };
        match window_size(rustix::stdio::stdout()) {
            Some(size) if size != known => {
                self.size = Some(size);
                self.channel.queue_json(FrameType::WindowSize, "window size", &size)
            }
            _ => Ok(()),
        }
    }
}

/// Queues a frame of data.
pub fn put(channel: &mut Channel, kind: FrameType, bytes: &[u8]) {
    channel.queue(|out| protocol::put(out, kind, bytes));
}
