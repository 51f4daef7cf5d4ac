//! A disk that is full, or that fails: what was there stays, and the same command succeeds once the disk is well again.
//!
//! The home is a tmpfs of the suite's own, whose size is what a command finds free. Single system calls of the program fail
//! through strace.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::time::Instant;

use libtest_mimic::Failed;

use crate::host::{Done, Host, run};
use crate::whole;

pub(crate) const MACHINE: &str = "full";
pub(crate) const NEW: &str = "fullnew";
pub(crate) const GOLD: &str = "fullgold";
const KEPT: &str = "precious";

/// What is left free on the disk, in KiB, attempt by attempt, until there is enough.
const FREE: [u64; 12] = [0, 4, 12, 24, 48, 128, 384, 1024, 3072, 9216, 27648, 82944];

/// Commands that write, and whether the machine is stopped for them. `M` is a machine and `N` a free name.
const WRITE: &[(&[&str], bool)] = &[
    (&["mount", "add", "M", "HOME/shared:/mnt/shared"], false),
    (&["secrets", "set", "M", "token"], false),
    (
        &["module", "add", "M", "MODULES", "second", "--as", "extra"],
        false,
    ),
    (&["start", "M"], true),
    (&["rebuild", "--yes", "M"], false),
    (&["rename", "M", "N"], false),
    (&["duplicate", "M", "N"], false),
    (&["tar", "M", "HOME/full-out.tar"], false),
    (&["import", "HOME/full.tar", "N"], false),
    (&["init", "N", "MODULES", "default"], false),
];

/// Free space on the disk while this is held; plenty afterwards.
struct Tight<'a>(&'a Host);

impl<'a> Tight<'a> {
    fn leave(h: &'a Host, free_kib: u64) -> Result<Tight<'a>, Failed> {
        let mut tries = 0;
        loop {
            let disk = rustix::fs::statvfs(&h.home)?;
            let used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize / 1024;
            match resize(h, &format!("{}k", (used + free_kib).next_multiple_of(4))) {
                Ok(()) => return Ok(Tight(h)),
                // A log that was written in between is more than that.
                Err(e) if tries == 50 => return Err(e),
                Err(_) => tries += 1,
            }
        }
    }
}

impl Drop for Tight<'_> {
    fn drop(&mut self) {
        let _ = resize(self.0, "5g");
    }
}

fn resize(h: &Host, size: &str) -> Result<(), Failed> {
    let mut mount = std::process::Command::new("mount");
    mount
        .arg("-o")
        .arg(format!("remount,size={size}"))
        .arg(&h.home);
    run(&mut mount, b"")?.ok()?;
    Ok(())
}

pub(crate) fn mine(name: &str) -> bool {
    name == MACHINE || name == NEW
}

pub(crate) fn has(h: &Host, name: &str) -> Result<bool, Failed> {
    Ok(whole::names(h)?.contains(name))
}

pub(crate) fn words(h: &Host, args: &[&str]) -> Vec<String> {
    let word = |a: &&str| match *a {
        "M" => MACHINE.into(),
        "N" => NEW.into(),
        "MODULES" => h.home.join("fullmodules").to_string_lossy().into_owned(),
        other => other.replace("HOME", &h.home.to_string_lossy()),
    };
    args.iter().map(word).collect()
}

/// The machine of these cases, with a file, a copy of it and a tar.
pub(crate) fn make(h: &Host) -> Result<(), Failed> {
    let modules = whole::modules(h, "fullmodules")?;
    h.codchi(&["init", GOLD, &modules, "default"])?.ok()?;
    h.sh(GOLD, &format!("echo {KEPT} > ~/keep"))?;
    let tar = h.home.join("full.tar");
    h.codchi(&["tar", GOLD, &tar.to_string_lossy(), "--yes"])?
        .ok()?;
    h.codchi(&["stop", GOLD])?.ok()?;
    let shared = h.home.join("shared");
    run(
        h.command("mkdir").args(["-p", "-m", "700"]).arg(shared),
        b"",
    )?
    .ok()?;
    Ok(())
}

