//! Killed before and after every step: nothing is lost, nothing is left, and the next command says what happened.
//!
//! Needs a program built with the feature `fault-injection`: `CODCHI_FAULT=before:N` or `after:N` makes it kill itself there.

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::host::{Done, Host};

/// Every case, in order. The first creates the machine `f` that the later ones use.
pub const ALL: &[Case] = &[
    (
        "init_killed_at_every_step_leaves_nothing_or_is_finished",
        init,
    ),
    (
        "rebuild_killed_at_every_step_leaves_a_running_generation",
        rebuild,
    ),
    ("stop_and_start_killed_at_every_step", stop_start),
    (
        "interrupted_commands_end_with_130_and_leave_nothing",
        interrupted,
    ),
    (
        "duplicate_killed_at_every_step_leaves_nothing_or_is_finished",
        duplicate,
    ),
    ("rename_killed_at_every_step_is_one_machine", rename),
    ("a_build_whose_nix_is_killed_changes_nothing", killed_build),
    ("a_full_disk_takes_nothing_away", crate::full::full),
    ("a_disk_that_fails_takes_nothing_away", crate::full::failing),
    ("delete_killed_at_every_step_is_finished", delete),
];

/// More points than any plan has; a plan that reaches this is a defect of the suite.
const MOST: usize = 60;

/// Runs a command killed at every point in turn; `check` sees the machine after each kill. Ends with the run that lives,
/// which must not be before `steps` steps.
fn at_every_point(
    h: &Host,
    args: &[&str],
    steps: usize,
    mut prepare: impl FnMut() -> Result<(), Failed>,
    mut check: impl FnMut(&str) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let mut killed = 0;
    for n in 0..MOST {
        for when in ["before", "after"] {
            prepare()?;
            let point = format!("{when}:{n}");
            let mut c = h.codchi_command(args);
            c.env("CODCHI_FAULT", &point);
            let done: Done = crate::host::run(&mut c, b"")?;
            match done.status {
                137 => killed += 1,
                0 if when == "before" => {
                    return if killed >= 2 * steps {
                        Ok(())
                    } else {
                        Err(format!("only {killed} points were reached: is the program built with fault-injection?").into())
                    };
                }
                _ => {
                    return Err(format!(
                        "`codchi {}` with a kill {point}: status {}\n{}",
                        args.join(" "),
                        done.status,
                        done.err
                    )
                    .into());
                }
            }
            check(&point).map_err(|e| {
                format!("after a kill {point}: {}", e.message().unwrap_or_default())
            })?;
        }
    }
    Err(format!("no end after {MOST} steps").into())
}

fn exists(h: &Host, name: &str) -> Result<bool, Failed> {
    let done = h.codchi(&["status", name])?;
    match done.status {
        0 => Ok(true),
        5 => Ok(false),
        other => Err(format!("status {other}: {}", done.err).into()),
    }
}

/// Whether a supervisor of the machine runs.
fn runs(h: &Host, name: &str) -> bool {
    let verb = format!(" supervise {name} ");
    h.processes().iter().any(|p| p.contains(&verb))
}

/// Everything of a machine that there is: files of Codchi's outside the store, processes, control groups.
fn left(h: &Host, name: &str) -> Result<String, Failed> {
    let script = r#"
        # What goes while it is looked at, of others too, is not left.
        find "$HOME" -ignore_readdir_race -path "$HOME/*/codchi/store" -prune -o \
            -path '*/codchi/*' \( -name "$0" -o -name "$0.*" -o -name "$0-[0-9]*" \) -print || true
        find /sys/fs/cgroup -ignore_readdir_race -path '*/codchi-tests' -prune -o -name "codchi-$0-*" -print || true"#;
    let mut found = crate::host::run(h.command("sh").args(["-c", script, name]), b"")?
        .ok()?
        .text();
    if runs(h, name) {
        found.push_str(&h.processes().join("\n"));
    }
    Ok(found)
}

