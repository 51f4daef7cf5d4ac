//! Machines on Incus and LXD, beside the engine's own client.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::figures::which;
use crate::host::Host;
use crate::measure::{Bound, Figure, Unit, in_turns, timed};

/// How many machines `status` is measured with.
const MACHINES: usize = 20;

/// An engine, and how it is used by hand.
pub struct Kind {
    /// The driver's name.
    name: &'static str,
    title: &'static str,
    client: &'static str,
    /// The variables that say where the daemon's folder is, and that of the client's settings.
    variables: (&'static str, &'static str),
    /// Waits for the daemon.
    wait: &'static [&'static str],
}

/// Incus.
pub const INCUS: Kind = Kind {
    name: "incus",
    title: "Incus",
    client: "incus",
    variables: ("INCUS_DIR", "INCUS_CONF"),
    wait: &["incus", "admin", "waitready", "--timeout", "1"],
};

/// LXD.
pub const LXD: Kind = Kind {
    name: "lxd",
    title: "LXD",
    client: "lxc",
    variables: ("LXD_DIR", "LXD_CONF"),
    wait: &["lxd", "waitready", "--timeout", "1"],
};

/// A daemon of our own, and the machines on it.
struct Engine<'a> {
    kind: &'static Kind,
    host: &'a Host,
    client: PathBuf,
    dir: PathBuf,
    daemon: Child,
    machines: Vec<String>,
}

impl<'a> Engine<'a> {
    fn start(kind: &'static Kind, host: &'a Host) -> Result<Engine<'a>, Error> {
        let client = which(kind.client)?;
        let (waits, args) = kind.wait.split_first().unwrap_or((&"", &[]));
        let waits = which(waits)?;
        let program = host.repo.join("tests/engine-host");
        let dir = host.scratch(kind.name);
        let daemon = Command::new(&program)
            .arg(kind.name)
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| Error::Run {
                program: program.display().to_string(),
                source,
            })?;
        let engine = Engine {
            kind,
            host,
            client,
            dir,
            daemon,
            machines: Vec::new(),
        };
        let end = Instant::now() + Duration::from_secs(60);
        let wait = || {
            let mut command = engine.with(host.command(&waits));
            command.args(args);
            timed(command)
        };
        while let Err(e) = wait() {
            if Instant::now() > end {
                return Err(e);
            }
        }
        timed(engine.client(&["storage", "create", "default", "dir"]))?;
        Ok(engine)
    }

    fn with(&self, mut command: Command) -> Command {
        command
            .env(self.kind.variables.0, &self.dir)
            .env(self.kind.variables.1, self.host.scratch("client"))
            .env("CODCHI_DRIVER", self.kind.name);
        command
    }

    fn client(&self, args: &[&str]) -> Command {
        let mut command = self.with(self.host.command(&self.client));
        command.args(args);
        command
    }

    fn codchi(&self, args: &[&str]) -> Command {
        self.with(self.host.codchi(args))
    }

    fn init(&mut self, name: String, args: &[&str]) -> Result<(), Error> {
        let source = self.host.repo.join("docs/templates/hello");
        let source = source.to_string_lossy().into_owned();
        let mut words = vec!["init", &name, &source];
        words.extend(args);
        let done = timed(self.codchi(&words)).map(drop);
        self.machines.push(name);
        done
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        for name in &self.machines {
            let _ = timed(self.codchi(&["delete", name, "--yes"]));
        }
        let pid = rustix::process::Pid::from_child(&self.daemon);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::POWER);
        let _ = self.daemon.wait();
    }
}

/// The time of a command in a machine, and of the status of many.
pub fn measure(kind: &'static Kind, host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    // The base is there, so that only the engine's part is new.
    host.machine()?;
    let mut engine = Engine::start(kind, host)?;
    engine.init(format!("{}-0", kind.name), &[])?;
    let name = engine.machines[0].clone();
    let ours = || engine.codchi(&["exec", &name, "--", "true"]);
    let theirs = || engine.client(&["exec", &name, "--", "/run/current-system/sw/bin/true"]);
    let exec = in_turns(&[&ours, &theirs], runs)?;
    for n in 1..MACHINES {
        engine.init(format!("{}-{n}", kind.name), &["--no-start"])?;
    }
    let ours = || engine.codchi(&["status"]);
    let theirs = || engine.client(&["list", "--format", "csv", "--columns", "ns"]);
    let status = in_turns(&[&ours, &theirs], runs.min(20))?;
    Ok(vec![
        Figure {
            name: format!("codchi exec {name} -- true, on {}", kind.title),
            ours: exec[0],
            beside: Some((format!("{} exec", kind.client), exec[1])),
            unit: Unit::Ms,
            bound: Bound::Times(0.5),
        },
        Figure {
            name: format!("codchi status, {MACHINES} machines on {}", kind.title),
            ours: status[0],
            beside: Some((format!("{} list", kind.client), status[1])),
            unit: Unit::Ms,
            bound: Bound::Times(2.0),
        },
    ])
}
