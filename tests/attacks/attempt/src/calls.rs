//! System calls that change or read what all namespaces share.

use std::io;

use crate::Outcome::{self, Absent, Done, Refused};
use crate::{Result, c, outcome};

const EPERM: i32 = libc::EPERM;

/// Every call with arguments that change nothing where it is let through.
type Call = (&'static str, fn() -> i64);

const NOWHERE: &std::ffi::CStr = c"/nonexistent/attempt";

// SAFETY: all pointers are to terminated strings and to structures that live as long as the call.
const CALLS: [Call; 17] = [
    ("bpf", || unsafe {
        // An array of one: type, size of a key, size of a value, entries
        let attr: [u32; 32] = std::array::from_fn(|i| [2, 4, 8, 1].get(i).copied().unwrap_or(0));
        libc::syscall(libc::SYS_bpf, 0, attr.as_ptr(), 128)
    }),
    ("perf_event_open", || unsafe {
        // All processes of one processor: PERF_TYPE_SOFTWARE, of the size of the first version
        let attr: [u32; 16] = std::array::from_fn(|i| [1, 64].get(i).copied().unwrap_or(0));
        libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), -1, 0, -1, 0)
    }),
    ("userfaultfd", || unsafe {
        libc::syscall(libc::SYS_userfaultfd, 0)
    }),
    ("kexec_load", || unsafe {
        libc::syscall(libc::SYS_kexec_load, 0, 0, 0, 0xffff_0000u64)
    }),
    ("kexec_file_load", || unsafe {
        libc::syscall(libc::SYS_kexec_file_load, -1, -1, 0, 0, 0)
    }),
    ("init_module", || unsafe {
        libc::syscall(libc::SYS_init_module, c"x".as_ptr(), 1, c"".as_ptr())
    }),
    ("finit_module", || unsafe {
        libc::syscall(libc::SYS_finit_module, -1, c"".as_ptr(), 0)
    }),
    ("delete_module", || unsafe {
        libc::syscall(
            libc::SYS_delete_module,
            c"attempt".as_ptr(),
            libc::O_NONBLOCK,
        )
    }),
    ("swapon", || unsafe {
        libc::syscall(libc::SYS_swapon, NOWHERE.as_ptr(), 0)
    }),
    ("swapoff", || unsafe {
        libc::syscall(libc::SYS_swapoff, NOWHERE.as_ptr())
    }),
    ("acct", || unsafe {
        libc::syscall(libc::SYS_acct, NOWHERE.as_ptr())
    }),
    ("quotactl", || unsafe {
        // Q_QUOTAON of users
        libc::syscall(
            libc::SYS_quotactl,
            0x0080_0002u32 << 8,
            NOWHERE.as_ptr(),
            0,
            NOWHERE.as_ptr(),
        )
    }),
    ("iopl", || unsafe { libc::syscall(libc::SYS_iopl, 3) }),
    ("syslog", || unsafe {
        libc::syscall(libc::SYS_syslog, 8, 0, 99)
    }),
    ("clock_adjtime", || unsafe {
        // Adds nothing to the host's clock.
        let mut t: libc::timex = std::mem::zeroed();
        t.modes = 0x0100;
        libc::syscall(libc::SYS_clock_adjtime, libc::CLOCK_REALTIME, &mut t)
    }),
    ("add_key", || unsafe {
        let (kind, name, value) = (c"user", c"codchi-attempt", c"x");
        libc::syscall(
            libc::SYS_add_key,
            kind.as_ptr(),
            name.as_ptr(),
            value.as_ptr(),
            1,
            -1,
        )
    }),
    // The identity of the session's keyring
    ("keyctl", || unsafe {
        libc::syscall(libc::SYS_keyctl, 0, -3, 0)
    }),
];

/// What an answer means: an error about the arguments comes after the rights were looked at.
fn judge(what: &str, result: i64, error: i32) -> Outcome {
    match error {
        _ if result >= 0 => Done(format!("{what} gave {result}")),
        EPERM | libc::EACCES => Refused(format!("{what}: {}", io::Error::from_raw_os_error(error))),
        libc::ENOSYS => Absent(format!(
            "{what}: this kernel has it not, or a filter says so"
        )),
        e => Done(format!(
            "{what} was let through: {}",
            io::Error::from_raw_os_error(e)
        )),
    }
}