fn init(h: &Host) -> Result<(), Failed> {
    let repo = h.checkout("tests/fixtures/conformance", "project")?;
    let source = repo.to_string_lossy().into_owned();
    h.codchi(&["init", "bystander"])?.ok()?;
    let clean = || -> Result<(), Failed> {
        if exists(h, "f")? {
            h.codchi(&["delete", "--yes", "f"])?.ok()?;
        }
        Ok(())
    };
    at_every_point(h, &["init", "f", &source], 6, clean, |_| {
        // The next command, whatever it is, finishes or undoes, and says so.
        let next = h.codchi(&["init", "f", &source])?;
        if next.status == 0 {
            if h.sh("f", "hello")? != "Hello, world!" {
                return Err("the machine made after a kill does not work".into());
            }
        } else if !next.err.contains("f") || !exists(h, "f")? {
            return Err(format!("neither made nor there: {}", next.err).into());
        } else if h.sh("f", "hello")? != "Hello, world!" {
            return Err("the finished machine does not work".into());
        }
        if h.sh("bystander", "echo fine")? != "fine" {
            return Err("another machine suffered".into());
        }
        Ok(())
    })
}

/// Runs a command and interrupts it as soon as it says that it is at `phase`.
fn interrupt_at(h: &Host, args: &[&str], phase: &str) -> Result<Done, Failed> {
    use std::io::BufRead;
    let mut child = h
        .codchi_command(args)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id())?).ok_or("no pid")?;
    let (mut said, mut sent) = (String::new(), false);
    let lines = std::io::BufReader::new(child.stderr.take().ok_or("no stderr")?).lines();
    for line in lines {
        let line = line?;
        if !sent && line.starts_with(phase) {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
            sent = true;
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait()?.code().unwrap_or(-1);
    if !sent {
        return Err(format!("`{phase}` was never said:\n{said}").into());
    }
    Ok(Done {
        status,
        out: Vec::new(),
        err: said,
    })
}

fn interrupted(h: &Host) -> Result<(), Failed> {
    let repo = h.checkout("tests/fixtures/conformance", "interrupted")?;
    let source = repo.to_string_lossy().into_owned();
    let module = repo.join("module.nix");
    let original = codchi_fs::read_to_string(&module)?;
    // New content each time, so that there is something to build.
    for phase in ["evaluating", "building", "starting"] {
        codchi_fs::write(&module, original.replace("generation one", phase))?;
        // Where the machine was up before the interrupt came, its init script is what was interrupted: then it is kept.
        while interrupt_at(h, &["init", "g", &source], phase)?
            .exits(130)?
            .err
            .contains("running the init script")
        {
            h.codchi(&["delete", "g", "--yes"])?.ok()?;
        }
        let left = left(h, "g")?;
        if !left.is_empty() || exists(h, "g")? {
            return Err(format!("interrupted at `{phase}`, it left:\n{left}").into());
        }
    }
    h.codchi(&["init", "g", &source])?.ok()?;
    h.codchi(&["stop", "g"])?.ok()?;
    // As above: one that was up before the interrupt came has done what it was to do.
    let mut done = interrupt_at(h, &["start", "g"], "starting")?;
    while done.status == 0 {
        h.codchi(&["stop", "g"])?.ok()?;
        done = interrupt_at(h, &["start", "g"], "starting")?;
    }
    done.exits(130)?;
    if runs(h, "g") {
        return Err("it runs after an interrupted start".into());
    }
    if h.sh("g", "cat /etc/fixture/file")? != "starting" {
        return Err("the machine does not work".into());
    }
    h.codchi(&["delete", "--yes", "g"])?.ok()?;
    Ok(())
}

fn rebuild(h: &Host) -> Result<(), Failed> {
    if !exists(h, "f")? {
        return Err("the machine of the case before is not there".into());
    }
    let module = h.home.join("project/module.nix");
    let original = codchi_fs::read_to_string(&module)?;
    let mut n = 0;
    let result = at_every_point(
        h,
        &["rebuild", "f"],
        2,
        || {
            n += 1;
            let text = original.replace("generation one", &format!("generation {n}"));
            Ok(codchi_fs::write(&module, text)?)
        },
        |_| {
            if h.sh("f", "hello; systemctl is-active fixture.service")? != "Hello, world!\nactive" {
                return Err("the running generation does not work".into());
            }
            Ok(())
        },
    );
    h.codchi(&["rebuild", "f"])?.ok()?;
    let wanted = format!("generation {n}");
    let got = h.sh("f", "cat /etc/fixture/file")?;
    codchi_fs::write(&module, original)?;
    result?;
    if got == wanted {
        Ok(())
    } else {
        Err(format!("after the last rebuild: `{got}`, not `{wanted}`").into())
    }
}

fn stop_start(h: &Host) -> Result<(), Failed> {
    at_every_point(
        h,
        &["stop", "f"],
        1,
        || h.codchi(&["start", "f"]).and_then(Done::ok).map(|_| ()),
        |_| {
            h.codchi(&["stop", "f"])?.ok()?;
            let state = h.status("f")?["state"].clone();
            if state == "stopped" && !runs(h, "f") {
                Ok(())
            } else {
                Err(format!("`{state}` after a stop; processes: {:?}", h.processes()).into())
            }
        },
    )?;
    at_every_point(
        h,
        &["start", "f"],
        1,
        || h.codchi(&["stop", "f"]).and_then(Done::ok).map(|_| ()),
        |_| {
            if h.sh("f", "hello")? == "Hello, world!" {
                Ok(())
            } else {
                Err("it does not come up".into())
            }
        },
    )
}

fn duplicate(h: &Host) -> Result<(), Failed> {
    h.codchi(&["start", "f"])?.ok()?;
    h.sh("f", "echo precious > ~/keep")?;
    at_every_point(
        h,
        &["duplicate", "f", "g", "--start"],
        5,
        || {
            if exists(h, "g")? {
                h.codchi(&["delete", "--yes", "g"])?.ok()?;
            }
            match left(h, "g")?.as_str() {
                "" => Ok(()),
                left => Err(format!("left behind:\n{left}").into()),
            }
        },
        |_| {
            // Whoever held it still was killed, too.
            crate::copies::answers(h, "f")?;
            let next = h.codchi(&["duplicate", "f", "g"])?;
            if !next.err.contains("cut short") && next.status != 0 {
                return Err(format!("status {}: {}", next.status, next.err).into());
            }
            for machine in ["f", "g"] {
                if h.sh(machine, "cat ~/keep; hello")? != "precious\nHello, world!" {
                    return Err(format!("`{machine}` lost something").into());
                }
            }
            Ok(())
        },
    )?;
    h.codchi(&["delete", "--yes", "g"])?.ok()?;
    Ok(())
}

fn rename(h: &Host) -> Result<(), Failed> {
    at_every_point(
        h,
        &["rename", "f", "g"],
        7,
        || {
            if exists(h, "g")? {
                h.codchi(&["rename", "g", "f"])?.ok()?;
            }
            h.codchi(&["start", "f"]).and_then(Done::ok).map(|_| ())
        },
        |_| {
            // Whichever name the next command has, it brings the renaming to an end.
            let next = h.codchi(&["start", "f"])?;
            let name = match (exists(h, "f")?, exists(h, "g")?) {
                (true, false) => "f",
                (false, true) => "g",
                both => return Err(format!("exist: {both:?}; {}", next.err).into()),
            };
            h.codchi(&["start", name])?.ok()?;
            if h.sh(name, "cat ~/keep; hello; hostname")?
                != format!("precious\nHello, world!\n{name}")
            {
                return Err(format!("`{name}` lost something").into());
            }
            let other = if name == "f" { "g" } else { "f" };
            // The lock of a name is a file that only a command on that name removes.
            let left = left(h, other)?;
            match left
                .lines()
                .filter(|l| !l.contains("/locks/"))
                .collect::<Vec<_>>()
                .join("\n")
                .as_str()
            {
                "" => Ok(()),
                left => Err(format!("left under the name `{other}`:\n{left}").into()),
            }
        },
    )?;
    h.codchi(&["rename", "g", "f"])?.ok()?;
    Ok(())
}

/// Does something at the end, however that comes.
struct Ended<F: Fn()>(F);

impl<F: Fn()> Drop for Ended<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Kills whatever of Nix runs for a rebuild, in the middle of a build.
fn killed_build(h: &Host) -> Result<(), Failed> {
    let modules = crate::whole::modules(h, "killedmodules")?;
    h.codchi(&["init", "killed", &modules, "default"])?.ok()?;
    // A build without an end, which no other process on this computer is.
    let endless = format!("while :; do : killed {}; done", std::process::id());
    let arch = std::env::consts::ARCH;
    let text = format!(
        r#"{{
  environment.etc."fixture/value".source = derivation {{
    name = "endless";
    system = "{arch}-linux";
    builder = "/bin/sh";
    args = [ "-c" "{endless}" ];
  }};
}}
"#
    );
    h.file("killedmodules/module.nix", &text)?;
    let builders = || -> Vec<rustix::process::Pid> {
        let processes = codchi_fs::read_dir("/proc").unwrap_or_default();
        let builds = |e: &&std::fs::DirEntry| {
            let cmd = codchi_fs::read(e.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&cmd).contains(&format!("-c\0{endless}"))
        };
        let pid = |e: &std::fs::DirEntry| e.file_name().to_str()?.parse().ok();
        let pids = processes.iter().filter(builds).filter_map(pid);
        pids.filter_map(rustix::process::Pid::from_raw).collect()
    };
    // Nix lets go of its builders where it is killed itself.
    let ended = Ended(|| {
        for pid in builders() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let mut child = h
        .codchi_command(&["rebuild", "killed"])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let begins = std::time::Instant::now() + std::time::Duration::from_secs(300);
    while builders().is_empty() {
        if std::time::Instant::now() > begins || child.try_wait()?.is_some() {
            let _ = child.kill();
            let mut said = String::new();
            if let Some(mut err) = child.stderr.take() {
                let _ = std::io::Read::read_to_string(&mut err, &mut said);
            }
            return Err(format!("the build did not begin within 300 s: {said}").into());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let nix = |p: &&String| {
        p.split(' ')
            .nth(1)
            .is_some_and(|program| program.contains("/nix"))
    };
    let mut killed = 0;
    for process in h.processes().iter().filter(nix) {
        let pid = process
            .split(' ')
            .next()
            .and_then(|p| p.parse().ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            killed += 1;
        }
    }
    let mut said = String::new();
    if let Some(mut err) = child.stderr.take() {
        std::io::Read::read_to_string(&mut err, &mut said)?;
    }
    let status = child.wait()?.code().unwrap_or(-1);
    if killed == 0 || status != 1 || !said.lines().any(|l| l.starts_with("error: ")) {
        return Err(format!("{killed} processes were killed; status {status}: {said}").into());
    }
    drop(ended);
    if h.sh("killed", "cat /etc/fixture/value")? != "0" {
        return Err("the running generation is another".into());
    }
    h.file("killedmodules/module.nix", &crate::whole::module("after"))?;
    h.codchi(&["rebuild", "killed"])?.ok()?;
    if h.sh("killed", "cat /etc/fixture/value")? != "after" {
        return Err("it was not built after all".into());
    }
    h.codchi(&["delete", "--yes", "killed"])?.ok()?;
    crate::whole::clean(h, &|name| name == "killed")
}

fn delete(h: &Host) -> Result<(), Failed> {
    let source = h.home.join("project").to_string_lossy().into_owned();
    at_every_point(
        h,
        &["delete", "--yes", "f"],
        5,
        || {
            if !exists(h, "f")? {
                h.codchi(&["init", "f", &source])?.ok()?;
            }
            Ok(())
        },
        |_| {
            // Deletion that has begun is finished by the next command.
            let again = h.codchi(&["delete", "--yes", "f"])?;
            if (again.status != 0 && again.status != 5) || exists(h, "f")? {
                return Err(format!("status {}: {}", again.status, again.err).into());
            }
            match left(h, "f")?.as_str() {
                "" => Ok(()),
                left => Err(format!("left behind:\n{left}").into()),
            }
        },
    )?;
    h.codchi(&["delete", "--yes", "bystander"])?.ok()?;
    h.codchi(&["store", "remove", "--yes"])?.ok()?;
    Ok(())
}
