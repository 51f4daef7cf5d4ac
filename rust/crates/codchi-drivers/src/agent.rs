//! The host's side of the agent: runs commands in a machine and relays their streams, terminal and signals.
//!
//! Nothing that comes from the machine is believed: its folder is walked without following links, its descriptors must be
//! what they are said to be, its messages are short and shown without control characters.
//!
//! Without a terminal a call ends, as ssh does, when the command has ended and nobody holds its standard output or error
//! any more: `exec NAME -- sh -c 'server &'` stays until the server has closed them (`>/dev/null 2>&1`), and nothing a
//! background child still writes is lost. With a terminal it ends with the command. A signal ends the wait in both cases.

mod bridge;
mod capture;
mod channel;
mod error;
mod relay;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use codchi_core::protocol::{Delivered, Delivery, Exec, WindowSize};

pub use capture::{CaptureLimits, Captured, capture};
pub use error::AgentError;

use channel::Channel;

/// How long services may take to restart with new secrets.
const RESTART_PATIENCE: Duration = Duration::from_secs(120);

/// Whether the command gets a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tty {
    /// As the caller has it: when standard input and output are terminals.
    #[default]
    Auto,
    /// Yes (`-t`).
    Always,
    /// No (`-T`).
    Never,
}

/// A command to run in a machine.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// The command and its arguments; empty: the user's login shell.
    pub argv: Vec<OsString>,
    /// Variables laid over the login environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; none: the user's home.
    pub cwd: Option<OsString>,
    /// User; none: the machine's.
    pub user: Option<String>,
    /// Terminal or pipes.
    pub tty: Tty,
}

impl ExecRequest {
    /// A command by its words, all else as usual.
    pub fn command<S: Into<OsString>>(words: impl IntoIterator<Item = S>) -> Self {
        ExecRequest { argv: words.into_iter().map(Into::into).collect(), ..ExecRequest::default() }
    }

    fn message(&self, tty: Option<WindowSize>, stderr_apart: bool) -> Exec {
        let bytes = |s: &OsStr| s.as_bytes().into();
        let mut env: Vec<_> = Vec::with_capacity(self.env.len() + 2);
        if tty.is_some() {
            // What the caller's terminal understands; a terminal that says nothing is the plainest.
            env.push((b"TERM"[..].into(), bytes(&std::env::var_os("TERM").unwrap_or("dumb".into()))));
            if let Some(colors) = std::env::var_os("COLORTERM") {
                env.push((b"COLORTERM"[..].into(), bytes(&colors)));
            }
        }
        env.extend(self.env.iter().map(|(name, value)| (bytes(name), bytes(value))));
        Exec {
            argv: self.argv.iter().map(|a| bytes(a)).collect(),
            env,
            cwd: self.cwd.as_deref().map(bytes),
            user: self.user.clone(),
            tty,
            stderr_apart,
        }
    }
}

/// Runs a command with the caller's standard streams, and returns its status (128 and the number for a signal).
///
/// Signals of this process go to the command meanwhile; it should have one thread. Warnings go to `warn`.
///
/// # Errors
/// [`AgentError::NoSocket`] and [`AgentError::Connect`] mean that no agent is there and nothing was run.
pub fn exec(agent_dir: &Path, request: ExecRequest) -> Result<u8, AgentError> {
    exec_with(Channel::connect(agent_dir)?, request, &mut |_| {})
}

/// [`exec`] that tells what did not go as it should, such as a login shell that failed.
pub fn exec_warning(
    agent_dir: &Path,
    request: ExecRequest,
    warn: &mut dyn FnMut(&str),
) -> Result<u8, AgentError> {
    exec_with(Channel::connect(agent_dir)?, request, warn)
}

/// [`exec`] over a byte stream that an agent serves, such as a virtual machine's socket: data travels in frames.
pub fn exec_stream(
    stream: std::os::fd::OwnedFd,
    request: ExecRequest,
    warn: &mut dyn FnMut(&str),
) -> Result<u8, AgentError> {
    exec_with(Channel::over_stream(stream), request, warn)
}

fn exec_with(channel: Channel, request: ExecRequest, warn: &mut dyn FnMut(&str)) -> Result<u8, AgentError> {
    let stdout = std::io::stdout();
    let tty = match request.tty {
        Tty::Auto => std::io::stdin().is_terminal() && stdout.is_terminal(),
        Tty::Always => true,
        Tty::Never => false,
    };
    let size = tty.then(|| relay::window_size(stdout.as_fd()).unwrap_or(WindowSize { cols: 80, rows: 24 }));
    let stderr_apart = tty && !std::io::stderr().is_terminal() && request.tty != Tty::Always;
    relay::run(channel, &request.message(size, stderr_apart), warn)
}

/// Hands a machine the values of its secrets, and tells what came of it. Not before the services that use them have restarted.
pub fn deliver(agent_dir: &Path, delivery: &Delivery<'_>) -> Result<Delivered, AgentError> {
    deliver_over(Channel::connect(agent_dir)?, delivery)
}

/// [`deliver`] over a byte stream that an agent serves.
pub fn deliver_stream(
    stream: std::os::fd::OwnedFd,
    delivery: &Delivery<'_>,
) -> Result<Delivered, AgentError> {
    deliver_over(Channel::over_stream(stream), delivery)
}

fn deliver_over(mut channel: Channel, delivery: &Delivery<'_>) -> Result<Delivered, AgentError> {
    channel.send_delivery(delivery)?;
    channel.expect_hello(Duration::from_secs(5))?;
    channel.expect_delivered(RESTART_PATIENCE)
}

/// Whether an agent answers in this machine.
pub fn ping(agent_dir: &Path) -> Result<(), AgentError> {
    let mut channel = Channel::connect(agent_dir)?;
    channel.send_hello()?;
    channel.expect_hello(Duration::from_secs(5))
}
