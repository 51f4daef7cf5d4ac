//! Attempts that take more than one call.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::attempts::{refused, script, succeeded};
use crate::daemon::{expression, quote};
use crate::host::{Done, run};
use crate::hostile::eventually;
use crate::require;
use crate::stage::{ALICE, HELPER, MALLORY, OPEN, Place, Stage, Verdict, Who};

const M: Place = Place::Machine(MALLORY);

pub fn told(stage: &Stage, machine: &str, what: &str) -> Result<String, Failed> {
    let text = codchi_fs::read_to_string(stage.runtime(machine).join("supervisor.json"))?;
    let v: Value = serde_json::from_str(&text)?;
    Ok(v[what].to_string())
}

fn helper(stage: &Stage) -> String {
    stage.helper.to_string_lossy().into_owned()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs the helper on the host, as its root, by way of another program.
fn on_host(stage: &Stage, before: &[&str], words: &[&str]) -> Result<Done, Failed> {
    let mut c = Command::new(before[0]);
    c.args(&before[1..]).arg(&stage.helper).args(words);
    run(&mut c, b"")
}

// Files and mounts.

pub fn nested_own(stage: &Stage) -> Result<(), Failed> {
    let t = format!(
        "mount -t tmpfs -o ro t /mnt && {} remount /mnt",
        helper(stage)
    );
    run(Command::new("unshare").args(["-Urm", "sh", "-c", &t]), b"")?.ok()?;
    Ok(())
}

pub fn detach_own(stage: &Stage) -> Result<(), Failed> {
    stage.open()?;
    stage.host.root_sh(
        OPEN,
        "mkdir -p /opt/own-too && mount -t tmpfs t /opt/own-too",
    )?;
    succeeded(stage.attempt(Place::Machine(OPEN), Who::Root, &["detach", "/opt/own-too"])?)
}

pub fn chroot(stage: &Stage) -> Result<(), Failed> {
    let jail = stage.host.home.join("jail");
    codchi_fs::create_dir_all(jail.join("tmp"))?;
    run(
        Command::new("cp")
            .arg(&stage.helper)
            .arg(jail.join("attempt")),
        b"",
    )?
    .ok()?;
    let secret = text(&stage.host.home.join("public-secret"));
    let mut c = Command::new("chroot");
    run(
        c.arg(&jail).args(["/attempt", "break-chroot", &secret]),
        b"",
    )?
    .ok()?;
    Ok(())
}

const NOBODY: [&str; 5] = [
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--",
];

pub fn as_nobody(words: &[&str]) -> Result<Done, Failed> {
    // setpriv itself keeps capabilities until it runs something, which is to find its way without them.
    run(
        Command::new("setpriv")
            .args(NOBODY)
            .args(["sh", "-c", "exec \"$@\"", "sh"])
            .args(words),
        b"",
    )
}

const SUID: &str = "cp /opt/attempt /opt/suid && chown 0:0 /opt/suid && chmod 4755 /opt/suid";

pub fn setuid(stage: &Stage, _: Who) -> Result<(), Failed> {
    stage.host.root_sh(MALLORY, SUID)?;
    let mut paths = vec![text(&stage.root(MALLORY).join("opt/suid"))];
    // What the host knows as a virtual machine's first process has the host's root.
    if stage.host.driver != "qemu" {
        paths.push(format!(
            "/proc/{}/root/opt/suid",
            told(stage, MALLORY, "leader")?
        ));
    }
    for path in paths {
        let done = as_nobody(&[&path, "euid"])?;
        require(
            done.status != 0 && !done.text().contains("done"),
            format!("it ran: {}", done.text()),
        )?;
        require(
            done.err.contains("denied"),
            format!("it failed for another reason: {}", done.err),
        )?;
    }
    Ok(())
}

pub fn setuid_control(stage: &Stage) -> Result<(), Failed> {
    stage.host.root_sh(MALLORY, SUID)?;
    let copy = stage.host.home.join("suid");
    run(
        Command::new("cp")
            .arg("-p")
            .arg(stage.root(MALLORY).join("opt/suid"))
            .arg(&copy),
        b"",
    )?
    .ok()?;
    let done = as_nobody(&[&text(&copy), "euid"]);
    codchi_fs::remove_file(&copy)?;
    done?.ok()?;
    Ok(())
}

pub fn agent_from_host(stage: &Stage, _: Who) -> Result<(), Failed> {
    let own = stage.host.home.join("helper");
    run(Command::new("cp").arg(&stage.helper).arg(&own), b"")?.ok()?;
    for path in agents(stage)? {
        let done = as_nobody(&[&text(&own), "order", &path])?;
        require(
            !done.text().contains("answer"),
            format!("it was served: {}", done.text()),
        )?;
        require(
            done.text().contains("denied"),
            format!("it failed for another reason: {}", done.text()),
        )?;
    }
    Ok(())
}

/// Where the host has the agent; the host's root reaches it by the last.
fn agents(stage: &Stage) -> Result<Vec<String>, Failed> {
    let dir = stage.runtime(MALLORY).join("agent");
    if stage.host.driver == "qemu" {
        return Ok(vec![text(&dir.join("stream"))]);
    }
    let leader = told(stage, MALLORY, "leader")?;
    let inside = format!("/proc/{leader}/root/run/codchi/agent/socket");
    Ok(vec![text(&dir.join("socket")), inside])
}

fn agent(stage: &Stage) -> Result<String, Failed> {
    Ok(agents(stage)?.pop().ok_or("no agent")?)
}

pub fn agent_from_host_control(stage: &Stage) -> Result<(), Failed> {
    succeeded(stage.attempt(Place::Host, Who::Root, &["order", &agent(stage)?])?)
}

pub fn other_agent(stage: &Stage) -> Result<(), Failed> {
    if stage.host.driver == "qemu" {
        let path = text(&stage.runtime(ALICE).join("agent/stream"));
        return succeeded(stage.attempt(Place::Host, Who::Root, &["reach", &path])?);
    }
    let dir = text(&stage.runtime(ALICE).join("agent/socket"));
    let path = format!("/proc/{}/root{dir}", told(stage, ALICE, "pid")?);
    succeeded(stage.attempt(Place::Host, Who::Root, &["reach", &path])?)
}

pub fn pose(stage: &Stage, who: Who) -> Result<(), Failed> {
    refused(stage.attempt(M, who, &["order", "/run/codchi/agent/socket"])?)
}

pub fn pose_control(stage: &Stage) -> Result<(), Failed> {
    agent_from_host_control(stage)
}

pub fn descriptor_control(stage: &Stage) -> Result<(), Failed> {
    let t = format!("exec {} descriptors 9</etc/passwd", helper(stage));
    run(Command::new("sh").args(["-c", &t]), b"")?.ok()?;
    Ok(())
}

/// What the watcher says, below the root of its machine.
const WATCHED: &str = "tmp/.watched";

/// Watches from inside for processes of the host while something is done, and tells what it saw.
fn watched(
    stage: &Stage,
    marker: &str,
    f: impl FnOnce() -> Result<(), Failed>,
) -> Result<String, Failed> {
    let out = format!("StandardOutput=truncate:/{WATCHED}");
    let enough = stage.root(MALLORY).join("opt/.enough");
    codchi_fs::remove_if_exists(&enough)?;
    let words = [
        "systemd-run",
        "--quiet",
        "--collect",
        "--unit=attempt-watch",
        "-p",
        &out,
        HELPER,
        "watch",
        marker,
        "120",
    ];
    stage.run(M, Who::Root, &words)?.ok()?;
    let seen = stage.root(MALLORY).join(WATCHED);
    eventually("somebody watches", || {
        codchi_fs::read_to_string(&seen).is_ok_and(|t| t.contains("watching"))
    })?;
    let done = f();
    codchi_fs::write(&enough, "")?;
    eventually("it has seen enough", || {
        codchi_fs::read_to_string(&seen)
            .is_ok_and(|t| t.contains("done:") || t.contains("refused:"))
    })?;
    let said = codchi_fs::read_to_string(&seen)?;
    codchi_fs::remove_file(&seen)?;
    eventually("its unit is gone", || {
        stage
            .run(
                M,
                Who::Root,
                &["systemctl", "is-active", "-q", "attempt-watch"],
            )
            .is_ok_and(|d| d.status != 0)
    })?;
    done?;
    Ok(said)
}

/// The same on an engine, where folders are what something enters for.
fn entering_for_folders(stage: &Stage) -> Result<(), Failed> {
    let (program, h) = (text(&stage.program()), &stage.host);
    codchi_fs::create_private_dir(h.home.join("shown"))?;
    let root = stage.root(MALLORY);
    let folder = format!("{}:/mnt/shown", h.home.join("shown").display());
    let said = watched(stage, &program, || {
        let seen = root.join(WATCHED);
        let in_sight = || codchi_fs::read_to_string(&seen).is_ok_and(|t| t.contains("in sight"));
        let until = Instant::now() + Duration::from_secs(30);
        let mut times = 0;
        while times < 4 || !in_sight() && Instant::now() < until {
            times += 1;
            h.codchi(&["mount", "add", MALLORY, &folder])?.ok()?;
            h.root_sh(MALLORY, "mountpoint -q /mnt/shown")?;
            h.codchi(&["mount", "remove", MALLORY, "/mnt/shown"])?
                .ok()?;
        }
        Ok(())
    })?;
    require(
        said.contains("refused:") && !said.contains("done:"),
        format!("it got hold of it: {said}"),
    )?;
    require(
        said.contains("in sight\n"),
        format!("what entered was never in sight: {said}"),
    )
}

pub fn entering(stage: &Stage, _: Who) -> Result<(), Failed> {
    if stage.host.has_engine() {
        return entering_for_folders(stage);
    }
    let program = text(&stage.program());
    let mv = |from: &str, to: &str| {
        let there = "/run/codchi/agent";
        stage
            .host
            .root_sh(MALLORY, &format!("mv {there}/{from} {there}/{to}"))
    };
    let said = watched(stage, &program, || {
        mv("socket", "socket.away")?;
        let done = (0..8).try_for_each(|_| {
            let done = stage
                .host
                .codchi(&["exec", MALLORY, "--", "sh", "-c", "sleep 0.3"])?
                .ok()?;
            require(
                done.err.contains("entering"),
                format!("it was not entered: {}", done.err),
            )
        });
        mv("socket.away", "socket")?;
        done
    })?;
    require(
        said.contains("hide their program"),
        format!("what entered was never in sight: {said}"),
    )
}

pub fn entering_control(stage: &Stage) -> Result<(), Failed> {
    let leader = told(stage, MALLORY, "leader")?;
    let said = watched(stage, "codchi-attempt", || {
        succeeded(stage.attempt(Place::Host, Who::Root, &["join-openly", &leader, "3"])?)
    })?;
    require(said.contains("done:"), format!("it was not seen: {said}"))
}

pub fn propagation(stage: &Stage, who: Who) -> Result<(), Failed> {
    succeeded(stage.attempt(M, who, &["propagate", "/opt/shared"])?)?;
    let below = stage.root(MALLORY).join("opt/shared/mark");
    let seen = below.exists();
    stage.host.root_sh(MALLORY, "umount /opt/shared")?;
    require(!seen, "the host sees what the machine mounts")
}

pub fn propagation_control(stage: &Stage) -> Result<(), Failed> {
    let at = text(&stage.host.home.join("shared"));
    let t = format!(
        "mount --make-rshared / && unshare -m --propagation unchanged {} propagate {at} && test -e {at}/mark",
        helper(stage)
    );
    run(
        Command::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", &t]),
        b"",
    )?
    .ok()?;
    Ok(())
}

// What the host believes.

/// Every root that the store keeps for the machine leads to a path of the store.
fn roots_are_paths(stage: &Stage) -> Result<(), Failed> {
    for e in codchi_fs::read_dir(stage.roots(MALLORY))? {
        let to = std::fs::read_link(e.path())?;
        let inside = to.parent() == Some(Path::new("/nix/store"));
        require(
            inside,
            format!(
                "the root `{}` leads to `{}`",
                e.path().display(),
                to.display()
            ),
        )?;
    }
    Ok(())
}

fn count(stage: &Stage) -> usize {
    codchi_fs::read_dir(stage.roots(MALLORY)).map_or(0, |d| d.len())
}

fn root_sh(stage: &Stage, who: Who, t: &str) -> Result<Done, Failed> {
    stage.run(M, who, &["sh", "-c", t])
}

pub fn root_link(stage: &Stage, who: Who) -> Result<(), Failed> {
    let before = count(stage);
    root_sh(
        stage,
        who,
        &format!("nix-build -o ~/evil -E {}", quote(&expression("evil"))),
    )?
    .ok()?;
    eventually("its root is there", || count(stage) > before)?;
    let secret = text(&stage.host.home.join("public-secret"));
    for target in [
        secret.clone(),
        format!("/nix/store/../..{secret}"),
        format!("/proc/1/root{secret}"),
        "/nix/store".into(),
    ] {
        root_sh(stage, who, &format!("ln -sfn {target} ~/evil"))?.ok()?;
        eventually("its root is gone", || count(stage) <= before)?;
        roots_are_paths(stage)?;
    }
    root_sh(stage, who, "rm ~/evil")?.ok()?;
    Ok(())
}

pub fn root_folder(stage: &Stage, who: Who) -> Result<(), Failed> {
    let fake = stage.host.home.join("fake");
    codchi_fs::create_dir_all(&fake)?;
    let victim = stage.ready()?.victim.clone();
    codchi_fs::symlink_atomic(Path::new(&victim), fake.join("evil"))?;
    let before = count(stage);
    root_sh(
        stage,
        who,
        &format!(
            "mkdir -p ~/d && nix-build -o ~/d/evil -E {}",
            quote(&expression("evil"))
        ),
    )?
    .ok()?;
    eventually("its root is there", || count(stage) > before)?;
    // The same name now leads to a folder of the host, if it leads out.
    root_sh(
        stage,
        who,
        &format!("mv ~/d ~/e && ln -s {} ~/d", fake.display()),
    )?
    .ok()?;
    eventually("its root is gone", || count(stage) <= before)?;
    for e in codchi_fs::read_dir(stage.roots(MALLORY))? {
        require(
            std::fs::read_link(e.path())? != Path::new(&victim),
            "the host's folder was read",
        )?;
    }
    root_sh(stage, who, "rm -r ~/d ~/e")?.ok()?;
    Ok(())
}

pub fn root_link_control(stage: &Stage) -> Result<(), Failed> {
    let secret = text(&stage.host.home.join("public-secret"));
    stage
        .host
        .sh(MALLORY, &format!("ln -sfn {secret} ~/trap"))?;
    let read = codchi_fs::read_to_string(stage.root(MALLORY).join("home/codchi/trap"))?;
    require(read == "the host's\n", "the link leads nowhere")
}

const PROFILE: &str = "mkdir -p /nix/var/nix/profiles /opt/evil-system && ln -sfn /opt/evil-system /nix/var/nix/profiles/system && \
    ln -sfn /opt/evil-system /nix/var/nix/profiles/system-99-link && ln -sfn /opt/evil-system /run/current-system.evil";

pub fn generation(stage: &Stage, _: Who) -> Result<(), Failed> {
    let all = || -> Result<String, Failed> {
        Ok(stage
            .host
            .codchi(&["--json", "generations", MALLORY])?
            .ok()?
            .text())
    };
    let before = all()?;
    let toplevel = stage.host.status(MALLORY)?["toplevel"]
        .as_str()
        .unwrap_or_default()
        .to_string();
    stage.host.root_sh(MALLORY, PROFILE)?;
    require(all()? == before, "the host lists the machine's generation")?;
    stage
        .host
        .root_sh(MALLORY, "rm -f /nix/var/nix/profiles/system-99-link")?;
    let now = stage.host.status(MALLORY)?["toplevel"]
        .as_str()
        .unwrap_or_default()
        .to_string();
    require(now == toplevel, format!("the system became {now}"))
}

pub fn generation_control(stage: &Stage) -> Result<(), Failed> {
    stage.host.root_sh(MALLORY, PROFILE)?;
    let link = std::fs::read_link(stage.root(MALLORY).join("nix/var/nix/profiles/system"))?;
    require(
        link == Path::new("/opt/evil-system"),
        "the machine's profile cannot be read",
    )
}

/// What a forged manifest wants of the host: all of it.
pub fn forged_mount() -> Value {
    json!({"kind": "bind", "source": "/", "target": "/host", "options": ["ro", "nosuid", "nodev"]})
}

/// A checkout whose module puts something of its own where the manifest is.
fn forge(stage: &Stage, name: &str, manifest: &str) -> Result<String, Failed> {
    codchi_fs::remove_dir_all(stage.host.home.join(name))?;
    let dir = stage.host.checkout("tests/fixtures/conformance", name)?;
    let file = dir.join("module.nix");
    let module = codchi_fs::read_to_string(&file)?.replacen(
        "{ config, pkgs, ... }:\n{",
        &format!(
            "{{ config, lib, pkgs, ... }}:\n{{\n  system.systemBuilderCommands = lib.mkAfter ''\n    rm -f $out/codchi/manifest.json\n    \
             cp ${{pkgs.writeText \"manifest.json\" (builtins.toJSON (let m = config.codchi.build.manifest; in {manifest}))}} \
             $out/codchi/manifest.json\n  '';"
        ),
        1,
    );
    require(
        module.contains("systemBuilderCommands"),
        "the fixture's module looks otherwise",
    )?;
    codchi_fs::write(&file, module)?;
    stage.host.commit(&dir)?;
    Ok(text(&dir))
}

fn init_is_refused(stage: &Stage, name: &str, source: &str, why: &str) -> Result<(), Failed> {
    let done = stage
        .host
        .codchi(&["init", name, source, "--no-init-script"])?;
    let there = stage
        .host
        .home
        .join(".config/codchi/machines")
        .join(name)
        .exists();
    if there {
        stage.host.codchi(&["delete", "--yes", name])?.ok()?;
    }
    require(
        done.status != 0 && !there,
        format!("the machine was made: {}", done.err),
    )?;
    require(
        done.err.contains(why),
        format!("it failed for another reason: {}", done.err),
    )
}

/// Engine settings that take the host, and what is said of them.
fn forgeries(stage: &Stage) -> &'static [(&'static str, &'static str)] {
    const WHY: &str = "no machine of this driver may";
    match stage.host.driver {
        "incus" | "lxd" => &[
            (
                "m // { engine = m.engine // { devices = m.engine.devices // { host = { type = \"disk\"; source = \"/\"; path = \"/host\"; }; }; }; }",
                WHY,
            ),
            (
                "m // { engine = m.engine // { config = m.engine.config // { \"security.privileged\" = \"true\"; }; }; }",
                WHY,
            ),
            (
                "m // { engine = m.engine // { config = m.engine.config // { \"raw.lxc\" = \"lxc.mount.entry = / host none bind 0 0\"; }; }; }",
                WHY,
            ),
        ],
        "qemu" => &[
            (
                "m // { engine = m.engine // { modules = \"/lib\"; }; }",
                "is not in the store",
            ),
            (
                "m // { engine = m.engine // { kernel = \"/nix/store/../../boot\"; }; }",
                "is not in the store",
            ),
            (
                "m // { engine = m.engine // { arguments = [ \"-drive\" \"file=/etc/shadow\" ]; }; }",
                "unknown field",
            ),
            (
                "m // { engine = m.engine // { modules = pkgs.runCommand \"modules\" { } \"mkdir -p $out/lib/modules/x && ln -s / $out/lib/modules/x/kernel\"; }; }",
                "leads out of the store",
            ),
        ],
        "oci" => &[
            (
                "m // { engine = m.engine // { mounts = m.engine.mounts ++ [ { kind = \"bind\"; source = \"/\"; target = \"/host\"; options = [ \"ro\" \"nosuid\" \"nodev\" ]; } ]; }; }",
                WHY,
            ),
            (
                "lib.recursiveUpdate m { engine.config.mounts = m.engine.config.mounts ++ [ { destination = \"/host\"; type = \"none\"; source = \"/\"; options = [ \"rbind\" ]; } ]; }",
                WHY,
            ),
            (
                "lib.recursiveUpdate m { engine.config.hooks.createRuntime = [ { path = \"/bin/sh\"; args = [ \"sh\" \"-c\" \"id >/forged\" ]; } ]; }",
                "unknown field",
            ),
            (
                "lib.recursiveUpdate m { engine.config.linux.namespaces = [ { type = \"mount\"; } { type = \"pid\"; } ]; }",
                WHY,
            ),
        ],
        _ => &[(
            "m // { engine = m.engine // { mounts = m.engine.mounts ++ [ { kind = \"bind\"; source = \"/\"; target = \"/host\"; options = [ \"ro\" \"nosuid\" \"nodev\" ]; } ]; seccomp = { errno = 1; deny = [ ]; }; }; }",
            WHY,
        )],
    }
}

