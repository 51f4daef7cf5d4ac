//! Forking into a control group, and replacing the process image.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// A process made by [`fork`].
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: Pid,
    /// Its descriptor: readable when it has ended; closed on exec.
    pub pidfd: OwnedFd,
}

/// `struct clone_args` of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Runs `child` in a forked process, which ends with the status it returns; born in `cgroup` (a directory of cgroup2)
/// where one is given. See clone3(2).
///
/// # Errors
/// `EINVAL` when this process has more than one thread: only a copy of a single thread is whole.
pub fn fork(cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> u8) -> io::Result<Child> {
    // SAFETY: unshare(CLONE_THREAD) changes nothing; it succeeds exactly when this is the only thread (unshare(2)).
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(dir) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = dir.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of all memory, and there is no other thread whose locks could
    // be copied held; `args` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    match Pid::from_raw(pid as i32) {
        // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
        Some(pid) => Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        None => {
            let status = child();
            // SAFETY: ends the child at once, without running what the parent registered for its own end.
            unsafe { libc::_exit(status.into()) }
        }
    }
}

/// Replaces the process image, as execve(2); comes back only with an error.
pub fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let list = |from: &[CString]| {
        from.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>()
    };
    let (argv, env) = (list(argv), list(env));
    // SAFETY: both lists are null-terminated arrays of pointers into strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// The process id of the peer of a unix socket as this pid namespace sees it, 0 when it lives outside, and its user id (unix(7),
/// SO_PEERCRED).
pub fn peer(socket: impl AsFd) -> io::Result<(u32, u32)> {
    let mut cred = libc::ucred { pid: -1, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `cred`, which is plain data of that size.
    let r = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut length,
        )
    };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = u32::try_from(cred.pid).map_err(|_| io::Error::from_raw_os_error(libc::ENOTCONN))?;
    Ok((pid, cred.uid))
}

/// Keeps every descriptor from `first` on out of the programs started from now on (close_range(2)).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags of descriptors change, nothing is closed now.
    match unsafe { libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
