//! What a virtual machine tries by its shared folders and its one port.

use std::os::unix::fs::FileTypeExt;

use libtest_mimic::Failed;

use crate::attempts::{refused, succeeded};
use crate::hostile::within;
use crate::misc::told;
use crate::require;
use crate::stage::{ALICE, HELPER, MALLORY, Place, Stage, Who};

const M: Place = Place::Machine(MALLORY);

/// Seconds that an emulated machine may take for what is done at once elsewhere.
const SLOW: u64 = 180;

/// Puts a hostile speaker in the place of the agent, does something, and puts the agent back.
pub fn with_port<T>(
    stage: &Stage,
    mode: &str,
    f: impl FnOnce() -> Result<T, Failed>,
) -> Result<T, Failed> {
    let opt = stage.root(MALLORY).join("opt");
    let (serving, enough) = (opt.join(".serving"), opt.join(".enough"));
    codchi_fs::remove_if_exists(&serving)?;
    codchi_fs::remove_if_exists(&enough)?;
    let unit = format!("--unit=attempt-{mode}");
    let words = [
        "systemd-run",
        "--quiet",
        "--collect",
        &unit,
        HELPER,
        "port",
        mode,
    ];
    // The command itself may be cut off with the agent.
    stage.run(M, Who::Root, &words)?;
    within(SLOW, "the hostile side serves", || serving.exists())?;
    let result = f();
    codchi_fs::write(&enough, "")?;
    within(SLOW, "the hostile side ends", || !serving.exists())?;
    within(SLOW, "the agent is back", || {
        stage
            .run(M, Who::Root, &["true"])
            .is_ok_and(|d| d.status == 0)
    })?;
    result
}

/// The process that serves the port, on the host, and what it has: memory in KiB, descriptors.
fn server(stage: &Stage) -> Result<(i32, u64, usize), Failed> {
    let supervisor = told(stage, MALLORY, "pid")?;
    let all = codchi_fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
    for pid in all.split_whitespace() {
        // A copy of the supervisor that has the agent's socket: of its children the only one with the supervisor's program
        // that lives as long as the machine.
        let same = |what: &str| {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/{what}")).ok();
            of(pid) == of(&supervisor)
        };
        let fds = codchi_fs::read_dir(format!("/proc/{pid}/fd")).unwrap_or_default();
        let status = codchi_fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if !same("exe") || !same("ns/user") || !listens(stage, pid) {
            continue;
        }
        let memory = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let memory = memory.and_then(|l| l.split_whitespace().next()?.parse().ok());
        return Ok((pid.parse()?, memory.ok_or("no memory")?, fds.len()));
    }
    Err("nobody serves the port".into())
}

/// Whether a process has the socket by which the host reaches the agent.
fn listens(stage: &Stage, pid: &str) -> bool {
    let path = stage.runtime(MALLORY).join("agent/stream");
    // It was bound through a descriptor of its folder: only the end of its name is told.
    let sockets = codchi_fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let inodes: Vec<&str> = sockets
        .lines()
        .filter(|l| l.ends_with(&format!("/{name}")))
        .filter_map(|l| l.split_whitespace().nth(6))
        .collect();
    codchi_fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap_or_default()
        .iter()
        .any(|fd| {
            let to = std::fs::read_link(fd.path()).unwrap_or_default();
            inodes
                .iter()
                .any(|i| to.to_string_lossy() == format!("socket:[{i}]"))
        })
}

fn script(stage: &Stage, text: &str) -> Result<crate::stage::Verdict, Failed> {
    crate::attempts::script(stage, M, Who::Root, text)
}

/// Mounts each of the folders anew and writes to it; says how many it mounted.
const ANEW: &str = "d=$(mktemp -d); n=0; for s in TAGS; do mount -t virtiofs $s $d || continue; n=$((n+1)); mount -o remount,rw $d; \
    for t in $d $(ls -d $d/* | head -n 4); do test -d $t && touch $t/attempt && exit 0; chmod 777 $t && exit 0; done; umount $d; done 2>/dev/null; \
    echo $n were mounted; exit 1";

