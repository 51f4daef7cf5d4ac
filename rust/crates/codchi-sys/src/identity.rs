//! Ids, capabilities, the session keyring.

use std::io;

use crate::check;

/// Sets real, effective and saved user id of the process.
pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setresuid(uid, uid, uid) }.into()).map(|_| ())
}

/// Sets real, effective and saved group id of the process.
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setresgid(gid, gid, gid) }.into()).map(|_| ())
}

/// Sets the supplementary groups of the process.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length belong to one slice.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }.into()).map(|_| ())
}

/// Runs `f` with other ids for file access, so that what it creates belongs to them.
///
/// # Errors
/// The capabilities of this thread could not be read or given back; a change of ids takes some away.
pub fn with_file_ids<T>(uid: u32, gid: u32, f: impl FnOnce() -> T) -> io::Result<T> {
    let before = capabilities()?;
    // SAFETY: no memory is passed; these never fail, they answer the former id. The group first: changing the user may
    // take the right to change the group.
    let (old_gid, old_uid) = unsafe { (libc::setfsgid(gid), libc::setfsuid(uid)) };
    let done = f();
    // SAFETY: as above.
    unsafe {
        libc::setfsuid(old_uid as libc::uid_t);
        libc::setfsgid(old_gid as libc::gid_t);
    }
    set_data(&before)?;
    // Changing ids made /proc/self foreign to us; see PR_SET_DUMPABLE.
    set_dumpable(true)?;
    Ok(done)
}

/// Drops a capability, by number, from the bounding set. One that the kernel does not know is gone already.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) }.into()) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        r => r.map(|_| ()),
    }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Half of the capability sets of a thread.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Version 3 of capset(2), which takes two halves; this thread.
fn header() -> Header {
    Header { version: 0x2008_0522, pid: 0 }
}

fn capabilities() -> io::Result<[Data; 2]> {
    let mut data = [Data::default(); 2];
    let mut header = header();
    // SAFETY: header and data have the layout of capget(2), version 3 (two data blocks).
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    Ok(data)
}

fn set_data(data: &[Data; 2]) -> io::Result<()> {
    let mut header = header();
    // SAFETY: header and data have the layout of capset(2), version 3 (two data blocks).
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(|_| ())
}

/// Gives up all capabilities of this thread.
pub fn drop_capabilities() -> io::Result<()> {
    set_data(&[Data::default(); 2])
}

/// Leaves the session keyring that was inherited, for a new one of our own. Where there are no keyrings (another kernel, a
/// machine's own filter) none was inherited.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    match check(unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    }) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        done => done.map(|_| ()),
    }
}

/// Sets or clears the set-user-id style limit on core dumps and on reading `/proc/self` by others of the same id.
pub fn set_dumpable(on: bool) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(on), 0, 0, 0) }.into()).map(|_| ())
}
