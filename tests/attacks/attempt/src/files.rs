//! Mounts, files, devices.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::Outcome::{Absent, Done, Refused};
use crate::{Result, c};

const AT_EMPTY_PATH: i32 = 0x1000;
const OPEN_TREE_CLONE: u32 = 1;

/// Makes a file and removes it.
pub fn create(path: &str) -> Result {
    match fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
    {
        Ok(_) => {
            let _ = fs::remove_file(path);
            Ok(Done(format!("made `{path}`")))
        }
        Err(e) => Ok(Refused(e.to_string())),
    }
}

/// Changes what is there: content, mode, owner, times, name, a second name; puts back what it can.
pub fn change(path: &str) -> Result {
    let mut said = Vec::new();
    let p = c(path);
    match fs::OpenOptions::new().write(true).open(path) {
        Ok(_) => return Ok(Done(format!("opened `{path}` for writing"))),
        Err(e) => said.push(format!("write: {e}")),
    }
    let mut note = |what: &str, r: i32| {
        if r == 0 {
            return true;
        }
        said.push(format!("{what}: {}", std::io::Error::last_os_error()));
        false
    };
    let other = c(&format!("{path}.attempt"));
    // SAFETY: all pointers are to terminated strings that live as long as the calls.
    unsafe {
        if note("mode", libc::chmod(p.as_ptr(), 0o777))
            || note("owner", libc::chown(p.as_ptr(), 0, 0))
            || note("time", libc::utimes(p.as_ptr(), std::ptr::null()))
            || note(
                "attribute",
                libc::setxattr(
                    p.as_ptr(),
                    c"user.attempt".as_ptr(),
                    c"x".as_ptr().cast(),
                    1,
                    0,
                ),
            )
        {
            return Ok(Done(format!("changed `{path}`")));
        }
        if note("link", libc::link(p.as_ptr(), other.as_ptr())) {
            libc::unlink(other.as_ptr());
            return Ok(Done(format!("linked `{path}`")));
        }
        if note("rename", libc::rename(p.as_ptr(), other.as_ptr())) {
            libc::rename(other.as_ptr(), p.as_ptr());
            return Ok(Done(format!("renamed `{path}`")));
        }
    }
    Ok(Refused(said.join(", ")))
}

fn is_read_only(path: &str) -> bool {
    // SAFETY: the structure is plain data that the call fills.
    unsafe {
        let mut s: libc::statvfs = std::mem::zeroed();
        libc::statvfs(c(path).as_ptr(), &mut s) != 0 || s.f_flag & libc::ST_RDONLY != 0
    }
}

/// A system call to try, and what it is.
type Way<'a> = (&'static str, Box<dyn Fn() -> i64 + 'a>);

