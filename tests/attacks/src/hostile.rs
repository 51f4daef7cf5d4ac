//! A machine whose agent, console, journal and notifications are the attacker's.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::host::{Done, run};
use crate::require;
use crate::stage::{HELPER, MALLORY, Place, Stage, Who};

/// Waits for something the machine does.
pub fn eventually(what: &str, check: impl FnMut() -> bool) -> Result<(), Failed> {
    within(30, what, check)
}

/// The same within so many seconds.
pub fn within(seconds: u64, what: &str, mut check: impl FnMut() -> bool) -> Result<(), Failed> {
    let until = Instant::now() + Duration::from_secs(seconds);
    while !check() {
        require(
            Instant::now() < until,
            format!("did not happen within {seconds} seconds: {what}"),
        )?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn agent_dir(stage: &Stage) -> PathBuf {
    stage.runtime(MALLORY).join("agent")
}

/// The folder of the agent as the host reaches it, whatever it is mounted on.
fn agent_file(stage: &Stage, name: &str) -> Result<PathBuf, Failed> {
    let text = codchi_fs::read_to_string(stage.runtime(MALLORY).join("supervisor.json"))?;
    let v: serde_json::Value = serde_json::from_str(&text)?;
    let inside = PathBuf::from(format!("/proc/{}/root/run/codchi/agent", v["leader"]));
    Ok(if inside.exists() {
        inside
    } else {
        agent_dir(stage)
    }
    .join(name))
}

/// Puts a hostile agent in the place of the true one, does something, and puts the true one back.
fn with_agent<T>(
    stage: &Stage,
    mode: &str,
    f: impl FnOnce() -> Result<T, Failed>,
) -> Result<T, Failed> {
    if stage.host.driver == "qemu" {
        return crate::guest::with_port(stage, mode, f);
    }
    let (kept, enough) = (
        agent_file(stage, ".kept")?,
        stage.root(MALLORY).join("opt/.enough"),
    );
    // Whoever was told before may not have waited for it.
    codchi_fs::remove_if_exists(&enough)?;
    let unit = format!("--unit=attempt-{}", mode.split(':').next().unwrap_or(mode));
    let words = [
        "systemd-run",
        "--quiet",
        "--collect",
        &unit,
        HELPER,
        "agent",
        mode,
    ];
    stage
        .run(Place::Machine(MALLORY), Who::Root, &words)?
        .ok()?;
    let socket = agent_file(stage, "socket")?;
    eventually("the hostile agent serves", || {
        kept.exists() && socket.symlink_metadata().is_ok()
    })?;
    let result = f();
    codchi_fs::write(&enough, "")?;
    eventually("the true agent is back", || !kept.exists())?;
    result
}

/// A command against a hostile agent, with little memory: what it cannot bound ends it with another status.
fn exec(stage: &Stage) -> Result<Done, Failed> {
    let c = stage
        .host
        .codchi_command(&["exec", "-T", MALLORY, "--", "true"]);
    let mut limited = std::process::Command::new("sh");
    limited
        .args([
            "-c",
            "ulimit -v 600000; exec timeout -s KILL 40 \"$0\" \"$@\"",
        ])
        .arg(c.get_program())
        .args(c.get_args());
    limited
        .env_clear()
        .current_dir("/")
        .envs(c.get_envs().filter_map(|(k, v)| Some((k, v?))));
    run(&mut limited, b"")
}

/// The call ends by itself, with the status of a failure of Codchi's own and words that a terminal need not fear.
fn fails_cleanly(stage: &Stage, mode: &str) -> Result<(), Failed> {
    let done = with_agent(stage, mode, || exec(stage))?;
    require(
        done.status == 125,
        format!("status {} and {}", done.status, done.err),
    )?;
    clean(&done)
}

/// Requires that a command said nothing that a terminal obeys.
pub fn clean(done: &Done) -> Result<(), Failed> {
    let all = format!("{}{}", done.text(), done.err);
    let bad = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || ('\u{202a}'..='\u{202e}').contains(&c)
    };
    require(
        !all.contains(bad),
        format!("control characters came through: {all:?}"),
    )
}

/// What a client without any check receives: bytes, and descriptors.
fn naive(stage: &Stage, mode: &str, want: usize) -> Result<(Vec<u8>, Vec<OwnedFd>), Failed> {
    with_agent(stage, mode, || {
        let (dir, name) = match stage.host.driver {
            "qemu" => (agent_dir(stage), "stream"),
            _ => (agent_file(stage, ".")?, "socket"),
        };
        let dir = std::fs::File::open(dir)?;
        let path = format!(
            "/proc/self/fd/{}/{name}",
            std::os::fd::AsRawFd::as_raw_fd(&dir)
        );
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"hello")?;
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; 1 << 20];
        while bytes.len() < want {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut buffer)];
            let n = match rustix::net::recvmsg(
                &stream,
                &mut into,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(m) if m.bytes > 0 => m.bytes,
                _ => break,
            };
            for m in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = m {
                    fds.extend(more);
                }
            }
            bytes.extend_from_slice(&buffer[..n]);
        }
        Ok((bytes, fds))
    })
}

