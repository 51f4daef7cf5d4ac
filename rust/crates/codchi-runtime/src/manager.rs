//! systemd as the parent of supervisors: the system's for root, a person's own else.
//!
//! Supervisors are instances of one template unit. Where machines start with the computer it lies among the person's
//! units, else in memory, so that nothing is installed.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use codchi_sys::process;
use rustix::fs::Access;

use crate::error::{Doing, Error, Result};
use crate::network::find_program;
use crate::outer;

/// The template's file.
const TEMPLATE: &str = "codchi-machine@.service";

/// What of the environment a supervisor needs: where things are.
const VARIABLES: [&str; 8] = [
    "PATH",
    "HOME",
    "USER",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
];

/// The service manager of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    user: bool,
    /// Where units that last are.
    lasting: PathBuf,
    /// Where units are that go with the computer's end.
    passing: PathBuf,
}

impl Manager {
    /// Whether there is one that can be spoken to.
    pub fn is_present() -> bool {
        if find_program("systemctl").is_none() {
            return false;
        }
        if outer::is_root() {
            return Path::new("/run/systemd/system").is_dir();
        }
        std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|d| Path::new(&d).join("systemd/private").exists())
    }

    /// That of the caller.
    pub fn of_caller() -> Manager {
        if !outer::is_root() {
            let place = |variable: &str, below: &str| {
                std::env::var_os(variable).map(|d| Path::new(&d).join(below)).unwrap_or_default()
            };
            return Manager {
                user: true,
                lasting: place("HOME", ".config/systemd/user"),
                passing: place("XDG_RUNTIME_DIR", "systemd/user"),
            };
        }
        let system = Path::new("/etc/systemd/system");
        let fixed = rustix::fs::access(system, Access::WRITE_OK) == Err(rustix::io::Errno::ROFS);
        Manager {
            user: false,
            // Where that is part of the system's configuration (NixOS): the next folder that is looked into, and lasts.
            lasting: if fixed { "/etc/systemd/system.attached".into() } else { system.into() },
            passing: "/run/systemd/system".into(),
        }
    }

    fn unit(name: &str) -> String {
        format!("codchi-machine@{name}.service")
    }

    /// The link that makes it start a machine.
    fn link(&self, name: &str) -> PathBuf {
        let target = if self.user { "default.target.wants" } else { "multi-user.target.wants" };
        self.lasting.join(target).join(Manager::unit(name))
    }

    /// The command that shows what a machine's supervisor said.
    pub fn journal(&self, name: &str) -> String {
        format!("journalctl{} -u {}", if self.user { " --user" } else { "" }, Manager::unit(name))
    }

    fn systemctl(&self, words: &[&str]) -> Result<String> {
        let what = format!("`systemctl {}`", words.join(" "));
        let scope: &[&str] = if self.user { &["--user"] } else { &[] };
        let out = Command::new("systemctl")
            .args(scope)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .doing(format!("run {what}"))?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).trim().into());
        }
        Err(Error::Told(format!("{what} failed: {}", String::from_utf8_lossy(&out.stderr).trim())))
    }

    /// Puts the template in place, unless what is there says the same.
    fn install(&self, dir: &Path, program: &Path) -> Result<()> {
        let text = unit_text(program, self.user, &environment());
        let file = dir.join(TEMPLATE);
        // Another shell may have another `PATH`: that of the one that wrote it is as good.
        let without_path = |t: &str| {
            t.lines().filter(|l| !l.starts_with("Environment=\"PATH=")).map(str::to_owned).collect::<Vec<_>>()
        };
        let there = codchi_fs::read_if_exists(&file)?;
        if there.is_some_and(|t| without_path(&t) == without_path(&text)) {
            return Ok(());
        }
        codchi_fs::create_dir_all(dir)?;
        codchi_fs::write_atomic(&file, text, 0o644)?;
        self.systemctl(&["daemon-reload"]).map(|_| ())
    }

    /// Starts the supervisor of a machine, and yields its process, if it still runs.
    pub(crate) fn start(&self, name: &str, program: &Path) -> Result<Option<OwnedFd>> {
        let lasts = self.lasting.join(TEMPLATE).exists();
        self.install(if lasts { &self.lasting } else { &self.passing }, program)?;
        let unit = Manager::unit(name);
        // What failed before does not count against this start; mostly there is nothing.
        let _ = self.systemctl(&["reset-failed", &unit]);
        self.systemctl(&["start", &unit])?;
        let pid = self.systemctl(&["show", "-p", "MainPID", "--value", &unit])?;
        Ok(pid.parse().ok().filter(|p| *p > 0).and_then(|p| process::pidfd_open(p).ok()))
    }

    /// Whether it starts a machine with the computer.
    pub fn is_enabled(&self, name: &str) -> bool {
        self.link(name).symlink_metadata().is_ok()
    }

    /// Starts a machine with the computer.
    pub fn enable(&self, name: &str, program: &Path) -> Result<()> {
        self.install(&self.lasting, program)?;
        let link = self.link(name);
        if let Some(dir) = link.parent() {
            codchi_fs::create_dir_all(dir)?;
        }
        // What `systemctl enable` does.
        codchi_fs::symlink_atomic(self.lasting.join(TEMPLATE), link)?;
        self.systemctl(&["daemon-reload"]).map(|_| ())
    }

    /// Does not start a machine with the computer any more; the template goes with the last one that it did.
    pub fn disable(&self, name: &str) -> Result<()> {
        let link = self.link(name);
        if link.symlink_metadata().is_err() {
            return Ok(());
        }
        codchi_fs::remove_file(&link)?;
        let wants = link.parent().unwrap_or(&self.lasting);
        let another = |n: OsString| n.to_string_lossy().starts_with("codchi-machine@");
        if !codchi_fs::read_dir(wants)?.into_iter().any(|e| another(e.file_name())) {
            // What runs goes on as instances of a template that goes with the computer's end.
            let text = codchi_fs::read_if_exists(self.lasting.join(TEMPLATE))?;
            if let Some(text) = text.filter(|_| Manager::is_present()) {
                codchi_fs::create_dir_all(&self.passing)?;
                codchi_fs::write_atomic(self.passing.join(TEMPLATE), text, 0o644)?;
            }
            codchi_fs::remove_if_exists(self.lasting.join(TEMPLATE))?;
        }
        self.reload();
        Ok(())
    }

    /// Leaves nothing of a machine that is no more; nor, when it was the last of all, the template.
    pub fn forget(&self, name: &str, last: bool) -> Result<()> {
        self.disable(name)?;
        if !Manager::is_present() {
            return Ok(());
        }
        // One that failed is shown until then.
        let _ = self.systemctl(&["reset-failed", &Manager::unit(name)]);
        let template = self.passing.join(TEMPLATE);
        if last && template.exists() {
            codchi_fs::remove_if_exists(template)?;
            self.reload();
        }
        Ok(())
    }

    /// Where it cannot be asked, it reads its units anew when it starts.
    fn reload(&self) {
        let _ = self.systemctl(&["daemon-reload"]);
    }
}

