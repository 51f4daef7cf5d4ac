//! `codchi store shell`: a program where /nix is the store's.
//!
//! There is no standing daemon for an own store. A person who is not root reaches it by a daemon that lives as long as
//! the program that was started.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use codchi_core::report::Diagnose;
use codchi_runtime::outer::{self, OuterConfig, Role};
use codchi_sys::process;

use crate::error::Tried;
use crate::{Result, StoreError, collect, tarball};

/// What `codchi store shell` is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// The directory to show as /nix; none: the host's own.
    pub nix: Option<PathBuf>,
    /// Be the owner of the store instead of the person.
    pub as_root: bool,
    /// Make the folders first that Nix does not make itself.
    pub init: bool,
    /// The program collects garbage: it is shown no process, and told what processes use.
    pub collect: bool,
    /// Put the paths of this binary tarball of Nix into the store first.
    pub unpack: Option<PathBuf>,
    /// The `nix-daemon` for a person who is not root; none: the program does without.
    pub daemon: Option<PathBuf>,
    /// What to run.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Args {
    /// Reads `[--nix DIR] [--as-root] [--collect] [--init] [--unpack FILE] [--daemon PROGRAM] [--] PROGRAM ARGS...`.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args> {
        let mut args = args.into_iter();
        let mut out = Args::default();
        let usage = |what: &str| StoreError::Usage(format!("`store shell`: {what}"));
        loop {
            let Some(a) = args.next() else { return Err(usage("no program is given")) };
            match a.to_str() {
                Some("--nix") => {
                    out.nix = Some(args.next().ok_or_else(|| usage("`--nix` needs a folder"))?.into())
                }
                Some("--unpack") => {
                    out.unpack = Some(args.next().ok_or_else(|| usage("`--unpack` needs a file"))?.into());
                }
                Some("--daemon") => {
                    out.daemon = Some(args.next().ok_or_else(|| usage("`--daemon` needs a program"))?.into());
                }
                Some("--as-root") => out.as_root = true,
                Some("--collect") => out.collect = true,
                Some("--init") => out.init = true,
                Some("--") => out.program = args.next().ok_or_else(|| usage("no program is given"))?,
                Some(s) if s.starts_with('-') => return Err(usage(&format!("unknown option `{s}`"))),
                _ => out.program = a,
            }
            if !out.program.is_empty() {
                out.args = args.collect();
                return Ok(out);
            }
        }
    }
}

/// The plumbing verb with the flags a [`crate::Store`] gives it. The process must have one thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    match Args::parse(args).and_then(|a| run(&a)) {
        Ok(status) => status,
        Err(e) => {
            complain(&e);
            e.kind().exit_status()
        }
    }
}

/// Errors of plumbing go to stderr as Nix writes its own, so that whoever runs it finds them where it looks.
pub(crate) fn complain(e: &StoreError) {
    use std::io::Write;
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "error: {e}");
    for hint in e.hints() {
        let _ = writeln!(err, "hint: {hint}");
    }
}

/// Runs the program and gives its exit status; 128 + n for a signal.
pub fn run(args: &Args) -> Result<u8> {
    let config = OuterConfig { nix: args.nix.clone() };
    let role = if args.as_root { Role::Maintainer } else { Role::Caller };
    match &args.daemon {
        Some(daemon) if !args.as_root && !outer::is_privileged() => with_daemon(&config, daemon, args),
        _ => {
            let outer = outer::enter(&config)?;
            outer::become_role(&outer, role)?;
            if args.init {
                for dir in ["/nix/var/nix/builds", "/nix/var/nix/codchi", "/nix/var/nix/gcroots/codchi/host"]
                {
                    codchi_fs::create_dir_all(dir)?;
                }
            }
            if let Some(file) = &args.unpack {
                tarball::unpack(file)?;
            }
            if args.collect {
                return collect::run(&args.program, &args.args);
            }
            let mut c = Command::new(&args.program);
            if role == Role::Maintainer {
                as_owner(&mut c);
            }
            Err(c.args(&args.args).exec()).tried(format!("run `{}`", args.program.display()))
        }
    }
}

/// The store's owner has nothing to do with the person's home and temporary files.
pub(crate) fn as_owner(c: &mut Command) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // The host's root has a home; root of the namespace may not even look at it.
    let home = if codchi_fs::read_dir("/root").is_ok() { "/root" } else { "/nix/var/nix/codchi" };
    c.env("HOME", home).env("USER", "root");
    for name in ["TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"] {
        c.env_remove(name);
    }
}

