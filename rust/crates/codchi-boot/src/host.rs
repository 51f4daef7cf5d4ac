//! What comes from the host, on engines that cannot put it in its place.

use std::ffi::CStr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind_recursive};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

const RUN: &str = "/run";
/// Where a machine has what comes from its host.
const PLACE: &str = "/run/codchi";
/// What an engine mounts in the folder that is handed over.
const FOLDERS: [&str; 3] = ["bin", "host", "notify"];
/// Memory of the machine's own: where its agent listens, and where its secrets are.
const MEMORY: [(&str, &CStr); 2] =
    [("agent", c"mode=0755,size=256k,nr_inodes=64"), ("credentials", c"mode=0700,size=16m")];
/// The file in which the host repeats a word when it has done its part.
const READY: &str = "/run/codchi/host/ready";
const NOTIFY: &str = "/run/codchi/notify/socket";
/// How long the host may take. Without it the machine has no network, but is there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the host is told again that it is waited for: perhaps nobody heard it.
const AGAIN: Duration = Duration::from_millis(300);

/// Makes /run with what the host gives below it, and waits until the host is ready.
pub fn attach(from: &Path) {
    folder(RUN);
    memory(RUN, c"mode=0755");
    folder(PLACE);
    for name in FOLDERS {
        let at = format!("{PLACE}/{name}");
        folder(&at);
        said(&format!("mount `{at}`"), mount_bind_recursive(from.join(name), &at));
    }
    for (name, options) in MEMORY {
        let at = format!("{PLACE}/{name}");
        folder(&at);
        memory(&at, options);
    }
    if let Err(e) = wait() {
        eprintln!("codchi-boot: cannot wait for the host: {e}");
    }
}

/// Mounts memory.
pub fn memory(at: &str, options: &CStr) {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    said(&format!("mount memory at `{at}`"), mount("tmpfs", at, "tmpfs", flags, options));
}

/// Makes a folder, unless it is there.
pub fn folder(path: &str) {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => eprintln!("codchi-boot: cannot make `{path}`: {e}"),
    }
}

/// Says what did not work.
pub fn said(what: &str, done: Result<(), Errno>) {
    if let Err(e) = done {
        eprintln!("codchi-boot: cannot {what}: {e}");
    }
}

/// Says that the host is waited for, with a word of this start alone, until that is repeated.
fn wait() -> Result<(), Errno> {
    let word = crate::new_id();
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&changes, "/run/codchi/host", WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    let until = Instant::now() + PATIENCE;
    while !codchi_fs::read_to_string(READY).is_ok_and(|text| text == word) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            eprintln!("codchi-boot: the host does not answer; `codchi start` on it connects the network");
            return Ok(());
        }
        // Where nobody listens, nobody has to know.
        let _ = notify(&word);
        let left = left.min(AGAIN);
        let left = rustix::time::Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        match poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        while rustix::io::read(&changes, &mut [0u8; 4096]).is_ok_and(|n| n > 0) {}
    }
    Ok(())
}

fn notify(word: &str) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let text = format!("X_CODCHI_WAITING={word}");
    rustix::net::sendto(&socket, text.as_bytes(), SendFlags::NOSIGNAL, &SocketAddrUnix::new(NOTIFY)?)?;
    Ok(())
}
