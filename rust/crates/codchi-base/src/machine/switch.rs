//! `bin/switch-to-configuration`: from the running system to this one.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use codchi_fs::Context as _;

use super::activate::{self, Action};
use super::units::{self, Actions, Active, Unit};
use super::{CURRENT, System, say};
use crate::{Error, Result};

/// Exit status when the switch was done but units failed, as NixOS has it.
const UNITS_FAILED: u8 = 4;
/// Exit status when activation reported errors.
const ACTIVATION_FAILED: u8 = 2;
/// Exit status when the service manager did not read its units anew.
const RELOAD_FAILED: u8 = 3;

/// Runs one of the verbs of switch-to-configuration.
pub fn run(path: &Path, args: &[String]) -> Result<ExitCode> {
    let action = match args.first().map(String::as_str) {
        Some("switch") => Action::Switch,
        Some("test") => Action::Test,
        Some("dry-activate") => Action::Dry,
        // The host decides what is booted; nothing here needs to know.
        Some("boot" | "check") => return System::at(path).map(|_| ExitCode::SUCCESS),
        _ => {
            return Err(Error::Usage(
                "usage: switch-to-configuration switch|boot|test|dry-activate|check".into(),
            ));
        }
    };
    let new = System::at(path)?;
    let old = std::fs::canonicalize(CURRENT)
        .map_err(|_| Error::Machine("no system runs here: `/run/current-system` is missing".into()))?;
    codchi_fs::create_dir_all("/run/nixos")?;
    let _lock = codchi_fs::Lock::try_take("/run/nixos/switch-to-configuration.lock", "a switch")
        .map_err(|e| Error::Machine(e.to_string()))?;

    let manager = Manager::system();
    let running = manager.running()?;
    let (before, after) = (Definitions::of(&old, "system"), Definitions::of(&new.path, "system"));
    let actions = units::decide(&running, &|n| before.unit(n), &|n| after.unit(n));
    if action == Action::Dry {
        report("would", &actions);
        activate::run(&new, action)?;
        return Ok(ExitCode::SUCCESS);
    }

    let mut status = 0;
    if !actions.skip.is_empty() {
        say(format!("NOT restarting the following changed units: {}", list(&actions.skip)));
    }
    if !actions.stop.is_empty() {
        say(format!("stopping the following units: {}", list(&actions.stop)));
        manager.run("stop", &actions.stop)?;
    }
    say("activating the configuration...");
    if !activate::run(&new, action)? {
        status = ACTIVATION_FAILED;
    }
    let systemd = |p: &Path| std::fs::canonicalize(p.join("systemd")).ok();
    let anew = if systemd(&old) == systemd(&new.path) { "daemon-reload" } else { "daemon-reexec" };
    if let Err(e) = manager.plain(anew) {
        say(e);
        status = RELOAD_FAILED;
    }
    // Failures of before are none of this switch's.
    let _ = manager.plain("reset-failed");
    let _ = Command::new("/usr/bin/systemd-tmpfiles")
        .args(["--create", "--remove", "--exclude-prefix=/dev"])
        .status();

    for user in people(&running) {
        if let Err(e) = user_units(user, &old, &new.path) {
            say(format!("the services of user {user} were not updated: {e}"));
            status = UNITS_FAILED;
        }
    }

    let mut failed = false;
    if !actions.reload.is_empty() {
        say(format!("reloading the following units: {}", list(&actions.reload)));
        failed |= !manager.run("reload", &actions.reload)?;
    }
    if !actions.restart.is_empty() {
        say(format!("restarting the following units: {}", list(&actions.restart)));
        failed |= !manager.run("restart", &actions.restart)?;
    }
    if !actions.start.is_empty() {
        say(format!("starting the following units: {}", list(&actions.start)));
    }
    // Targets bring in units that are new.
    let start: BTreeSet<String> = actions.start.union(&actions.targets).cloned().collect();
    failed |= !manager.run("start", &start)?;

    let now = manager.running()?;
    let fresh: BTreeSet<String> = difference(&now, &running);
    let known: BTreeSet<String> = actions.start.union(&actions.restart).cloned().collect();
    let fresh: BTreeSet<String> = fresh.difference(&known).cloned().collect();
    if !fresh.is_empty() {
        say(format!("the following new units were started: {}", list(&fresh)));
    }
    let broken: BTreeSet<String> =
        now.iter().filter(|u| u.state == "failed").map(|u| u.name.clone()).collect();
    if !broken.is_empty() {
        say(format!("warning: the following units failed: {}", list(&broken)));
        let mut show = manager.command();
        let _ = show.args(["status", "--no-pager", "--full", "--lines=20"]).args(&broken).status();
    }
    if failed || !broken.is_empty() {
        status = UNITS_FAILED;
    }
    Ok(ExitCode::from(status))
}

