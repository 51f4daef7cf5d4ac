//! Starting Nix programs.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::str::FromStr;
use std::sync::Arc;

use crate::{NixError, Result, StorePath, refusal, trace};

/// On whose behalf a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The person: evaluation, fetching, roots. Has their uid and files, and a daemon's rights on the store.
    Caller,
    /// The store's owner: adding many files, collecting garbage. Only programs whose input Codchi made itself.
    Maintainer,
}

/// Decides how a Nix program is started; implemented by the store.
pub trait Launch: Send + Sync {
    /// `program` (`nix`, `nix-store`, ...) ready for arguments, with environment and namespaces as the store needs.
    fn command(&self, program: &str, role: Role) -> Command;
    /// Where this host reads a store path.
    fn host_path(&self, path: &StorePath) -> PathBuf;
    /// The version of Nix, where it is known without running it.
    fn version(&self) -> Option<Version> {
        None
    }
}

/// A version of Nix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number, 0 where there is none.
    pub patch: u32,
}

impl Version {
    /// The oldest Nix that works, which is also what nixpkgs asks for.
    pub const FLOOR: Version = Version { major: 2, minor: 18, patch: 0 };

    /// Reads `nix (Nix) 2.26.3` and its relatives (`2.31.0pre2025`, `(Lix, like Nix) 2.93.0`).
    pub fn from_banner(text: &str) -> Option<Version> {
        text.lines().next()?.split_whitespace().rev().find_map(|w| w.parse().ok())
    }
}

