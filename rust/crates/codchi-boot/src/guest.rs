//! What a virtual machine does before its init: everything comes from its host by shared folders, and what it needs to see them
//! lies in the memory that its kernel starts with.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::system::RebootCommand;

/// What the host says: a word and its value on each line.
const TOLD: &str = "/guest";
/// Kernel modules, loaded by their order.
const MODULES: &str = "/modules";
/// Secrets, which only memory ever holds.
const CREDENTIALS: &str = "/credentials";
/// Where the machine's file system is put together.
const ROOT: &str = "/root";
/// Where the host's folders are shared, below the root.
const SHARED: &str = "run/codchi/folders";
/// What the host says of its resolver.
const RESOLVER: &str = "/run/codchi/told/resolv.conf";
/// How long devices may take to be there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Folders that are memory, below the machine's /run.
const MEMORY: [(&str, &CStr); 2] =
    [("run", c"mode=0755"), ("nix/var/nix/daemon-socket", c"mode=0755,size=64k")];

/// Makes the machine's file system this one, and answers its init.
pub fn enter() -> PathBuf {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        folder(Path::new(at));
        said(&format!("mount `{at}`"), mount(kind, at, kind, MountFlags::empty(), None::<&CStr>));
    }
    load_modules();
    let told = codchi_fs::read_to_string(TOLD).unwrap_or_default();
    let mut init = PathBuf::from("/init");
    let root = Path::new(ROOT);
    for line in told.lines() {
        // A path may have blanks.
        if let Some((number, target)) = line.strip_prefix("folder ").and_then(|l| l.split_once(' ')) {
            if root.join(SHARED).join(number).symlink_metadata().is_ok()
                && let Err(e) = show(root, number, target)
            {
                eprintln!("codchi-boot: {e}");
            }
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            // Whether this processor works is known now.
            ["try"] => {
                eprintln!("codchi: it works");
                power_off();
            }
            ["name", name] => said("set the host name", rustix::system::sethostname(name.as_bytes())),
            ["init", path] => init = path.into(),
            ["share", tag, at, how] => {
                let place = root.join(at.trim_start_matches('/'));
                share(tag, &place, how == "ro");
                if at == "/" {
                    lay_out(root);
                }
            }
            _ => {}
        }
    }
    credentials(&root.join("run/codchi/credentials"));
    lead(root);
    for name in ["dev", "proc", "sys"] {
        let (from, to) = (Path::new("/").join(name), root.join(name));
        folder(&to);
        said(&format!("move `/{name}`"), mount_move(&from, &to));
    }
    let switch = || -> Result<(), Errno> {
        rustix::process::chdir(root)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    said("enter the machine's file system", switch());
    init
}

/// Mounts a folder of the host that is shared under a number. Places are made as the owner of what they lie in would.
pub fn show(root: &Path, number: &str, target: &str) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot show a folder of the host at `{target}`: {e}");
    let from = root.join(SHARED).join(number);
    let is_dir = std::fs::metadata(&from).map_err(|e| failed(&e))?.is_dir();
    let at = root.join(target.trim_start_matches('/'));
    make_place(&at, is_dir).map_err(|e| failed(&e))?;
    if std::fs::metadata(&at).map_err(|e| failed(&e))?.is_dir() != is_dir {
        return Err(failed(&if is_dir { "there is a file" } else { "there is a folder" }));
    }
    rustix::mount::mount_bind(&from, &at).map_err(|e| failed(&e))
}

/// Unmounts it.
pub fn hide(target: &str) -> Result<(), String> {
    use rustix::mount::UnmountFlags;
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // The machine did so itself.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(format!("cannot unmount `{target}`: {e}")),
    }
}

