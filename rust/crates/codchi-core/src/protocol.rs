//! The protocol between the host and the agent in a machine.
//!
//! A frame is a length (u32, little endian, of what follows the type, at most 1 MiB), a type (u8) and a payload. Control
//! payloads are JSON. Where the connection is a unix socket, the agent sends the ends of its pipes or pty with
//! [`FrameType::Started`] (SCM_RIGHTS); where it is a byte stream (virtual machines), data travels in frames.

use serde::{Deserialize, Serialize};

/// Protocol version that both sides name in their hello.
pub const VERSION: u32 = 1;
/// Largest payload, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// [`Hello`], first in both directions.
    Hello = 1,
    /// [`Exec`], host to agent.
    Exec = 2,
    /// [`Started`], agent to host.
    Started = 3,
    /// [`Exit`], agent to host, last.
    Exit = 4,
    /// [`WindowSize`], host to agent.
    WindowSize = 5,
    /// [`Signal`], host to agent.
    Signal = 6,
    /// [`Failure`], agent to host: the command was not started.
    Failure = 7,
    /// Bytes for the command's standard input; empty: end of file. Streams only.
    Stdin = 8,
    /// Bytes of its standard output. Streams only.
    Stdout = 9,
    /// Bytes of its standard error. Streams only.
    Stderr = 10,
}

impl TryFrom<u8> for FrameType {
    type Error = u8;
    fn try_from(v: u8) -> Result<Self, u8> {
        Ok(match v {
            1 => FrameType::Hello,
            2 => FrameType::Exec,
            3 => FrameType::Started,
            4 => FrameType::Exit,
            5 => FrameType::WindowSize,
            6 => FrameType::Signal,
            7 => FrameType::Failure,
            8 => FrameType::Stdin,
            9 => FrameType::Stdout,
            10 => FrameType::Stderr,
            other => return Err(other),
        })
    }
}

/// First frame of each side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub proto: u32,
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// Run a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The command and its arguments, byte for byte (each a list of bytes where it is not UTF-8). Empty: the user's login shell.
    pub argv: Vec<Bytes>,
    /// Variables laid over the login environment.
    #[serde(default)]
    pub env: Vec<(Bytes, Bytes)>,
    /// Working directory; none: the user's home.
    #[serde(default)]
    pub cwd: Option<Bytes>,
    /// User name; none: the machine's user.
    #[serde(default)]
    pub user: Option<String>,
    /// The terminal to make; none: pipes.
    #[serde(default)]
    pub tty: Option<WindowSize>,
}

/// Text where it is UTF-8, a list of bytes where it is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bytes {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Raw(Vec<u8>),
}

impl Bytes {
    /// The bytes themselves.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Bytes::Text(s) => s.as_bytes(),
            Bytes::Raw(b) => b,
        }
    }
}

impl From<&[u8]> for Bytes {
    fn from(b: &[u8]) -> Self {
        match std::str::from_utf8(b) {
            Ok(s) => Bytes::Text(s.into()),
            Err(_) => Bytes::Raw(b.into()),
        }
    }
}

/// The command runs. On a unix socket, the descriptors come with it: the pty, or stdin, stdout, stderr.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id in the machine.
    pub pid: u32,
}

/// The command ended: by exit code, or by signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// Exit code.
    Code(u8),
    /// Signal number.
    Signal(u8),
}

/// Send a signal to the command's process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Signal number.
    pub signal: u8,
}

/// Why a command was not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What a shell would exit with: 126 not executable, 127 not found, 125 anything else.
    pub code: u8,
    /// For the person.
    pub message: String,
}
