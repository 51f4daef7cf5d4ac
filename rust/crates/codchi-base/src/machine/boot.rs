//! Stage 2 of the boot: PID 1 until it becomes systemd.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use codchi_fs::Context as _;
use rustix::fs::{StatVfsMountFlags, statfs, statvfs};
use rustix::mount::{MountFlags, mount};

use super::{CURRENT, System, activate, say};
use crate::error::Tried;
use crate::{Error, Result};

/// Numbers of statfs(2).
const PROC: u64 = 0x9fa0;
const SYSFS: u64 = 0x6265_6572;

/// Boots a system; returns only when that failed.
pub fn run(path: &Path, args: &[String]) -> Result<ExitCode> {
    file_systems()?;
    let system = System::at(path)?;
    if !activate::run(&system, activate::Action::Boot)? {
        say("the activation was not without errors; going on");
    }
    codchi_fs::symlink_atomic(&system.path, "/run/booted-system")?;
    let error = Command::new("/usr/lib/systemd/systemd")
        .args(args)
        .env("PATH", format!("/run/wrappers/bin:{CURRENT}/sw/bin:/usr/bin"))
        .env_remove("HOME")
        .exec();
    Err(error).at("run", "/usr/lib/systemd/systemd")?;
    Err(Error::Machine("systemd did not start".into()))
}

/// Mounts what the container's runtime left out.
fn file_systems() -> Result<()> {
    for dir in ["/proc", "/sys", "/dev", "/run"] {
        codchi_fs::create_dir_all(dir)?;
    }
    let is = |path: &str, magic: u64| statfs(path).is_ok_and(|s| s.f_type as u64 == magic);
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    if !is("/proc", PROC) {
        attach("proc", "/proc", plain | MountFlags::NOEXEC, "")?;
    }
    if !is("/sys", SYSFS) {
        attach("sysfs", "/sys", plain | MountFlags::NOEXEC, "")?;
    }
    if !Path::new("/dev/null").exists() {
        attach("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755")?;
    }
    if !mounted("/run")? {
        attach("tmpfs", "/run", plain, "mode=0755,size=20%,nr_inodes=800k")?;
    }
    // The store must not change under a machine; most runtimes mount it so already.
    if let Ok(store) = statvfs("/nix/store")
        && !store.f_flag.contains(StatVfsMountFlags::RDONLY)
        && mounted("/nix/store")?
    {
        let _ = rustix::mount::mount_remount("/nix/store", MountFlags::BIND | MountFlags::RDONLY | plain, "");
    }
    Ok(())
}

fn attach(kind: &str, target: &str, flags: MountFlags, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options).unwrap_or_default();
    mount(kind, target, kind, flags, options.as_c_str()).tried(|| format!("mount {kind} on `{target}`"))
}

/// Whether something is mounted at a path.
pub(super) fn mounted(path: &str) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let here = std::fs::metadata(path).at("look at", path)?;
    let above = std::fs::metadata(Path::new(path).join("..")).at("look at", path)?;
    Ok(here.dev() != above.dev() || here.ino() == above.ino())
}