pub fn write(stage: &Stage, _: Who) -> Result<(), Failed> {
    let verdict = script(stage, &ANEW.replace("TAGS", "store bin host"))?;
    script(stage, "umount /tmp/tmp.*; rmdir /tmp/tmp.*; true")?;
    // A tag that the machine does not have is no attempt.
    require(
        !verdict.said().contains("0 were mounted"),
        format!("nothing was tried: {}", verdict.said()),
    )?;
    refused(verdict)
}

pub fn write_control(stage: &Stage) -> Result<(), Failed> {
    let verdict = script(stage, &ANEW.replace("TAGS", "root"))?;
    script(
        stage,
        "umount /tmp/tmp.*; rmdir /tmp/tmp.*; rm -f /attempt; true",
    )?;
    succeeded(verdict)
}

const LINKS: &str = "mkdir -p /opt/links/a/b/c && cd /opt/links && ln -sfn / root && ln -sfn ../../../../../../../../../../../.. up";

pub fn link(stage: &Stage, _: Who) -> Result<(), Failed> {
    let secret = stage.host.home.join("public-secret");
    let text = format!(
        "{LINKS}; d=$(mktemp -d); mount -t virtiofs root $d; \
         for way in /opt/links/root /opt/links/up $d/.. $d/../../../.. $d/opt/links/root $d/opt/links/up; do \
         cat $way{s} && exit 0; done; \
         (cd $d/opt/links/a/b/c && mv $d/opt/links/a/b/c $d/opt/links/c && cat ../../../../../../..{s}) && exit 0; \
         umount $d; exit 1",
        s = secret.display()
    );
    refused(script(stage, &text)?)
}

pub fn link_control(stage: &Stage) -> Result<(), Failed> {
    script(stage, LINKS)?;
    let trap = stage.root(MALLORY).join("opt/links/root");
    let secret = stage.host.home.join("public-secret");
    let read = codchi_fs::read_to_string(trap.join(secret.strip_prefix("/")?))?;
    require(read == "the host's\n", "the link leads nowhere")
}

/// Device nodes in a folder, as the host sees it.
fn nodes(dir: &std::path::Path) -> Result<usize, Failed> {
    let all = codchi_fs::read_dir(dir)?;
    let is = |e: &&std::fs::DirEntry| {
        e.file_type()
            .is_ok_and(|t| t.is_block_device() || t.is_char_device())
    };
    Ok(all.iter().filter(is).count())
}

pub fn devices(stage: &Stage, _: Who) -> Result<(), Failed> {
    let text = "mkdir -p /opt/nodes && cd /opt/nodes && mknod mem c 1 1; mknod disk b 8 0; mknod kvm c 10 232; \
        mount -o remount,dev / && mknod again c 1 1; ls /opt/nodes; true";
    stage.host.root_sh(MALLORY, text)?;
    let found = nodes(&stage.root(MALLORY).join("opt/nodes"))?;
    require(found == 0, format!("{found} device nodes lie on the host"))
}

pub fn devices_control(stage: &Stage) -> Result<(), Failed> {
    stage.host.root_sh(MALLORY, "mkdir -p /opt/nodes")?;
    let dir = stage.root(MALLORY).join("opt/nodes");
    let mut c = std::process::Command::new("mknod");
    crate::host::run(c.arg(dir.join("made")).args(["c", "1", "3"]), b"")?.ok()?;
    let found = nodes(&dir)?;
    codchi_fs::remove_file(dir.join("made"))?;
    require(found == 1, "the host does not see what it made")
}

pub fn port_control(stage: &Stage) -> Result<(), Failed> {
    succeeded(stage.attempt(M, Who::Root, &["open-port"])?)
}

/// Most memory in KiB that serving the port may take beyond what it had.
const MEMORY: u64 = 100 << 10;

