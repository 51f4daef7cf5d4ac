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
pub fn with_file_ids<T>(uid: u32, gid: u32, f: impl FnOnce() -> T) -> T {
    struct Back(libc::c_int, libc::c_int);
    impl Drop for Back {
        fn drop(&mut self) {
            // SAFETY: no memory is passed; these never fail, they answer the former id.
            unsafe {
                libc::setfsuid(self.0 as libc::uid_t);
                libc::setfsgid(self.1 as libc::gid_t);
            }
            // Changing ids made /proc/self foreign to us; see PR_SET_DUMPABLE.
            let _ = set_dumpable(true);
        }
    }
    // SAFETY: as above. The group first: changing the user may take the right to change the group.
    let back = unsafe {
        let g = libc::setfsgid(gid);
        Back(libc::setfsuid(uid), g)
    };
    let done = f();
    drop(back);
    done
}

/// Drops a capability, by number, from the bounding set. One that the kernel does not know is gone already.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) }.into()) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        r => r.map(|_| ()),
    }
}

/// Sets permitted, effective and inheritable capabilities of this thread, as bit sets.
pub fn set_capabilities(permitted: u64, effective: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: header and data have the layout of capset(2), version 3 (two data blocks).
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(|_| ())
}

/// Leaves the session keyring that was inherited, for a new one of our own.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) })
        .map(|_| ())
}

/// Sets or clears the set-user-id style limit on core dumps and on reading `/proc/self` by others of the same id.
pub fn set_dumpable(on: bool) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(on), 0, 0, 0) }.into()).map(|_| ())
}
