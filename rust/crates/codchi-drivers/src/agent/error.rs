//! What can go wrong between host and agent.

use std::io;
use std::path::PathBuf;

use codchi_core::protocol::ProtocolError;
use codchi_core::report::{Diagnose, Kind};

/// A failure to run a command in a machine.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No agent has a socket there.
    #[error("the machine has no agent at `{}`: {why}", path.display())]
    NoSocket {
        /// Where it was looked for.
        path: PathBuf,
        /// Why there is none.
        why: String,
    },
    /// The socket is there, but nobody serves it.
    #[error("the agent at `{}` does not answer: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The agent, or the whole machine, went away while the command ran.
    #[error("the connection to the machine was lost")]
    Lost,
    /// The agent did not answer in time.
    #[error("the agent does not answer")]
    Silent,
    /// The agent sent what it must not send.
    #[error("the agent speaks nonsense: {0}")]
    Protocol(String),
    /// The command was not started; the code is a shell's: 126, 127, else 125.
    #[error("{message}")]
    Refused {
        /// 125, 126 or 127.
        code: u8,
        /// The agent's reason.
        message: String,
    },
    /// A signal came before the command had started.
    #[error("interrupted")]
    Interrupted(u8),
    /// One of the caller's own streams failed.
    #[error("cannot {what}: {source}")]
    Stream {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A captured command said more, or took longer, than the caller allows.
    #[error("the command {0}")]
    Limit(&'static str),
}

impl AgentError {
    pub(super) fn stream<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> AgentError {
        move |e| AgentError::Stream { what, source: e.into() }
    }

    /// What `codchi exec` returns for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            AgentError::Refused { code: code @ (126 | 127), .. } => *code,
            AgentError::Interrupted(signal) => 128u8.saturating_add(*signal),
            _ => 125,
        }
    }
}

impl From<ProtocolError> for AgentError {
    fn from(e: ProtocolError) -> Self {
        AgentError::Protocol(e.to_string())
    }
}

impl Diagnose for AgentError {
    fn kind(&self) -> Kind {
        match self {
            AgentError::Interrupted(_) => Kind::Interrupted,
            _ => Kind::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            AgentError::NoSocket { .. } | AgentError::Connect { .. } | AgentError::Silent => {
                vec!["`codchi doctor` says what is wrong with the machine".into()]
            }
            AgentError::Limit(_) => vec!["`codchi logs` shows what the machine does".into()],
            AgentError::Lost => vec!["`codchi status` tells whether the machine still runs".into()],
            AgentError::Protocol(_) => {
                vec!["the machine may run another version of Codchi; restart it".into()]
            }
            _ => Vec::new(),
        }
    }
}
