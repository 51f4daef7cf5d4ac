//! Roots: links that keep what they point to from collection.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};

use crate::daemon::Daemon;
use crate::{Nix, NixError, Result, Role, StorePath};

/// What a daemon reads and writes.
struct Ends(ChildStdout, ChildStdin);

impl Read for Ends {
    fn read(&mut self, b: &mut [u8]) -> io::Result<usize> {
        self.0.read(b)
    }
}

impl Write for Ends {
    fn write(&mut self, b: &[u8]) -> io::Result<usize> {
        self.1.write(b)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

impl Nix {
    /// Makes a link (on the host) point to a path and registers it as a root.
    pub fn add_root(&self, link: &Path, target: &StorePath) -> Result<()> {
        self.add_roots(&[(link.into(), target.clone())])
    }

    /// The same for any number of links, in their order, by one process. None is made to a path that the store does not have.
    pub fn add_roots(&self, roots: &[(PathBuf, StorePath)]) -> Result<()> {
        if roots.is_empty() {
            return Ok(());
        }
        let program = "nix-daemon";
        let mut c = self.launch().command(program, Role::Caller);
        c.arg("--stdio").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawn = |source| NixError::Spawn { program: program.into(), source };
        let mut child = c.spawn().map_err(spawn)?;
        let (Some(out), Some(to)) = (child.stdout.take(), child.stdin.take()) else {
            return Err(spawn(io::Error::other("no way to speak to it")));
        };
        let added = register(Ends(out, to), roots);
        // Its streams are closed: it ends.
        let end = child.wait_with_output().map_err(spawn)?;
        added.map_err(|e| match e {
            Failed::Link(e) => e.into(),
            Failed::Talk(e) => {
                let said = String::from_utf8_lossy(&end.stderr).trim().to_owned();
                let message = if said.is_empty() { e.to_string() } else { format!("{e}: {said}") };
                NixError::Command { what: "registering a root".into(), message }
            }
        })
    }
}

enum Failed {
    Link(codchi_fs::FsError),
    Talk(io::Error),
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Failed {
        Failed::Talk(e)
    }
}

fn register(ends: Ends, roots: &[(PathBuf, StorePath)]) -> Result<(), Failed> {
    let mut daemon = Daemon::greet(ends)?;
    daemon.admitted()?;
    for (link, target) in roots {
        // No collection that begins before the link is registered takes it.
        if !daemon.hold(target)? {
            return Err(io::Error::other(format!("`{target}` is not in the store")).into());
        }
        codchi_fs::symlink_atomic(target.as_path(), link).map_err(Failed::Link)?;
        daemon.add_indirect_root(link)?;
    }
    Ok(())
}