/// Brings the machine back to what it was before a command.
pub(crate) fn reset(h: &Host, n: usize, stopped: bool) -> Result<(), Failed> {
    match (has(h, MACHINE)?, has(h, NEW)?) {
        (true, true) => drop(h.codchi(&["delete", "--yes", NEW])?.ok()?),
        (false, true) => drop(h.codchi(&["rename", NEW, MACHINE])?.ok()?),
        (false, false) => drop(h.codchi(&["duplicate", GOLD, MACHINE])?.ok()?),
        (true, false) => {}
    }
    if h.codchi(&["module", "list", MACHINE, "--json"])?
        .ok()?
        .text()
        .contains("\"extra\"")
    {
        h.codchi(&["module", "remove", MACHINE, "extra"])?.ok()?;
    }
    if h.codchi(&["mount", "list", MACHINE, "--json"])?
        .ok()?
        .text()
        .contains("/mnt/shared")
    {
        h.codchi(&["mount", "remove", MACHINE, "/mnt/shared"])?
            .ok()?;
    }
    // Something to build.
    h.file(
        "fullmodules/module.nix",
        &whole::module(&format!("full {n}")),
    )?;
    h.codchi(&[if stopped { "stop" } else { "start" }, MACHINE])?
        .ok()?;
    Ok(())
}

/// Whichever name it has, the machine has its file and works; nothing is left of what failed.
pub(crate) fn intact(h: &Host) -> Result<(), Failed> {
    let there = whole::names(h)?;
    let name = [MACHINE, NEW]
        .into_iter()
        .find(|n| there.contains(*n))
        .ok_or("the machine is gone")?;
    crate::cases::same("its file", h.sh(name, "cat ~/keep")?, KEPT.to_string())
}

fn said_full(done: &Done) -> bool {
    let told = [
        "No space left on device",
        "disk is full",
        "Disk quota exceeded",
    ]
    .iter()
    .any(|w| done.err.contains(w));
    told && done.err.contains("free some space")
}

/// Deletes the machine, which has more and more generations.
pub(crate) fn begin_anew(h: &Host) -> Result<(), Failed> {
    for name in whole::names(h)?.iter().filter(|n| mine(n)) {
        h.codchi(&["delete", "--yes", name])?.ok()?;
    }
    Ok(())
}

pub(crate) fn told(done: &Done) -> String {
    format!("status {}: {}", done.status, done.err.trim())
}

/// Every command on a disk with less and less too little on it.
pub fn full(h: &Host) -> Result<(), Failed> {
    let mounts = codchi_fs::read_to_string("/proc/self/mountinfo")?;
    let at = h.home.to_string_lossy();
    if !mounts
        .lines()
        .any(|l| l.split(' ').nth(4) == Some(&at) && l.contains(" - tmpfs "))
    {
        return Err("the home is no file system of its own: tests/faults makes it one".into());
    }
    make(h)?;
    let begun = Instant::now();
    let (mut failures, mut count) = (Vec::new(), 0);
    for (args, stopped) in WRITE {
        let shown = args.join(" ");
        let mut refused = 0;
        let mut enough = None;
        for free in FREE {
            count += 1;
            reset(h, count, *stopped)?;
            let before = whole::names(h)?;
            let tight = Tight::leave(h, free)?;
            let done = h.codchi_with(&words(h, args), b"value")?;
            let mut wrong = Vec::new();
            if done.status != 0 {
                refused += 1;
                if done.status != 1 || !said_full(&done) {
                    wrong.push("it does not say that the disk is full".to_string());
                }
                // While it is full.
                if let Err(e) = whole::names(h) {
                    wrong.push(format!("`status`: {}", e.message().unwrap_or_default()));
                }
                if !stopped {
                    let name = if has(h, MACHINE)? { MACHINE } else { NEW };
                    if let Err(e) = h.sh(name, "cat ~/keep") {
                        wrong.push(format!(
                            "while it is full: {}",
                            e.message().unwrap_or_default()
                        ));
                    }
                }
            }
            drop(tight);
            if done.status != 0 {
                // The next command on either name brings to an end what could not be.
                for name in [MACHINE, NEW] {
                    if has(h, name)? {
                        h.codchi(&["start", name])?;
                    }
                }
                let after = whole::names(h)?;
                if after != before && args[0] != "rename" {
                    wrong.push(format!("there are {after:?}, and were {before:?}"));
                }
            }
            if let Err(e) = intact(h).and_then(|()| whole::clean(h, &mine)) {
                wrong.push(e.message().unwrap_or_default().into());
            }
            if !wrong.is_empty() {
                let what = format!(
                    "`{shown}` with {free} KiB free: {}\n  {}",
                    wrong.join("; "),
                    told(&done)
                );
                println!("    {what}");
                failures.push(what);
            }
            if done.status == 0 {
                enough = Some(free);
                break;
            }
        }
        match enough {
            Some(free) => {
                println!("    `{shown}`: {refused} times too little, {free} KiB are enough")
            }
            None => failures.push(format!("`{shown}` never succeeds")),
        }
        if refused == 0 {
            failures.push(format!("`{shown}` never met a full disk"));
        }
    }
    // What gives space free does so on a disk that is full.
    reset(h, 0, false)?;
    let tight = Tight::leave(h, 0)?;
    for args in [&["stop", MACHINE][..], &["delete", "--yes", MACHINE]] {
        let done = h.codchi(args)?;
        if done.status != 0 {
            failures.push(format!(
                "`{}` on a full disk: {}",
                args.join(" "),
                told(&done)
            ));
        }
    }
    drop(tight);
    whole::clean(h, &mine)?;
    println!(
        "    {count} times on a full disk, in {} s",
        begun.elapsed().as_secs()
    );
    match failures.as_slice() {
        [] => Ok(()),
        all => Err(format!("{} times:\n{}", all.len(), all.join("\n")).into()),
    }
}

