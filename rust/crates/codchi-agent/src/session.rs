//! One connection: one command, from its request to its exit.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use codchi_core::protocol::{
    self, Delivery, Exec, Exit, Frame, FrameType, Hello, ProtocolError, Signal, Started, WindowSize,
};
use codchi_sys::signal::{kill_group, kill_process};
use codchi_sys::spawn::Child;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::cgroup::Cgroup;
use crate::channels;
use crate::command::{self, Command, Starting, Streams};
use crate::connection::{Connection, PATIENCE, wait};
use crate::environment;
use crate::error::Error;
use crate::secrets;
use crate::server::Settings;
use crate::stream::Relay;
use crate::user::User;

/// A command that ends so soon is told of at once: the host wakes up once instead of twice.
const SHORT: Duration = Duration::from_millis(2);
const SIGHUP: i32 = 1;
const SIGCONT: i32 = 18;

/// Serves a connection to its end; the result is this process's exit status.
pub fn run(conn: OwnedFd, settings: &Settings) -> u8 {
    let mut conn = Connection::new(conn);
    let mut cgroup = None;
    match begin(&mut conn, settings, &mut cgroup) {
        Ok(Some(running)) => attend(conn, running, cgroup.as_ref()),
        Ok(None) => {}
        Err(Error::Closed) => {}
        Err(e) => conn.refuse(&e),
    }
    if let Some(cgroup) = cgroup {
        cgroup.remove();
    }
    0
}

/// A command that runs.
struct Running {
    command: Starting,
    /// The host's end of its terminal.
    terminal: Option<OwnedFd>,
    /// Carries its data where descriptors cannot be handed out.
    relay: Option<Relay>,
    /// It has ended already, and the host knows.
    exit: Option<Exit>,
}

/// Reads the request and starts the command. None: the host only wanted to know that someone is here.
fn begin(
    conn: &mut Connection,
    settings: &Settings,
    cgroup: &mut Option<Cgroup>,
) -> Result<Option<Running>, Error> {
    let deadline = Instant::now() + PATIENCE;
    let expect = |frame: Frame, kind| {
        if frame.kind == kind { Ok(frame) } else { Err(Error::from(ProtocolError::Unexpected(frame.kind))) }
    };
    let hello: Hello = expect(conn.wait_frame(deadline)?, FrameType::Hello)?.json("hello")?;
    if hello.proto != protocol::VERSION {
        return Err(Error::Version(hello.proto, protocol::VERSION));
    }
    let frame = match conn.next_frame()? {
        Some(frame) => frame,
        None => {
            conn.greet()?;
            conn.flush_all();
            match conn.wait_frame(deadline) {
                Err(Error::Closed) => return Ok(None),
                other => other?,
            }
        }
    };
    if frame.kind == FrameType::Deliver {
        return take(conn, frame).map(|()| None);
    }
    let exec: Exec = expect(frame, FrameType::Exec)?.json("request")?;
    let user = match exec.user.as_deref() {
        Some(name) => User::find(name)?,
        None => User::default(settings.default_user.as_deref())?,
    };
    *cgroup = settings.cgroups.create();
    let group = cgroup.as_ref().map(AsFd::as_fd);
    let (mut env, warning) = match exec.argv.is_empty() {
        true => (environment::minimal(&user), None),
        false => environment::login(&user, settings, group, || {
            // A login shell takes its time: the host shall know that someone is here.
            let _ = conn.greet();
            conn.flush_all();
        }),
    };
    secrets::overlay(&mut env, &user, settings.default_user.as_deref());
    channels::overlay(&mut env, &user, settings.default_user.as_deref());
    let command = Command::new(&exec, &user, env)?;
    let streams = Streams::make(&user, exec.tty, exec.stderr_apart)?;
    let command = command.start(&streams, group)?;
    let host = streams.into_host();

    let started = Started { pid: command.child.pid.as_raw_nonzero().get() as u32, warning };
    conn.greet()?;
    conn.queue_json(FrameType::Started, "started", &started)?;
    let mut exit = None;
    if exec.tty.is_none()
        && !hello.streams
        && wait(command.child.pidfd.as_fd(), PollFlags::IN, Instant::now() + SHORT)
    {
        let status = reap(&command.child);
        end(conn, &command, status)?;
        exit = Some(status);
    }
    let lost = |e| {
        if exit.is_none() {
            hang_up(&command.child, cgroup.as_ref());
        }
        e
    };
    let relay = if hello.streams {
        Some(Relay::new(&host, exec.tty.is_some()).map_err(lost)?)
    } else {
        let fds: Vec<_> = host.iter().map(AsFd::as_fd).collect();
        conn.flush_with(&fds).map_err(lost)?;
        None
    };
    let terminal = if exec.tty.is_some() { host.into_iter().next() } else { None };
    Ok(Some(Running { command, terminal, relay, exit }))
}

