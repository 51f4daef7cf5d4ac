//! What comes from the host, on engines that cannot put it in its place.

use std::ffi::CStr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind_recursive};

const RUN: &str = "/run";
/// Where a machine has what comes from its host.
const PLACE: &str = "/run/codchi";
/// What an engine mounts in the folder that is handed over.
const FOLDERS: [&str; 4] = ["bin", "agent", "host", "notify"];
/// The file in `host` that says that the host has done its part.
const READY: &str = "/run/codchi/host/ready";
/// How long the host may take. Without it the machine has no network, but is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes /run with what the host gives below it, and waits until the host is ready.
pub fn attach(from: &Path) {
    let memory = |at: &str, options: &CStr| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        said(&format!("mount memory at `{at}`"), mount("tmpfs", at, "tmpfs", flags, options))
    };
    folder(RUN);
    memory(RUN, c"mode=0755");
    folder(PLACE);
    for name in FOLDERS {
        let at = format!("{PLACE}/{name}");
        folder(&at);
        said(&format!("mount `{at}`"), mount_bind_recursive(from.join(name), &at));
    }
    let credentials = format!("{PLACE}/credentials");
    folder(&credentials);
    memory(&credentials, c"mode=0700,size=16m");
    if let Err(e) = wait() {
        eprintln!("codchi-boot: cannot wait for the host: {e}");
    }
}

fn folder(path: &str) {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => eprintln!("codchi-boot: cannot make `{path}`: {e}"),
    }
}

fn said(what: &str, done: Result<(), Errno>) {
    if let Err(e) = done {
        eprintln!("codchi-boot: cannot {what}: {e}");
    }
}

fn wait() -> Result<(), Errno> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&changes, "/run/codchi/host", WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    let until = Instant::now() + PATIENCE;
    while rustix::fs::stat(READY).is_err() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            eprintln!("codchi-boot: the host does not answer; `codchi start` on it connects the network");
            return Ok(());
        }
        let left = rustix::time::Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        match poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        while rustix::io::read(&changes, &mut [0u8; 4096]).is_ok_and(|n| n > 0) {}
    }
    Ok(())
}