/// Commands of which single calls fail, on a machine that is stopped.
const FAIL: &[&[&str]] = &[
    &["mount", "add", "M", "HOME/shared:/mnt/shared"],
    &["secrets", "set", "M", "token"],
    &["module", "add", "M", "MODULES", "second", "--as", "extra"],
    &["rebuild", "--yes", "M"],
    &["rename", "M", "N"],
    &["duplicate", "M", "N"],
    &["tar", "--yes", "M", "HOME/full-out.tar"],
    &["delete", "--yes", "M"],
];

/// Removes what writers that were killed had not put in place yet, which nothing reads: how much there was. Scratch folders go
/// with the next command that needs one, claims on names with the next deletion.
pub(crate) fn remove_half_made(h: &Host) -> Result<usize, Failed> {
    let script = r#"cd "$HOME"; find .config/codchi .local/state/codchi .local/share/codchi/secrets \
            \( -name '.*.[0-9]*.new' -o -path '*/locks/*.new' \) -print -delete 2>/dev/null
        find .config/codchi/.staging -mindepth 1 -maxdepth 1 -type d -print -exec rm -rf {} + || true"#;
    let found = run(h.command("sh").args(["-c", script]), b"")?.ok()?;
    Ok(found.text().lines().count())
}

/// Whichever name it has, the machine has its file, which is looked at from outside.
pub(crate) fn kept(h: &Host) -> Result<(), Failed> {
    let there = whole::names(h)?;
    let name = [MACHINE, NEW]
        .into_iter()
        .find(|n| there.contains(*n))
        .ok_or("the machine is gone")?;
    let file = format!(".local/share/codchi/machines/{name}/root/home/codchi/keep");
    let text = codchi_fs::read_to_string(h.home.join(file))?;
    crate::cases::same("its file", text.trim(), KEPT)
}

/// What happens at a call, and how the names of the calls begin. A command that removes nothing has no `unlink`.
const AT: [(&str, &str); 5] = [
    ("error=EIO", "fsync"),
    ("error=EIO", "rename"),
    ("error=EIO", "unlink"),
    ("error=EIO", "write"),
    ("signal=SIGKILL", "fsync"),
];

/// Of the calls of a command, at how many something happens when not at each.
const SHARE: usize = 2;

/// From which command on it happens at one only: each of these takes minutes with all.
const LONG: usize = 4;

/// The command under strace, with what is `asked` of that, and what strace wrote.
fn traced(h: &Host, args: &[&str], asked: &[&str]) -> Result<(Done, String), Failed> {
    let trace = h.home.join("trace");
    let mut c = h.command("strace");
    for what in asked {
        c.args(["-e", what]);
    }
    c.args(["-qq", "-o"]).arg(&trace);
    let done = run(c.arg(h.program()).args(words(h, args)), b"value")?;
    Ok((done, codchi_fs::read_to_string(&trace)?))
}

/// How many calls there were whose names begin so: of the name that most have, as strace counts each name by itself.
pub(crate) fn calls(log: &str, call: &str) -> usize {
    let mut each: BTreeMap<&str, usize> = BTreeMap::new();
    for name in log.lines().filter_map(|l| Some(l.split_once('(')?.0)) {
        *each.entry(name).or_default() += usize::from(name.starts_with(call));
    }
    each.into_values().max().unwrap_or_default()
}