fn holds(stage: &Stage, mode: &str, wanted: &[u8]) -> Result<(), Failed> {
    let (bytes, _) = naive(stage, mode, 4000)?;
    require(
        bytes.windows(wanted.len()).any(|w| w == wanted),
        format!("only {} bytes came", bytes.len()),
    )
}

macro_rules! agents {
    ($($name:ident $control:ident $mode:expr, $wanted:expr;)+) => {$(
        pub fn $name(stage: &Stage, _: Who) -> Result<(), Failed> {
            fails_cleanly(stage, $mode)
        }
        pub fn $control(stage: &Stage) -> Result<(), Failed> {
            holds(stage, $mode, $wanted)
        }
    )+};
}

agents! {
    garbage garbage_control "garbage", &[0xff; 4000];
    huge huge_control "huge", &[0xff, 0xff, 0xff, 0xff, 9];
    escapes escapes_control "escapes", b"\\u001b]0;owned";
    status status_control "nested-exit", b"70000";
}

pub fn silent(stage: &Stage, _: Who) -> Result<(), Failed> {
    let began = Instant::now();
    fails_cleanly(stage, "silent")?;
    require(
        began.elapsed() < Duration::from_secs(30),
        "it took too long",
    )
}

pub fn silent_control(stage: &Stage) -> Result<(), Failed> {
    let (bytes, _) = naive(stage, "silent", 1)?;
    require(bytes.is_empty(), "the silent agent spoke")
}

pub fn endless(stage: &Stage, _: Who) -> Result<(), Failed> {
    fails_cleanly(stage, "endless")
}

pub fn endless_control(stage: &Stage) -> Result<(), Failed> {
    let (bytes, _) = naive(stage, "endless", 64 << 20)?;
    require(
        bytes.len() >= 64 << 20,
        format!("only {} bytes came", bytes.len()),
    )
}

fn kinds(
    stage: &Stage,
    mode: &str,
    wanted: fn(&std::fs::FileType) -> bool,
    count: usize,
) -> Result<(), Failed> {
    let (_, fds) = naive(stage, mode, 200)?;
    let right = fds.into_iter().filter(|fd| {
        let meta = fd
            .try_clone()
            .map(std::fs::File::from)
            .and_then(|f| f.metadata());
        meta.is_ok_and(|m| wanted(&m.file_type()))
    });
    let got = right.count();
    require(
        got >= count,
        format!("{got} descriptors came, {count} were expected"),
    )
}

pub fn file(stage: &Stage, _: Who) -> Result<(), Failed> {
    fails_cleanly(stage, "file")
}

pub fn file_control(stage: &Stage) -> Result<(), Failed> {
    kinds(stage, "file", |t| t.is_file(), 3)
}

pub fn sockets(stage: &Stage, _: Who) -> Result<(), Failed> {
    fails_cleanly(stage, "socket")
}

pub fn sockets_control(stage: &Stage) -> Result<(), Failed> {
    use std::os::unix::fs::FileTypeExt;
    kinds(stage, "socket", |t| t.is_socket(), 3)
}

pub fn many(stage: &Stage, _: Who) -> Result<(), Failed> {
    fails_cleanly(stage, "many")
}

pub fn many_control(stage: &Stage) -> Result<(), Failed> {
    use std::os::unix::fs::FileTypeExt;
    kinds(stage, "many", |t| t.is_char_device(), 200)
}

pub fn warning(stage: &Stage, _: Who) -> Result<(), Failed> {
    clean(&with_agent(stage, "warning", || exec(stage))?)
}

pub fn warning_control(stage: &Stage) -> Result<(), Failed> {
    holds(stage, "warning", b"\\u001b[2J")
}

fn decoy(stage: &Stage) -> Result<(UnixListener, PathBuf), Failed> {
    let path = stage.host.home.join("decoy");
    codchi_fs::remove_if_exists(&path)?;
    let listener = UnixListener::bind(&path)?;
    codchi_fs::set_mode(&path, 0o777)?;
    listener.set_nonblocking(true)?;
    Ok((listener, path))
}

