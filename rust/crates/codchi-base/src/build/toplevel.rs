//! Assembles a system: the merged `/etc`, the entry points, and what names the parts.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use codchi_fs::Context as _;
use serde::Deserialize;

use super::package::link;
use crate::{Error, Result};

/// Request of `toplevel`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The merged packages.
    usr: PathBuf,
    /// Tree of the modules' `/etc`.
    etc: PathBuf,
    /// The program that boots and switches.
    program: PathBuf,
    /// Links of the system: `sw`, `systemd`, `activation.json` ...
    links: BTreeMap<String, PathBuf>,
    /// Small files of the system.
    files: BTreeMap<String, String>,
    /// Script that may add to the system.
    commands: String,
    /// Its shell.
    shell: PathBuf,
    /// Its search path.
    path: String,
}

/// What packages put into `/etc` for a package manager or an init system that is not here.
const LEFT_OUT: [&str; 16] = [
    "alternatives",
    "apt",
    "cron.d",
    "cron.daily",
    "cron.hourly",
    "cron.monthly",
    "cron.weekly",
    "default/grub.d",
    "dpkg",
    "init.d",
    "kernel",
    "motd",
    "systemd/system",
    "systemd/user",
    "update-motd.d",
    "xdg/systemd",
];

/// Assembles a system.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    codchi_fs::create_dir_all(out.join("bin"))?;
    let etc = out.join("etc");
    codchi_fs::create_dir_all(&etc)?;
    for raw in codchi_fs::read_to_string(request.usr.join("debs"))?.lines() {
        let from = Path::new(raw).join("etc");
        if from.is_dir() {
            packaged(&from, &etc, Path::new(""))?;
        }
    }
    link(&request.usr.join("ld.so.cache"), &etc.join("ld.so.cache"))?;
    modules(&request.etc, &etc)?;

    for (name, verb) in
        [("init", "init"), ("activate", "activate"), ("bin/switch-to-configuration", "switch")]
    {
        let at = out.join(name);
        codchi_fs::write(&at, format!("#!{} {verb}\n", request.program.display()))?;
        std::fs::set_permissions(&at, PermissionsExt::from_mode(0o755)).at("change mode of", &at)?;
    }
    link(&request.usr, &out.join("usr"))?;
    for (name, target) in &request.links {
        link(target, &out.join(name))?;
    }
    for (name, text) in &request.files {
        codchi_fs::write(out.join(name), text)?;
    }
    shell(&request.shell, &request.path, &request.commands, out)
}

fn packaged(from: &Path, to: &Path, at: &Path) -> Result<()> {
    for e in codchi_fs::read_dir(from)? {
        let at = at.join(e.file_name());
        if LEFT_OUT.iter().any(|l| at == Path::new(l))
            || at.to_str().is_some_and(|a| a.starts_with("rc") && a.ends_with(".d"))
        {
            continue;
        }
        let target = to.join(e.file_name());
        let kind = e.file_type().at("look at", e.path())?;
        if kind.is_dir() {
            codchi_fs::create_dir_all(&target)?;
            packaged(&e.path(), &target, &at)?;
            continue;
        }
        if target.symlink_metadata().is_ok() {
            continue;
        }
        if kind.is_symlink() {
            let leads = std::fs::read_link(e.path()).at("read link", e.path())?;
            link(&in_machine(&at, &leads), &target)?;
        } else {
            link(&e.path(), &target)?;
        }
    }
    Ok(())
}

/// A relative link of `/etc` seen from the machine: `mtab -> ../proc/self/mounts` must not depend on where `etc` lies.
fn in_machine(at: &Path, leads: &Path) -> PathBuf {
    if leads.is_absolute() {
        return leads.into();
    }
    let mut path = PathBuf::from("/etc").join(at);
    path.pop();
    for c in leads.components() {
        match c {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(n) => path.push(n),
            _ => {}
        }
    }
    path
}

fn modules(from: &Path, to: &Path) -> Result<()> {
    for e in codchi_fs::read_dir(from)? {
        let target = to.join(e.file_name());
        let kind = e.file_type().at("look at", e.path())?;
        let there = target.symlink_metadata().ok();
        if kind.is_dir() {
            if there.is_some_and(|m| !m.is_dir()) {
                codchi_fs::remove_file(&target)?;
            }
            codchi_fs::create_dir_all(&target)?;
            modules(&e.path(), &target)?;
            continue;
        }
        match there {
            Some(m) if m.is_dir() => codchi_fs::remove_dir_all(&target)?,
            Some(_) => codchi_fs::remove_file(&target)?,
            None => {}
        }
        let leads = if kind.is_symlink() {
            std::fs::read_link(e.path()).at("read link", e.path())?
        } else {
            e.path()
        };
        link(&leads, &target)?;
    }
    Ok(())
}

/// Runs a script of a module in the build; an empty one costs nothing.
pub(super) fn shell(shell: &Path, path: &str, script: &str, out: &Path) -> Result<()> {
    if script.trim().is_empty() {
        return Ok(());
    }
    let status = Command::new(shell)
        .args(["-e", "-u", "-o", "pipefail", "-c", script])
        .env("out", out)
        .env("PATH", path)
        .current_dir(out)
        .status()
        .at("run", shell)?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Program { program: "the build script".into(), status: status.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_links_of_etc_are_seen_from_the_machine() {
        assert_eq!(
            in_machine(Path::new("os-release"), Path::new("../usr/lib/os-release")),
            Path::new("/usr/lib/os-release")
        );
        assert_eq!(in_machine(Path::new("a/b"), Path::new("c")), Path::new("/etc/a/c"));
        assert_eq!(in_machine(Path::new("x"), Path::new("/run/x")), Path::new("/run/x"));
    }

    #[test]
    fn a_modules_file_replaces_a_packages_file_or_folder() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| {
            let path = dir.path().join(p);
            codchi_fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        codchi_fs::write(at("deb/etc/a/one"), "deb").unwrap();
        codchi_fs::write(at("deb/etc/a/two"), "deb").unwrap();
        codchi_fs::write(at("deb/etc/b/three"), "deb").unwrap();
        codchi_fs::write(at("deb/etc/init.d/four"), "deb").unwrap();
        codchi_fs::write(at("modules/a/one"), "module").unwrap();
        link(Path::new("/nix/store/b"), &at("modules/b")).unwrap();
        let etc = dir.path().join("etc");
        codchi_fs::create_dir_all(&etc).unwrap();
        packaged(&dir.path().join("deb/etc"), &etc, Path::new("")).unwrap();
        modules(&dir.path().join("modules"), &etc).unwrap();
        assert_eq!(codchi_fs::read_to_string(etc.join("a/one")).unwrap(), "module");
        assert_eq!(codchi_fs::read_to_string(etc.join("a/two")).unwrap(), "deb");
        assert_eq!(std::fs::read_link(etc.join("b")).unwrap(), Path::new("/nix/store/b"));
        assert!(!etc.join("init.d").exists());
    }
}
