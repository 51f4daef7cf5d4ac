//! Machines on Incus, beside the engine's own client.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::figures::which;
use crate::host::Host;
use crate::measure::{Bound, Figure, Unit, in_turns, timed};

/// How many machines `status` is measured with.
const MACHINES: usize = 20;

/// An Incus daemon of our own, and the machines on it.
struct Engine<'a> {
    host: &'a Host,
    client: PathBuf,
    dir: PathBuf,
    daemon: Child,
    machines: Vec<String>,
}

impl<'a> Engine<'a> {
    fn start(host: &'a Host) -> Result<Engine<'a>, Error> {
        let client = which("incus")?;
        let program = host.repo.join("tests/engine-host");
        let dir = host.scratch("incus");
        let daemon = Command::new(&program)
            .arg("incus")
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
            host,
            client,
            dir,
            daemon,
            machines: Vec::new(),
        };
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(e) = timed(engine.incus(&["admin", "waitready", "--timeout", "1"])) {
            if Instant::now() > end {
                return Err(e);
            }
        }
        timed(engine.incus(&["storage", "create", "default", "dir"]))?;
        Ok(engine)
    }

    fn with(&self, mut command: Command) -> Command {
        command
            .env("INCUS_DIR", &self.dir)
            .env("INCUS_CONF", self.host.scratch("incus-client"))
            .env("CODCHI_DRIVER", "incus");
        command
    }

    fn incus(&self, args: &[&str]) -> Command {
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
pub fn measure(host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    // The base is there, so that only the engine's part is new.
    host.machine()?;
    let mut engine = Engine::start(host)?;
    engine.init("engine-0".into(), &[])?;
    let name = engine.machines[0].clone();
    let ours = || engine.codchi(&["exec", &name, "--", "true"]);
    let theirs = || engine.incus(&["exec", &name, "--", "/run/current-system/sw/bin/true"]);
    let exec = in_turns(&[&ours, &theirs], runs)?;
    for n in 1..MACHINES {
        engine.init(format!("engine-{n}"), &["--no-start"])?;
    }
    let ours = || engine.codchi(&["status"]);
    let theirs = || engine.incus(&["list", "--format", "csv", "--columns", "ns"]);
    let status = in_turns(&[&ours, &theirs], runs.min(20))?;
    Ok(vec![
        Figure {
            name: format!("codchi exec {name} -- true, on Incus"),
            ours: exec[0],
            beside: Some(("incus exec".into(), exec[1])),
            unit: Unit::Ms,
            bound: Bound::Times(0.5),
        },
        Figure {
            name: format!("codchi status, {MACHINES} machines on Incus"),
            ours: status[0],
            beside: Some(("incus list".into(), status[1])),
            unit: Unit::Ms,
            bound: Bound::Times(2.0),
        },
    ])
}