fn report(word: &str, actions: &Actions) {
    for (what, set) in [
        ("stop", &actions.stop),
        ("NOT restart", &actions.skip),
        ("reload", &actions.reload),
        ("restart", &actions.restart),
        ("start", &actions.start),
    ] {
        if !set.is_empty() {
            say(format!("{word} {what} the following units: {}", list(set)));
        }
    }
    if actions.is_quiet() {
        say("would change no running unit");
    }
}

fn list(units: &BTreeSet<String>) -> String {
    units.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn difference(now: &[Active], before: &[Active]) -> BTreeSet<String> {
    let up = |all: &[Active]| -> BTreeSet<String> {
        all.iter()
            .filter(|u| {
                u.state == "active"
                    && [".service", ".socket", ".timer", ".path"].iter().any(|k| u.name.ends_with(k))
            })
            .map(|u| u.name.clone())
            .collect()
    };
    up(now).difference(&up(before)).cloned().collect()
}

/// A running service manager.
struct Manager {
    /// The user whose manager it is.
    user: Option<(u32, u32)>,
}

impl Manager {
    fn system() -> Manager {
        Manager { user: None }
    }

    fn command(&self) -> Command {
        let mut c = Command::new("/usr/bin/systemctl");
        if let Some((uid, gid)) = self.user {
            c.arg("--user")
                .env("XDG_RUNTIME_DIR", format!("/run/user/{uid}"))
                .env_remove("DBUS_SESSION_BUS_ADDRESS");
            c.uid(uid).gid(gid);
        }
        c
    }

    /// Runs a verb on units; false when it failed.
    fn run(&self, verb: &str, units: &BTreeSet<String>) -> Result<bool> {
        if units.is_empty() {
            return Ok(true);
        }
        let done = self.command().args([verb, "--"]).args(units).status().at("run", "/usr/bin/systemctl")?;
        Ok(done.success())
    }

    fn plain(&self, verb: &str) -> Result<()> {
        let done = self.command().arg(verb).status().at("run", "/usr/bin/systemctl")?;
        if done.success() {
            Ok(())
        } else {
            Err(Error::Program { program: format!("systemctl {verb}"), status: done.to_string() })
        }
    }

    fn running(&self) -> Result<Vec<Active>> {
        let out = self
            .command()
            .args(["list-units", "--plain", "--no-legend", "--full", "--no-pager", "--all"])
            .output()
            .at("run", "/usr/bin/systemctl")?;
        if !out.status.success() {
            return Err(Error::Program {
                program: "systemctl list-units".into(),
                status: out.status.to_string(),
            });
        }
        Ok(String::from_utf8_lossy(&out.stdout)
            .lines()
            .filter_map(|l| {
                let mut words = l.split_whitespace();
                Some(Active { name: words.next()?.to_owned(), state: words.nth(1)?.to_owned() })
            })
            .collect())
    }
}

/// The units that a system defines.
struct Definitions {
    etc: PathBuf,
    layers: Vec<PathBuf>,
    origins: std::collections::BTreeMap<String, String>,
    kind: &'static str,
}

impl Definitions {
    fn of(toplevel: &Path, kind: &'static str) -> Definitions {
        let usr = toplevel.join("usr");
        let text = |name: &str| codchi_fs::read_to_string(usr.join(name)).unwrap_or_default();
        Definitions {
            etc: toplevel.join("etc/systemd").join(kind),
            layers: text("layers").lines().map(|l| Path::new(l).join("lib/systemd").join(kind)).collect(),
            origins: text("units")
                .lines()
                .filter_map(|l| l.split_once(' ').map(|(n, p)| (n.to_owned(), p.to_owned())))
                .collect(),
            kind,
        }
    }

    /// A unit with its drop-ins; an instance is its template.
    fn unit(&self, name: &str) -> Option<Unit> {
        self.exact(name).or_else(|| units::template(name).and_then(|t| self.exact(&t)))
    }

    fn exact(&self, name: &str) -> Option<Unit> {
        let mut unit = Unit::default();
        let mut found = false;
        for dir in std::iter::once(&self.etc).chain(&self.layers) {
            let file = dir.join(name);
            if std::fs::read_link(&file).is_ok_and(|t| t == Path::new("/dev/null")) {
                return Some(Unit::masked());
            }
            if let Ok(text) = codchi_fs::read_to_string(&file) {
                unit.add(&text);
                found = true;
                if dir != &self.etc
                    && let Some(origin) = self.origins.get(&format!("{}/{name}", self.kind))
                {
                    unit.from(origin);
                }
                break;
            }
        }
        if !found {
            return None;
        }
        for dir in self.layers.iter().chain(std::iter::once(&self.etc)) {
            if let Ok(drop_ins) = codchi_fs::read_dir(dir.join(format!("{name}.d"))) {
                for d in drop_ins.iter().filter(|d| d.path().extension().is_some_and(|x| x == "conf")) {
                    if let Ok(text) = codchi_fs::read_to_string(d.path()) {
                        unit.add(&text);
                    }
                }
            }
        }
        Some(unit)
    }
}

/// Users whose manager runs.
fn people(running: &[Active]) -> Vec<u32> {
    running
        .iter()
        .filter(|u| u.state == "active")
        .filter_map(|u| u.name.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok())
        .collect()
}

/// Brings a user's services to the new system.
fn user_units(uid: u32, old: &Path, new: &Path) -> Result<()> {
    let gid = super::users::Accounts::read()?.primary_group(uid).unwrap_or(uid);
    let manager = Manager { user: Some((uid, gid)) };
    let running = manager.running()?;
    let (before, after) = (Definitions::of(old, "user"), Definitions::of(new, "user"));
    let mut actions = units::decide(&running, &|n| before.unit(n), &|n| after.unit(n));
    // The bus and what a session is made of stay, as on NixOS.
    for set in [&mut actions.stop, &mut actions.restart, &mut actions.start, &mut actions.reload] {
        set.retain(|u| !u.starts_with("dbus.") && !u.ends_with(".slice") && u != "init.scope");
    }
    manager.run("stop", &actions.stop)?;
    manager.plain("daemon-reload")?;
    let back: BTreeSet<String> = actions.start.union(&actions.restart).cloned().collect();
    let gone: BTreeSet<String> = actions.stop.difference(&back).cloned().collect();
    for (what, set) in [("stopped", gone), ("restarting", back)] {
        if !set.is_empty() {
            say(format!("{what} the following units of user {uid}: {}", list(&set)));
        }
    }
    manager.run("reload", &actions.reload)?;
    manager.run("restart", &actions.restart)?;
    let again = "nixos-activation.service";
    if after.unit(again).is_some() {
        actions.restart.insert(again.into());
        manager.run("restart", &BTreeSet::from([again.to_owned()]))?;
    }
    let start: BTreeSet<String> = actions.start.union(&actions.targets).cloned().collect();
    if manager.run("start", &start)? {
        Ok(())
    } else {
        Err(Error::Program { program: "systemctl --user start".into(), status: "a unit failed".into() })
    }
}