/// One of the calls by its name.
pub fn by_name(name: &str) -> Result {
    let (_, call) = CALLS
        .iter()
        .find(|(n, _)| *n == name)
        .ok_or(format!("no call is called `{name}`"))?;
    let result = call();
    Ok(judge(
        name,
        result,
        io::Error::last_os_error().raw_os_error().unwrap_or(0),
    ))
}

/// The same by the instruction of 32-bit programs.
#[cfg(target_arch = "x86_64")]
pub fn by_name_32(name: &str) -> Result {
    // asm/unistd_32.h: number, first and second argument
    let table = [
        ("keyctl", 288, 0, -3),
        ("add_key", 286, 0, 0),
        ("init_module", 128, 0, 0),
        ("kexec_load", 283, 0, 0),
        ("swapoff", 115, 0, 0),
        ("acct", 51, 1, 0),
        ("bpf", 357, 99, 0),
    ];
    let (_, number, first, second) = table
        .iter()
        .find(|(n, ..)| *n == name)
        .copied()
        .ok_or(format!("no call is called `{name}`"))?;
    // A kernel without 32-bit programs ends us with a signal: in a copy.
    // SAFETY: the copy makes one system call and leaves; the assembly clobbers what it says.
    unsafe {
        let (mut status, child) = (0, libc::fork());
        if child == 0 {
            let result: i32;
            std::arch::asm!(
                "push rbx", "mov ebx, {b:e}", "int 0x80", "pop rbx",
                b = in(reg) first, inlateout("eax") number => result, in("ecx") second, in("edx") 0,
                in("esi") 0, in("edi") 0, lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
            );
            libc::_exit(if result >= 0 { 0 } else { -result });
        }
        libc::waitpid(child, &mut status, 0);
        if !libc::WIFEXITED(status) {
            return Ok(Absent("this kernel runs no 32-bit programs".into()));
        }
        let error = libc::WEXITSTATUS(status);
        Ok(judge(name, if error == 0 { 0 } else { -1 }, error))
    }
}

/// The same by the instruction of 32-bit programs, which this processor has not.
#[cfg(not(target_arch = "x86_64"))]
pub fn by_name_32(_: &str) -> Result {
    Ok(Absent("no 32-bit instruction to try here".into()))
}

/// Looks for a key of the caller's in the session's and the user's keyrings.
pub fn key(description: &str) -> Result {
    if std::fs::read_to_string("/proc/keys").is_ok_and(|t| t.contains(description)) {
        return Ok(Done("it is listed in /proc/keys".into()));
    }
    let d = c(description);
    let mut said = Vec::new();
    for ring in [-1i64, -2, -3, -4, -5] {
        // SAFETY: terminated strings. KEYCTL_SEARCH is 10.
        let found =
            unsafe { libc::syscall(libc::SYS_keyctl, 10, ring, c"user".as_ptr(), d.as_ptr(), 0) };
        if found > 0 {
            return Ok(Done(format!("key {found} in keyring {ring}")));
        }
        said.push(io::Error::last_os_error().to_string());
    }
    said.dedup();
    Ok(Refused(said.join(", ")))
}

/// Puts a key into a session's keyring of its own, and goes on as another program there.
pub fn hold_key(description: &str, words: &[&str]) -> Result {
    use std::os::unix::process::CommandExt;
    let [program, rest @ ..] = words else {
        return Err("no program".into());
    };
    let d = c(description);
    // SAFETY: terminated strings. KEYCTL_JOIN_SESSION_KEYRING is 1, the session's keyring -3.
    unsafe {
        if libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<u8>()) < 0
            || libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                d.as_ptr(),
                c"x".as_ptr(),
                1,
                -3,
            ) < 0
        {
            return Err(format!(
                "no key to look for: {}",
                io::Error::last_os_error()
            ));
        }
    }
    Err(std::process::Command::new(program)
        .args(rest)
        .exec()
        .to_string())
}

/// Types into the terminal it has, as if the person had.
pub fn type_into_terminal(text: &str) -> Result {
    for b in text.bytes().chain([b'\n']) {
        // SAFETY: one byte that lives as long as the call.
        let r = unsafe { libc::ioctl(0, libc::TIOCSTI, &raw const b) };
        if r != 0 {
            return Ok(outcome("TIOCSTI", -1));
        }
    }
    Ok(Done("typed".into()))
}
