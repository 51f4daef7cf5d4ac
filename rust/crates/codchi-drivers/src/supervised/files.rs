//! Whole root file systems: copied, with progress, by a process of its own that ends with this one.
//!
//! Rootless, that process sees the files' owners as the machine does: it is root of an outer namespace.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use codchi_core::progress::Event;
use codchi_files::{Compression, FilesError, Ids, Most, Pick, Report, Tally, Tree, Watch, Wish};
use codchi_runtime::outer::{self, OuterConfig, Role};
use codchi_runtime::start;
use codchi_runtime::within::enter_files;
use serde::{Deserialize, Serialize};

use crate::{DriverError, Export, Host, Result};

/// What such a process says, a line of JSON each, on stderr: its stdout may be what it makes.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    /// It is so far.
    At(Tally),
    /// It is done.
    Done(Report),
    /// It is not.
    Failed(String),
}

/// How often it says how far it is.
const OFTEN: Duration = Duration::from_millis(100);

/// Copies a root file system to another, an empty one.
pub fn copy(host: &Host, from: &Path, to: &Path) -> Result<Report> {
    let mut c = Command::new(host.program);
    c.args(["plumbing", "copy-tree"]).arg(from).arg(to).stdin(Stdio::null()).stdout(Stdio::null());
    listen(host, c, format!("copy `{}`", from.display()))
}

/// Writes a root file system as a tar. `caller`: the account whose files are the caller's here.
pub fn pack(
    host: &Host,
    root: &Path,
    caller: Option<(u32, u32)>,
    export: &Export,
    to: std::fs::File,
) -> Result<Report> {
    let mut c = pack_command(host, root, export, to);
    c.args(caller.map(|(user, group)| format!("--caller={user}:{group}")));
    listen(host, c, format!("export `{}`", root.display()))
}

/// The same with the root file system of a container that runs, or is held up, as its root sees it: without what is mounted there.
pub fn pack_inside(host: &Host, leader: i32, export: &Export, to: std::fs::File) -> Result<Report> {
    let mut c = pack_command(host, Path::new("/"), export, to);
    c.arg(format!("--inside={leader}"));
    listen(host, c, "export the machine's files".into())
}

fn pack_command(host: &Host, root: &Path, export: &Export, to: std::fs::File) -> Command {
    let mut c = Command::new(host.program);
    c.args(["plumbing", "pack-tree"]).arg(root).arg("--head").arg(export.head).args(["--at", export.at]);
    for (from, at) in export.inputs {
        c.arg("--input").arg(from).arg(at);
    }
    c.arg("--compression").arg(format!("{:?}", export.compression).to_lowercase());
    c.stdin(Stdio::null()).stdout(to);
    c
}

/// Makes a root file system from a tar, but for what is below `without`.
pub fn unpack(host: &Host, root: &Path, without: &str, from: std::fs::File) -> Result<Report> {
    let mut c = Command::new(host.program);
    c.args(["plumbing", "unpack-tree"]).arg(root).args(["--without", without]);
    c.stdin(from).stdout(Stdio::null());
    listen(host, c, "import the tar".into())
}

/// The same in the root file system of a container that is held up.
pub fn unpack_inside(host: &Host, leader: i32, without: &str, from: std::fs::File) -> Result<Report> {
    let mut c = Command::new(host.program);
    c.args(["plumbing", "unpack-tree", "/", "--without", without]).arg(format!("--inside={leader}"));
    c.stdin(from).stdout(Stdio::null());
    listen(host, c, "import the tar".into())
}

fn listen(host: &Host, mut command: Command, what: String) -> Result<Report> {
    let failed = |reason: String| DriverError::Helper { what: what.clone(), reason };
    let mut child = command.stderr(Stdio::piped()).spawn().map_err(|e| failed(e.to_string()))?;
    let mut end = None;
    let mut other = String::new();
    for line in child.stderr.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(Said::At(t)) => host.progress.report(Event::Items {
                what: "files",
                done: t.entries,
                total: 0,
                bytes: t.bytes,
                total_bytes: 0,
            }),
            Ok(Said::Done(report)) => end = Some(Ok(report)),
            Ok(Said::Failed(reason)) => end = Some(Err(failed(reason))),
            Err(_) => other = line.trim_start_matches("error: ").to_string(),
        }
    }
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    match end {
        Some(end) => end,
        None if !other.is_empty() => Err(failed(other)),
        None => Err(failed(format!("its helper ended ({status})"))),
    }
}

/// What [`copy`] runs; this process must have one thread.
pub fn copy_tree_here(from: &Path, to: &Path) -> Result<()> {
    here(None, move |watch: Watch| codchi_files::copy(from, to, &is_of_one_machine, watch))
}

