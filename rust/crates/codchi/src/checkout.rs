//! Checkouts of modules in a machine. The machine's user sends out what git tracks there; the host runs nothing in a folder that
//! the machine can write to, and believes nothing of it but the files.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use codchi_core::name::{InputName, MachineName};
use codchi_core::report::Kind;
use codchi_core::text;
use codchi_files::{FilesError, Most, Pick, Wish};
use codchi_nix::StorePath;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::auth::Auth;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::make::{self, Scratch, Tools};

/// Says that there is no such folder, or no checkout; no program that the scripts below run ends like that.
const NO_FOLDER: i32 = 91;
const NO_CHECKOUT: i32 = 92;

/// Prints the folder `$1` in full.
const FIND: &str = r#"cd; cd -- "$1" 2>/dev/null || exit 91; pwd"#;

/// Prints a tar of what git tracks in the folder `$1`, as it is there now. A tracked file that is gone is left out.
const SEND: &str = r#"
cd -- "$1" || exit 91
list=$(mktemp)
trap 'rm -f "$list"' EXIT
git ls-files -z --recurse-submodules >"$list" || exit 92
tar --null --verbatim-files-from --no-recursion --ignore-failed-read --sort=none -T "$list" -cf -
"#;

/// Prints a sum of what [`SEND`] would send, times of change apart.
const SUM: &str = r#"
cd; cd -- "$1" || exit 91
list=$(mktemp)
trap 'rm -f "$list"' EXIT
git ls-files -z --recurse-submodules >"$list" || exit 92
tar --null --verbatim-files-from --no-recursion --ignore-failed-read --sort=none --mtime=@0 -T "$list" -cf - | sha256sum
"#;

/// Unpacks standard input, the `.git` of a repository, into the folder `$1`, which is made, and checks out `$2`, or what its HEAD
/// is; with submodules where `$3` is 1. Prints where that is.
const RECEIVE: &str = r#"
set -e
cd
mkdir -p -- "$1"
cd -- "$1"
[ -z "$(ls -A)" ] || { echo "\`$PWD\` is not empty" >&2; exit 1; }
tar -xf -
git checkout --quiet --force ${2:+"$2"}
[ "$3" = 0 ] || git submodule --quiet update --init --recursive
pwd
"#;

/// The most that a checkout may hold.
const MOST: Most = Most { bytes: 4 << 30, entries: 1 << 20 };
/// The most that is read of a line that a machine says.
const LINE: u64 = 64 << 10;
/// How long a machine may take to say what a checkout holds, when that is about to be built.
const PATIENCE: Duration = Duration::from_secs(60);

fn inside(app: &App, name: &MachineName, words: &[&str]) -> Command {
    let mut command = Command::new(&app.program);
    command.args(["exec", "--no-tty", name.as_str(), "--"]).args(words);
    command
}

/// Starts a command whose output is read.
fn start(command: &mut Command) -> Result<(Child, ChildStdout)> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| Failure::cannot_run(&shown, e))?;
    let out = child.stdout.take().ok_or_else(|| Failure::cannot_run(&shown, "it has no output"))?;
    Ok((child, out))
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    child.wait().map_err(|e| Failure::os("wait for a command", e))
}

/// The path that a command prints, and how it ended.
fn path_of(command: &mut Command) -> Result<(ExitStatus, String)> {
    let (mut child, out) = start(command)?;
    let mut text = Vec::new();
    let read = out.take(LINE).read_to_end(&mut text);
    // Nobody reads what more there may be.
    let status = wait(&mut child)?;
    read.map_err(|e| Failure::os("read what the machine says", e))?;
    Ok((status, String::from_utf8_lossy(&text).trim_end_matches('\n').to_owned()))
}

/// What a command in the machine that did not do its work says of the machine.
fn failed(name: &MachineName, status: ExitStatus, what: &str) -> Failure {
    match status.code() {
        // It was told already.
        Some(125) => Failure::failed(format!("no command can be run in `{name}`")),
        _ => Failure::failed(what).hint(format!("`codchi shell {name}` looks at it")),
    }
}