/// Those variables of this process that are set.
fn environment() -> Vec<(&'static str, OsString)> {
    VARIABLES.into_iter().filter_map(|v| Some((v, std::env::var_os(v)?))).collect()
}

/// The template. A supervisor that was killed is started again; a machine that does not start ends it with a status, and
/// is left alone.
fn unit_text(program: &Path, user: bool, environment: &[(&str, OsString)]) -> String {
    let wanted = if user { "default.target" } else { "multi-user.target" };
    let after = if user { "" } else { "After=network-online.target\nWants=network-online.target\n" };
    let quoted = |s: String| s.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    let set: String = environment
        .iter()
        .filter(|(_, value)| !value.as_bytes().contains(&b'\n'))
        .map(|(name, value)| {
            format!("Environment=\"{name}={}\"\n", quoted(value.to_string_lossy().into_owned()))
        })
        .collect();
    format!(
        "# Written by Codchi.\n[Unit]\nDescription=Code machine %i\n{after}\n[Service]\nType=exec\n\
         ExecStart=\"{}\" supervise %i\n{set}Delegate=yes\nKillMode=mixed\nTimeoutStopSec=100\nOOMPolicy=continue\n\
         Restart=on-abnormal\n\n[Install]\nWantedBy={wanted}\n",
        quoted(program.display().to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_delegates_and_runs_the_machine_it_is_named_for() {
        let home = [("HOME", OsString::from("/home/a \"b\" %h\\"))];
        let t = unit_text(Path::new("/opt/100%/codchi"), true, &home);
        assert!(t.contains("ExecStart=\"/opt/100%%/codchi\" supervise %i\n"), "{t}");
        assert!(t.contains("Environment=\"HOME=/home/a \\\"b\\\" %%h\\\\\"\nDelegate=yes\n"), "{t}");
        assert!(t.contains("WantedBy=default.target"));
    }

    #[test]
    fn a_value_that_would_be_more_lines_of_the_unit_is_left_out() {
        let odd = [("USER", OsString::from("a\nExecStartPre=/bin/x"))];
        assert!(!unit_text(Path::new("/c"), false, &odd).contains("/bin/x"));
    }
}
