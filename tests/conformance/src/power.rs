//! The power fails in the middle of a command: what was not on the disk is lost, and the next command goes on from what is there.
//!
//! The program is killed through strace at a call that brings something to the disk, or that puts it in place. What it changed and
//! nobody brought to the disk is then made what a disk may have of it: nothing of a file's content, or no file. Names that
//! were changed are as the program left them, as on file systems with a journal, whose order is kept.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::full::{self, GOLD, MACHINE, NEW, told, words};
use crate::host::{Done, Host, run};
use crate::whole;

/// Every case.
pub const ALL: &[Case] = &[
    (
        "what_an_earlier_version_wrote_is_read_and_a_later_one_refused",
        crate::earlier::read,
    ),
    (
        "a_power_cut_loses_only_what_was_not_said_to_be_done",
        power_cut,
    ),
    ("a_clock_that_jumps_takes_nothing_away", crate::clock::jumps),
];

/// Commands, on a machine that is stopped.
const COMMANDS: &[&[&str]] = &[
    &["init", "N", "MODULES", "default", "--no-start"],
    &["rebuild", "--yes", "M"],
    &["rename", "M", "N"],
    &["duplicate", "M", "N"],
    &["delete", "--yes", "M"],
    &["secrets", "set", "M", "token"],
    &["module", "add", "M", "MODULES", "second", "--as", "extra"],
];

/// Where Codchi keeps what must outlast a power cut; the store has a database of its own.
const KEPT: [&str; 4] = [
    ".config/codchi",
    ".local/state/codchi",
    ".local/share/codchi/machines",
    ".local/share/codchi/secrets",
];

/// Calls that bring something to the disk, or put it in place.
const CALLS: [&str; 3] = ["fsync", "syncfs", "rename"];

/// The regular files that have to outlast a power cut, by what tells one from another.
type Files = BTreeMap<(u64, i64, i64, u64), PathBuf>;

fn files(h: &Host) -> Files {
    let mut all = Files::new();
    let mut folders: Vec<PathBuf> = KEPT.iter().map(|d| h.home.join(d)).collect();
    while let Some(folder) = folders.pop() {
        for entry in codchi_fs::read_dir(&folder).unwrap_or_default() {
            let path = entry.path();
            let Ok(meta) = path.symlink_metadata() else {
                continue;
            };
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() {
                let key = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
                all.insert(key, path);
            }
        }
    }
    all
}

/// The command under strace: killed at the `n`th of some calls, or at none.
fn traced(h: &Host, args: &[&str], at: Option<(&str, usize)>) -> Result<(Done, String), Failed> {
    let trace = h.home.join("trace");
    let mut c = h.command("strace");
    c.args([
        "-y",
        "-qq",
        "-e",
        "trace=/^(fsync|fdatasync|syncfs|rename)",
        "-o",
    ]);
    c.arg(&trace);
    if let Some((call, n)) = at {
        c.args(["-e", &format!("inject=/^{call}:signal=SIGKILL:when={n}")]);
    }
    let done = run(c.arg(h.program()).args(words(h, args)), b"value")?;
    Ok((done, codchi_fs::read_to_string(&trace)?))
}

/// A file that is on the disk, or with `true` a whole tree, under the name that it has at the end.
type Safe = (PathBuf, bool);

/// What is on the disk by what strace wrote. Of a folder that is, only the names.
fn on_disk(log: &str) -> Vec<Safe> {
    let mut all: Vec<Safe> = Vec::new();
    for line in log.lines().filter(|l| l.trim_end().ends_with("= 0")) {
        let Some((call, rest)) = line.split_once('(') else {
            continue;
        };
        if !call.starts_with("rename") {
            let path = rest.split_once('<').and_then(|(_, r)| r.rsplit_once('>'));
            all.extend(path.map(|(p, _)| (PathBuf::from(p), call == "syncfs")));
            continue;
        }
        // `"FROM", "TO"`, each perhaps after `FD<FOLDER>, `.
        let (mut names, mut folder) = (Vec::new(), "");
        for (i, part) in rest.split('"').enumerate() {
            if i % 2 == 1 {
                names.push(Path::new(folder).join(part));
            } else if let Some((_, f)) = part.split_once('<') {
                folder = f.split_once('>').unwrap_or_default().0;
            }
        }
        if let [from, to] = &names[..] {
            all.retain(|(p, _)| !p.starts_with(to));
            for (path, _) in &mut all {
                if let Ok(rest) = path.strip_prefix(from) {
                    // What is joined with nothing would end with a slash.
                    *path = to.join(rest).components().collect();
                }
            }
        }
    }
    all
}