/// Makes a read-only mount writable, in every way there is.
pub fn remount(path: &str) -> Result {
    if !is_read_only(path) {
        return Err(format!("`{path}` is writable already"));
    }
    let (p, none) = (c(path), c("none"));
    let mut said = Vec::new();
    let mut ways: Vec<Way> = Vec::new();
    // SAFETY: here and below, pointers are to terminated strings and plain structures that outlive the calls.
    ways.push((
        "remount of the bind",
        Box::new(|| unsafe {
            let flags = libc::MS_REMOUNT | libc::MS_BIND;
            i64::from(libc::mount(
                none.as_ptr(),
                p.as_ptr(),
                std::ptr::null(),
                flags,
                std::ptr::null(),
            ))
        }),
    ));
    ways.push((
        "remount of the file system",
        Box::new(|| unsafe {
            i64::from(libc::mount(
                none.as_ptr(),
                p.as_ptr(),
                std::ptr::null(),
                libc::MS_REMOUNT,
                std::ptr::null(),
            ))
        }),
    ));
    ways.push((
        "mount_setattr",
        Box::new(|| unsafe {
            let attr: [u64; 4] = [0, libc::MS_RDONLY, 0, 0];
            libc::syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                p.as_ptr(),
                0,
                attr.as_ptr(),
                32usize,
            )
        }),
    ));
    for (what, way) in ways {
        if way() == 0 && !is_read_only(path) {
            let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            // SAFETY: as above. It is as it was for the next attempt.
            unsafe {
                libc::mount(
                    none.as_ptr(),
                    p.as_ptr(),
                    std::ptr::null(),
                    flags,
                    std::ptr::null(),
                )
            };
            return Ok(Done(what.into()));
        }
        said.push(format!("{what}: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: as above; the descriptor is the call's own.
    unsafe {
        let tree = libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            p.as_ptr(),
            OPEN_TREE_CLONE,
        );
        if tree >= 0 {
            let attr: [u64; 4] = [0, libc::MS_RDONLY, 0, 0];
            let flags = AT_EMPTY_PATH as u32;
            let r = libc::syscall(
                libc::SYS_mount_setattr,
                tree,
                c"".as_ptr(),
                flags,
                attr.as_ptr(),
                32usize,
            );
            if r == 0 {
                return Ok(Done("a writable clone".into()));
            }
        }
        said.push(format!("clone: {}", std::io::Error::last_os_error()));
    }
    // A second bind of it, made writable.
    let at = format!("/tmp/.attempt-{}", std::process::id());
    let _ = fs::create_dir(&at);
    // SAFETY: as above.
    unsafe {
        let a = c(&at);
        if libc::mount(
            p.as_ptr(),
            a.as_ptr(),
            std::ptr::null(),
            libc::MS_BIND,
            std::ptr::null(),
        ) == 0
        {
            let flags = libc::MS_REMOUNT | libc::MS_BIND;
            let r = libc::mount(
                none.as_ptr(),
                a.as_ptr(),
                std::ptr::null(),
                flags,
                std::ptr::null(),
            );
            let writable = r == 0 && !is_read_only(&at);
            said.push(format!("second bind: {}", std::io::Error::last_os_error()));
            libc::umount2(a.as_ptr(), libc::MNT_DETACH);
            if writable {
                return Ok(Done("a second bind".into()));
            }
        }
    }
    let _ = fs::remove_dir(&at);
    Ok(Refused(said.join(", ")))
}

fn is_mounted(path: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .any(|l| l.split(' ').nth(4) == Some(path))
}

/// Takes a mount away, or moves it, to see what is below.
pub fn detach(path: &str) -> Result {
    if !is_mounted(path) {
        return Err(format!("nothing is mounted at `{path}`"));
    }
    let p = c(path);
    let mut said = Vec::new();
    for flags in [0, libc::MNT_DETACH, libc::MNT_FORCE] {
        // SAFETY: a terminated string.
        if unsafe { libc::umount2(p.as_ptr(), flags) } == 0 {
            return Ok(Done(format!("unmounted with {flags}")));
        }
        said.push(std::io::Error::last_os_error().to_string());
    }
    let at = format!("/tmp/.attempt-{}", std::process::id());
    let _ = fs::create_dir(&at);
    // SAFETY: terminated strings.
    if unsafe {
        libc::mount(
            p.as_ptr(),
            c(&at).as_ptr(),
            std::ptr::null(),
            libc::MS_MOVE,
            std::ptr::null(),
        )
    } == 0
    {
        return Ok(Done("moved".into()));
    }
    said.push(format!("move: {}", std::io::Error::last_os_error()));
    // SAFETY: as above; a tree that is opened without a clone is the mount itself.
    unsafe {
        let tree = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, p.as_ptr(), 0);
        let r = libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            c(&at).as_ptr(),
            4,
        );
        if tree >= 0 && r == 0 {
            return Ok(Done("moved by its descriptor".into()));
        }
    }
    said.push(format!("move_mount: {}", std::io::Error::last_os_error()));
    let _ = fs::remove_dir(&at);
    Ok(Refused(said.join(", ")))
}