impl FromStr for Version {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        let mut parts = s.split('.').map(|p| {
            let digits = p.bytes().take_while(u8::is_ascii_digit).count();
            p[..digits].parse::<u32>().map_err(|_| ())
        });
        let (major, minor) = (parts.next().ok_or(())??, parts.next().ok_or(())??);
        Ok(Version { major, minor, patch: parts.next().and_then(Result::ok).unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What a person may ask of every call.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// No network at all.
    pub offline: bool,
    /// The whole trace of an evaluation error.
    pub show_trace: bool,
    /// Whether an evaluation may build: modules of strangers then run programs before anybody knows what they ask for.
    pub import_from_derivation: bool,
    /// Flags of Nix that pass through, such as `--builders X` and `--override-input A B`, as given.
    pub extra: Vec<String>,
    /// Whose files are whose, for error messages.
    pub labels: Vec<trace::Label>,
    /// Variables of every call: where the credentials of its sources are. `None` removes.
    pub environment: Vec<(OsString, Option<OsString>)>,
}

/// Nix, as this host has it.
#[derive(Clone)]
pub struct Nix {
    launch: Arc<dyn Launch>,
    version: Version,
    options: Options,
}

impl Nix {
    /// Finds out the version and refuses one that is too old.
    pub fn new(launch: Arc<dyn Launch>, options: Options) -> Result<Nix> {
        let version = match launch.version() {
            Some(v) => v,
            None => {
                let mut c = launch.command("nix", Role::Caller);
                c.arg("--version").stdin(Stdio::null());
                let out = output(&mut c, "nix")?;
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                Version::from_banner(&text)
                    .ok_or_else(|| NixError::Answer { what: "nix --version".into(), reason: text })?
            }
        };
        if version < Version::FLOOR {
            return Err(NixError::TooOld { found: version, needed: Version::FLOOR });
        }
        Ok(Nix { launch, version, options })
    }

    /// The version in use.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How programs are started.
    pub fn launch(&self) -> &dyn Launch {
        &*self.launch
    }

    /// The options in force.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The same Nix with other options.
    pub fn with_options(&self, options: Options) -> Nix {
        Nix { options, ..self.clone() }
    }

    /// `nix SUBCOMMAND` with what every call gets: the features Codchi uses, no flake's own settings, no registries.
    pub(crate) fn command(&self, subcommand: &[&str]) -> Command {
        let mut c = self.launch.command("nix", Role::Caller);
        c.args(["--extra-experimental-features", "nix-command flakes"]);
        c.args(["--option", "accept-flake-config", "false"]);
        c.args(["--option", "use-registries", "false", "--option", "flake-registry", ""]);
        c.args(["--option", "warn-dirty", "false"]);
        let builds = if self.options.import_from_derivation { "true" } else { "false" };
        c.args(["--option", "allow-import-from-derivation", builds]);
        if self.options.offline {
            c.arg("--offline");
        }
        for (name, value) in unasked().into_iter().chain(self.options.environment.iter().cloned()) {
            match value {
                Some(value) => c.env(name, value),
                None => c.env_remove(name),
            };
        }
        // Always the whole trace: the person's own file is often deep in it. What they see is shortened.
        c.arg("--show-trace").args(subcommand).stdin(Stdio::null());
        c
    }

    /// Runs a prepared command to its end and gives its stdout; a failure is shortened to what a person needs.
    pub(crate) fn run(&self, mut c: Command, what: &str) -> Result<String> {
        let out = output(&mut c, "nix")?;
        if out.status.success() {
            return String::from_utf8(out.stdout)
                .map_err(|_| NixError::Answer { what: what.into(), reason: "not UTF-8".into() });
        }
        if was_interrupted(out.status) {
            return Err(NixError::Interrupted);
        }
        Err(self.failure(what, &String::from_utf8_lossy(&out.stderr)))
    }

    /// What a command that fetches is told besides: to look at where a branch is now, not an hour ago.
    pub(crate) fn look_anew(&self, c: &mut Command) {
        if !self.options.offline {
            c.args(["--option", "tarball-ttl", "0"]);
        }
    }

    /// The error for a failed command with this stderr.
    pub(crate) fn failure(&self, what: &str, stderr: &str) -> NixError {
        const INPUT: &str = "while fetching the input '";
        let input = stderr.split_once(INPUT).and_then(|(_, r)| r.split('\'').next());
        let fetches = what.starts_with("fetching") || what.starts_with("locking") || input.is_some();
        if fetches && let Some((refusal, said)) = refusal::read(stderr) {
            let host = refusal::host_of(input.unwrap_or(what)).or_else(|| refusal::host_of(&said));
            let host = host.map(|h| h.trim_end_matches(['`', '\'', ':']).to_owned());
            let what = match input.filter(|_| !what.starts_with("fetching")) {
                Some(input) => format!("fetching `{input}`"),
                None => what.into(),
            };
            return NixError::Source { what, refusal, said, host };
        }
        let message = if self.options.show_trace {
            stderr.trim().to_owned()
        } else {
            trace::shorten(stderr, &self.options.labels)
        };
        NixError::Command { what: what.into(), message }
    }

    /// Runs an old-style program such as `nix-store`.
    pub(crate) fn tool<I, S>(&self, program: &str, role: Role, args: I, what: &str) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut c = self.launch.command(program, role);
        c.args(args).stdin(Stdio::null());
        self.run(c, what)
    }
}

/// What keeps git and ssh from asking: nobody sees their questions behind the progress of Nix. An answer that a program gives,
/// such as an editor's, is as good as before; ssh's own program for answers is for people.
pub fn unasked() -> Vec<(OsString, Option<OsString>)> {
    let mut all = vec![
        ("GIT_TERMINAL_PROMPT".into(), Some("0".into())),
        ("SSH_ASKPASS".into(), Some("/bin/false".into())),
        ("SSH_ASKPASS_REQUIRE".into(), Some("force".into())),
    ];
    if std::env::var_os("GIT_ASKPASS").is_none() {
        all.push(("GIT_ASKPASS".into(), Some("".into())));
    }
    all
}

fn output(c: &mut Command, program: &str) -> Result<Output> {
    c.stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| NixError::Spawn { program: program.into(), source })
}

/// Whether a program ended because of Ctrl-C, told by signal or by the status that stands for it.
pub(crate) fn was_interrupted(status: std::process::ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(2) || status.code() == Some(130)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_nix_says() {
        let v = |s| Version::from_banner(s).map(|v| v.to_string());
        assert_eq!(v("nix (Nix) 2.26.3\n").as_deref(), Some("2.26.3"));
        assert_eq!(v("nix (Nix) 2.18.0pre20230801_abc").as_deref(), Some("2.18.0"));
        assert_eq!(v("nix (Lix, like Nix) 2.93.0").as_deref(), Some("2.93.0"));
        assert_eq!(v("nix (Nix) 2.34").as_deref(), Some("2.34.0"));
        assert_eq!(v("bash: nix: not found"), None);
        assert!(Version::from_banner("nix (Nix) 2.8.0").unwrap() < Version::FLOOR);
    }
}
