//! Checkouts of modules in a machine. The machine's user sends out what git tracks there; the host runs nothing in a folder that
//! the machine can write to, and believes nothing of it but the files.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use codchi_core::name::{InputName, MachineName};
use codchi_core::report::Kind;
use codchi_core::text;
use codchi_files::{FilesError, Pick, Wish};
use codchi_nix::StorePath;

use crate::app::App;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::make::{Scratch, Tools};

/// Prints a tar of what git tracks in the folder `$1`, as it is there now.
const SEND: &str = r#"
cd -- "$1" || exit 2
git rev-parse --is-inside-work-tree >/dev/null || exit 3
git ls-files -z --recurse-submodules | tar --null --verbatim-files-from --no-recursion --ignore-failed-read -T - -cf -
"#;

/// Unpacks standard input, the `.git` of a repository, into the folder `$1`, which is made, and checks it out. Prints where that is.
const RECEIVE: &str = r#"
set -e
cd
mkdir -p -- "$1"
cd -- "$1"
[ -z "$(ls -A)" ] || { echo "\`$PWD\` is not empty" >&2; exit 2; }
tar -xf -
git checkout --quiet
[ ! -e .gitmodules ] || [ "$2" = 0 ] || git submodule --quiet update --init --recursive
pwd
"#;

/// The most a checkout may hold, in bytes.
const MOST: u64 = 4 << 30;

fn inside(app: &App, name: &MachineName, words: &[&str]) -> Command {
    let mut command = Command::new(&app.program);
    command.args(["exec", "--no-tty", name.as_str(), "--"]).args(words);
    command
}

fn start(command: &mut Command, what: &str) -> Result<Child> {
    command.spawn().map_err(|e| Failure::failed(format!("cannot {what}: {e}")))
}

/// Refuses a machine without git, which is what knows of a checkout.
pub fn require_git(app: &App, name: &MachineName) -> Result<()> {
    let mut looks = inside(app, name, &["sh", "-c", "command -v git"]);
    let status = looks.stdin(Stdio::null()).stdout(Stdio::null()).status();
    if status.is_ok_and(|s| s.success()) {
        return Ok(());
    }
    Err(Failure::failed(format!("there is no git in `{name}`"))
        .hint("a module adds it: `environment.systemPackages = [ pkgs.git ];`"))
}

/// A folder of a machine, in full; what is not absolute is below the home of its user.
pub fn resolve(app: &App, name: &MachineName, folder: &str) -> Result<String> {
    let script = "cd; cd -- \"$1\" 2>/dev/null && pwd";
    let mut looks = inside(app, name, &["sh", "-c", script, "sh", folder]);
    let done = looks.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let done = done.map_err(|e| Failure::failed(format!("cannot run a command in the machine: {e}")))?;
    let path = String::from_utf8_lossy(&done.stdout).trim_end_matches('\n').to_owned();
    if done.status.success() && path.starts_with('/') {
        return Ok(path);
    }
    Err(missing(name, folder))
}

fn missing(name: &MachineName, folder: &str) -> Failure {
    let folder = text::printable_line(folder);
    Failure::new(Kind::NotFound, format!("there is no folder `{folder}` in `{name}`"))
}

/// Puts what git tracks in a folder of a machine, which is started when it is stopped, into the store.
pub fn fetch(app: &App, tools: &Tools, name: &MachineName, folder: &str) -> Result<StorePath> {
    let shown = format!("`{}` in `{name}`", text::printable_line(folder));
    require_git(app, name)?;
    let staging = Scratch::below(&app.dirs.staging(), &format!("{name}.checkout"))?;
    let tree = staging.path().join("source");
    codchi_fs::create_dir_all(&tree)?;
    let mut sends = inside(app, name, &["sh", "-c", SEND, "sh", folder]);
    let mut child = start(sends.stdin(Stdio::null()).stdout(Stdio::piped()), "run a command in the machine")?;
    let unpacked = match child.stdout.take() {
        Some(out) => unpack(out, &tree),
        None => Ok(()),
    };
    let ended = child.wait();
    match ended.map(|s| s.code()) {
        Ok(Some(0)) => {}
        Ok(Some(2)) => return Err(missing(name, folder)),
        _ => {
            return Err(Failure::failed(format!("{shown} is no checkout that git can read"))
                .hint(format!("`codchi shell {name}` looks at it")));
        }
    }
    unpacked.map_err(|e| Failure::failed(format!("what {shown} holds cannot be taken: {e}")))?;
    Ok(tools.nix.add_path("source", &tree)?)
}

