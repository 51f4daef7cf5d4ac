//! Activation: everything that makes the running root file system that of a system, except its services.

use std::path::Path;

use codchi_fs::Context as _;
use std::os::unix::fs::PermissionsExt;

use super::{CURRENT, RUN, Step, System, etc, say, script, users, usr, wrappers};
use crate::Result;

/// Why a system is activated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The machine starts.
    Boot,
    /// A running machine changes.
    Switch,
    /// A running machine changes until it restarts.
    Test,
    /// Nothing changes; scripts that can say what they would do.
    Dry,
}

impl Action {
    /// What scripts see as `NIXOS_ACTION`.
    pub fn name(self) -> &'static str {
        match self {
            Action::Boot => "boot",
            Action::Switch => "switch",
            Action::Test => "test",
            Action::Dry => "dry-activate",
        }
    }
}

/// Activates a system. False when a step failed that the others do not need.
pub fn run(system: &System, action: Action) -> Result<bool> {
    let mut clean = true;
    let mut scripts: Vec<&Step> = Vec::new();
    for step in &system.plan.steps {
        if action == Action::Dry {
            if step.dry && !step.text.is_empty() {
                scripts.push(step);
            }
            continue;
        }
        if step.builtin {
            clean &= script::run(system, &std::mem::take(&mut scripts), action)?;
            if let Err(e) = builtin(system, &step.name) {
                // Without these nothing else can work.
                if ["specialfs", "usr", "etc"].contains(&step.name.as_str()) {
                    return Err(e);
                }
                say(format!("activation step `{}` failed: {e}", step.name));
                clean = false;
            }
        }
        if !step.text.trim().is_empty() {
            scripts.push(step);
        }
    }
    clean &= script::run(system, &scripts, action)?;
    if action != Action::Dry {
        codchi_fs::symlink_atomic(&system.path, CURRENT)?;
    }
    Ok(clean)
}

fn builtin(system: &System, name: &str) -> Result<()> {
    match name {
        "specialfs" => folders(),
        "usr" => usr::mount_usr(system),
        "var" => machine_id(),
        "users" => users::apply(&system.plan.users),
        "etc" => etc::apply(system),
        "wrappers" => wrappers::apply(&system.plan.wrappers),
        "hostname" => {
            if !system.plan.host_name.is_empty() {
                // A container may be refused; its runtime names it then.
                let _ = rustix::system::sethostname(system.plan.host_name.as_bytes());
            }
            Ok(())
        }
        // Names that scripts may depend on, whose work the other steps do.
        _ => Ok(()),
    }
}

/// Folders that are always there.
fn folders() -> Result<()> {
    let plain = [
        "/etc",
        "/home",
        "/mnt",
        "/nix/var/nix",
        "/opt",
        "/srv",
        "/var/cache",
        "/var/empty",
        "/var/lib",
        "/var/lib/nixos",
        "/var/log",
        "/var/spool",
        "/run/lock",
        RUN,
    ];
    for dir in plain {
        codchi_fs::create_dir_all(dir)?;
    }
    for (dir, mode) in [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/root", 0o700), ("/var/empty", 0o555)] {
        codchi_fs::create_dir_all(dir)?;
        let now = std::fs::metadata(dir).at("look at", dir)?.permissions().mode() & 0o7777;
        if now != mode {
            std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)).at("change mode of", dir)?;
        }
    }
    for (link, target) in [("/var/run", "/run"), ("/var/lock", "/run/lock")] {
        if Path::new(link).symlink_metadata().is_err() {
            codchi_fs::symlink_atomic(target, link)?;
        }
    }
    Ok(())
}

/// A persistent id from the first boot on: systemd without one takes the boot for the first, and syncs everything.
fn machine_id() -> Result<()> {
    let path = "/etc/machine-id";
    if codchi_fs::read_if_exists(path)?.is_some_and(|id| id.trim().len() == 32) {
        return Ok(());
    }
    let uuid = codchi_fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let id: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    codchi_fs::write(path, id + "\n")?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o444)).at("change mode of", path)?;
    Ok(())
}