/// Refuses a machine without git, which is what knows of a checkout.
fn require_git(app: &App, name: &MachineName) -> Result<()> {
    let mut looks = inside(app, name, &["sh", "-c", "command -v git >/dev/null || exit 92"]);
    let (status, _) = path_of(looks.stdin(Stdio::null()))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(NO_CHECKOUT) => Err(Failure::failed(format!("there is no git in `{name}`"))
            .hint("a module adds it: `environment.systemPackages = [ pkgs.git ];`")),
        _ => Err(failed(name, status, "the machine was not asked whether it has git")),
    }
}

/// A folder of a machine, in full; what is not absolute is below the home of its user.
pub fn resolve(app: &App, name: &MachineName, folder: &str) -> Result<String> {
    let mut looks = inside(app, name, &["sh", "-c", FIND, "sh", folder]);
    let (status, path) = path_of(looks.stdin(Stdio::null()))?;
    match status.code() {
        Some(0) if path.starts_with('/') && !path.contains('\n') => Ok(path),
        Some(NO_FOLDER) => Err(missing(name, folder)),
        _ => Err(failed(name, status, "the machine was not asked where that folder is")),
    }
}

fn missing(name: &MachineName, folder: &str) -> Failure {
    let folder = text::printable_line(folder);
    Failure::new(Kind::NotFound, format!("there is no folder `{folder}` in `{name}`"))
        .hint(format!("`codchi shell {name}` looks at what there is"))
}

/// What was taken of a checkout.
#[derive(Deserialize, Serialize)]
struct Taken {
    /// The path in the store.
    path: StorePath,
    /// The sum of it, as the machine said.
    sum: String,
}

/// By input: what the lock names, and what was taken last.
type AllTaken = BTreeMap<String, Vec<Taken>>;

/// Where it is noted what was taken.
pub fn notes(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.state.join("checkouts").join(format!("{name}.json"))
}

fn taken(app: &App, name: &MachineName) -> AllTaken {
    let text = codchi_fs::read_if_exists(notes(app, name)).ok().flatten().unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn locked(app: &App, name: &MachineName, input: &str) -> Option<StorePath> {
    let lock = codchi_fs::read_if_exists(app.dirs.machine(name).join("flake.lock")).ok()??;
    make::locked_path(&lock, &[input])
}

/// Whether a checkout of a machine that runs holds something else now than what the lock names. Where the machine does not say it
/// in time, or it was built by an older Codchi, that is not known, and not told.
pub fn is_changed(
    app: &App,
    name: &MachineName,
    checkouts: &BTreeMap<InputName, String>,
    end: Instant,
) -> bool {
    let taken = taken(app, name);
    for (input, folder) in checkouts {
        let path = locked(app, name, input.as_str());
        let all = taken.get(input.as_str()).map(Vec::as_slice).unwrap_or_default();
        let Some(built) = all.iter().find(|t| Some(&t.path) == path.as_ref()) else { continue };
        match sum(app, name, folder, end) {
            Some(now) if now == built.sum => {}
            Some(_) => return true,
            // Nor will it say anything of the others.
            None => return false,
        }
    }
    false
}

/// The sum of what a checkout holds; none where the machine does not say it in time. A machine that does not run is not started.
fn sum(app: &App, name: &MachineName, folder: &str, end: Instant) -> Option<String> {
    let mut asks = Command::new(&app.program);
    asks.args(["exec", "--no-tty", "--only-running", name.as_str(), "--", "sh", "-c", SUM, "sh", folder]);
    let (mut child, mut out) = start(asks.stdin(Stdio::null()).stderr(Stdio::null())).ok()?;
    let mut text = Vec::new();
    let ended = loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&out, PollFlags::IN)];
        let mut part = [0; 256];
        match poll(&mut fds, left.try_into().ok().as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(1..) => match out.read(&mut part) {
                Ok(0) => break true,
                Ok(n) if text.len() < part.len() => text.extend_from_slice(&part[..n]),
                _ => break false,
            },
            _ => break false,
        }
    };
    if !ended {
        let _ = child.kill();
    }
    let text = String::from_utf8(text).ok()?;
    let sum = text.split(' ').next()?;
    let is_sum = sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
    (wait(&mut child).ok()?.success() && ended && is_sum).then(|| sum.to_owned())
}