fn unpack(out: impl Read, to: &Path) -> Result<(), FilesError> {
    let wish = Wish { pick: &|path| Pick::As(path.to_vec()), faithful: false };
    let mut out = out.take(MOST);
    codchi_files::unpack(&mut out, to, &wish, &mut |_| !interrupt::happened())?;
    // Whoever sends is not left with a pipe that nobody reads.
    std::io::copy(&mut out, &mut std::io::sink()).map_err(FilesError::Read)?;
    Ok(())
}

/// What stands in for the inputs of a machine that are taken from checkouts, as they are now.
pub fn fetch_all(
    app: &App,
    tools: &Tools,
    name: &MachineName,
    checkouts: &BTreeMap<InputName, String>,
) -> Result<BTreeMap<String, StorePath>> {
    checkouts
        .iter()
        .map(|(input, folder)| Ok((input.to_string(), fetch(app, tools, name, folder)?)))
        .collect()
}

/// How a repository is cloned.
pub struct Clone<'a> {
    /// As `git clone` takes it.
    pub url: &'a str,
    /// A branch or tag.
    pub reference: Option<&'a str>,
    /// Where to, below the home of the machine's user.
    pub folder: &'a str,
    /// How many commits.
    pub depth: Option<u32>,
    /// No other branches.
    pub single_branch: bool,
    /// Submodules, too.
    pub submodules: bool,
}

/// Clones a repository with the person's own git and passwords, hands the clone to the machine, and answers where it is there.
pub fn clone(app: &App, name: &MachineName, wanted: &Clone) -> Result<String> {
    require_git(app, name)?;
    let staging = Scratch::below(&app.dirs.staging(), &format!("{name}.checkout"))?;
    let here = staging.path().join("clone");
    let mut git = Command::new("git");
    // Templates may hold hooks, which are this computer's.
    git.args(["clone", "--quiet", "--template="]);
    if wanted.submodules {
        git.arg("--recurse-submodules");
    } else {
        git.arg("--no-checkout");
    }
    if let Some(depth) = wanted.depth {
        git.args(["--depth", &depth.to_string()]);
    }
    if wanted.single_branch {
        git.arg("--single-branch");
    }
    if let Some(reference) = wanted.reference {
        git.args(["--branch", reference]);
    }
    let cloned = git.arg("--").arg(wanted.url).arg(&here).stdin(Stdio::inherit()).status();
    let shown = text::printable_line(wanted.url);
    match cloned {
        Ok(status) if status.success() => {}
        Ok(_) => return Err(Failure::failed(format!("`{shown}` cannot be cloned"))),
        Err(e) => {
            return Err(Failure::new(Kind::Host, format!("cannot run git: {e}")).hint("install git"));
        }
    }
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg("-").arg("-C").arg(&here).arg(".git");
    let mut tar = start(tar.stdin(Stdio::null()).stdout(Stdio::piped()), "run tar")?;
    let Some(out) = tar.stdout.take() else { return Err(Failure::failed("tar has no output")) };
    let submodules = if wanted.submodules { "1" } else { "0" };
    let mut receives = inside(app, name, &["sh", "-c", RECEIVE, "sh", wanted.folder, submodules]);
    let done = receives.stdin(out).stderr(Stdio::inherit()).output();
    let sent = tar.wait();
    let done = done.map_err(|e| Failure::failed(format!("cannot run a command in the machine: {e}")))?;
    let folder = String::from_utf8_lossy(&done.stdout).trim_end_matches('\n').to_owned();
    if !done.status.success() || !sent.is_ok_and(|s| s.success()) || !folder.starts_with('/') {
        return Err(Failure::failed(format!("the clone was not put into `{name}`")));
    }
    Ok(folder)
}
