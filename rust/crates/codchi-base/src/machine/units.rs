//! What a switch does with units: pure comparison of what two systems define, after NixOS' rules.

use std::collections::{BTreeMap, BTreeSet};

/// A unit as a system defines it: the file with its drop-ins, later assignments behind earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// By section and key.
    sections: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// The package it comes from: a newer one is a change even if the text is the same.
    origin: Option<String>,
    /// Linked to `/dev/null`.
    masked: bool,
}

impl Unit {
    /// A unit that is masked.
    pub fn masked() -> Unit {
        Unit { masked: true, ..Unit::default() }
    }

    /// Reads the text of a unit file, or of a drop-in, into the unit (systemd.syntax(7)).
    pub fn add(&mut self, text: &str) {
        let joined = text.replace("\\\n", " ");
        let mut section = String::new();
        for line in joined.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with(['#', ';'])) {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name.to_owned();
            } else if let Some((key, value)) = line.split_once('=') {
                let values = self
                    .sections
                    .entry(section.clone())
                    .or_default()
                    .entry(key.trim().to_owned())
                    .or_default();
                values.push(value.trim().to_owned());
            }
        }
    }

    /// Names the package the unit comes from.
    pub fn from(&mut self, origin: &str) {
        self.origin = Some(origin.to_owned());
    }

    fn value(&self, section: &str, key: &str) -> Option<&str> {
        self.sections.get(section)?.get(key)?.last().map(String::as_str)
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        let set =
            ["Unit", "Service", "Socket", "Timer", "Path", "Mount"].iter().find_map(|s| self.value(s, key));
        set.map_or(default, |v| ["1", "yes", "true", "on"].contains(&v.to_ascii_lowercase().as_str()))
    }

    /// Units it names in a key, such as `Sockets`.
    fn names(&self, section: &str, key: &str) -> Vec<String> {
        let values = self.sections.get(section).and_then(|s| s.get(key));
        values.into_iter().flatten().flat_map(|v| v.split_whitespace()).map(str::to_owned).collect()
    }
}

/// How a unit differs between two systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Not in a way that a running unit notices.
    None,
    /// Only what a reload brings about.
    Reload,
    /// Otherwise.
    Restart,
}

/// Keys that only say something about the unit.
const SILENT: [&str; 6] = [
    "Description",
    "Documentation",
    "X-Reload-Triggers",
    "X-StopOnRemoval",
    "X-StopIfChanged",
    "X-RestartIfChanged",
];

/// Compares a unit of two systems.
pub fn compare(old: &Unit, new: &Unit) -> Difference {
    if old.origin != new.origin {
        return Difference::Restart;
    }
    let sections: BTreeSet<&String> = old.sections.keys().chain(new.sections.keys()).collect();
    let empty = BTreeMap::new();
    let mut difference = Difference::None;
    for section in sections {
        // Who wants it says nothing about it.
        if section == "Install" {
            continue;
        }
        let a = old.sections.get(section).unwrap_or(&empty);
        let b = new.sections.get(section).unwrap_or(&empty);
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys.into_iter().filter(|k| a.get(*k) != b.get(*k)) {
            match (section.as_str(), key.as_str()) {
                (_, "X-Reload-Triggers") => difference = Difference::Reload,
                ("Unit", k) if SILENT.contains(&k) => {}
                (_, k) if SILENT.contains(&k) => {}
                ("Mount", "Options") => difference = Difference::Reload,
                _ => return Difference::Restart,
            }
        }
    }
    difference
}

/// A unit that the manager runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active {
    /// Its name.
    pub name: String,
    /// `active`, `activating`, `reloading`, `failed` ...
    pub state: String,
}

/// What a switch does, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Stopped before the activation.
    pub stop: BTreeSet<String>,
    /// Not touched, although changed.
    pub skip: BTreeSet<String>,
    /// Reloaded after it.
    pub reload: BTreeSet<String>,
    /// Restarted after it.
    pub restart: BTreeSet<String>,
    /// Started after it.
    pub start: BTreeSet<String>,
    /// Targets whose new units are to start.
    pub targets: BTreeSet<String>,
}

impl Actions {
    /// Whether nothing is to be done but starting what is new.
    pub fn is_quiet(&self) -> bool {
        self.stop.is_empty() && self.reload.is_empty() && self.restart.is_empty() && self.start.is_empty()
    }
}

/// Targets that must not be started again because a switch happens in them.
const NOT_AGAIN: [&str; 7] = [
    "suspend.target",
    "hibernate.target",
    "hybrid-sleep.target",
    "suspend-then-hibernate.target",
    "shutdown.target",
    "emergency.target",
    "rescue.target",
];

