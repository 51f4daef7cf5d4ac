//! The one place with unsafe code: system calls that rustix does not wrap.
//!
//! Every function here is safe to call. Those that copy the process refuse to run with more than one thread, because a
//! copy of a process with threads may find any lock taken for ever.
#![allow(unsafe_code)]

pub mod identity;
pub mod memory;
pub mod mount;
pub mod mux;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod spawn;

use std::io;

/// The result of a C function that answers -1 and sets errno.
pub(crate) fn check(r: libc::c_long) -> io::Result<libc::c_long> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}
