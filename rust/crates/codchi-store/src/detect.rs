//! Whether the host has a Nix daemon that really answers, and which version it is.
//!
//! The first words of Nix's worker protocol (`worker-protocol.hh`): two magic numbers and a version each way, and since
//! protocol 1.33 the daemon names its own version.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use codchi_nix::Version;

/// Where a host's daemon listens.
pub const SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

const HELLO: u64 = 0x6e69_7863;
const ANSWER: u64 = 0x6478_696f;
/// What we say we speak: the oldest protocol in which the daemon names its version and no features are negotiated.
const PROTOCOL: u64 = 0x0121;

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
    handshake(stream)
}

fn handshake(mut s: impl Read + Write) -> io::Result<Version> {
    let odd = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    s.write_all(&HELLO.to_le_bytes())?;
    if number(&mut s)? != ANSWER {
        return Err(odd("it does not speak Nix's protocol"));
    }
    let theirs = number(&mut s)?;
    if theirs < PROTOCOL {
        // The protocol of Nix 2.14 and older, which names no version.
        return Err(odd("it is older than Nix 2.15"));
    }
    s.write_all(&PROTOCOL.to_le_bytes())?;
    // No CPU affinity, and a word that is no longer used.
    s.write_all(&[0; 16])?;
    let length = number(&mut s)? as usize;
    if length > 256 {
        return Err(odd("its version is too long"));
    }
    let mut text = vec![0; length];
    s.read_exact(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.parse().map_err(|()| odd(&format!("its version is `{text}`")))
}

fn number(s: &mut impl Read) -> io::Result<u64> {
    let mut b = [0; 8];
    s.read_exact(&mut b)?;
    Ok(u64::from_le_bytes(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Talk(io::Cursor<Vec<u8>>, Vec<u8>);
    impl Read for Talk {
        fn read(&mut self, b: &mut [u8]) -> io::Result<usize> {
            self.0.read(b)
        }
    }
    impl Write for Talk {
        fn write(&mut self, b: &[u8]) -> io::Result<usize> {
            self.1.write(b)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say(words: &[u64], text: &[u8]) -> io::Result<Version> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.extend(text);
        handshake(Talk(io::Cursor::new(bytes), Vec::new()))
    }

    #[test]
    fn a_daemon_names_its_version_and_anything_else_is_refused() {
        assert_eq!(say(&[ANSWER, 0x126, 6], b"2.26.3\0\0").unwrap().to_string(), "2.26.3");
        assert!(say(&[ANSWER, 0x120], b"").is_err());
        assert!(say(&[7, 7, 7], b"").is_err());
        assert!(say(&[ANSWER, 0x126, u64::MAX], b"").is_err());
        assert!(say(&[ANSWER, 0x126, 6], b"2").is_err());
        assert!(say(&[], b"HTTP/1.1 400").is_err());
    }
}