/// Puts delivered secrets in place and tells what came of it.
fn take(conn: &mut Connection, mut frame: Frame) -> Result<(), Error> {
    // Services may take their time to restart: the host shall know that someone is here.
    conn.greet()?;
    conn.flush_all();
    let told = secrets::deliver(&Delivery::parse(&frame.payload)?);
    codchi_sys::memory::wipe(&mut frame.payload);
    conn.queue_json(FrameType::Delivered, "delivered", &told?)?;
    conn.flush_all();
    Ok(())
}

/// Passes signals and sizes on until the command ends, and tells how it did.
fn attend(mut conn: Connection, mut running: Running, cgroup: Option<&Cgroup>) {
    if running.exit.is_some() {
        return;
    }
    let mut exit: Option<Exit> = None;
    loop {
        loop {
            match conn.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) if obey(&frame, &mut running, &mut conn).is_ok() => {}
                _ => return lose(running, cgroup, exit.is_some()),
            }
        }
        if let Some(status) = exit
            && running.relay.as_ref().is_none_or(Relay::finished)
        {
            let _ = end(&mut conn, &running.command, status);
            conn.flush_all();
            return;
        }
        let (mut ended, mut heard) = (false, false);
        {
            let mut watched = Vec::with_capacity(5);
            let sending = if conn.unsent() > 0 { PollFlags::OUT } else { PollFlags::empty() };
            watched.push(PollFd::new(&conn, PollFlags::IN | sending));
            if exit.is_none() {
                watched.push(PollFd::new(&running.command.child.pidfd, PollFlags::IN));
            }
            let first = watched.len();
            let streams = running.relay.as_ref().map(|r| r.watch(&mut watched, conn.unsent()));
            match poll(&mut watched, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => break,
                Ok(_) => {}
            }
            heard |= watched[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
            ended |= exit.is_none() && !watched[1].revents().is_empty();
            let ready: Vec<bool> = watched[first..].iter().map(|w| !w.revents().is_empty()).collect();
            drop(watched);
            if let (Some(relay), Some(streams)) = (&mut running.relay, streams) {
                relay.turn(&mut conn, &streams, &ready);
            }
        }
        if !conn.flush() {
            break;
        }
        if heard && !conn.fill() {
            break;
        }
        if ended {
            exit = Some(reap(&running.command.child));
            if let Some(relay) = &mut running.relay {
                relay.command_ended();
            }
        }
    }
    lose(running, cgroup, exit.is_some());
}

/// Queues how the command ended.
fn end(conn: &mut Connection, command: &Starting, status: Exit) -> Result<(), Error> {
    match command.failure() {
        Some(error) => conn.queue_json(FrameType::Failure, "failure", &error.failure()),
        None => conn.queue_json(FrameType::Exit, "exit", &status),
    }
}

fn obey(frame: &Frame, running: &mut Running, conn: &mut Connection) -> Result<(), Error> {
    match frame.kind {
        FrameType::Signal => {
            let Signal { signal } = frame.json("signal")?;
            let _ = kill_group(running.command.child.pid, signal.into());
        }
        FrameType::WindowSize => {
            let size: WindowSize = frame.json("window size")?;
            if let Some(terminal) = &running.terminal {
                let _ = command::resize(terminal.as_fd(), size);
            }
        }
        kind => match &mut running.relay {
            Some(relay) => relay.take(frame, conn)?,
            None => return Err(ProtocolError::Unexpected(kind).into()),
        },
    }
    Ok(())
}

fn reap(child: &Child) -> Exit {
    match waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code as u8),
            (None, Some(signal)) => Exit::Signal(signal as u8),
            (None, None) => Exit::Code(125),
        },
        _ => Exit::Code(125),
    }
}

/// The host has gone: hangs up on the command's session, and waits for the command, so that its control group can go.
fn lose(running: Running, cgroup: Option<&Cgroup>, ended: bool) {
    let Running { command: Starting { child, .. }, terminal, relay, .. } = running;
    if ended {
        return;
    }
    hang_up(&child, cgroup);
    // Closing the terminal is what the kernel hangs up by.
    drop((terminal, relay));
    reap(&child);
}

/// SIGHUP to every process of the command's session, in whatever process group its shell put it.
fn hang_up(child: &Child, cgroup: Option<&Cgroup>) {
    let mut told = kill_group(child.pid, SIGHUP).is_ok();
    let _ = kill_group(child.pid, SIGCONT);
    let others = cgroup.map(Cgroup::processes).unwrap_or_default();
    for pid in others.into_iter().filter_map(Pid::from_raw).filter(|p| *p != child.pid) {
        let group = rustix::process::getpgid(Some(pid)).ok();
        if group != Some(child.pid) && rustix::process::getsid(Some(pid)).ok() == Some(child.pid) {
            told |= kill_process(pid, SIGHUP).is_ok();
            let _ = kill_process(pid, SIGCONT);
        }
    }
    if !told {
        let _ = kill_process(child.pid, SIGHUP);
    }
}
