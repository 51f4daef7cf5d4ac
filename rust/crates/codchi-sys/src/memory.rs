//! Memory for what nobody else may read: kept out of swap and core dumps where the kernel allows it, and emptied when it is
//! given back. And how the allocator treats all other memory.

use std::io::{self, Read};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// How much is asked for first when the size of what is read is not known.
const FIRST: usize = 4096;

/// Gives what is no longer used back to the system: large blocks at once, and with few places for small ones. By itself,
/// glibc learns from the first large block that is freed to keep those that follow.
pub fn keep_little() {
    // SAFETY: sets two numbers of the allocator; called with others, it answers 0 and changes nothing.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Bytes in pages of their own.
pub struct Private {
    at: NonNull<u8>,
    len: usize,
    room: usize,
}

// SAFETY: the pages belong to this value alone, and are changed through `&mut` only.
unsafe impl Send for Private {}
// SAFETY: as above.
unsafe impl Sync for Private {}

impl Private {
    /// So many bytes, all 0.
    pub fn zeroed(len: usize) -> io::Result<Private> {
        let room = len.max(1);
        // SAFETY: asks for new pages; nothing is at the address that the kernel chooses.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                room,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at: NonNull<u8> = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // Best effort: the limit on locked memory may be small, and the bytes are needed all the same.
        // SAFETY: both get a range that was mapped above.
        unsafe {
            libc::mlock(at.as_ptr().cast(), room);
            libc::madvise(at.as_ptr().cast(), room, libc::MADV_DONTDUMP);
        }
        Ok(Private { at, len, room })
    }

    /// A copy of these bytes.
    pub fn copy(bytes: &[u8]) -> io::Result<Private> {
        let mut new = Private::zeroed(bytes.len())?;
        new.copy_from_slice(bytes);
        Ok(new)
    }

    /// All that a reader gives, at most `limit` bytes.
    pub fn read_from(from: &mut impl Read, limit: usize) -> io::Result<Private> {
        let mut held = Private::zeroed(FIRST.min(limit + 1))?;
        let mut len = 0;
        loop {
            if len > limit {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("more than {limit} bytes were given"),
                ));
            }
            if len == held.len() {
                let mut larger = Private::zeroed((held.len() * 4).min(limit + 1))?;
                larger[..len].copy_from_slice(&held);
                held = larger;
            }
            match from.read(&mut held[len..]) {
                Ok(0) => {
                    held.truncate(len);
                    return Ok(held);
                }
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Forgets what comes after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            wipe(&mut self[len..]);
            self.len = len;
        }
    }
}

/// Sets bytes to 0 in a way that is not optimised away.
pub fn wipe(bytes: &mut [u8]) {
    for b in bytes.iter_mut() {
        // SAFETY: the reference is valid for one byte.
        unsafe { std::ptr::write_volatile(b, 0) };
    }
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

impl Deref for Private {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `at` on are mapped and initialised for as long as this value lives.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Private {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        wipe(self);
        // SAFETY: the range was mapped by `zeroed`, and nobody refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.room) };
    }
}

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Private({} bytes)", self.len)
    }
}

impl PartialEq for Private {
    fn eq(&self, other: &Private) -> bool {
        **self == **other
    }
}

impl Eq for Private {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_held_whole_up_to_the_limit() {
        for size in [0, 1, FIRST - 1, FIRST, FIRST + 1, 5 * FIRST] {
            let data: Vec<u8> = (0..size).map(|i| i as u8).collect();
            assert_eq!(*Private::read_from(&mut &data[..], size).unwrap(), data[..]);
            if size > 0 {
                assert!(Private::read_from(&mut &data[..], size - 1).is_err(), "{size}");
            }
        }
    }

    #[test]
    fn a_value_is_never_shown_and_what_is_cut_off_is_gone() {
        let mut p = Private::copy(b"hunter2").unwrap();
        assert_eq!(format!("{p:?}"), "Private(7 bytes)");
        p.truncate(3);
        assert_eq!(&*p, b"hun");
        // SAFETY: the room of the mapping is larger than what is left of it.
        let rest = unsafe { std::slice::from_raw_parts(p.at.as_ptr().add(3), 4) };
        assert_eq!(rest, [0; 4]);
    }

    #[test]
    fn its_pages_are_left_out_of_core_dumps() {
        let p = Private::copy(&[7; 100]).unwrap();
        let at = format!("{:x}-", p.at.as_ptr() as usize);
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::open("/proc/self/smaps", flags, rustix::fs::Mode::empty()).unwrap();
        let mut smaps = String::new();
        std::fs::File::from(file).read_to_string(&mut smaps).unwrap();
        let flags = smaps[smaps.find(&at).unwrap()..].split("VmFlags:").nth(1).unwrap();
        assert!(flags.lines().next().unwrap().contains("dd"), "{flags}");
    }
}