pub fn manifest(stage: &Stage, _: Who) -> Result<(), Failed> {
    for (forged, why) in forgeries(stage) {
        let source = forge(stage, "forged", forged)?;
        init_is_refused(stage, "forged", &source, why)?;
    }
    Ok(())
}

pub fn manifest_control(stage: &Stage) -> Result<(), Failed> {
    stage.open()?;
    // Who is without guards on virtual machines has the host's root where it is.
    let host = if stage.host.driver == "qemu" {
        ""
    } else {
        "/host"
    };
    let secret = format!("{host}{}/public-secret", stage.host.home.display());
    let read = stage
        .run(Place::Machine(OPEN), Who::Root, &["cat", &secret])?
        .ok()?;
    require(read.text() == "the host's", "the host's root is not there")
}

const FORGED_NEED: &str = "/mnt/forged";

pub fn needs(stage: &Stage, _: Who) -> Result<(), Failed> {
    let mounts = format!(
        "{{ \"{FORGED_NEED}\" = {{ source = \"~\"; readOnly = false; optional = false; }}; }}"
    );
    let forged = format!("m // {{ needs = m.needs // {{ mounts = {mounts}; }}; }}");
    let source = forge(stage, "needy", &forged)?;
    init_is_refused(stage, "needy", &source, "asks its host for other things")
}