/// The name of the template of an instance: `x@1.service` -> `x@.service`.
pub fn template(name: &str) -> Option<String> {
    let (base, rest) = name.split_once('@')?;
    let (instance, kind) = rest.rsplit_once('.')?;
    (!instance.is_empty()).then(|| format!("{base}@.{kind}"))
}

/// Decides what happens to the running units.
///
/// `old` and `new` give a unit as each system defines it.
pub fn decide(
    running: &[Active],
    old: &dyn Fn(&str) -> Option<Unit>,
    new: &dyn Fn(&str) -> Option<Unit>,
) -> Actions {
    let mut actions = Actions::default();
    let up: BTreeSet<&str> = running.iter().filter(|u| is_up(u)).map(|u| u.name.as_str()).collect();
    for unit in running.iter().filter(|u| is_up(u)) {
        let name = unit.name.as_str();
        // A unit that neither system defines is not ours: transient, generated, or a mount of the runtime.
        let Some(before) = old(name) else { continue };
        let after = new(name);
        let Some(after) = after.filter(|a| !a.masked) else {
            if before.flag("X-StopOnRemoval", true) && !before.masked {
                actions.stop.insert(name.into());
            }
            continue;
        };
        if name.ends_with(".target") {
            let again = !NOT_AGAIN.contains(&name)
                && !after.flag("RefuseManualStart", false)
                && !after.flag("X-OnlyManualStart", false);
            if again {
                actions.targets.insert(name.into());
            }
            if after.flag("X-StopOnReconfiguration", false) {
                actions.stop.insert(name.into());
            }
            continue;
        }
        match compare(&before, &after) {
            Difference::None => {}
            Difference::Reload => {
                actions.reload.insert(name.into());
            }
            Difference::Restart => changed(name, &after, &up, new, &mut actions),
        }
    }
    // What is stopped anyway needs nothing else; what is restarted, no reload.
    let (stop, restart) = (actions.stop.clone(), actions.restart.clone());
    actions.reload.retain(|u| !stop.contains(u) && !restart.contains(u));
    actions.restart.retain(|u| !stop.contains(u));
    actions
}

fn is_up(unit: &Active) -> bool {
    ["active", "activating", "reloading"].contains(&unit.state.as_str())
}