/// Which of `count` calls are chosen, at most `share`: as far from each other as they can be, and of no two of the `commands` the
/// same.
pub(crate) fn chosen(count: usize, command: usize, commands: usize, share: usize) -> Vec<usize> {
    if count <= share {
        return (1..=count).collect();
    }
    let place = |j: usize| (j * count + command * count / commands) / share + 1;
    (0..share).map(place).collect()
}

/// Calls that change a file fail, or are the last, one after the other. `CODCHI_TEST_FAULTS=all`: each of them, of all commands.
pub fn failing(h: &Host) -> Result<(), Failed> {
    let begun = Instant::now();
    if !has(h, GOLD)? {
        make(h)?;
    }
    let all = std::env::var("CODCHI_TEST_FAULTS").is_ok_and(|v| v == "all");
    let (mut failures, mut count, mut half) = (Vec::new(), 0, 0);
    for (i, args) in FAIL.iter().enumerate() {
        let share = if i < LONG { SHARE } else { 1 };
        let shown = args.join(" ");
        let before = count;
        // What it does when nothing happens.
        reset(h, 1000 + count, true)?;
        let (done, whole) = traced(h, args, &["trace=/^(fsync|rename|unlink|write)"])?;
        if done.status != 0 {
            failures.push(format!("`{shown}` under strace: {}", told(&done)));
            continue;
        }
        for (what, call) in AT {
            let mut met = 0;
            let there = calls(&whole, call);
            for n in chosen(there, i, FAIL.len(), if all { there } else { share }) {
                // Not every run makes as many calls.
                let fewer = |n: &usize| (!all && *n > 1).then(|| n.div_ceil(2));
                let mut happened = None;
                for n in std::iter::successors(Some(n), fewer) {
                    count += 1;
                    reset(h, 1000 + count, true)?;
                    let trace = format!("trace=/^{call}");
                    let inject = format!("inject=/^{call}:{what}:when={n}");
                    let (done, log) = traced(h, args, &[&trace, &inject])?;
                    let killed = done.status == 137;
                    if killed || log.contains("(INJECTED)") {
                        happened = Some((done, log, killed));
                        break;
                    }
                }
                let Some((done, log, killed)) = happened else {
                    continue;
                };
                met += 1;
                let mut wrong = Vec::new();
                // An error that cannot be printed is not.
                let silent = call == "write" && done.err.trim().is_empty();
                if done.status != 0
                    && !silent
                    && !killed
                    && (done.status != 1 || !done.err.contains("Input/output error"))
                {
                    wrong.push("it does not say what failed".to_string());
                }
                let again = h.codchi_with(&words(h, args), b"value")?;
                if killed || call == "unlink" {
                    half += remove_half_made(h)?;
                }
                let over = match again.status {
                    0 => true,
                    1 => again.err.contains("already"),
                    5 => true,
                    _ => false,
                };
                if !over {
                    wrong.push(format!("again, {}", told(&again)));
                }
                let rest = match args[0] {
                    "delete" if !has(h, MACHINE)? => Ok(()),
                    _ => kept(h),
                };
                if let Err(e) = rest.and_then(|()| whole::clean(h, &mine)) {
                    wrong.push(e.message().unwrap_or_default().into());
                }
                if !wrong.is_empty() {
                    let injected = log
                        .lines()
                        .find(|l| l.contains("(INJECTED)"))
                        .unwrap_or_default();
                    let what = format!(
                        "`{shown}` with {injected}: {}\n  {}",
                        wrong.join("; "),
                        told(&done)
                    );
                    println!("    {what}");
                    failures.push(what);
                }
            }
            if met == 0 && (there > 0 || call != "unlink") {
                failures.push(format!("`{shown}`: no `{call}` of {there} was met"));
            }
        }
        println!(
            "    `{shown}`: {} calls, {} s",
            count - before,
            begun.elapsed().as_secs()
        );
        reset(h, 1000 + count, false)?;
        intact(h)?;
        begin_anew(h)?;
    }
    println!(
        "    {count} calls failed or were the last, in {} s; each of them: CODCHI_TEST_FAULTS=all; \
         {half} half-made files and folders were left",
        begun.elapsed().as_secs()
    );
    if !failures.is_empty() {
        return Err(format!("{} times:\n{}", failures.len(), failures.join("\n")).into());
    }
    h.codchi(&["delete", "--yes", GOLD])?.ok()?;
    Ok(())
}