pub fn needs_control(stage: &Stage) -> Result<(), Failed> {
    let store = &stage.ready()?.store;
    let believed = codchi_fs::read_dir(store)?.iter().any(|e| {
        codchi_fs::read_to_string(e.path().join("codchi/manifest.json"))
            .is_ok_and(|t| t.contains(FORGED_NEED))
    });
    require(believed, "no built system asks for it")
}

/// A checkout with everything that makes git run a program.
fn trapped(stage: &Stage) -> Result<(PathBuf, PathBuf), Failed> {
    // One of an earlier call would spring while it is made anew.
    codchi_fs::remove_dir_all(stage.host.home.join("trapped"))?;
    let dir = stage
        .host
        .checkout("tests/fixtures/conformance", "trapped")?;
    let mark = stage.host.home.join("marks/git");
    let marks = stage.host.home.join("marks");
    codchi_fs::create_dir_all(&marks)?;
    codchi_fs::set_mode(&marks, 0o777)?;
    codchi_fs::remove_if_exists(&mark)?;
    let program = stage.host.home.join("git-mark");
    codchi_fs::write(&program, format!("#!/bin/sh\n: > {}\n", mark.display()))?;
    codchi_fs::set_mode(&program, 0o755)?;
    let t = format!(
        "cd {} && echo '* filter=evil' > .gitattributes && git add -A && git -c user.name=t -c user.email=t@example.org commit -qm t && \
         for h in post-checkout post-index-change pre-commit reference-transaction; do cp {p} .git/hooks/$h; done && \
         git config filter.evil.clean {p} && git config filter.evil.smudge {p} && git config filter.evil.process {p} && \
         git config core.fsmonitor {p} && git config core.sshCommand {p} && git config diff.external {p} && \
         touch module.nix && echo '{{ }}' > untracked.nix",
        dir.display(),
        p = program.display(),
    );
    run(stage.host.command("sh").arg("-c").arg(&t), b"")?.ok()?;
    codchi_fs::remove_if_exists(&mark)?;
    Ok((dir, mark))
}

