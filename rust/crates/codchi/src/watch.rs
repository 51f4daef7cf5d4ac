//! Waits until something about machines may be otherwise: files of the caller's, and what engines tell.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use codchi_core::name::MachineName;
use codchi_drivers::Watchers;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::app::App;
use crate::worker::HostParts;

/// After this long it may be otherwise without anybody telling: a checkout in a machine, an answer that grew old.
const AT_LEAST: Duration = Duration::from_secs(10);
/// What happens at once is seen at once.
const MOMENT: Duration = Duration::from_millis(50);

/// Those who tell.
pub struct Watch {
    engines: Watchers,
    told: Option<UnixStream>,
    files: Option<OwnedFd>,
}

impl Watch {
    /// Nobody yet.
    pub fn new() -> Watch {
        // Without a descriptor left nobody can tell, and it is looked again after a while.
        let pair = || -> std::io::Result<(UnixStream, UnixStream)> {
            let (told, tell) = UnixStream::pair()?;
            told.set_nonblocking(true)?;
            tell.set_nonblocking(true)?;
            Ok((told, tell))
        };
        let (told, tell) = pair().ok().unzip();
        // One that is full has been told.
        let tell = move || drop(tell.as_ref().map(|mut tell| tell.write(b"x")));
        Watch { engines: Watchers::new(Arc::new(tell)), told, files: None }
    }

    /// Looks at what is there now, and at these machines. What changes from now on ends the next [`Watch::wait`].
    pub fn begin(&mut self, app: &App, names: &[MachineName]) {
        let parts = HostParts::none();
        let host = parts.host(app, None);
        for name in names {
            if let Ok(attachment) = app.attachment(name)
                && let Ok(driver) = codchi_drivers::find(&attachment.driver)
            {
                driver.watch(&host, name, &mut self.engines);
            }
        }
        let whole = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        let edited = whole | WatchFlags::CLOSE_WRITE;
        let replaced = WatchFlags::MOVED_TO | WatchFlags::DELETE;
        let dirs = &app.dirs;
        let mut all: Vec<(PathBuf, WatchFlags)> = vec![
            (dirs.machines(), whole),
            (dirs.runtime.join("machines"), whole),
            (dirs.cache.join("updates"), WatchFlags::MOVED_TO),
        ];
        for name in names {
            all.push((dirs.machine(name), edited));
            all.push((dirs.machine_runtime(name), replaced));
            all.push((dirs.generations(name), whole));
        }
        self.files = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        for (path, flags) in all {
            // What is not there yet comes to be in a folder that is.
            let _ = self.files.as_ref().map(|files| inotify::add_watch(files, path, flags));
        }
    }

    /// Waits.
    pub fn wait(&mut self) {
        let until = Instant::now() + AT_LEAST;
        let left = |until: Instant| {
            let left = until.saturating_duration_since(Instant::now());
            rustix::time::Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
        };
        loop {
            let mut fds: Vec<PollFd<'_>> = self.told.iter().map(|t| PollFd::new(t, PollFlags::IN)).collect();
            fds.extend(self.files.iter().map(|f| PollFd::new(f, PollFlags::IN)));
            match poll(&mut fds, Some(&left(until))) {
                Err(rustix::io::Errno::INTR) if Instant::now() < until => {}
                _ => break,
            }
        }
        std::thread::sleep(MOMENT);
        let Some(mut told) = self.told.as_ref() else { return };
        while told.read(&mut [0; 256]).is_ok_and(|n| n > 0) {}
    }
}
