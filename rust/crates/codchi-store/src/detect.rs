//! Whether the host has a Nix daemon that really answers, and which version it is.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use codchi_nix::Version;
use codchi_nix::daemon::Daemon;

/// Where a host's daemon listens.
pub const SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// A host's Nix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNix {
    /// The version of its daemon.
    pub version: Version,
    /// The directory of its programs.
    pub bin: PathBuf,
}

/// Looks for a host's Nix that can be used. The error says in words why there is none.
pub fn host(path: Option<&std::ffi::OsStr>) -> Result<HostNix, String> {
    let version = ask(Path::new(SOCKET)).map_err(|e| format!("`{SOCKET}`: {e}"))?;
    if version < Version::FLOOR {
        return Err(format!("its version is {version}"));
    }
    let mut places: Vec<PathBuf> = path.map(|p| std::env::split_paths(p).collect()).unwrap_or_default();
    places.extend(["/nix/var/nix/profiles/default/bin".into(), "/run/current-system/sw/bin".into()]);
    let bin = places
        .into_iter()
        .find(|p| p.is_absolute() && p.join("nix").is_file() && p.join("nix-store").exists());
    let bin = bin.ok_or("its program `nix` was not found")?;
    match program_version(&bin.join("nix")) {
        Some(v) if v >= Version::FLOOR => Ok(HostNix { version, bin }),
        Some(v) => Err(format!("`{}` is of version {v}", bin.join("nix").display())),
        None => Err(format!("`{}` does not tell its version", bin.join("nix").display())),
    }
}

/// The version of a program `nix`, which need not be its daemon's: by the store path it lies in, else by asking it.
fn program_version(nix: &Path) -> Option<Version> {
    let named = |p: &Path| p.ancestors().nth(2)?.file_name()?.to_str()?.split_once("-nix-")?.1.parse().ok();
    nix.canonicalize().ok().as_deref().and_then(named).or_else(|| {
        let out =
            std::process::Command::new(nix).arg("--version").stdin(std::process::Stdio::null()).output();
        Version::from_banner(&String::from_utf8_lossy(&out.ok()?.stdout))
    })
}

/// Asks the daemon behind a socket for its version.
pub fn ask(socket: &Path) -> io::Result<Version> {
    let stream = UnixStream::connect(socket)?;
    let patience = Some(Duration::from_secs(3));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    Ok(Daemon::greet(stream)?.version())
}
