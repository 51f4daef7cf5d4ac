//! What runs beside a machine, in processes of its own.

use std::io::{self, Write};
use std::time::Duration;

use codchi_sys::process::{self, Child};
use codchi_sys::signal;
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Doing, Error, Result};
use crate::outer;

/// Something that serves a machine for as long as it runs, such as its endpoint at the nix-daemon.
pub trait Service {
    /// For messages.
    fn name(&self) -> &str;
    /// Serves, in a process of its own inside the outer namespace, until SIGTERM. Calls `ready` once it can be used:
    /// PID 1 waits for that. Threads are fine here.
    fn run(&mut self, ready: &mut dyn FnMut()) -> Result<(), String>;
}

/// How often a service that ends is started again before it is given up.
const RESTARTS: u32 = 5;
/// How long a service may take to be ready.
const SERVICE_PATIENCE: Duration = Duration::from_secs(30);

/// A service that runs.
pub(crate) struct Running {
    /// Which of the machine's services.
    pub service: usize,
    /// Its process.
    pub child: Child,
    /// How often it was started again.
    pub restarts: u32,
}

/// Starts a service and waits until it can be used.
pub(crate) fn start(service: &mut Box<dyn Service>) -> Result<Child> {
    let name = service.name().to_string();
    let (r, w) = outer::pipe()?;
    let child = process::fork(|| {
        signal::reset();
        let kill = Some(rustix::process::Signal::KILL);
        if rustix::process::set_parent_process_death_signal(kill).is_err() {
            return 1;
        }
        let mut ready = || {
            let _ = rustix::io::write(&w, b"x");
        };
        match service.run(&mut ready) {
            Ok(()) => 0,
            Err(e) => {
                // Who waits for it hears why; later on standard error is the supervisor's log.
                let _ = rustix::io::write(&w, e.as_bytes());
                let _ = writeln!(io::stderr(), "{}: {e}", service.name());
                1
            }
        }
    })
    .doing("start a service")?;
    drop(w);
    let mut fds = [PollFd::new(&r, PollFlags::IN), PollFd::new(&child, PollFlags::IN)];
    let patience = rustix::time::Timespec { tv_sec: SERVICE_PATIENCE.as_secs() as _, tv_nsec: 0 };
    let n = poll(&mut fds, Some(&patience)).doing("wait for a service")?;
    let mut said = [0u8; 1024];
    let length = if n > 0 { rustix::io::read(&r, &mut said).unwrap_or(0) } else { 0 };
    let said = said.get(..length).unwrap_or_default();
    if said == b"x" {
        return Ok(child);
    }
    child.signal(signal::SIGKILL).doing("end a service")?;
    child.wait().doing("end a service")?;
    let why = if said.is_empty() { "nothing was said".into() } else { String::from_utf8_lossy(said) };
    Err(Error::Told(format!("the service `{name}` of the machine did not start: {why}")))
}

/// Starts those that are wanted, by their names, and do not run.
pub(crate) fn start_wanted(
    running: &mut Vec<Running>,
    services: &mut [Box<dyn Service>],
    is_wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    for (service, s) in services.iter_mut().enumerate() {
        if is_wanted(s.name()) && !running.iter().any(|r| r.service == service) {
            running.push(Running { service, child: start(s)?, restarts: 0 });
        }
    }
    Ok(())
}

/// Starts those again that have ended, and says so; one that keeps ending is given up.
pub(crate) fn restart_ended(
    running: &mut Vec<Running>,
    services: &mut [Box<dyn Service>],
    warn: &mut dyn FnMut(String),
) -> Result<()> {
    let mut i = 0;
    while i < running.len() {
        if running[i].child.try_wait().doing("wait for a service")?.is_none() {
            i += 1;
            continue;
        }
        let (service, restarts) = (running[i].service, running[i].restarts + 1);
        let name = services[service].name().to_string();
        if restarts > RESTARTS {
            running.remove(i);
            warn(format!("the service `{name}` keeps ending and is given up"));
            continue;
        }
        warn(format!("the service `{name}` ended and is started again"));
        match start(&mut services[service]) {
            Ok(child) => {
                running[i] = Running { service, child, restarts };
                i += 1;
            }
            Err(e) => {
                running.remove(i);
                warn(e.to_string());
            }
        }
    }
    Ok(())
}

/// Ends them all.
pub(crate) fn end(running: &mut Vec<Running>) {
    for r in running.drain(..) {
        let _ = r.child.signal(signal::SIGTERM);
        let mut fds = [PollFd::new(&r.child, PollFlags::IN)];
        let patience = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
        if poll(&mut fds, Some(&patience)) != Ok(1) {
            let _ = r.child.signal(signal::SIGKILL);
        }
        let _ = r.child.wait();
    }
}
