//! Attributes of mounts.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// What mount_setattr(2) changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// Flags to set (`MOUNT_ATTR_*`).
    pub set: u64,
    /// Flags to clear.
    pub clear: u64,
    /// Make it private: mounts made elsewhere do not show up in it, nor the other way round.
    pub private: bool,
    /// Map owners as this user namespace does.
    pub idmap: Option<BorrowedFd<'a>>,
    /// The mounts below it, too.
    pub recursive: bool,
}

/// Not writable.
pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Set-user-id bits and file capabilities mean nothing.
pub const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device nodes cannot be opened.
pub const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Programs cannot be started.
pub const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Changes a mount that is open as `fd`.
pub fn set_attributes(fd: BorrowedFd<'_>, a: &Attributes<'_>) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: a.set | if a.idmap.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: a.clear,
        propagation: if a.private { libc::MS_PRIVATE } else { 0 },
        userns_fd: a.idmap.map_or(0, |f| f.as_raw_fd() as u64),
    };
    let empty: &CStr = c"";
    let flags = libc::AT_EMPTY_PATH | if a.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the string ends with NUL, the structure and its size belong together, the descriptors are borrowed.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            empty.as_ptr(),
            flags,
            &raw const attr,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    check(r).map(|_| ())
}
