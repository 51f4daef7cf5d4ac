//! Which OCI runtime this host has, and what mends it where that is none.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use codchi_core::status::{Finding, Level};
use codchi_runtime::guest;

use crate::supervised::container;
use crate::{DriverError, Host, Result};

/// Names a runtime, by its path or by a name in `PATH`, in place of the first that is found.
const VARIABLE: &str = "CODCHI_OCI_RUNTIME";
/// Runtimes, and the first release of each that does what machines need; the quickest first.
const RUNTIMES: [(&str, (u32, u32)); 3] = [("crun", (1, 0)), ("runc", (1, 1)), ("youki", (0, 1))];
const INSTALL: &str =
    "Debian, Ubuntu: `sudo apt install crun`; Fedora: `sudo dnf install crun`; Arch: `sudo pacman -S crun`";

/// What was found.
struct Found {
    path: PathBuf,
    /// What it says of itself.
    version: String,
    /// The first release that would do, where this one is older.
    too_old: Option<(u32, u32)>,
}

fn lacks(what: String) -> DriverError {
    DriverError::Host { what, hints: vec![INSTALL.into()] }
}

/// The first `major.minor` of a text.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
        let mut parts = word.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    })
}

/// The program that a person named; none where they named none.
fn named() -> Option<Result<PathBuf>> {
    let given = std::env::var_os(VARIABLE).filter(|v| !v.is_empty())?;
    let path = Path::new(&given);
    let found = match path.is_absolute() {
        true => Some(path.to_owned()).filter(|p| p.is_file()),
        false => given.to_str().and_then(guest::program_path),
    };
    let missing = || lacks(format!("`{VARIABLE}` names `{}`, which is not here", given.display()));
    Some(found.ok_or_else(missing))
}

/// Asks a runtime what it is.
fn ask(path: PathBuf) -> Result<Found> {
    let failed = |why: String| lacks(format!("`{} --version` fails: {why}", path.display()));
    let out = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
    let out = out.map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let first = said.lines().next().unwrap_or_default().trim().to_owned();
    let Some(is) = version(&first).filter(|_| out.status.success()) else {
        return Err(failed(format!("{} {}", first, String::from_utf8_lossy(&out.stderr).trim())));
    };
    let known = RUNTIMES.iter().find(|(name, _)| first.starts_with(name));
    let too_old = known.map(|(_, needed)| *needed).filter(|needed| is < *needed);
    Ok(Found { path, version: first, too_old })
}

fn find() -> Result<Found> {
    if let Some(path) = named() {
        return ask(path?);
    }
    let path = RUNTIMES.iter().find_map(|(name, _)| guest::program_path(name));
    ask(path.ok_or_else(|| lacks("no OCI runtime (crun, runc or youki) is installed".into()))?)
}

/// The runtime to use.
pub fn usable() -> Result<PathBuf> {
    let found = find()?;
    match found.too_old {
        None => Ok(found.path),
        Some((major, minor)) => Err(lacks(format!(
            "`{}` is too old ({}): {major}.{minor} or later is needed",
            found.path.display(),
            found.version
        ))),
    }
}

/// What doctor says: of the runtime, and of what all such containers need that without which none runs.
pub fn probe(host: &Host) -> Vec<Finding> {
    let finding = |level, detail, fix| Finding { what: "an OCI runtime".into(), level, detail, fix };
    let fix = || Some(INSTALL.to_owned());
    let own = match find() {
        Err(e) => finding(Level::Missing, e.to_string(), fix()),
        Ok(Found { version, too_old: Some((major, minor)), .. }) => {
            finding(Level::Missing, format!("{version}; {major}.{minor} or later is needed"), fix())
        }
        Ok(found) => finding(Level::Good, format!("`{}`, {}", found.path.display(), found.version), None),
    };
    let rest = container::probe(host).into_iter().filter(|f| f.level == Level::Missing);
    [own].into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_runtimes_say() {
        assert_eq!(version("crun version 1.8.1"), Some((1, 8)));
        assert_eq!(version("runc version 1.1.5+ds1"), Some((1, 1)));
        assert_eq!(version("youki version 0.5.4"), Some((0, 5)));
        assert_eq!(version("crun version UNKNOWN"), None);
    }
}