/// Opens a file of the host: by its path, and through whatever any process holds.
pub fn reach(path: &str) -> Result {
    if open(path) {
        return Ok(Done(format!("`{path}`")));
    }
    let below = path.trim_start_matches('/');
    let mut tried = 1;
    for process in fs::read_dir("/proc").map_err(|e| e.to_string())?.flatten() {
        if !process
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|b| b.is_ascii_digit())
        {
            continue;
        }
        let mut starts = vec![process.path().join("root"), process.path().join("cwd")];
        if let Ok(all) = fs::read_dir(process.path().join("fd")) {
            starts.extend(all.flatten().map(|f| f.path()));
        }
        for s in starts {
            // A folder outside the root has the host's root above it.
            for up in ["", "../../../../../../../../../../../../"] {
                tried += 1;
                let candidate = format!("{}/{up}{below}", s.display());
                if open(&candidate) {
                    return Ok(Done(candidate));
                }
            }
        }
    }
    Ok(Refused(format!("none of {tried} ways leads to `{path}`")))
}

fn open(path: &str) -> bool {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let there = match fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
    {
        Ok(_) => true,
        // A socket, which is not opened like this.
        Err(e) => e.raw_os_error() == Some(libc::ENXIO),
    };
    there
        || Path::new(path)
            .symlink_metadata()
            .is_ok_and(|m| m.file_type().is_symlink())
}

/// The classic way out of a chroot: a second one, while a folder outside it is open.
pub fn break_chroot(path: &str) -> Result {
    let jail = format!("/tmp/.attempt-{}", std::process::id());
    fs::create_dir_all(&jail).map_err(|e| e.to_string())?;
    // SAFETY: terminated strings and a descriptor of ours.
    unsafe {
        let dir = libc::open(c"/".as_ptr(), libc::O_DIRECTORY | libc::O_RDONLY);
        if dir < 0 || libc::chroot(c(&jail).as_ptr()) != 0 {
            return Ok(Refused(format!(
                "chroot: {}",
                std::io::Error::last_os_error()
            )));
        }
        libc::fchdir(dir);
        for _ in 0..64 {
            libc::chdir(c"..".as_ptr());
        }
        libc::chroot(c".".as_ptr());
    }
    let _ = fs::remove_dir(&jail);
    Ok(if open(path) {
        Done(format!("reached `{path}`"))
    } else {
        Refused(format!("`{path}` is not above"))
    })
}

/// Makes device nodes and opens them.
pub fn device() -> Result {
    let mut said = Vec::new();
    // memory, null, the first disks
    let nodes = [
        (libc::S_IFCHR, 1, 1),
        (libc::S_IFCHR, 1, 3),
        (libc::S_IFBLK, 8, 0),
        (libc::S_IFBLK, 254, 0),
        (libc::S_IFCHR, 10, 237),
    ];
    for place in ["/tmp", "/dev", "/dev/shm"] {
        for (kind, major, minor) in nodes {
            let path = format!("{place}/.attempt-{}-{major}-{minor}", std::process::id());
            let p = c(&path);
            // SAFETY: a terminated string.
            unsafe {
                if libc::mknod(p.as_ptr(), kind | 0o666, libc::makedev(major, minor)) != 0 {
                    said.push(std::io::Error::last_os_error().to_string());
                    continue;
                }
                let fd = libc::open(p.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK);
                let error = std::io::Error::last_os_error();
                libc::unlink(p.as_ptr());
                if fd >= 0 {
                    return Ok(Done(format!("opened {major}:{minor} in `{place}`")));
                }
                said.push(format!("made, but {error}"));
            }
        }
    }
    said.sort();
    said.dedup();
    Ok(Refused(said.join(", ")))
}

/// Opens the top of a file system by the number of its first inode.
pub fn handle(path: &str) -> Result {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    // SAFETY: the structure is as large as it says.
    unsafe {
        let mut h = Handle {
            bytes: 128,
            kind: 0,
            data: [0; 128],
        };
        let mut id = 0i32;
        let p = c(path);
        let named = libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            p.as_ptr(),
            &mut h,
            &mut id,
            0,
        );
        if named != 0 {
            return Ok(Absent(format!(
                "handles: {}",
                std::io::Error::last_os_error()
            )));
        }
        let dir = libc::open(p.as_ptr(), libc::O_RDONLY);
        let fd = libc::syscall(libc::SYS_open_by_handle_at, dir, &mut h, libc::O_RDONLY);
        Ok(crate::outcome("open_by_handle_at", fd))
    }
}

