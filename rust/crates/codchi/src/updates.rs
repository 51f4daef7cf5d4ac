//! Whether the sources of machines have moved on: asked in the background, remembered, and never waited for by `status`.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use codchi_core::name::MachineName;
use codchi_core::status::{InputState, InputStatus};
use codchi_nix::updates::{Remote, newest, remotes};
use serde::{Deserialize, Serialize};

use crate::app::{App, now};
use crate::failure::{Failure, Result};

/// How long an answer counts, in seconds.
const FRESH: u64 = 3600;
/// How long one server may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What servers said about the inputs of a machine.
#[derive(Default, Serialize, Deserialize)]
struct Known {
    /// 1.
    version: u32,
    /// When they were asked, in seconds since 1970.
    asked: u64,
    /// By address and what is followed there; none: no answer.
    newest: BTreeMap<String, Option<String>>,
}

fn file(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.cache.join("updates").join(format!("{name}.json"))
}

fn key(remote: &Remote) -> String {
    format!("{} {}", remote.url, remote.refs.iter().flatten().cloned().collect::<Vec<_>>().join(" "))
}

fn known(app: &App, name: &MachineName) -> Known {
    let text = codchi_fs::read_if_exists(file(app, name)).ok().flatten().unwrap_or_default();
    serde_json::from_str(&text).ok().filter(|k: &Known| k.version == 1).unwrap_or_default()
}

fn lock(app: &App, name: &MachineName) -> String {
    codchi_fs::read_if_exists(app.dirs.machine(name).join("flake.lock")).ok().flatten().unwrap_or_default()
}

/// The inputs of a machine that come from servers, as far as is known now.
pub fn inputs(app: &App, name: &MachineName) -> Vec<InputStatus> {
    let remotes = remotes(&lock(app, name));
    let known = if remotes.is_empty() { Known::default() } else { known(app, name) };
    remotes
        .into_iter()
        .map(|r| {
            let newest = known.newest.get(&key(&r)).cloned().flatten();
            let state = match (&r.refs, &newest) {
                (None, _) => InputState::Pinned,
                (_, None) => InputState::Unknown,
                (_, Some(rev)) if *rev == r.locked => InputState::UpToDate,
                _ => InputState::UpdatesAvailable,
            };
            InputStatus { name: r.input, url: r.url, locked: r.locked, newest, state }
        })
        .collect()
}

/// Whether answers are old; those that are of the future came by a clock that was ahead.
fn is_old(asked: u64, now: u64) -> bool {
    now.checked_sub(asked).is_none_or(|age| age > FRESH)
}

/// Has another process ask the servers of these machines, where the last answers are old.
pub fn ask_in_background(app: &App, names: &[MachineName]) {
    if !app.settings.updates.check {
        return;
    }
    let stale = |name: &&MachineName| {
        let moving = remotes(&lock(app, name)).into_iter().filter(|r| r.refs.is_some()).map(|r| key(&r));
        let moving: Vec<String> = moving.collect();
        let known = if moving.is_empty() { return false } else { known(app, name) };
        is_old(known.asked, now()) || moving.iter().any(|k| !known.newest.contains_key(k))
    };
    let stale: Vec<&str> = names.iter().filter(stale).map(MachineName::as_str).collect();
    if stale.is_empty() {
        return;
    }
    // It is nobody's child: this program ends before it, and Ctrl-C is not for it.
    let _ = Command::new(&app.program)
        .args(["plumbing", "check-updates"])
        .args(stale)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn();
}

/// Asks the servers of machines and remembers what they say. One at a time does so.
pub fn ask(app: &App, names: &[String]) -> Result<()> {
    let dir = app.dirs.cache.join("updates");
    codchi_fs::create_private_dir(&dir)?;
    let Ok(_lock) = codchi_fs::Lock::try_take(dir.join(".lock"), "check-updates") else { return Ok(()) };
    let mut answers: BTreeMap<String, Option<String>> = BTreeMap::new();
    for name in names {
        let name = app.machine(name)?;
        let mut all = BTreeMap::new();
        for remote in remotes(&lock(app, &name)).iter().filter(|r| r.refs.is_some()) {
            let answer = answers.entry(remote.url.clone()).or_insert_with(|| ls_remote(&remote.url));
            all.insert(key(remote), answer.as_ref().and_then(|text| newest(remote, text)));
        }
        write(app, &name, Known { version: 1, asked: now(), newest: all })?;
    }
    Ok(())
}

/// Remembers what a lock that was just made for a machine found at the servers.
pub fn learned(app: &App, name: &MachineName, made: &str, inputs: &[String]) -> Result<()> {
    let mut known = known(app, name);
    let made = remotes(made).into_iter().filter(|r| inputs.is_empty() || inputs.contains(&r.input));
    known.newest.extend(made.map(|r| (key(&r), Some(r.locked))));
    if inputs.is_empty() {
        known.asked = now();
    }
    write(app, name, known)
}

fn write(app: &App, name: &MachineName, known: Known) -> Result<()> {
    let text = serde_json::to_string(&Known { version: 1, ..known })
        .map_err(|e| Failure::internal(format!("cannot write down what servers said: {e}")))?;
    codchi_fs::create_private_dir(app.dirs.cache.join("updates"))?;
    Ok(codchi_fs::write_cache(file(app, name), text, 0o600)?)
}

/// Remembers nothing of a machine any more.
pub fn forget(app: &App, name: &MachineName) -> Result<()> {
    Ok(codchi_fs::remove_if_exists(file(app, name))?)
}

/// The branches and tags of a repository; none where its server does not say in time.
fn ls_remote(url: &str) -> Option<String> {
    let mut c = Command::new("git");
    c.args(["ls-remote", "--quiet", "--", url]).current_dir("/").process_group(0);
    for (name, value) in codchi_nix::nix::unasked() {
        match value {
            Some(value) => c.env(name, value),
            None => c.env_remove(name),
        };
    }
    // No address may start a program here, and none of a folder's repositories is asked.
    c.env("GIT_ALLOW_PROTOCOL", "https:http:ssh:git").env_remove("GIT_DIR");
    c.envs(codchi_store::certificates_of_git());
    let mut child = c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut stdout = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        // A server may say anything: what is longer than any repository's list is cut off.
        stdout.by_ref().take(64 << 20).read_to_string(&mut text).map(|_| text)
    });
    let end = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait().ok()? {
            Some(status) => break Some(status),
            None if Instant::now() >= end => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.is_none() {
        // With the ssh or curl that it started.
        let group = rustix::process::Pid::from_raw(child.id() as i32)?;
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = child.wait();
    }
    let text = reader.join().ok()?.ok()?;
    status.is_some_and(|s| s.success()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_a_clock_that_was_ahead_are_old() {
        assert!(!is_old(1000, 1000) && !is_old(1000, 1000 + FRESH));
        assert!(is_old(1000, 1001 + FRESH) && is_old(1000, 999) && is_old(0, 1_764_000_000));
    }
}