/// Without an agent that is one, the machine is entered instead; on an engine the host says that it does not answer.
fn without_agent(stage: &Stage, done: &Done) -> Result<(), Failed> {
    let (status, what) = match stage.host.has_engine() {
        true => (125, "it was not said"),
        false => (0, "the machine was not entered instead"),
    };
    require(
        done.status == status,
        format!("{what}: {} {}", done.status, done.err),
    )
}

pub fn link(stage: &Stage, _: Who) -> Result<(), Failed> {
    let (listener, path) = decoy(stage)?;
    let done = with_agent(stage, &format!("link:{}", path.display()), || exec(stage))?;
    require(listener.accept().is_err(), "the host followed the link")?;
    without_agent(stage, &done)
}

pub fn link_control(stage: &Stage) -> Result<(), Failed> {
    let (listener, path) = decoy(stage)?;
    let socket = agent_file(stage, "socket")?;
    with_agent(stage, &format!("link:{}", path.display()), || {
        let target = std::fs::read_link(&socket)?;
        Ok(UnixStream::connect(target)?)
    })?;
    require(listener.accept().is_ok(), "nobody came by the link")
}

pub fn fifo(stage: &Stage, _: Who) -> Result<(), Failed> {
    without_agent(stage, &with_agent(stage, "fifo", || exec(stage))?)
}

pub fn fifo_control(stage: &Stage) -> Result<(), Failed> {
    let socket = agent_file(stage, "socket")?;
    let done = with_agent(stage, "fifo", || {
        let mut c = std::process::Command::new("timeout");
        run(c.args(["1", "cat"]).arg(&socket), b"")
    })?;
    require(done.status == 124, "opening the pipe does not wait")
}

// Texts.

const EVIL: &str = "mkdir -p /opt/evil && printf '#!/bin/sh\\nprintf \"\\\\033[2J\\\\033]0;owned\\\\007 text\\\\n\"\\n' > /opt/evil/journalctl && \
    chmod 755 /opt/evil/journalctl && echo 'PATH=/opt/evil:$PATH' > /root/.profile && cp /root/.profile /root/.bash_profile";
const GOOD: &str = "rm -rf /opt/evil /root/.profile /root/.bash_profile";

pub fn journal(stage: &Stage, _: Who) -> Result<(), Failed> {
    stage.host.root_sh(MALLORY, EVIL)?;
    let done = stage.host.codchi(&["logs", MALLORY]);
    stage.host.root_sh(MALLORY, GOOD)?;
    let done = done?;
    require(
        done.text().contains("text"),
        format!("the false journal was not read: {done:?}"),
    )?;
    clean(&done)
}

pub fn journal_control(stage: &Stage) -> Result<(), Failed> {
    stage.host.root_sh(MALLORY, EVIL)?;
    let done = stage
        .host
        .codchi(&["exec", "-u", "root", MALLORY, "--", "journalctl"]);
    stage.host.root_sh(MALLORY, GOOD)?;
    require(done?.text().contains('\u{1b}'), "they do not come through")
}

const SPEAK: &str = "printf '\\033[2Jspoken\\n' > /dev/console";

fn log(stage: &Stage) -> PathBuf {
    stage
        .host
        .home
        .join(".local/state/codchi/logs")
        .join(MALLORY)
        .join("console.log")
}

pub fn console(stage: &Stage, _: Who) -> Result<(), Failed> {
    stage.host.root_sh(MALLORY, SPEAK)?;
    let mut said = String::new();
    eventually("the console is written down", || {
        let done = stage.host.codchi(&["logs", "--console", MALLORY]);
        said = done.map(|d| d.text()).unwrap_or_default();
        said.contains("spoken")
    })?;
    clean(&stage.host.codchi(&["logs", "--console", MALLORY])?.ok()?)
}

pub fn console_control(stage: &Stage) -> Result<(), Failed> {
    stage.host.root_sh(MALLORY, SPEAK)?;
    let log = log(stage);
    eventually("the file holds them", || {
        codchi_fs::read(&log).is_ok_and(|b| b.contains(&0x1b))
    })
}

fn size_of_logs(stage: &Stage) -> u64 {
    let dir =
        codchi_fs::read_dir(log(stage).parent().unwrap_or(&stage.host.home)).unwrap_or_default();
    dir.iter()
        .filter_map(|e| e.metadata().ok())
        .map(|m| m.len())
        .sum()
}

pub fn flood(stage: &Stage, _: Who) -> Result<(), Failed> {
    stage.host.root_sh(
        MALLORY,
        "dd if=/dev/zero bs=64k count=96 2>/dev/null | tr '\\0' 'x' > /dev/console",
    )?;
    let size = size_of_logs(stage);
    require(size <= 3 << 20, format!("the log has {size} bytes"))
}

