//! The resolver file of a machine, which follows the host's.

use std::os::fd::OwnedFd;
use std::path::Path;

use codchi_fs::Context;
use rustix::fs::Mode;
use rustix::fs::inotify::{CreateFlags, WatchFlags};

use crate::error::{Doing, Result};
use crate::network::{self, Way};

/// Watches the host's resolver file.
pub(crate) fn watch() -> Result<OwnedFd> {
    let host = Path::new("/etc/resolv.conf");
    let watch =
        rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).doing("watch a directory")?;
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    let real = std::fs::canonicalize(host).ok();
    // In the outer namespace /etc may be a private folder with a link to the host's file.
    let dirs = [Some(host), real.as_deref()].into_iter().flatten().filter_map(Path::parent);
    for dir in dirs.chain([Path::new(crate::outer::HOST_ETC)]) {
        let _ = rustix::fs::inotify::add_watch(&watch, dir, flags);
    }
    Ok(watch)
}

/// Whether anything has changed since it was asked last.
pub(crate) fn changed(watch: &OwnedFd) -> bool {
    let mut seen = false;
    while rustix::io::read(watch, &mut [0u8; 4096]).is_ok_and(|n| n > 0) {
        seen = true;
    }
    seen
}

/// Writes the machine's file, in its runtime directory.
pub(crate) fn write(dir: &Path, way: Way) -> Result<()> {
    let text = network::resolv_conf(&network::host_resolvers()?, way.resolver());
    let path = dir.join("host/resolv.conf");
    if codchi_fs::read_if_exists(&path)?.as_deref() != Some(&text) {
        crate::start::write_quick(&path, text.as_bytes())?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o644)).at("change the mode of", &path)?;
    }
    Ok(())
}
