//! QEMU's own control port (QMP): what it does is heard there, and it is told there what to do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use codchi_core::port::{Forward, PortState, Protocol};
use rustix::io::Errno;
use serde_json::{Value, json};

/// What QEMU says at most before a line ends.
const LINE: usize = 1 << 20;

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is off.
    Off,
    /// It begins anew.
    Reset,
}

/// The port.
pub struct Control {
    stream: OwnedFd,
    heard: Vec<u8>,
    /// How it ended, by its own word.
    pub end: Option<End>,
    /// Whether nothing more is said.
    over: bool,
}

impl Control {
    /// Both ends; QEMU gets the second.
    pub fn new() -> io::Result<(Control, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut control = Control { stream: ours.into(), heard: Vec::new(), end: None, over: false };
        control.say(&json!({ "execute": "qmp_capabilities" }));
        Ok((control, theirs.into()))
    }

    fn say(&mut self, what: &Value) {
        // It reads at once what is so short; when it is gone, its end is seen by other means.
        let _ = rustix::io::write(&self.stream, format!("{what}\n").as_bytes());
    }

    /// Ends it.
    pub fn quit(&mut self) {
        self.say(&json!({ "execute": "quit" }));
    }

    /// Leads a port of the program's own network to the machine's, or no longer.
    pub fn forward(&mut self, port: &Forward, on: bool) {
        let line = match on {
            true => format!("hostfwd_add net {}", rule(port)),
            false => {
                let protocol = protocol(port);
                format!("hostfwd_remove net {protocol}::{}", port.guest)
            }
        };
        self.say(&json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } }));
    }

    /// Whether nothing more is said.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes what was said.
    pub fn hear(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.stream, &mut buffer) {
                Ok(0) => {
                    self.over = true;
                    break;
                }
                Ok(n) => self.heard.extend_from_slice(&buffer[..n]),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
            while let Some(end) = self.heard.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                if let Ok(said) = serde_json::from_slice::<Value>(&line)
                    && said["event"] == "SHUTDOWN"
                {
                    let reset = said["data"]["reason"] == "guest-reset";
                    self.end = Some(if reset { End::Reset } else { End::Off });
                }
            }
            if self.heard.len() > LINE {
                self.heard.clear();
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn protocol(port: &Forward) -> &'static str {
    match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// A rule of QEMU's user network: what arrives in the program's own network at a port of the machine goes to that, at the
/// machine's loopback.
pub fn rule(port: &Forward) -> String {
    format!("{}::{}-127.0.0.1:{}", protocol(port), port.guest, port.guest)
}

/// Ports that lead into the machine, each once.
pub fn led(ports: &[PortState]) -> Vec<Forward> {
    let mut all: Vec<Forward> = Vec::new();
    for port in ports.iter().filter(|p| p.problem.is_none()) {
        let f = port.forward;
        if !all.iter().any(|o| (o.guest, o.protocol) == (f.guest, f.protocol)) {
            all.push(f);
        }
    }
    all
}
