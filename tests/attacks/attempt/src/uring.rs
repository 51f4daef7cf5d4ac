//! Calls that are made by a ring instead of by the processor's instruction: no filter of system calls sees them.

use crate::Outcome::{Done, Refused};
use crate::{Result, outcome};

const OP_SOCKET: u8 = 45;
const OFFSET_ENTRIES: i64 = 0x1000_0000;

/// Opens a socket of a refused family through a ring.
pub fn vsock() -> Result {
    // struct io_uring_params: 10 words, then the offsets of the two rings, 10 words each
    let mut p = [0u32; 30];
    // SAFETY: the structure has the size the kernel expects; the maps are used within what the kernel says they hold.
    unsafe {
        let fd = libc::syscall(libc::SYS_io_uring_setup, 4, p.as_mut_ptr());
        if fd < 0 {
            return Ok(outcome("io_uring_setup", fd));
        }
        let fd = fd as i32;
        let (sq, cq) = (&p[10..20], &p[20..30]);
        let length = ((sq[6] + p[0] * 4).max(cq[5] + p[1] * 16)) as usize;
        let map = |size: usize, offset: i64| {
            let how = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                size,
                how,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                offset,
            )
        };
        let ring = map(length, 0).cast::<u8>();
        let completions = map(length, 0x0800_0000).cast::<u8>();
        let entries = map(p[0] as usize * 64, OFFSET_ENTRIES).cast::<u8>();
        if ring == libc::MAP_FAILED.cast() || entries == libc::MAP_FAILED.cast() {
            return Err(format!(
                "cannot map the ring: {}",
                std::io::Error::last_os_error()
            ));
        }
        let mut e = [0u8; 64];
        e[0] = OP_SOCKET;
        e[4..8].copy_from_slice(&libc::AF_VSOCK.to_ne_bytes());
        e[8..16].copy_from_slice(&(libc::SOCK_STREAM as u64).to_ne_bytes());
        std::ptr::copy_nonoverlapping(e.as_ptr(), entries, 64);
        // The index of the entry, then the tail.
        ring.add(sq[6] as usize).cast::<u32>().write_volatile(0);
        ring.add(sq[1] as usize).cast::<u32>().write_volatile(1);
        let entered = libc::syscall(
            libc::SYS_io_uring_enter,
            fd,
            1,
            1,
            1,
            std::ptr::null::<u8>(),
            0usize,
        );
        if entered < 0 {
            return Ok(outcome("io_uring_enter", entered));
        }
        let result = completions
            .add(cq[5] as usize + 8)
            .cast::<i32>()
            .read_volatile();
        Ok(match result {
            r if r >= 0 => Done(format!("a socket, descriptor {r}")),
            r => Refused(std::io::Error::from_raw_os_error(-r).to_string()),
        })
    }
}
