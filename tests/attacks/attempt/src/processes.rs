//! Processes, namespaces, descriptors, limits.

use std::fs;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use crate::Outcome::{Done, Refused};
use crate::{Result, outcome};

/// Runs another attempt as root of a user and mount namespace of its own.
pub fn nested(words: &[&str]) -> Result {
    // SAFETY: plain numbers.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    // SAFETY: plain numbers.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
        return Ok(outcome("unshare", -1));
    }
    let write =
        |file: &str, text: String| fs::write(file, text).map_err(|e| format!("{file}: {e}"));
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    let e = std::process::Command::new("/proc/self/exe")
        .args(words)
        .exec();
    Err(e.to_string())
}

/// Descriptors this process was started with, beyond the three that every process has.
pub fn descriptors() -> Result {
    let mut more = Vec::new();
    for fd in 0..4096 {
        let link = fs::read_link(format!("/proc/self/fd/{fd}"));
        let Ok(link) = link else { continue };
        let link = link.display().to_string();
        let plain =
            link.starts_with("pipe:") || link.starts_with("/dev/pts/") || link == "/dev/null";
        if fd > 2 || !plain {
            more.push(format!("{fd}: {link}"));
        }
    }
    Ok(if more.is_empty() {
        Refused("only three, of the machine's own".into())
    } else {
        Done(more.join(", "))
    })
}

/// Whether the file this was started from gave it another user's rights.
pub fn euid() -> Result {
    // SAFETY: plain numbers.
    let (real, effective) = unsafe { (libc::getuid(), libc::geteuid()) };
    Ok(if real == effective {
        Refused(format!("still user {real}"))
    } else {
        Done(format!("user {effective}"))
    })
}

/// Sees, signals, traces or reads a process of the host.
pub fn touch(pid: &str) -> Result {
    let pid: i32 = pid.parse().map_err(|_| "not a process id".to_string())?;
    let mut said = Vec::new();
    // SAFETY: plain numbers, and buffers of the lengths that are given.
    unsafe {
        let word = 0u64;
        let mut here = 0u64;
        let local = libc::iovec {
            iov_base: (&raw mut here).cast(),
            iov_len: 8,
        };
        let remote = libc::iovec {
            iov_base: (&raw const word).cast_mut().cast(),
            iov_len: 8,
        };
        let ways: [(&str, i64); 4] = [
            ("pidfd_open", libc::syscall(libc::SYS_pidfd_open, pid, 0)),
            ("kill", i64::from(libc::kill(pid, 0))),
            (
                "process_vm_readv",
                libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) as i64,
            ),
            ("ptrace", libc::ptrace(0x4206, pid, 0, 0)),
        ];
        for (what, r) in ways {
            if r >= 0 {
                return Ok(Done(what.into()));
            }
            said.push(what);
        }
    }
    Ok(Refused(format!("{} do not find it", said.join(", "))))
}

/// Waits for a process whose program, root or folder is one of the host's, and tries to get hold of it.
pub fn watch(marker: &str, seconds: &str) -> Result {
    let until = Instant::now()
        + Duration::from_secs(seconds.parse().map_err(|_| "not a number".to_string())?);
    let here = fs::metadata("/").map_err(|e| e.to_string())?;
    use std::os::unix::fs::MetadataExt;
    println!("watching");
    let (mut seen, mut last) = (std::collections::BTreeSet::new(), String::new());
    while Instant::now() < until && !crate::agent::is_enough() {
        for p in fs::read_dir("/proc").map_err(|e| e.to_string())?.flatten() {
            let name = p.file_name().to_string_lossy().into_owned();
            if !name.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let exe = p.path().join("exe");
            match fs::read_link(&exe) {
                Ok(link) if link.to_string_lossy().contains(marker) => {
                    if fs::File::open(&exe).is_ok() {
                        return Ok(Done(format!("opened {} of process {name}", link.display())));
                    }
                    last = format!("saw {}", link.display());
                }
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                    if seen.is_empty() {
                        println!("in sight");
                    }
                    seen.insert(name.clone());
                    last = format!("{} processes hide their program", seen.len());
                }
                Err(_) => {}
            }
            let root = p.path().join("root");
            if fs::metadata(&root).is_ok_and(|m| (m.dev(), m.ino()) != (here.dev(), here.ino()))
                && fs::metadata(root.join("proc/1")).is_err()
            {
                return Ok(Done(format!("the root of process {name} is another one")));
            }
        }
    }
    Ok(Refused(if last.is_empty() {
        "nothing of the host came in sight".into()
    } else {
        last
    }))
}