/// Puts what git tracks in a folder of a machine, which is started when it is stopped, into the store.
pub fn fetch(app: &App, tools: &Tools, name: &MachineName, folder: &str) -> Result<StorePath> {
    require_git(app, name)?;
    take(app, tools, name, folder)
}

fn take(app: &App, tools: &Tools, name: &MachineName, folder: &str) -> Result<StorePath> {
    let shown = format!("`{}` in `{name}`", text::printable_line(folder));
    let staging = Scratch::below(&app.dirs.staging(), &format!("{name}.checkout"))?;
    let tree = staging.path().join("source");
    codchi_fs::create_dir_all(&tree)?;
    let mut sends = inside(app, name, &["sh", "-c", SEND, "sh", folder]);
    let (mut child, out) = start(sends.stdin(Stdio::null()))?;
    let unpacked = unpack(out, &tree);
    if unpacked.is_err() {
        // Whoever sends may never end.
        let _ = child.kill();
    }
    let status = wait(&mut child)?;
    match (status.code(), unpacked) {
        (_, Err(FilesError::Interrupted)) => Err(Failure::new(Kind::Interrupted, "interrupted")),
        (Some(NO_FOLDER), _) => Err(missing(name, folder)),
        (Some(NO_CHECKOUT), _) => {
            Err(failed(name, status, &format!("{shown} is no checkout that git can read")))
        }
        (Some(125), _) => Err(failed(name, status, "")),
        (_, Err(e)) => Err(failed(name, status, &format!("what {shown} holds cannot be taken: {e}"))),
        (Some(0), Ok(())) => Ok(tools.nix.add_path("source", &tree)?),
        (_, Ok(())) => Err(failed(name, status, &format!("{shown} was not sent whole"))),
    }
}

fn unpack(out: ChildStdout, to: &Path) -> Result<(), FilesError> {
    let wish = Wish { pick: &|path| Pick::As(path.to_vec()), faithful: false, most: MOST };
    let mut out = BufReader::with_capacity(256 << 10, out);
    codchi_files::unpack(&mut out, to, &wish, &mut |_| !interrupt::happened())?;
    // What fills the tar's last block; whoever sends more is not listened to.
    let mut rest = out.take(1 << 20);
    std::io::copy(&mut rest, &mut std::io::sink()).map_err(FilesError::Read)?;
    Ok(())
}

/// What stands in for the inputs of a machine that are taken from checkouts, as they are now.
pub fn fetch_all(
    app: &App,
    tools: &Tools,
    name: &MachineName,
    checkouts: &BTreeMap<InputName, String>,
) -> Result<BTreeMap<String, StorePath>> {
    let (mut all, mut noted) = (BTreeMap::new(), taken(app, name));
    noted.retain(|input, _| checkouts.keys().any(|i| i.as_str() == input));
    for (input, folder) in checkouts {
        // This starts the machine.
        require_git(app, name)?;
        // Asked first, so that what is changed meanwhile is seen as a change.
        let sum = sum(app, name, folder, Instant::now() + PATIENCE);
        let path = take(app, tools, name, folder)?;
        // What is taken now may never be built: what is in force is not forgotten for it.
        let in_force = locked(app, name, input.as_str());
        let notes = noted.entry(input.to_string()).or_default();
        notes.retain(|t| Some(&t.path) == in_force.as_ref() && t.path != path);
        notes.extend(sum.map(|sum| Taken { path: path.clone(), sum }));
        all.insert(input.to_string(), path);
    }
    if !app.globals.dry_run {
        let file = notes(app, name);
        if let Some(dir) = file.parent() {
            codchi_fs::create_private_dir(dir)?;
        }
        codchi_fs::write_atomic(file, serde_json::to_string(&noted).unwrap_or_default(), 0o600)?;
    }
    Ok(all)
}

