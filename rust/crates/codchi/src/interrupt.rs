//! Ctrl-C: children are ended, what was begun is put right, the exit status is 130.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static HAPPENED: AtomicBool = AtomicBool::new(false);
static PUTTING_RIGHT: AtomicBool = AtomicBool::new(false);

/// From here on this process puts right what was begun: what it starts for that is not ended by the interrupt before.
pub fn put_right() {
    PUTTING_RIGHT.store(true, Ordering::Relaxed);
}

/// Takes signals that would end this process, and does nothing.
pub fn ignore() {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
}

/// Whether this program was interrupted.
pub fn happened() -> bool {
    HAPPENED.load(Ordering::Relaxed)
}

/// Ends the children of this process when it is interrupted, so that whatever it waits for fails; then it has a while to put
/// things right before it ends itself. What is left is in the journal.
pub fn watch() {
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    std::thread::spawn(move || {
        let mut before = false;
        for _ in signals.forever() {
            HAPPENED.store(true, Ordering::Relaxed);
            end_children();
            if before {
                end();
            }
            before = true;
            std::thread::spawn(|| {
                // A child may start others while it ends.
                for _ in 0..60 {
                    std::thread::sleep(Duration::from_millis(250));
                    if !PUTTING_RIGHT.load(Ordering::Relaxed) {
                        end_children();
                    }
                }
                end();
            });
        }
    });
}

/// Ends this process, whatever it does.
fn end() -> ! {
    crate::prompt::restore();
    std::process::exit(130)
}

fn end_children() {
    let tasks = codchi_fs::read_dir("/proc/self/task").unwrap_or_default();
    for task in tasks {
        let children = codchi_fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children
            .split_whitespace()
            .filter_map(|p| p.parse().ok())
            .filter_map(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
    }
}