/// The control of [`watch`]: joins a machine from the host as nobody should, showing its program.
pub fn join_openly(pid: &str, seconds: &str) -> Result {
    let seconds: u32 = seconds.parse().map_err(|_| "not a number".to_string())?;
    let pid: i32 = pid.parse().map_err(|_| "not a process id".to_string())?;
    // SAFETY: plain numbers.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        if libc::setns(fd, libc::CLONE_NEWPID) != 0 {
            return Err(format!("setns: {}", std::io::Error::last_os_error()));
        }
        let child = libc::fork();
        if child == 0 {
            let all = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
            if libc::setns(fd, all) != 0 || libc::setgid(0) != 0 || libc::setuid(0) != 0 {
                libc::_exit(1);
            }
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
            libc::sleep(seconds);
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(child, &mut status, 0);
        if status == 0 {
            Ok(Done("joined".into()))
        } else {
            Err("could not join".into())
        }
    }
}

/// Starts processes until no more can be had, or so many are there, says how many, and keeps them until its input ends.
pub fn multiply(most: &str) -> Result {
    let most: usize = most.parse().map_err(|_| "not a number".to_string())?;
    let mut all = Vec::new();
    let mut refused = None;
    while all.len() < most && refused.is_none() {
        // SAFETY: plain numbers; the child calls nothing but the kernel.
        match unsafe { libc::fork() } {
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
                libc::_exit(0);
            },
            -1 => refused = Some(std::io::Error::last_os_error()),
            pid => all.push(pid),
        }
    }
    println!("{}", all.len());
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    for pid in &all {
        // SAFETY: plain numbers.
        unsafe {
            libc::kill(*pid, libc::SIGKILL);
            libc::waitpid(*pid, std::ptr::null_mut(), 0);
        }
    }
    Ok(match refused {
        None => Done(format!("{most} processes")),
        Some(e) => Refused(format!("after {}: {e}", all.len())),
    })
}

/// Takes memory, so many MiB, and keeps it until all of it is there.
pub fn hoard(most: &str) -> Result {
    const PIECE: usize = 64 << 20;
    let most: usize = most.parse().map_err(|_| "not a number".to_string())?;
    // A child does, so that somebody is left to tell.
    // SAFETY: the child maps memory of its own, writes to it and ends; it calls nothing but the kernel.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            for _ in 0..most.div_ceil(64) {
                let at = libc::mmap(
                    std::ptr::null_mut(),
                    PIECE,
                    libc::PROT_READ | libc::PROT_WRITE,
                    how,
                    -1,
                    0,
                );
                if at == libc::MAP_FAILED {
                    libc::_exit(1);
                }
                for page in (0..PIECE).step_by(4096) {
                    at.cast::<u8>().add(page).write_volatile(1);
                }
            }
            libc::_exit(0);
        }
        let mut status = 0;
        if child < 0 || libc::waitpid(child, &mut status, 0) != child {
            return Err(std::io::Error::last_os_error().to_string());
        }
        Ok(match (libc::WIFSIGNALED(status), status) {
            (true, _) => Refused(format!("killed by signal {}", libc::WTERMSIG(status))),
            (_, 0) => Done(format!("{most} MiB")),
            _ => Refused("no more is given".into()),
        })
    }
}