pub fn flood_control(stage: &Stage) -> Result<(), Failed> {
    let text = "dd if=/dev/zero bs=64k count=96 2>/dev/null | tr '\\0' 'x' > /tmp/.flood; stat -c %s /tmp/.flood; rm /tmp/.flood";
    require(
        stage.host.root_sh(MALLORY, text)? == (96 << 16).to_string(),
        "the file is shorter",
    )
}

// Notifications.

const NOTIFY: &str = "/run/codchi/notify/socket";

fn notify(stage: &Stage, who: Who, mode: &str) -> Result<(), Failed> {
    crate::attempts::succeeded(stage.attempt(
        Place::Machine(MALLORY),
        who,
        &["notify", mode, NOTIFY],
    )?)
}

fn still_served(stage: &Stage) -> Result<(), Failed> {
    let began = Instant::now();
    let status = stage.host.status(MALLORY)?;
    require(
        status["state"] == "running",
        format!("the state became {}", status["state"]),
    )?;
    stage.host.codchi(&["exec", MALLORY, "--", "true"])?.ok()?;
    require(
        began.elapsed() < Duration::from_secs(15),
        "it took too long",
    )
}

pub fn pose(stage: &Stage, who: Who) -> Result<(), Failed> {
    let told = || crate::stage::unnumbered(&stage.runtime(MALLORY).join("supervisor.json"));
    // On an engine, a folder is what asks it for a turn.
    let folder = || -> Result<(), Failed> {
        codchi_fs::create_private_dir(stage.host.home.join("turn"))?;
        let folder = format!("{}:/mnt/turn", stage.host.home.join("turn").display());
        stage
            .host
            .codchi(&["mount", "add", MALLORY, &folder])?
            .ok()?;
        stage
            .host
            .codchi(&["mount", "remove", MALLORY, "/mnt/turn"])?
            .ok()?;
        Ok(())
    };
    let engine = stage.host.has_engine();
    if engine {
        folder()?;
    }
    let before = told()?;
    notify(stage, who, "pose")?;
    // Whatever it heard, it has dealt with when it has written the console down.
    if engine {
        folder()?
    } else {
        console(stage, Who::Root)?
    }
    let after = told()?;
    require(
        after == before,
        format!("the supervisor believed it: {after}"),
    )
}

/// The same messages at a socket of the suite's, as the machine's supervisor has one.
pub fn pose_control(stage: &Stage) -> Result<(), Failed> {
    let path = stage.host.home.join("notify");
    codchi_fs::remove_if_exists(&path)?;
    let socket = UnixDatagram::bind(&path)?;
    let words = ["notify", "pose", &path.to_string_lossy()];
    crate::attempts::succeeded(stage.attempt(Place::Host, Who::Root, &words)?)?;
    let mut b = [0; 100];
    let n = socket.recv(&mut b)?;
    require(&b[..n] == b"READY=1", "another message came")
}

pub fn notify_flood(stage: &Stage, who: Who) -> Result<(), Failed> {
    notify(stage, who, "flood")?;
    still_served(stage)
}

fn descriptors(pid: &str) -> usize {
    codchi_fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |d| d.len())
}

pub fn notify_descriptors(stage: &Stage, who: Who) -> Result<(), Failed> {
    let text = codchi_fs::read_to_string(stage.runtime(MALLORY).join("supervisor.json"))?;
    let v: serde_json::Value = serde_json::from_str(&text)?;
    let pid = v["pid"].to_string();
    let before = descriptors(&pid);
    notify(stage, who, "descriptors")?;
    still_served(stage)?;
    let after = descriptors(&pid);
    require(
        before > 0 && after <= before + 2,
        format!("{before} descriptors became {after}"),
    )
}

pub fn notify_descriptors_control(stage: &Stage) -> Result<(), Failed> {
    let path = stage.host.home.join("notify");
    codchi_fs::remove_if_exists(&path)?;
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let before = descriptors("self");
    let mut kept = Vec::new();
    let words = ["notify", "descriptors", &path.to_string_lossy()];
    crate::attempts::succeeded(stage.attempt(Place::Host, Who::Root, &words)?)?;
    let mut b = [0; 100];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut b)];
        if rustix::net::recvmsg(&socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).is_err()
        {
            break;
        }
        for m in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = m {
                kept.extend(more);
            }
        }
    }
    let after = descriptors("self");
    require(
        after > before + 100,
        format!("only {} descriptors came", after - before),
    )
}
