//! What a machine runs: `init` (stage 2 of the boot), `activate`, and `bin/switch-to-configuration`.
//!
//! All three are one program: a system's entry points are scripts whose interpreter it is, so the path of the script
//! tells which system is meant.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use codchi_fs::Context as _;
use serde::Deserialize;

use crate::{Error, Result};

mod activate;
mod boot;
mod etc;
mod script;
mod switch;
pub mod units;
pub mod users;
mod usr;
mod wrappers;

/// Where the program keeps what must not outlive a boot.
pub(crate) const RUN: &str = "/run/codchi-base";
/// The running system.
pub(crate) const CURRENT: &str = "/run/current-system";

/// A system in the store, and how to bring it about.
pub(crate) struct System {
    /// Its toplevel.
    pub path: PathBuf,
    /// What activation does.
    pub plan: Plan,
}

/// The file `activation.json` of a system.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Plan {
    pub host_name: String,
    pub steps: Vec<Step>,
    pub copies: std::collections::BTreeMap<String, etc::Copy>,
    pub users: users::Spec,
    pub wrappers: Vec<wrappers::Wrapper>,
}

/// One step of an activation.
#[derive(Deserialize)]
pub(crate) struct Step {
    pub name: String,
    pub builtin: bool,
    pub text: String,
    pub dry: bool,
}

impl System {
    /// The system at a path.
    pub fn at(path: &Path) -> Result<System> {
        let path = std::fs::canonicalize(path).at("find", path)?;
        let plan = crate::build::read_json(&path.join("activation.json"))?;
        Ok(System { path, plan })
    }

    /// The merged packages.
    pub fn usr(&self) -> Result<PathBuf> {
        let link = self.path.join("usr");
        Ok(std::fs::read_link(&link).at("read link", &link)?)
    }
}

/// Tells the person or the console what goes on.
pub(crate) fn say(message: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Runs an entry point: arguments are the verb, the path of the script, and what the caller gave.
pub fn main(args: &[String]) -> ExitCode {
    let [_, verb, script, rest @ ..] = args else {
        say("this program is the interpreter of a system's entry points");
        return ExitCode::from(2);
    };
    let script = Path::new(script);
    let done = match verb.as_str() {
        "init" => boot::run(&root(script, 1), rest),
        "switch" => switch::run(&root(script, 2), rest),
        "activate" => activate_here(&root(script, 1)),
        other => Err(Error::Usage(format!("unknown entry point `{other}`"))),
    };
    match done {
        Ok(status) => status,
        Err(e) => {
            say(format!("error: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// The system whose entry point a script is, so many folders up.
fn root(script: &Path, up: usize) -> PathBuf {
    let mut path = std::fs::canonicalize(script).unwrap_or_else(|_| script.to_owned());
    for _ in 0..up {
        path.pop();
    }
    path
}

fn activate_here(path: &Path) -> Result<ExitCode> {
    let system = System::at(path)?;
    let clean = activate::run(&system, activate::Action::Switch)?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