/// Loses what was changed since `before` and is not on the disk: how many files.
fn lose(h: &Host, before: &Files, log: &str, absent: bool) -> Result<usize, Failed> {
    let safe = on_disk(log);
    let mut lost = 0;
    for (key, path) in files(h) {
        let is = |(p, tree): &Safe| *p == path || (*tree && path.starts_with(p));
        if before.contains_key(&key) || safe.iter().any(is) {
            continue;
        }
        lost += 1;
        if absent {
            codchi_fs::remove_file(&path)?;
        } else {
            codchi_fs::write(&path, "")?;
        }
    }
    Ok(lost)
}

/// The machines' own folders of what runs go with the power.
fn forget_what_ran(h: &Host) -> Result<(), Failed> {
    Ok(codchi_fs::remove_dir_all(
        h.home.join("run/codchi/machines"),
    )?)
}

/// At how many calls of a kind the power fails, when not at each.
const SHARE: usize = 2;

fn power_cut(h: &Host) -> Result<(), Failed> {
    let begun = Instant::now();
    if !full::has(h, GOLD)? {
        full::make(h)?;
    }
    let all = std::env::var("CODCHI_TEST_FAULTS").is_ok_and(|v| v == "all");
    let (mut failures, mut cuts, mut lost, mut there) = (Vec::new(), 0, 0, 0);
    for (i, args) in COMMANDS.iter().enumerate() {
        let shown = args.join(" ");
        full::reset(h, 5000 + cuts, true)?;
        let (done, log) = traced(h, args, None)?;
        if done.status != 0 {
            return Err(format!("`{shown}` under strace: {}", told(&done)).into());
        }
        for call in CALLS {
            let count = full::calls(&log, call);
            there += count;
            for n in full::chosen(count, i, COMMANDS.len(), if all { count } else { SHARE }) {
                full::reset(h, 5001 + cuts, true)?;
                let before = files(h);
                let (done, log) = traced(h, args, Some((call, n)))?;
                if done.status != 137 {
                    // Not every run makes as many calls.
                    continue;
                }
                cuts += 1;
                let gone = lose(h, &before, &log, cuts % 2 == 0)?;
                lost += gone;
                forget_what_ran(h)?;
                if let Err(e) = goes_on(h, args) {
                    let what = format!(
                        "`{shown}`, the power failed at `{call}` {n}, {gone} files lost: {}\n  after {}",
                        e.message().unwrap_or_default(),
                        log.lines()
                            .rev()
                            .take(3)
                            .collect::<Vec<_>>()
                            .join(" after ")
                    );
                    println!("    {what}");
                    failures.push(what);
                }
            }
        }
        println!(
            "    `{shown}`: {cuts} cuts so far, {} s",
            begun.elapsed().as_secs()
        );
        full::reset(h, 5001 + cuts, false)?;
        full::intact(h)?;
        full::begin_anew(h)?;
    }
    println!(
        "    the power failed {cuts} times of {there}, {lost} files were lost, in {} s; each time: CODCHI_TEST_FAULTS=all",
        begun.elapsed().as_secs()
    );
    if cuts < 2 * COMMANDS.len() || lost == 0 {
        failures.push(format!("only {cuts} cuts, and {lost} files lost"));
    }
    if !failures.is_empty() {
        return Err(format!("{} times:\n{}", failures.len(), failures.join("\n")).into());
    }
    h.codchi(&["delete", "--yes", GOLD])?.ok()?;
    Ok(())
}

/// After the power is back: the next command says what was cut short, and the same one is done in the end.
fn goes_on(h: &Host, args: &[&str]) -> Result<(), Failed> {
    let journal = [MACHINE, NEW].iter().any(|name| {
        let file = format!(".local/state/codchi/journal/{name}.json");
        h.home.join(file).exists()
    });
    whole::names(h)?;
    let again = h.codchi_with(&words(h, args), b"value")?;
    full::remove_half_made(h)?;
    let over = match again.status {
        0 | 5 => true,
        1 => again.err.contains("already"),
        _ => false,
    };
    if !over {
        return Err(format!("again, {}", told(&again)).into());
    }
    if journal && !again.err.contains("was cut short") {
        return Err(format!("what was cut short is not said: {}", told(&again)).into());
    }
    let rest = match args[0] {
        "delete" if !full::has(h, MACHINE)? => Ok(()),
        _ => full::kept(h),
    };
    rest.and_then(|()| whole::clean(h, &full::mine))
}
