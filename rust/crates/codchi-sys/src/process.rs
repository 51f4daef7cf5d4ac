//! Copies of the process, namespaces, descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::check;

/// Namespaces, as flags of clone(2), unshare(2) and setns(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespaces(u64);

impl Namespaces {
    /// None.
    pub const NONE: Self = Self(0);
    /// User and group ids, capabilities.
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    /// Process ids.
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    /// Host name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);
    /// System V IPC and message queues.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// Network.
    pub const NET: Self = Self(libc::CLONE_NEWNET as u64);
    /// Root of the cgroup tree.
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A child process: its id, and a descriptor that stays true when the id is used again.
#[derive(Debug)]
pub struct Child {
    /// Process id as the parent sees it.
    pub pid: i32,
    fd: OwnedFd,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with a code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl End {
    /// The status a shell shows.
    pub fn shell_status(self) -> u8 {
        match self {
            End::Code(c) => u8::try_from(c).unwrap_or(255),
            End::Signal(s) => u8::try_from(128 + s).unwrap_or(255),
        }
    }
}

impl Child {
    /// Takes over an own child by its id. It must not have been waited for.
    pub fn adopt(pid: i32) -> io::Result<Child> {
        Ok(Child { pid, fd: pidfd_open(pid)? })
    }

    /// Waits for the end.
    pub fn wait(&self) -> io::Result<End> {
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(s)) => return Ok(end_of(&s)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The end, if it has come.
    pub fn try_wait(&self) -> io::Result<Option<End>> {
        let opts = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), opts) {
            Ok(s) => Ok(s.as_ref().map(end_of)),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends a signal by number (0 asks whether it lives).
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        pidfd_signal(self.fd.as_fd(), signal)
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn end_of(s: &rustix::process::WaitIdStatus) -> End {
    match (s.exit_status(), s.terminating_signal()) {
        (Some(c), _) => End::Code(c),
        (None, Some(sig)) => End::Signal(sig),
        (None, None) => End::Code(255),
    }
}

/// Collects every ended child that nobody waits for by name: `(pid, end)` until none is left.
/// Children in `keep` are left for their owners.
pub fn reap_strays(keep: &[i32]) -> io::Result<()> {
    // NOWAIT first: a child somebody holds a descriptor of must stay to be waited for by that descriptor.
    for task in children()? {
        if keep.contains(&task) {
            continue;
        }
        if let Some(pid) = Pid::from_raw(task) {
            let opts = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = rustix::process::waitid(WaitId::Pid(pid), opts);
        }
    }
    Ok(())
}

/// Ids of the children of this process.
pub fn children() -> io::Result<Vec<i32>> {
    let path = format!("/proc/self/task/{}/children", rustix::process::getpid().as_raw_nonzero());
    let fd = rustix::fs::open(path, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC, 0.into())?;
    let mut text = String::new();
    io::Read::read_to_string(&mut std::fs::File::from(fd), &mut text)?;
    Ok(text.split_whitespace().filter_map(|w| w.parse().ok()).collect())
}

/// A descriptor of a process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal by number through a descriptor of a process.
pub fn pidfd_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; a bad number is answered with EINVAL.
    let r = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(r).map(|_| ())
}

/// linux/sched.h; the constant of the libc crate does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn single_threaded() -> io::Result<()> {
    // SAFETY: changes nothing; it succeeds exactly when this is the only thread (unshare(2)).
    check(unsafe { libc::unshare(libc::CLONE_THREAD) }.into())
        .map(|_| ())
        .map_err(|_| io::Error::other("this process has more than one thread"))
}

/// Starts a copy of this process that runs `f` and exits with what it returns. A panic exits with 101.
pub fn fork(f: impl FnOnce() -> i32) -> io::Result<Child> {
    clone(Namespaces::NONE, None, f)
}

/// As [`fork`], in new namespaces and, where given, directly in a cgroup (a descriptor of its directory).
pub fn clone(new: Namespaces, cgroup: Option<BorrowedFd<'_>>, f: impl FnOnce() -> i32) -> io::Result<Child> {
    single_threaded()?;
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all fields of clone_args are integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = new.0 | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(c) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = c.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has a copy of this memory, on a copy of this stack; there is one thread
    // only (checked above), so no lock is held by a thread that the child lacks.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<libc::clone_args>()) };
    match check(pid)? {
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
            // SAFETY: ends the process; nothing of the copied state is to be flushed or dropped twice.
            unsafe { libc::_exit(code) }
        }
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let fd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid: i32::try_from(pid).map_err(io::Error::other)?, fd })
        }
    }
}

/// Ends this process at once, without running exit handlers or flushing: for copies of a process.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Moves this process (its children, for a process namespace) to new namespaces.
pub fn unshare(new: Namespaces) -> io::Result<()> {
    single_threaded()?;
    // SAFETY: with one thread nobody else relies on what is taken apart.
    check(unsafe { libc::unshare(new.0 as libc::c_int) }.into()).map(|_| ())
}

/// Joins the namespace that a descriptor stands for, or with a pidfd those of a process.
pub fn setns(fd: BorrowedFd<'_>, which: Namespaces) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setns(fd.as_raw_fd(), which.0 as libc::c_int) }.into()).map(|_| ())
}

/// Closes every descriptor from `first` on.
///
/// The caller must not use any [`OwnedFd`] of that range any more; this is meant for the moment before exec.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: marks them close-on-exec, so that objects that own one stay valid until exec or exit.
    let r =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(r).map(|_| ())
}

/// Makes `fd` also known as the number `target` (0, 1 or 2), inherited by programs.
pub fn stdio(fd: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    if !(0..=2).contains(&target) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: 0, 1 and 2 are owned by nobody.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into()).map(|_| ())
}

/// Closes a descriptor by its number, in a copy of the process whose object for it is never used or dropped again.
pub fn close_one(number: i32) {
    // SAFETY: marks it close-on-exec and lets go of the file by putting another in its place, so that the number stays
    // valid for whatever object of this process's memory still has it.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if null >= 0 {
            libc::dup3(null, number, libc::O_CLOEXEC);
            libc::close(null);
        }
    }
}

/// Makes `fd` known to the next program as the number `target`, from 3 on; for the moment before exec, in a copy of the
/// process whose descriptors are marked close-on-exec.
pub fn give_descriptor(fd: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    if target < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if fd.as_raw_fd() == target {
        // SAFETY: only clears close-on-exec.
        return check(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }.into()).map(|_| ());
    }
    // SAFETY: what had this number is gone with it, which its owner notices at worst when it closes it; no code of ours
    // runs after the exec that follows.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into()).map(|_| ())
}

/// Takes over the descriptor with this number, such as one named in the environment.
///
/// Fails for a number that is not open; standard descriptors are refused.
pub fn take_descriptor(number: i32) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor, which only we own; the given one stays as it is.
    let new = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }.into())?;
    // SAFETY: new, see above.
    Ok(unsafe { OwnedFd::from_raw_fd(new as i32) })
}

/// Brings the loopback interface of this network namespace up.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let s = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data, zero is valid.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: a zeroed and named ifreq, which the kernel fills and reads.
    unsafe {
        check(libc::ioctl(s.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut req).into())?;
        req.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(s.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut req).into())?;
    }
    Ok(())
}