/// How a repository is cloned.
pub struct Clone<'a> {
    /// As `git clone` takes it.
    pub url: &'a str,
    /// A branch or tag.
    pub reference: Option<&'a str>,
    /// What is checked out instead of that.
    pub commit: Option<&'a str>,
    /// Where to, below the home of the machine's user.
    pub folder: &'a str,
    /// How many commits.
    pub depth: Option<u32>,
    /// No other branches.
    pub single_branch: bool,
    /// Submodules, too.
    pub submodules: bool,
}

/// Lets git use what this call may.
fn with_passwords(app: &App, auth: Option<&Auth>, git: &mut Command) {
    git.envs(codchi_store::certificates_of_git());
    let unasked = if app.can_ask() { Vec::new() } else { codchi_nix::nix::unasked() };
    for (variable, value) in auth.iter().flat_map(|a| a.environment()).chain(unasked) {
        match value {
            Some(value) => git.env(variable, value),
            None => git.env_remove(variable),
        };
    }
}

/// Clones a repository with the person's own git and passwords, hands the clone to the machine, and answers where it is there.
pub fn clone(app: &App, name: &MachineName, wanted: &Clone, auth: Option<&Auth>) -> Result<String> {
    require_git(app, name)?;
    let staging = Scratch::below(&app.dirs.staging(), &format!("{name}.checkout"))?;
    let here = staging.path().join("clone");
    let mut git = Command::new("git");
    // Templates may hold hooks, which are this computer's.
    git.args(["clone", "--quiet", "--template="]);
    // To know its submodules git has to check it out here, too.
    git.arg(if wanted.submodules { "--recurse-submodules" } else { "--no-checkout" });
    if let Some(depth) = wanted.depth {
        git.args(["--depth", &depth.to_string()]);
    }
    if wanted.single_branch {
        git.arg("--single-branch");
    }
    if let Some(reference) = wanted.reference {
        git.args(["--branch", reference]);
    }
    with_passwords(app, auth, &mut git);
    let shown = text::printable_line(wanted.url);
    match git.arg("--").arg(wanted.url).arg(&here).status() {
        Ok(status) if status.success() => {}
        Ok(_) => return Err(Failure::failed(format!("`{shown}` cannot be cloned"))),
        Err(e) => return Err(Failure::without_git(e)),
    }
    if let Some(commit) = wanted.commit.filter(|_| wanted.depth.is_some() || wanted.single_branch) {
        let mut git = Command::new("git");
        with_passwords(app, auth, &mut git);
        git.arg("-C").arg(&here).args(["fetch", "--quiet"]);
        if let Some(depth) = wanted.depth {
            git.args(["--depth", &depth.to_string()]);
        }
        if !git.args(["origin", commit]).status().is_ok_and(|s| s.success()) {
            return Err(Failure::failed(format!("`{shown}` has no commit `{commit}`")));
        }
    }
    let mut tar = Command::new("tar");
    let (mut tar, out) =
        start(tar.arg("-cf").arg("-").arg("-C").arg(&here).arg(".git").stdin(Stdio::null()))?;
    let submodules = if wanted.submodules { "1" } else { "0" };
    let commit = wanted.commit.unwrap_or_default();
    let mut receives = inside(app, name, &["sh", "-c", RECEIVE, "sh", wanted.folder, commit, submodules]);
    let done = path_of(receives.stdin(out));
    // It holds what tar writes to.
    drop(receives);
    let sent = wait(&mut tar)?;
    let (status, folder) = done?;
    if status.success() && sent.success() && folder.starts_with('/') && !folder.contains('\n') {
        return Ok(folder);
    }
    Err(failed(name, status, &format!("the clone was not put into `{name}`")))
}
