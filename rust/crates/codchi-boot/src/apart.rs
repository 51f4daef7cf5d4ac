//! A container on another host: nothing of the one that looks after it can be mounted, so all comes by a stream that the engine leads
//! to a program in it.

use std::ffi::CStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::host::{folder, memory, said};

/// Where a machine has what comes from its host.
const PLACE: &str = "/run/codchi";
/// Memory of the machine's own, below that.
const MEMORY: [(&str, &CStr); 3] = [
    ("agent", c"mode=0755,size=256k,nr_inodes=64"),
    ("credentials", c"mode=0700,size=16m"),
    ("host", c"mode=0755,size=1m"),
];
/// That there is no host beside the machine: whoever comes in its place is root in the machine.
const APART: &str = "/run/codchi/host/apart";
/// The word of this start.
const WAITING: &str = "/run/codchi/host/waiting";
/// The same word, when the host has done its part.
const READY: &str = "/run/codchi/host/ready";
/// How long the host may take. Without it the machine has neither secrets nor network, but is there.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest name of a thing that is given.
const NAME: usize = 255;
/// Most bytes of one.
const MOST: u64 = 16 << 20;

/// Makes /run, and waits until the host has given what the machine has of it. `program` is this one, whose folder has the others.
pub fn attach(program: &Path) {
    folder("/run");
    memory("/run", c"mode=0755");
    folder(PLACE);
    for (name, options) in MEMORY {
        let at = format!("{PLACE}/{name}");
        folder(&at);
        memory(&at, options);
    }
    let bin = format!("{PLACE}/bin");
    folder(&bin);
    if let Some(programs) = program.parent() {
        said(&format!("mount `{bin}`"), rustix::mount::mount_bind(programs, &bin));
    }
    if let Err(e) = wait() {
        eprintln!("codchi-boot: cannot wait for the host: {e}");
    }
}

fn wait() -> Result<(), codchi_fs::FsError> {
    let word = crate::new_id();
    codchi_fs::write(APART, "")?;
    codchi_fs::write_atomic(WAITING, &word, 0o600)?;
    if !wait_until(PATIENCE, || codchi_fs::read_to_string(READY).is_ok_and(|text| text == word)) {
        eprintln!("codchi-boot: the host does not answer; `codchi start` on it connects the machine");
    }
    Ok(())
}

/// Waits until something is so that depends on the files of the host's folder.
fn wait_until(patience: Duration, is_so: impl Fn() -> bool) -> bool {
    let until = Instant::now() + patience;
    let Ok(changes) = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) else { return is_so() };
    loop {
        let watched = inotify::add_watch(
            &changes,
            format!("{PLACE}/host"),
            WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE,
        );
        if is_so() {
            return true;
        }
        let mut left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        if watched.is_err() {
            // The folder itself is still to come.
            left = left.min(Duration::from_millis(10));
        }
        let left = rustix::time::Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        let _ = poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&left));
        while rustix::io::read(&changes, &mut [0u8; 4096]).is_ok_and(|n| n > 0) {}
    }
}

/// Takes from standard input what a machine that waits has of its host: names below `/run/codchi`, and what is to be there. One that
/// does not wait has it already.
pub fn take() -> Result<(), String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    // It may have only just begun.
    let waits = || Path::new(WAITING).exists();
    if !wait_until(PATIENCE, waits) {
        return Err("the machine does not wait for its host".into());
    }
    let word = codchi_fs::read_to_string(WAITING).map_err(|e| told(&e))?;
    let given = codchi_fs::read_to_string(READY).is_ok_and(|ready| ready == word);
    let mut from = io::stdin().lock();
    while let Some((name, mut bytes)) = entry(&mut from).map_err(|e| told(&e))? {
        let (folder, file) = name.split_once('/').unwrap_or_default();
        let mode = match folder {
            "credentials" => 0o400,
            "host" => 0o644,
            _ => return Err(format!("nothing is taken for `{name}`")),
        };
        if file.is_empty() || file.contains('/') || file.starts_with('.') {
            return Err(format!("nothing is taken for `{name}`"));
        }
        if !given || folder == "host" {
            let written = codchi_fs::write_atomic(PathBuf::from(PLACE).join(folder).join(file), &bytes, mode);
            bytes.fill(0);
            std::hint::black_box(&bytes);
            written.map_err(|e| told(&e))?;
        }
    }
    codchi_fs::write_atomic(READY, word, 0o600).map_err(|e| told(&e))
}

/// One thing: the length of its name (u32), the name, the length of its bytes (u64), the bytes, all little-endian.
fn entry(from: &mut dyn Read) -> io::Result<Option<(String, Vec<u8>)>> {
    let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    let mut length = [0; 4];
    match from.read(&mut length)? {
        0 => return Ok(None),
        n => from.read_exact(length.get_mut(n..).unwrap_or_default())?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > NAME {
        return Err(odd("a name is too long"));
    }
    let mut name = vec![0; length];
    from.read_exact(&mut name)?;
    let name = String::from_utf8(name).map_err(|_| odd("a name is not UTF-8"))?;
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MOST {
        return Err(odd("something is too big"));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(Some((name, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, bytes: &[u8]) -> Vec<u8> {
        let mut all = (name.len() as u32).to_le_bytes().to_vec();
        all.extend(name.as_bytes());
        all.extend((bytes.len() as u64).to_le_bytes());
        all.extend(bytes);
        all
    }

    #[test]
    fn what_is_given_is_read_and_what_is_cut_is_not_taken() {
        let all = [one("host/a", b"text"), one("credentials/b", b"")].concat();
        let mut from = &all[..];
        assert_eq!(entry(&mut from).unwrap(), Some(("host/a".into(), b"text".to_vec())));
        assert_eq!(entry(&mut from).unwrap(), Some(("credentials/b".into(), Vec::new())));
        assert_eq!(entry(&mut from).unwrap(), None);
        for n in 1..all.len() {
            let mut from = &all[..n];
            let whole = |e: io::Result<Option<_>>| e.is_ok_and(|e| e.is_some());
            while whole(entry(&mut from)) {}
        }
        assert!(entry(&mut &one("host/a", b"text")[..9]).is_err());
        assert!(entry(&mut &u32::MAX.to_le_bytes()[..]).is_err());
    }
}