pub fn git(stage: &Stage, _: Who) -> Result<(), Failed> {
    let (dir, mark) = trapped(stage)?;
    stage
        .host
        .codchi(&["--dry-run", "init", "trapped", &text(&dir)])?
        .ok()?;
    require(!mark.exists(), "git ran a program of the checkout")
}

pub fn git_control(stage: &Stage) -> Result<(), Failed> {
    let (dir, mark) = trapped(stage)?;
    run(
        stage
            .host
            .command("git")
            .arg("-C")
            .arg(&dir)
            .args(["status", "--short"]),
        b"",
    )?;
    require(mark.exists(), "git as it is runs none either")
}

pub fn deep(stage: &Stage, who: Who) -> Result<(), Failed> {
    succeeded(stage.attempt(M, who, &["depth", "/home/codchi/deep", "3000"])?)?;
    let path = text(&stage.root(MALLORY).join("home/codchi/deep"));
    let c = stage
        .host
        .codchi_command(&["plumbing", "remove-tree", &path]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""])
        .arg(c.get_program())
        .args(c.get_args());
    limited
        .env_clear()
        .current_dir("/")
        .envs(c.get_envs().filter_map(|(k, v)| Some((k, v?))));
    run(&mut limited, b"")?.ok()?;
    if stage.host.driver == "qemu" {
        // Its kernel has the host hold what it once saw, in sight of any collection of garbage by Nix's own hand.
        stage.run(
            M,
            Who::Root,
            &["sh", "-c", "echo 2 >/proc/sys/vm/drop_caches"],
        )?;
    }
    require(!Path::new(&path).exists(), "it is still there")
}