fn with_daemon(config: &OuterConfig, daemon: &Path, args: &Args) -> Result<u8> {
    let outer = outer::enter(config)?;
    // Only this namespace has that folder, so the name need not be unique.
    let socket = Path::new(outer::OWN_DIR).join("caller.socket");
    let listener = UnixListener::bind(&socket).tried("listen for the program's calls")?;
    let serve = || -> Result<std::convert::Infallible> {
        outer::become_role(&outer, Role::Maintainer)?;
        die_with_parent()?;
        serve_trusted(&listener, daemon)
    };
    let server = process::fork(|| match serve() {
        Ok(never) => match never {},
        Err(e) => {
            complain(&e);
            1
        }
    })
    .tried("start a process")?;
    let start = || -> Result<std::convert::Infallible> {
        outer::become_role(&outer, Role::Caller)?;
        die_with_parent()?;
        let mut c = Command::new(&args.program);
        c.args(&args.args).env("NIX_REMOTE", format!("unix://{}", socket.display()));
        Err(c.exec()).tried(format!("run `{}`", args.program.display()))
    };
    let child = process::fork(|| match start() {
        Ok(never) => match never {},
        Err(e) => {
            complain(&e);
            127
        }
    })
    .tried("start a process")?;
    let end = child.wait().tried("wait for a program")?;
    // Its connections are gone, so its daemons are ending; the server has nothing left to do.
    server.signal(rustix::process::Signal::KILL.as_raw()).tried("end the server")?;
    server.wait().tried("wait for the server")?;
    Ok(end.shell_status())
}

pub(crate) fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .tried("follow the parent process")
}

/// A daemon per connection. The person owns the store, so it may be told what its owner may tell it.
fn serve_trusted(listener: &UnixListener, daemon: &Path) -> Result<std::convert::Infallible> {
    let mut running = Vec::new();
    loop {
        let (stream, _) = listener.accept().tried("take a call")?;
        running.push(start_daemon(daemon_command(daemon, Trust::Full, &[]), &stream, || Ok(()))?);
        running.retain(|c| !matches!(c.try_wait(), Ok(Some(_))));
    }
}

/// Starts a daemon for a connection; it ends with this process. `before` is done in the new process.
pub(crate) fn start_daemon(
    mut c: Command,
    stream: &UnixStream,
    before: impl FnOnce() -> Result<()>,
) -> Result<process::Child> {
    let dup = || -> Result<Stdio> {
        Ok(Stdio::from(OwnedFd::from(stream.try_clone().tried("copy a descriptor")?)))
    };
    c.stdin(dup()?).stdout(dup()?);
    process::fork(|| {
        match die_with_parent().and_then(|()| before()) {
            Ok(()) => {
                let what = format!("run `{}`", c.get_program().display());
                complain(&StoreError::System { what, source: c.exec() });
            }
            Err(e) => complain(&e),
        }
        127
    })
    .tried("start a daemon")
}

/// What a daemon believes of who speaks to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// As root.
    Full,
    /// As anybody.
    None,
}

/// A `nix-daemon` that serves its stdin and stdout.
pub(crate) fn daemon_command(program: &Path, trust: Trust, more: &[&str]) -> Command {
    let mut c = Command::new(program);
    as_owner(&mut c);
    c.args(["--extra-experimental-features", "daemon-trust-override", "--stdio"]);
    c.arg(if trust == Trust::Full { "--force-trusted" } else { "--force-untrusted" });
    c.args(more);
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args> {
        Args::parse(args.iter().map(Into::into))
    }

    #[test]
    fn arguments_of_the_program_are_its_own() {
        let a = parse(&["--nix", "/n", "--as-root", "--", "nix", "--as-root", "--", "x"]).unwrap();
        assert_eq!(
            (a.nix.as_deref(), a.as_root, a.program.to_str()),
            (Some(Path::new("/n")), true, Some("nix"))
        );
        assert_eq!(a.args, ["--as-root", "--", "x"]);
        let a = parse(&["nix", "--version"]).unwrap();
        assert_eq!((a.nix, a.args.len()), (None, 1));
    }

    #[test]
    fn what_is_not_understood_is_wrong_usage() {
        for bad in [&[][..], &["--nix"], &["--odd", "x"], &["--"]] {
            assert!(matches!(parse(bad), Err(StoreError::Usage(_))), "{bad:?}");
        }
    }
}