/// What [`pack`] runs; this process must have one thread.
pub fn pack_tree_here(
    root: &Path,
    head: &Path,
    at: &str,
    inputs: &[(PathBuf, String)],
    compression: Compression,
    caller: Option<(u32, u32)>,
    inside: Option<i32>,
) -> Result<()> {
    // In there the host's folders show elsewhere.
    let mut shown = vec![head.to_path_buf()];
    shown.extend(inputs.iter().map(|(from, _)| from.clone()));
    let places = inside.map(|leader| enter_files(leader, &shown)).transpose()?;
    let [root, head] = match &places {
        Some(places) => [&places.root, places.shown.first().unwrap_or(&places.root)],
        None => [&root.to_path_buf(), &head.to_path_buf()],
    };
    let inputs: Vec<(PathBuf, String)> = match &places {
        Some(p) => p.shown.iter().skip(1).cloned().zip(inputs.iter().map(|(_, at)| at.clone())).collect(),
        None => inputs.to_vec(),
    };
    here(inside, move |watch: Watch| {
        let ids =
            Ids { standing_for: caller.map(|(user, group)| (codchi_runtime::ids::CALLER, user, group)) };
        let all = |_: &[u8], _: Option<&[u8]>| false;
        let mut trees = vec![Tree { from: head, at: at.as_bytes(), roots: true, without: &all }];
        trees.extend(inputs.iter().map(|(from, at)| Tree {
            from,
            at: at.as_bytes(),
            roots: true,
            without: &all,
        }));
        if root.symlink_metadata().is_ok() {
            trees.push(Tree { from: root, at: b"", roots: false, without: &is_made_anew });
        }
        // Not by way of the standard library's line buffer.
        let out = std::io::stdout().as_fd().try_clone_to_owned().map_err(FilesError::Write)?;
        let out = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::from(out));
        compression.around(out, |w| codchi_files::pack(&trees, &ids, w, watch))
    })
}

/// What [`unpack`] runs; this process must have one thread.
pub fn unpack_tree_here(root: &Path, without: &str, inside: Option<i32>) -> Result<()> {
    let places = inside.map(|leader| enter_files(leader, &[])).transpose()?;
    let root = places.as_ref().map_or(root, |p| &p.root);
    here(inside, move |watch: Watch| {
        let without = without.as_bytes();
        let pick = |path: &[u8]| match path.strip_prefix(without) {
            Some([] | [b'/', ..]) => Pick::Skip,
            _ => Pick::As(path.to_vec()),
        };
        let input = BufReader::with_capacity(1 << 20, std::io::stdin());
        let wish = Wish { pick: &pick, faithful: true, most: Most::ALL };
        codchi_files::unpack(&mut *codchi_files::decompress(input)?, root, &wish, watch)
    })
}

/// What a machine does not own but is given at each start, and what each activation makes: the store, and links into the
/// system in /etc.
fn is_made_anew(path: &[u8], target: Option<&[u8]>) -> bool {
    match target {
        None => {
            let folder =
                [&b"nix/"[..], b"proc/", b"sys/", b"dev/", b"run/"].iter().any(|d| path.starts_with(d));
            folder || path == b"etc/static"
        }
        Some(target) => path.starts_with(b"etc/") && target.starts_with(b"/etc/static/"),
    }
}

/// What makes a machine itself: made anew in a copy, by the first start and by the ssh server.
fn is_of_one_machine(path: &[u8]) -> bool {
    path == b"etc/machine-id"
        || path.strip_prefix(b"etc/ssh/ssh_host_").is_some_and(|rest| !rest.contains(&b'/'))
}

fn here(inside: Option<i32>, work: impl FnOnce(Watch) -> Result<Report, FilesError>) -> Result<()> {
    end_with_parent()?;
    let work = move || {
        let mut last = Instant::now();
        let mut watch = |tally: &Tally| {
            if last.elapsed() >= OFTEN {
                last = Instant::now();
                say(&Said::At(*tally));
            }
            true
        };
        say(&match work(&mut watch) {
            Ok(report) => Said::Done(report),
            Err(e) => Said::Failed(e.to_string()),
        });
    };
    if inside.is_some() || outer::is_privileged() {
        work();
        return Ok(());
    }
    outer::run(&OuterConfig::default(), Role::Maintainer, |_| {
        // Becoming another user forgot that.
        end_with_parent().map_err(|e| codchi_runtime::Error::Told(e.to_string()))?;
        work();
        Ok(Vec::new())
    })?;
    Ok(())
}

fn say(what: &Said) {
    let mut line = serde_json::to_string(what).unwrap_or_default();
    line.push('\n');
    // Whoever does not listen does not need to know.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn end_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| DriverError::Helper { what: "end with the parent".into(), reason: e.to_string() })
}

/// A machine that is held still until this is dropped, or this process is gone: another one sees to that.
pub struct Held(Child);

impl Held {
    /// Holds the machine whose runtime directory this is.
    pub fn new(program: &Path, dir: &Path) -> Result<Held> {
        let what = || "hold the machine still".to_string();
        let failed = |e: std::io::Error| DriverError::Helper { what: what(), reason: e.to_string() };
        let mut child = Command::new(program)
            .args(["plumbing", "hold"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(failed)?;
        }
        let mut held = Held(child);
        if line == "held\n" {
            return Ok(held);
        }
        let mut said = String::new();
        if let Some(mut err) = held.0.stderr.take() {
            err.read_to_string(&mut said).map_err(failed)?;
        }
        Err(DriverError::Helper { what: what(), reason: said.trim().trim_start_matches("error: ").into() })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// What [`Held`] runs: holds a machine still until its stdin ends. Signals that are meant to end it must not: see that they do
/// nothing before.
pub fn hold_here(dir: &Path) -> Result<()> {
    start::while_held(dir, || {
        let mut out = std::io::stdout();
        let _ = out.write_all(b"held\n").and_then(|()| out.flush());
        let mut byte = [0];
        while !matches!(std::io::stdin().read(&mut byte), Ok(0)) {}
    })?;
    Ok(())
}