/// Mounts a file system of the kernel that shows or changes the whole host.
pub fn filesystem(kind: &str) -> Result {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known
        .lines()
        .any(|l| l.split_whitespace().last() == Some(kind))
    {
        return Ok(Absent(format!("this kernel has no {kind}")));
    }
    let at = format!("/tmp/.attempt-{}", std::process::id());
    fs::create_dir_all(&at).map_err(|e| e.to_string())?;
    let (k, a) = (c(kind), c(&at));
    // SAFETY: terminated strings.
    let r = unsafe { libc::mount(k.as_ptr(), a.as_ptr(), k.as_ptr(), 0, std::ptr::null()) };
    let result = crate::outcome(kind, i64::from(r));
    if r == 0 {
        // SAFETY: a terminated string.
        unsafe { libc::umount2(a.as_ptr(), libc::MNT_DETACH) };
    }
    let _ = fs::remove_dir(&at);
    Ok(result)
}

/// Mounts a hierarchy of the old control groups and names a program that the host's kernel starts as root.
pub fn release_agent() -> Result {
    let at = format!("/tmp/.attempt-{}", std::process::id());
    fs::create_dir_all(&at).map_err(|e| e.to_string())?;
    let (a, kind) = (c(&at), c("cgroup"));
    let mut said = Vec::new();
    let mut done = None;
    for option in [
        "none,name=attempt",
        "pids",
        "memory",
        "devices",
        "freezer",
        "rdma",
        "misc",
        "name=systemd",
    ] {
        // SAFETY: terminated strings.
        let r = unsafe {
            libc::mount(
                kind.as_ptr(),
                a.as_ptr(),
                kind.as_ptr(),
                0,
                c(option).as_ptr().cast(),
            )
        };
        if r != 0 {
            said.push(format!("{option}: {}", std::io::Error::last_os_error()));
            continue;
        }
        for file in ["release_agent", "notify_on_release", "cgroup.procs"] {
            // Opened, not written: what would be written is the host's.
            match fs::OpenOptions::new()
                .write(true)
                .open(format!("{at}/{file}"))
            {
                Ok(_) => done = Some(format!("`{file}` of {option} can be written")),
                Err(e) => said.push(format!("{option} {file}: {e}")),
            }
        }
        // SAFETY: a terminated string.
        unsafe { libc::umount2(a.as_ptr(), libc::MNT_DETACH) };
    }
    let _ = fs::remove_dir(&at);
    if said.iter().all(|s| s.contains("No such device")) && done.is_none() {
        return Ok(Absent("this kernel has no old control groups".into()));
    }
    Ok(done.map_or(Refused(said.join(", ")), Done))
}

/// Mounts something where the parent namespace would see it, if mounts were shared with it.
pub fn propagate(path: &str) -> Result {
    fs::create_dir_all(path).map_err(|e| e.to_string())?;
    // SAFETY: terminated strings.
    unsafe {
        let none = c("none");
        let shared = libc::MS_SHARED | libc::MS_REC;
        libc::mount(
            none.as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            shared,
            std::ptr::null(),
        );
        let t = c("tmpfs");
        let r = libc::mount(
            t.as_ptr(),
            c(path).as_ptr(),
            t.as_ptr(),
            0,
            std::ptr::null(),
        );
        if r != 0 {
            return Ok(Refused(std::io::Error::last_os_error().to_string()));
        }
    }
    // Whether the host sees it is for the suite to tell.
    match fs::write(format!("{path}/mark"), "x") {
        Ok(()) => Ok(Done("mounted".into())),
        Err(e) => Err(e.to_string()),
    }
}

/// Makes a folder in a folder in a folder: deeper than any path is long.
pub fn depth(path: &str, levels: &str) -> Result {
    let levels: u32 = levels.parse().map_err(|_| "not a number".to_string())?;
    fs::create_dir_all(path).map_err(|e| e.to_string())?;
    std::env::set_current_dir(path).map_err(|e| e.to_string())?;
    for _ in 0..levels {
        // SAFETY: terminated strings.
        unsafe {
            if libc::mkdir(c"d".as_ptr(), 0o755) != 0 || libc::chdir(c"d".as_ptr()) != 0 {
                return Err(std::io::Error::last_os_error().to_string());
            }
        }
    }
    Ok(Done(format!("{levels} levels")))
}