fn as_it_was(stage: &Stage, before: (i32, u64, usize)) -> Result<(), Failed> {
    let after = server(stage)?;
    require(
        after.0 == before.0 && after.1 < before.1 + MEMORY && after.2 <= before.2 + 8,
        format!("process, memory and descriptors were {before:?} and are {after:?}"),
    )?;
    stage.host.sh(ALICE, "true").map(drop)
}

pub fn noise(stage: &Stage, _: Who) -> Result<(), Failed> {
    let before = server(stage)?;
    with_port(stage, "noise", || Ok(()))?;
    as_it_was(stage, before)
}

pub fn noise_control(stage: &Stage) -> Result<(), Failed> {
    // Whoever has the port is who the host speaks to.
    let (pid, _, _) = server(stage)?;
    let said = with_port(stage, "garbage", || {
        stage.host.codchi(&["exec", "-T", MALLORY, "--", "true"])
    })?;
    require(
        said.status == 125,
        format!("the agent answered: {}", said.status),
    )?;
    require(server(stage)?.0 == pid, "another process serves the port")
}

pub fn channels(stage: &Stage, _: Who) -> Result<(), Failed> {
    let before = server(stage)?;
    let during = with_port(stage, "channels", || server(stage))?;
    require(
        during.2 <= before.2 + 110,
        format!("{} descriptors became {}", before.2, during.2),
    )?;
    let file = stage.root(MALLORY).join("opt/.refused");
    let closed: usize = codchi_fs::read_to_string(&file)?.trim().parse()?;
    require(closed >= 4900, format!("only {closed} were refused"))?;
    as_it_was(stage, before)
}

pub fn channels_control(stage: &Stage) -> Result<(), Failed> {
    let before = server(stage)?;
    let during = with_port(stage, "channels", || server(stage))?;
    require(during.2 > before.2, "none of them was opened")
}

pub fn unread(stage: &Stage, _: Who) -> Result<(), Failed> {
    let before = server(stage)?;
    let words = [
        "systemd-run",
        "--quiet",
        "--collect",
        "--unit=attempt-unread",
        HELPER,
        "port",
        "unread",
    ];
    stage.run(M, Who::Root, &words)?;
    let (mut most, mut state) = (0, String::new());
    let until = std::time::Instant::now() + std::time::Duration::from_secs(600);
    while state != "failed" && std::time::Instant::now() < until {
        if let Ok((_, memory, _)) = server(stage) {
            most = most.max(memory);
        }
        state = stage.host.status(MALLORY)?["state"]
            .as_str()
            .unwrap_or_default()
            .to_string();
    }
    let others = stage.host.sh(ALICE, "echo works")?;
    stage.host.codchi(&["start", MALLORY])?.ok()?;
    require(
        state == "failed",
        format!("the machine is {state}, its server has {most} KiB"),
    )?;
    require(most < before.1 + MEMORY, format!("it took {most} KiB"))?;
    require(others == "works", "another machine does not work")
}

/// A server in the place of the relay, where the host's side looks for an ssh agent. It takes every call, reads nothing, and keeps
/// the connections. What is open is there for the machine, as if the relay had opened it.
struct Server {
    path: std::path::PathBuf,
    calls: std::sync::Arc<std::sync::Mutex<Vec<std::os::unix::net::UnixStream>>>,
}

impl Server {
    fn start(stage: &Stage) -> Result<Server, Failed> {
        let dir = stage.runtime(MALLORY).join("host");
        let (path, new) = (dir.join("ssh-agent"), dir.join("ssh-agent.new"));
        codchi_fs::remove_if_exists(&new)?;
        let listener = std::os::unix::net::UnixListener::bind(&new)?;
        codchi_fs::rename(&new, &path)?;
        let calls = std::sync::Arc::default();
        let server = Server { path, calls };
        let calls = server.calls.clone();
        // It ends with the suite.
        std::thread::spawn(move || {
            while let (Ok((call, _)), Ok(mut calls)) = (listener.accept(), calls.lock()) {
                calls.push(call);
            }
        });
        Ok(server)
    }

