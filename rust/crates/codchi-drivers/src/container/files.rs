//! Whole root file systems: copied, with progress, by a process of its own that ends with this one.
//!
//! Rootless, that process sees the files' owners as the machine does: it is root of an outer namespace.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use codchi_core::progress::Event;
use codchi_files::{FilesError, Report, Tally, Watch};
use codchi_runtime::outer::{self, OuterConfig, Role};
use codchi_runtime::start;
use serde::{Deserialize, Serialize};

use crate::{DriverError, Host, Result};

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
    let (from, to) = (from.to_owned(), to.to_owned());
    here(move |watch: Watch| codchi_files::copy(&from, &to, &is_of_one_machine, watch))
}

/// What makes a machine itself: made anew in a copy, by the first start and by the ssh server.
fn is_of_one_machine(path: &[u8]) -> bool {
    path == b"etc/machine-id"
        || path.strip_prefix(b"etc/ssh/ssh_host_").is_some_and(|rest| !rest.contains(&b'/'))
}

fn here(work: impl FnOnce(Watch) -> Result<Report, FilesError>) -> Result<()> {
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
    if outer::is_root() {
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
