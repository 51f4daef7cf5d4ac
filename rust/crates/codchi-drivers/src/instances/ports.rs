//! Ports of this host that lead into a machine on another: each connection is a program in the machine that connects there.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use codchi_core::port::{Forward, PortState, Protocol};
use codchi_sys::process::{self, Child};

use crate::agent::{self, ExecRequest, Tty};

/// What connects in the machine.
const CONNECT: [&str; 2] = ["/run/codchi/bin/codchi-agent", "--connect"];
/// How long to wait for a descriptor.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// Connections of a port at once.
const MOST: usize = 256;

/// The ports of one machine.
pub struct Ports {
    /// The folder with the agent's socket.
    agent: PathBuf,
    open: Vec<(PortState, Option<Child>)>,
}

impl Ports {
    /// None yet.
    pub fn new(agent: PathBuf) -> Ports {
        Ports { agent, open: Vec::new() }
    }

    /// Opens those that are wanted, and closes others.
    pub fn lead(&mut self, wanted: &[Forward]) {
        let (stay, go) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(state, child)| child.is_some() && wanted.contains(&state.forward));
        self.open = stay;
        close(go);
        for forward in wanted {
            if self.open.iter().any(|(state, _)| state.forward == *forward) {
                continue;
            }
            let (child, problem) = match serve(&self.agent, *forward) {
                Ok(child) => (Some(child), None),
                Err(problem) => (None, Some(problem)),
            };
            self.open.push((PortState { forward: *forward, problem }, child));
        }
    }

    /// Closes all.
    pub fn close(&mut self) {
        close(std::mem::take(&mut self.open));
    }

    /// What leads where.
    pub fn states(&self) -> Vec<PortState> {
        self.open.iter().map(|(state, _)| state.clone()).collect()
    }

    /// The processes that serve them.
    pub fn children(&self) -> impl Iterator<Item = &Child> {
        self.open.iter().filter_map(|(_, child)| child.as_ref())
    }
}

fn close(ports: Vec<(PortState, Option<Child>)>) {
    for child in ports.into_iter().filter_map(|(_, child)| child) {
        let _ = child.signal(codchi_sys::signal::SIGKILL);
        let _ = child.wait();
    }
}

fn serve(agent: &Path, forward: Forward) -> Result<Child, String> {
    if forward.protocol != Protocol::Tcp {
        return Err("only tcp can be led to another host".into());
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, forward.host)).map_err(|e| e.to_string())?;
    let agent = agent.to_path_buf();
    let child = process::fork(move || {
        let mut sessions: Vec<Child> = Vec::new();
        if !dies_with_parent() {
            return 1;
        }
        loop {
            let Ok((connection, _)) = listener.accept() else {
                // It still calls: no descriptor is free, say.
                std::thread::sleep(PAUSE);
                continue;
            };
            sessions.retain(|s| matches!(s.try_wait(), Ok(None)));
            if sessions.len() >= MOST {
                continue;
            }
            sessions.extend(process::fork(|| connect(&agent, &connection, forward.guest)).ok());
        }
    });
    child.map_err(|e| format!("cannot start a process: {e}"))
}

fn dies_with_parent() -> bool {
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).is_ok()
}

/// This process becomes a connection.
fn connect(agent: &Path, connection: &TcpStream, port: u16) -> i32 {
    let _ = connection.set_nodelay(true);
    if !dies_with_parent() || (0..2).any(|number| process::stdio(connection.as_fd(), number).is_err()) {
        return 1;
    }
    // A descriptor more would keep the connection open when the program has closed its end.
    if process::close_from(3).is_err() {
        return 1;
    }
    let command = CONNECT.into_iter().map(String::from).chain([port.to_string()]);
    let request = ExecRequest { user: Some("root".into()), tty: Tty::Never, ..ExecRequest::command(command) };
    agent::exec(agent, request).map_or(1, i32::from)
}