fn make_place(at: &Path, is_dir: bool) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(at).is_ok() {
        return Ok(());
    }
    let parent = at.parent().unwrap_or(Path::new("/"));
    make_place(parent, true)?;
    let owner = std::fs::metadata(parent)?;
    match is_dir {
        true => rustix::fs::mkdir(at, Mode::from_raw_mode(0o755))?,
        false => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(rustix::fs::open(at, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    rustix::fs::chownat(CWD, at, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Ends the machine.
pub fn power_off() {
    rustix::fs::sync();
    said("power off", rustix::system::reboot(RebootCommand::PowerOff));
}

fn said(what: &str, done: Result<(), Errno>) {
    if let Err(e) = done {
        eprintln!("codchi-boot: cannot {what}: {e}");
    }
}

fn folder(path: &Path) {
    if let Err(e) = codchi_fs::create_dir_all(path) {
        eprintln!("codchi-boot: {e}");
    }
}

fn load_modules() {
    let mut modules: Vec<PathBuf> =
        codchi_fs::read_dir(MODULES).unwrap_or_default().iter().map(std::fs::DirEntry::path).collect();
    modules.sort();
    let load = |module: &Path| {
        // MODULE_INIT_COMPRESSED_FILE of finit_module(2).
        let flags = if module.extension().is_some_and(|e| e == "ko") { 0 } else { 4 };
        let file = rustix::fs::open(module, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::system::finit_module(&file, c"", flags)
    };
    loop {
        let before = modules.len();
        // Which needs which is another matter in each kernel: one that lacks what a later one has is loaded after that.
        modules.retain(|module| match load(module) {
            Err(Errno::NOENT) => true,
            Ok(()) | Err(Errno::EXIST) => false,
            Err(e) => {
                eprintln!("codchi-boot: cannot load `{}`: {e}", module.display());
                false
            }
        });
        if modules.len() == before {
            break;
        }
    }
    for module in modules {
        eprintln!("codchi-boot: `{}` lacks what it needs of other modules", module.display());
    }
}

/// Mounts a folder of the host. Its device may not be there yet.
fn share(tag: &str, at: &Path, read_only: bool) {
    folder(at);
    let mut flags = MountFlags::NODEV;
    if at.ends_with(SHARED) {
        flags |= MountFlags::NOSUID;
    }
    if read_only {
        flags |= MountFlags::RDONLY | MountFlags::NOSUID;
    }
    let until = Instant::now() + PATIENCE;
    loop {
        match mount(tag, at, "virtiofs", flags, None::<&CStr>) {
            Ok(()) => return,
            Err(Errno::INVAL | Errno::NODEV) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => {
                eprintln!("codchi-boot: cannot mount `{}` of the host: {e}", at.display());
                return;
            }
        }
    }
}

/// Makes the folder with what leads to the host. No socket is shared, so that those are the agent's.
fn lead(root: &Path) {
    let to = root.join("run/codchi/host");
    folder(&to);
    said("lead to the host's resolver", rustix::fs::symlink(RESOLVER, to.join("resolv.conf")));
}

fn lay_out(root: &Path) {
    for (at, options) in MEMORY {
        let at = root.join(at);
        folder(&at);
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        said(&format!("mount memory at `{}`", at.display()), mount("tmpfs", &at, "tmpfs", flags, options));
    }
}

/// Moves the secrets to where the machine has them: memory that is never swapped out.
fn credentials(to: &Path) {
    folder(to);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    said("mount memory for secrets", mount("ramfs", to, "ramfs", flags, c"mode=0700"));
    for file in codchi_fs::read_dir(CREDENTIALS).unwrap_or_default() {
        let (from, to) = (file.path(), to.join(file.file_name()));
        let copy = || -> Result<(), codchi_fs::FsError> {
            codchi_fs::write(&to, codchi_fs::read(&from)?)?;
            codchi_fs::remove_file(&from)
        };
        match copy() {
            Ok(()) => {
                let _ = rustix::fs::chmod(&to, Mode::from_raw_mode(0o400));
                let _ = rustix::fs::chownat(
                    CWD,
                    &to,
                    Some(Uid::ROOT),
                    Some(Gid::ROOT),
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                );
            }
            Err(e) => eprintln!("codchi-boot: {e}"),
        }
    }
}