pub fn deep_control(stage: &Stage) -> Result<(), Failed> {
    let path = text(&stage.host.home.join("deep"));
    succeeded(stage.attempt(Place::Host, Who::Root, &["depth", &path, "3000"])?)?;
    let me = std::env::current_exe()?;
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""])
        .arg(me)
        .args(["--remove", &path]);
    let done = run(&mut limited, b"")?;
    run(Command::new("rm").arg("-rf").arg(&path), b"")?.ok()?;
    require(done.status != 0, "removal by recursion works as well")
}

// Network.

fn serve<S: Write>(accept: impl Fn() -> Option<S> + Send + 'static) {
    std::thread::spawn(move || {
        while let Some(mut s) = accept() {
            let _ = s.write_all(b"the host\n");
        }
    });
}

/// A service on the host's loopback, and every address by which a machine could hope to reach it.
fn service() -> Result<Vec<String>, Failed> {
    let four = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = four.local_addr()?.port();
    serve(move || four.accept().ok().map(|s| s.0));
    if let Ok(six) = std::net::TcpListener::bind(("::1", port)) {
        serve(move || six.accept().ok().map(|s| s.0));
    }
    let mut all: Vec<String> = [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.2.2",
        "10.0.2.3",
        "169.254.1.53",
        "169.254.1.1",
    ]
    .map(String::from)
    .to_vec();
    let own = run(Command::new("hostname").arg("-I"), b"")?.text();
    for address in own.split_whitespace() {
        all.push(if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_string()
        });
        if let Some((net, _)) = address.rsplit_once('.') {
            all.push(format!("{net}.1"));
        }
    }
    Ok(all.into_iter().map(|a| format!("tcp:{a}:{port}")).collect())
}