    fn calls(&self) -> usize {
        self.calls.lock().map_or(0, |c| c.len())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = codchi_fs::remove_if_exists(&self.path);
        if let Ok(mut calls) = self.calls.lock() {
            calls.clear();
        }
    }
}

/// What was reached of all that there might be of the session, by the numbers that were asked for.
fn reached(stage: &Stage) -> Result<String, Failed> {
    with_port(stage, "session", || Ok(()))?;
    let file = stage.root(MALLORY).join("opt/.reached");
    Ok(codchi_fs::read_to_string(&file)?)
}

pub fn session(stage: &Stage, _: Who) -> Result<(), Failed> {
    let before = server(stage)?;
    let reached = reached(stage)?;
    require(reached.is_empty(), format!("it reached {reached}"))?;
    as_it_was(stage, before)
}

pub fn session_control(stage: &Stage) -> Result<(), Failed> {
    let server = Server::start(stage)?;
    let reached = reached(stage)?;
    require(
        reached == "[3, 3]" && server.calls() == 1,
        format!("it reached {reached}, {} times", server.calls()),
    )
}

pub fn session_many(stage: &Stage, _: Who) -> Result<(), Failed> {
    let before = server(stage)?;
    let agent = Server::start(stage)?;
    let most = with_port(stage, "session-many", || Ok(agent.calls()))?;
    require(most <= 100, format!("{most} were open at once"))?;
    drop(agent);
    as_it_was(stage, before)
}

pub fn session_many_control(stage: &Stage) -> Result<(), Failed> {
    let agent = Server::start(stage)?;
    let most = with_port(stage, "session-many", || Ok(agent.calls()))?;
    require(most > 0, "none of them was opened")
}

/// Fills streams as the machine's user, does something, and ends that.
fn stalled<T>(stage: &Stage, f: impl FnOnce(usize) -> Result<T, Failed>) -> Result<T, Failed> {
    let agent = Server::start(stage)?;
    let socket = "/run/codchi/host/ssh-agent";
    let wait = format!(
        "until [ -S {socket} ]; do sleep 0.1; done; rm -f /opt/.stalled; touch /opt/.stalled; chown codchi /opt/.stalled"
    );
    stage.host.root_sh(MALLORY, &wait)?;
    let unit = "systemd-run --quiet --collect --uid=codchi --unit=attempt-stall";
    stage
        .host
        .root_sh(MALLORY, &format!("{unit} {HELPER} stall"))?;
    let file = stage.root(MALLORY).join("opt/.stalled");
    let full = || codchi_fs::read_to_string(&file).unwrap_or_default();
    within(SLOW, "the streams are full", || !full().is_empty())?;
    let done = f(full().trim().parse()?);
    stage
        .host
        .root_sh(MALLORY, "systemctl stop attempt-stall")?;
    drop(agent);
    done
}

pub fn stall(stage: &Stage, _: Who) -> Result<(), Failed> {
    let before = server(stage)?;
    stalled(stage, |_| {
        let sent = vec![b'x'; 4 << 20];
        let words = ["exec", MALLORY, "--", "sh", "-c", "cat"];
        let echo = stage.host.codchi_with(&words, &sent)?.ok()?;
        require(echo.out == sent, "a command's streams are not whole")?;
        let built = stage.host.sh(
            MALLORY,
            "nix-store --version >/dev/null; nix store ping 2>&1 || nix store info 2>&1",
        )?;
        require(!built.is_empty(), "the store does not answer")?;
        let memory = server(stage)?.1;
        require(memory < before.1 + MEMORY, format!("it took {memory} KiB"))
    })?;
    as_it_was(stage, before)
}

pub fn stall_control(stage: &Stage) -> Result<(), Failed> {
    stalled(stage, |full| {
        require(full >= 90, format!("only {full} streams are full"))
    })
}
