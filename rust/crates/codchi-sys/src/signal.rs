//! Signals: blocking and reading them, resetting them, sending them to process groups.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub use libc::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use rustix::process::Pid;

/// The number of the n-th real-time signal.
pub fn real_time(n: i32) -> i32 {
    libc::SIGRTMIN() + n
}

/// Signals of this thread, blocked and read from a descriptor instead; the former mask comes back when it is dropped.
/// See signalfd(2).
pub struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set; sigaddset only refuses numbers out of range.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for s in signals {
            libc::sigaddset(set.as_mut_ptr(), *s);
        }
        set.assume_init()
    }
}

impl Signals {
    /// Blocks `signals` in this thread and those it starts from now on.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals);
        let mut before = set_of(&[]);
        // SAFETY: both sets are initialised and live; the descriptor is new and ours alone.
        unsafe {
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = OwnedFd::from_raw_fd(fd);
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) {
                0 => Ok(Signals { fd, before }),
                e => Err(io::Error::from_raw_os_error(e)),
            }
        }
    }

    /// The next signal that is pending, if one is.
    pub fn next_pending(&self) -> Option<i32> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel fills `info` with whole records of that size, and any bytes are a valid record.
        let info = unsafe {
            if libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) != size as isize {
                return None;
            }
            info.assume_init()
        };
        i32::try_from(info.ssi_signo).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the set is the one this thread had before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Gives every signal its default action and blocks none: what a command expects at its start.
pub fn reset() {
    let none = set_of(&[]);
    // The kernel's `struct sigaction`: handler (0 is SIG_DFL), flags, restorer, mask.
    let default = [0u64; 4];
    // SAFETY: `default` is at least as large as the structure and installs no code of ours; numbers that may not be changed
    // are refused. The system call itself, because the C library keeps some numbers to itself.
    unsafe {
        for s in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, s, default.as_ptr(), std::ptr::null_mut::<u64>(), 8usize);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Whether this process ignores a signal.
pub fn is_ignored(signal: i32) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null pointer for the new action the call only fills `now`; all zeroes is a valid value of it.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Sends a signal, by number, to a process group.
pub fn kill_group(group: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) touches no memory of ours.
    match unsafe { libc::kill(-group.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal, by number, to a process.
pub fn kill_process(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) touches no memory of ours.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