fn connect(stage: &Stage, place: Place, who: Who, targets: &[String]) -> Result<Verdict, Failed> {
    let mut words = vec!["connect"];
    words.extend(targets.iter().map(String::as_str));
    stage.attempt(place, who, &words)
}

pub fn loopback(stage: &Stage, who: Who) -> Result<(), Failed> {
    refused(connect(stage, M, who, &service()?)?)
}

pub fn loopback_control(stage: &Stage) -> Result<(), Failed> {
    succeeded(connect(stage, Place::Host, Who::Root, &service()?)?)
}

fn abstract_service() -> Result<Vec<String>, Failed> {
    let name = format!("codchi-attempt-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
    // The second of two tests finds the first's.
    if let Ok(listener) = UnixListener::bind_addr(&address) {
        serve(move || listener.accept().ok().map(|s| s.0));
    }
    Ok(vec![format!("abstract:{name}")])
}

pub fn abstract_socket(stage: &Stage, who: Who) -> Result<(), Failed> {
    refused(connect(stage, M, who, &abstract_service()?)?)
}

pub fn abstract_control(stage: &Stage) -> Result<(), Failed> {
    succeeded(connect(
        stage,
        Place::Host,
        Who::Root,
        &abstract_service()?,
    )?)
}

fn hardware() -> Result<Vec<String>, Failed> {
    let all = codchi_fs::read_dir("/sys/class/net")?;
    let addresses = all
        .iter()
        .filter_map(|e| codchi_fs::read_to_string(e.path().join("address")).ok());
    Ok(addresses
        .map(|a| a.trim().to_string())
        .filter(|a| a.len() == 17 && a != "00:00:00:00:00:00")
        .collect())
}

fn see(stage: &Stage, place: Place, who: Who) -> Result<Verdict, Failed> {
    let macs = hardware()?;
    require(!macs.is_empty(), "the host has no interface to look for")?;
    let mut words = vec!["links"];
    words.extend(macs.iter().map(String::as_str));
    stage.attempt(place, who, &words)
}

pub fn links(stage: &Stage, who: Who) -> Result<(), Failed> {
    refused(see(stage, M, who)?)
}

pub fn links_control(stage: &Stage) -> Result<(), Failed> {
    succeeded(see(stage, Place::Host, Who::Root)?)
}

/// Whether somebody who listens hears a packet that the host sends to itself.
fn hears(mut c: Command) -> Result<String, Failed> {
    let mut child = c.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(child.stdout.take().ok_or("no output")?);
    let mut line = String::new();
    out.read_line(&mut line)?;
    if line.trim() == "listening" {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..5 {
            socket.send_to(b"codchi-attempt-marker", "127.0.0.1:9")?;
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        line.clear();
        out.read_line(&mut line)?;
    }
    child.wait()?;
    Ok(line)
}

pub fn sniff(stage: &Stage, _: Who) -> Result<(), Failed> {
    let words = [
        "exec",
        "-u",
        "root",
        MALLORY,
        "--",
        HELPER,
        "sniff",
        "codchi-attempt-marker",
    ];
    let said = hears(stage.host.codchi_command(&words))?;
    require(said.starts_with("refused"), format!("it heard: {said}"))
}

pub fn sniff_control(stage: &Stage) -> Result<(), Failed> {
    let mut c = Command::new(&stage.helper);
    c.args(["sniff", "codchi-attempt-marker"]);
    let said = hears(c)?;
    require(
        said.starts_with("done"),
        format!("not even the host hears it: {said}"),
    )
}

// The caller's session.

const KEY: &str = "codchi-attempt-callers-key";

pub fn keyring(stage: &Stage, who: Who) -> Result<(), Failed> {
    let mut words = vec!["exec"];
    if who == Who::Root {
        words.extend(["-u", "root"]);
    }
    words.extend([MALLORY, "--", HELPER, "key", KEY]);
    let c = stage.host.codchi_command(&words);
    let mut holder = Command::new(&stage.helper);
    holder
        .args(["hold-key", KEY])
        .arg(c.get_program())
        .args(c.get_args());
    holder
        .env_clear()
        .current_dir("/")
        .envs(c.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let done = run(&mut holder, b"")?;
    require(
        done.status == 1,
        format!("status {}: {} {}", done.status, done.text(), done.err),
    )
}

pub fn keyring_control(stage: &Stage) -> Result<(), Failed> {
    on_host(stage, &[&helper(stage), "hold-key", KEY], &["key", KEY])?.ok()?;
    Ok(())
}

const BUS: &str = "unix:path=/run/attempt-marker-bus";

fn with_bus(mut c: Command) -> Result<String, Failed> {
    for name in [
        "DBUS_SESSION_BUS_ADDRESS",
        "CODCHI_TEST_BUS",
        "SESSION_MANAGER",
        "GNOME_KEYRING_CONTROL",
    ] {
        c.env(name, BUS);
    }
    Ok(run(&mut c, b"")?.ok()?.text())
}

pub fn environment(stage: &Stage, who: Who) -> Result<(), Failed> {
    let mut words = vec!["exec"];
    if who == Who::Root {
        words.extend(["-u", "root"]);
    }
    words.extend([
        MALLORY,
        "--",
        "sh",
        "-c",
        "env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'",
    ]);
    let said = with_bus(stage.host.codchi_command(&words))?;
    require(
        said.contains("PATH=") && !said.contains(BUS),
        "the caller's bus is named",
    )
}

pub fn environment_control(stage: &Stage) -> Result<(), Failed> {
    let mut c = stage.host.command("env");
    c.arg("-u").arg("NOTHING");
    require(
        with_bus(c)?.contains(BUS),
        "the caller does not name it either",
    )
}

/// Runs a line in a terminal, and tells what the terminal's own shell reads afterwards.
fn typed(stage: &Stage, line: &str) -> Result<String, Failed> {
    let after = "sleep 0.2; IFS= read -r -t 1 got; echo \"GOT:$got\"";
    let c = stage.host.codchi_command(&[] as &[&str]);
    let mut terminal = Command::new("script");
    let whole = format!("bash --norc -c {}", quote(&format!("{line}; {after}")));
    terminal
        .args(["-qec", &whole, "/dev/null"])
        .env_clear()
        .current_dir("/")
        .env("TERM", "xterm");
    terminal.envs(c.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let mut child = terminal
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // An end of the input would be typed, too.
    let _open = child.stdin.take();
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
}

pub fn terminal(stage: &Stage, who: Who) -> Result<(), Failed> {
    let mut words = vec!["exec", "-t"];
    if who == Who::Root {
        words.extend(["-u", "root"]);
    }
    words.extend([MALLORY, "--", HELPER, "type", "owned"]);
    let c = stage.host.codchi_command(&words);
    let line: Vec<String> = std::iter::once(c.get_program())
        .chain(c.get_args())
        .map(|a| quote(&a.to_string_lossy()))
        .collect();
    let said = typed(stage, &line.join(" "))?;
    require(
        said.contains("GOT:") && !said.contains("GOT:owned"),
        format!("it was typed: {said}"),
    )
}

pub fn terminal_control(stage: &Stage) -> Result<(), Failed> {
    let said = typed(stage, &format!("{} type owned", helper(stage)))?;
    require(
        said.contains("GOT:owned"),
        format!("not even the caller can: {said}"),
    )
}

// The kernel.

pub fn device_control(stage: &Stage) -> Result<(), Failed> {
    let t = format!("mount -t tmpfs t /tmp && {} device", helper(stage));
    run(Command::new("unshare").args(["-m", "sh", "-c", &t]), b"")?.ok()?;
    Ok(())
}

pub fn handle_control(stage: &Stage) -> Result<(), Failed> {
    succeeded(stage.attempt(Place::Host, Who::Root, &["handle", &text(&stage.host.home)])?)
}

pub fn cgroup_control(stage: &Stage) -> Result<(), Failed> {
    let pid = told(stage, MALLORY, "leader")?;
    let group = codchi_fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let group = group
        .lines()
        .find_map(|l| l.strip_prefix("0::"))
        .and_then(|g| g.strip_suffix("/init.scope"))
        .ok_or("the machine's control group is not known")?;
    let file = format!("/mnt{group}/cgroup.max.descendants");
    let t = format!("mount -t cgroup2 c /mnt && echo max > {file}");
    run(Command::new("unshare").args(["-m", "sh", "-c", &t]), b"")?.ok()?;
    Ok(())
}

pub fn sysfs_control(stage: &Stage) -> Result<(), Failed> {
    let t = "for f in kernel/uevent_helper power/state kernel/mm/ksm/run kernel/profiling module/printk/parameters/time; do \
             (: 3<>/sys/$f) 2>/dev/null && exit 0; done; exit 1";
    succeeded(script(stage, Place::Host, Who::Root, t)?)
}

pub fn debugfs_control(stage: &Stage) -> Result<(), Failed> {
    on_host(stage, &["unshare", "-m"], &["filesystem", "debugfs"])?.ok()?;
    Ok(())
}

pub fn clock_control(stage: &Stage) -> Result<(), Failed> {
    succeeded(stage.attempt(Place::Host, Who::Root, &["call", "clock_adjtime"])?)
}

// Limits.

const FILL: &str = "dd if=/dev/zero of=/run/codchi/agent/fill bs=1M count=64 2>/dev/null; stat -c %s /run/codchi/agent/fill; \
    rm -f /run/codchi/agent/fill";

pub fn runtime_folder(stage: &Stage, who: Who) -> Result<(), Failed> {
    let written: u64 = root_sh(stage, who, FILL)?
        .text()
        .trim()
        .parse()
        .unwrap_or(0);
    require(
        written <= 4 << 20,
        format!("{written} bytes of the host's runtime folder were written"),
    )?;
    let many = "i=0; while [ $i -lt 5000 ] && : > /run/codchi/agent/f$i; do i=$((i+1)); done 2>/dev/null; echo $i; rm -f /run/codchi/agent/f*";
    let made: u64 = root_sh(stage, who, many)?
        .text()
        .trim()
        .parse()
        .unwrap_or(0);
    require(made < 5000, format!("{made} files were made"))
}

pub fn runtime_folder_control(stage: &Stage) -> Result<(), Failed> {
    let written = stage
        .host
        .root_sh(MALLORY, &FILL.replace("/run/codchi/agent", "/var/tmp"))?;
    require(
        written == (64 << 20).to_string(),
        "a folder without a limit takes less",
    )
}

/// More processes than the module of the machines allows.
const MANY: &str = "4000";

/// Multiplies in a machine, looks whether others still can start something, and answers what became of it.
fn multiply(stage: &Stage, machine: &str, who: Who) -> Result<String, Failed> {
    let mut words = vec!["exec"];
    if who == Who::Root {
        words.extend(["-u", "root"]);
    }
    words.extend([machine, "--", HELPER, "multiply", MANY]);
    let mut bomb = stage
        .host
        .codchi_command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(bomb.stdout.take().ok_or("no output")?);
    let mut number = String::new();
    said.read_line(&mut number)?;
    let elsewhere = stage.host.sh(ALICE, "echo works");
    let here = run(&mut Command::new("true"), b"");
    drop(bomb.stdin.take());
    let mut rest = String::new();
    said.read_to_string(&mut rest)?;
    bomb.wait()?;
    here?.ok()?;
    require(
        elsewhere? == "works",
        "another machine can start nothing any more",
    )?;
    require(
        number.trim().parse::<u32>().is_ok_and(|n| n > 100),
        format!("it did not multiply: {number}{rest}"),
    )?;
    Ok(rest)
}

pub fn fork_bomb(stage: &Stage, who: Who) -> Result<(), Failed> {
    let said = multiply(stage, MALLORY, who)?;
    require(said.starts_with("refused"), said)
}

pub fn fork_bomb_control(stage: &Stage) -> Result<(), Failed> {
    stage.open()?;
    let said = multiply(stage, OPEN, Who::User)?;
    require(said.starts_with("done"), said)
}

/// MiB, of which the module of the machines allows 2048.
const HOARD: &str = "3072";

/// Memory in KiB that a process has, and all that it started.
fn memory_of(pid: &str) -> u64 {
    let text = codchi_fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let own = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let own = own
        .and_then(|l| l.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let children = codchi_fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    own + children
        .unwrap_or_default()
        .split_whitespace()
        .map(memory_of)
        .sum::<u64>()
}

/// Whether the control group of a machine counts its memory.
fn counts_memory(stage: &Stage, machine: &str) -> Result<bool, Failed> {
    let leader = told(stage, machine, "leader")?;
    let groups = codchi_fs::read_to_string(format!("/proc/{leader}/cgroup"))?;
    let own = groups
        .lines()
        .find_map(|l| l.strip_prefix("0::/"))
        .unwrap_or_default();
    // Its processes may be in a group below that which the limit is of.
    let parts: Vec<&str> = own.split('/').collect();
    let end = parts.iter().rposition(|p| p.contains(machine));
    let own: PathBuf = parts[..end.map_or(parts.len(), |n| n + 1)].iter().collect();
    let mounts = codchi_fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .filter(|l| l.contains(" - cgroup2 "))
        .filter_map(|l| l.split(' ').nth(4))
        .any(|at| Path::new(at).join(&own).join("memory.max").exists()))
}

pub fn memory_bomb(stage: &Stage, who: Who) -> Result<(), Failed> {
    if stage.host.driver != "qemu" && !counts_memory(stage, MALLORY)? {
        println!("left out: the machine's control group counts no memory");
        return Ok(());
    }
    refused(stage.attempt(M, who, &["hoard", HOARD])?)?;
    let held = memory_of(&told(stage, MALLORY, "leader")?);
    // An emulated processor takes up to 1 GiB for what it translates.
    require(held < 3328 << 10, format!("the machine holds {held} KiB"))?;
    for name in [ALICE, MALLORY] {
        require(
            stage.host.sh(name, "echo works")? == "works",
            format!("`{name}` does not work"),
        )?;
    }
    Ok(())
}

pub fn memory_bomb_control(stage: &Stage) -> Result<(), Failed> {
    succeeded(stage.attempt(Place::Host, Who::Root, &["hoard", HOARD])?)
}

/// inotify watches that a process of the machine's supervisor holds.
fn watches_held(stage: &Stage) -> usize {
    let all = stage.host.processes();
    let pids = all
        .iter()
        .filter(|p| p.contains("supervise mallory"))
        .filter_map(|p| p.split(' ').next());
    pids.flat_map(|pid| codchi_fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap_or_default())
        .filter_map(|f| codchi_fs::read_to_string(f.path()).ok())
        .map(|t| t.lines().filter(|l| l.starts_with("inotify ")).count())
        .sum()
}

pub fn watches(stage: &Stage, who: Who) -> Result<(), Failed> {
    let e = quote(&expression("watched"));
    let out = root_sh(stage, who, &format!("nix-build --no-out-link -E {e}"))?
        .ok()?
        .text();
    let before = watches_held(stage);
    require(before > 0, "no watches are seen")?;
    let roots = count(stage);
    let make = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir -p ~/w/$i && nix-store -r {out} --add-root ~/w/$i/r >/dev/null; done"
    );
    root_sh(stage, who, &make)?.ok()?;
    eventually("the roots are there", || count(stage) >= roots + 12)?;
    // The folders stay: their watches would stay with them.
    root_sh(stage, who, "rm ~/w/*/r")?.ok()?;
    eventually("the roots are gone", || count(stage) <= roots)?;
    let after = watches_held(stage);
    root_sh(stage, who, "rm -r ~/w")?.ok()?;
    require(
        after <= before + 2,
        format!("{before} watches became {after}"),
    )
}

pub fn watches_control(stage: &Stage) -> Result<(), Failed> {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let dir = stage.host.home.join("watched");
    codchi_fs::create_dir_all(&dir)?;
    let held = init(CreateFlags::CLOEXEC)?;
    add_watch(&held, &dir, WatchFlags::DELETE)?;
    codchi_fs::write(dir.join("x"), "")?;
    codchi_fs::remove_file(dir.join("x"))?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&held);
    let kept = codchi_fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    require(kept.contains("inotify wd"), "the watch went by itself")
}