fn changed(
    name: &str,
    unit: &Unit,
    up: &BTreeSet<&str>,
    new: &dyn Fn(&str) -> Option<Unit>,
    actions: &mut Actions,
) {
    let kind = name.rsplit('.').next().unwrap_or_default();
    match kind {
        // Changing what others live in would take them along; the manager reads the new settings by itself.
        "slice" | "scope" | "swap" | "device" => {}
        "mount" | "automount" if name == "-.mount" => {}
        "mount" => {
            actions.restart.insert(name.into());
        }
        "socket" => {
            // A socket cannot restart under its service: the service stops, the socket comes back and starts it.
            let service = unit.value("Socket", "Service").map(str::to_owned).unwrap_or_else(|| {
                let base = name.trim_end_matches(".socket");
                if unit.flag("Accept", false) { String::new() } else { format!("{base}.service") }
            });
            let may = new(&service).is_none_or(|s| s.flag("X-RestartIfChanged", true));
            if up.contains(service.as_str()) && may {
                actions.stop.insert(service);
                actions.stop.insert(name.into());
                actions.start.insert(name.into());
            } else if !up.contains(service.as_str()) {
                actions.restart.insert(name.into());
            } else {
                actions.skip.insert(name.into());
            }
        }
        _ if unit.flag("X-ReloadIfChanged", false) => {
            actions.reload.insert(name.into());
        }
        _ if !unit.flag("X-RestartIfChanged", true)
            || unit.flag("RefuseManualStop", false)
            || unit.flag("X-OnlyManualStart", false) =>
        {
            actions.skip.insert(name.into());
        }
        _ if !unit.flag("X-StopIfChanged", true) => {
            actions.restart.insert(name.into());
        }
        "service" => {
            let mut sockets = unit.names("Service", "Sockets");
            if sockets.is_empty() {
                sockets.push(format!("{}.socket", name.trim_end_matches(".service")));
            }
            sockets.retain(|s| up.contains(s.as_str()));
            actions.stop.insert(name.into());
            if sockets.is_empty() || unit.flag("X-NotSocketActivated", false) {
                actions.start.insert(name.into());
            }
            for socket in sockets {
                actions.stop.insert(socket.clone());
                actions.start.insert(socket);
            }
        }
        _ => {
            actions.stop.insert(name.into());
            actions.start.insert(name.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> Unit {
        let mut u = Unit::default();
        u.add(text);
        u
    }

    fn plan(running: &[&str], old: &[(&str, &str)], new: &[(&str, &str)]) -> Actions {
        let find = |set: &[(&str, &str)]| {
            let set: BTreeMap<String, Unit> = set.iter().map(|(n, t)| ((*n).to_owned(), unit(t))).collect();
            move |name: &str| set.get(name).or_else(|| template(name).and_then(|t| set.get(&t))).cloned()
        };
        let running: Vec<_> =
            running.iter().map(|n| Active { name: (*n).into(), state: "active".into() }).collect();
        decide(&running, &find(old), &find(new))
    }

    fn names(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_unit_is_compared_by_what_a_running_one_notices() {
        let a = unit("[Unit]\nDescription=a\n[Service]\nExecStart=x\n");
        assert_eq!(
            compare(&a, &unit("[Unit]\nDescription=b\n[Service]\nExecStart=x\n[Install]\nWantedBy=y\n")),
            Difference::None
        );
        assert_eq!(
            compare(&a, &unit("[Unit]\nDescription=a\n[Service]\nExecStart=y\n")),
            Difference::Restart
        );
        assert_eq!(
            compare(&a, &unit("[Unit]\nX-Reload-Triggers=1\n[Service]\nExecStart=x\n")),
            Difference::Reload
        );
        assert_eq!(
            compare(&a, &unit("[Unit]\nX-Restart-Triggers=1\n[Service]\nExecStart=x\n")),
            Difference::Restart
        );
        let mut newer = a.clone();
        newer.from("/nix/store/newer");
        assert_eq!(compare(&a, &newer), Difference::Restart);
    }

    #[test]
    fn comments_and_continuation_lines_are_read_as_systemd_reads_them() {
        assert_eq!(unit("# c\n[Service]\nExecStart=a \\\n  b\n"), unit("[Service]\nExecStart=a    b\n"));
    }

    #[test]
    fn changed_services_stop_and_start_or_restart_or_reload_or_stay() {
        let one = "[Service]\nExecStart=1\n";
        let two = |more: &str| format!("[Service]\nExecStart=2\n{more}");
        let a = plan(
            &["a.service", "b.service", "c.service", "d.service", "same.service"],
            &[
                ("a.service", one),
                ("b.service", one),
                ("c.service", one),
                ("d.service", one),
                ("same.service", one),
            ],
            &[
                ("a.service", &two("")),
                ("b.service", &two("X-StopIfChanged=false\n")),
                ("c.service", &two("X-ReloadIfChanged=true\n")),
                ("d.service", &two("X-RestartIfChanged=false\n")),
                ("same.service", one),
            ],
        );
        assert_eq!((names(&a.stop), names(&a.start)), (vec!["a.service"], vec!["a.service"]));
        assert_eq!(names(&a.restart), ["b.service"]);
        assert_eq!(names(&a.reload), ["c.service"]);
        assert_eq!(names(&a.skip), ["d.service"]);
    }

    #[test]
    fn a_removed_unit_stops_unless_it_says_otherwise_and_foreign_ones_are_left_alone() {
        let a = plan(
            &["gone.service", "stays.service", "session-1.scope", "run-x.service"],
            &[("gone.service", "[Service]\n"), ("stays.service", "[Unit]\nX-StopOnRemoval=false\n")],
            &[],
        );
        assert_eq!(names(&a.stop), ["gone.service"]);
    }

    #[test]
    fn a_changed_service_with_a_socket_comes_back_by_its_socket() {
        let socket = ("s.socket", "[Socket]\nListenStream=/run/s\n");
        let a = plan(
            &["s.service", "s.socket"],
            &[("s.service", "[Service]\nExecStart=1\n"), socket],
            &[("s.service", "[Service]\nExecStart=2\n"), socket],
        );
        assert_eq!(names(&a.stop), ["s.service", "s.socket"]);
        assert_eq!(names(&a.start), ["s.socket"]);
    }

    #[test]
    fn instances_are_compared_by_their_template() {
        let a = plan(
            &["x@1.service"],
            &[("x@.service", "[Service]\nExecStart=1\n")],
            &[("x@.service", "[Service]\nExecStart=2\n")],
        );
        assert_eq!(names(&a.stop), ["x@1.service"]);
        assert_eq!(template("x@1.service").as_deref(), Some("x@.service"));
        assert_eq!(template("x.service"), None);
    }

    #[test]
    fn active_targets_are_started_again_for_their_new_units() {
        let t = ("multi-user.target", "[Unit]\n");
        let a = plan(
            &["multi-user.target", "rescue.target"],
            &[t, ("rescue.target", "")],
            &[t, ("rescue.target", "")],
        );
        assert_eq!(names(&a.targets), ["multi-user.target"]);
        assert!(a.is_quiet());
    }
}
