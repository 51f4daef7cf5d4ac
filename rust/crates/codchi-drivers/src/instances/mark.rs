//! Marks in the engine's own metadata: whose an instance is, and what of its configuration is Codchi's.

use codchi_core::dirs::Dirs;
use codchi_core::name::MachineName;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::guard::Settings;

/// The machine's name.
pub const MACHINE: &str = "user.codchi.machine";
/// Whose machine it is: a user of this host and their settings.
pub const OWNER: &str = "user.codchi.owner";
/// The host whose machine it is, where the engine may have instances of several.
pub const HOST: &str = "user.codchi.host";
/// That an instance has nothing of the host whose machine it is, which may be another one.
pub const APART: &str = "user.codchi.apart";
/// The configuration keys and devices that Codchi manages; all others are a person's.
const MANAGED: &str = "user.codchi.managed";
/// In that list, the size of the device with the root file system.
const SIZE: &str = "size:root";

/// What stands for the caller in marks.
pub fn owner(dirs: &Dirs) -> String {
    format!("{}:{}", dirs.uid, dirs.config.display())
}

/// What stands for this host in marks, made of its machine id as machine-id(5) advises: it tells nobody that id.
pub fn host() -> String {
    let id = codchi_fs::read_to_string("/etc/machine-id").unwrap_or_default();
    sum(&["codchi host ", id.trim()])
}

/// What stands for the caller in names of things that the engine has for all of the caller's machines.
pub fn caller(dirs: &Dirs) -> String {
    sum(&[&owner(dirs), " ", &host()]).chars().take(12).collect()
}

fn sum(parts: &[&str]) -> String {
    let sum = parts.iter().fold(Sha256::new(), |sum, part| sum.chain_update(part)).finalize();
    sum.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The marks of what is the caller's.
pub fn of_caller(dirs: &Dirs) -> Map<String, Value> {
    let marks = [(OWNER, owner(dirs)), (HOST, host())];
    marks.into_iter().map(|(key, value)| (key.into(), json!(value))).collect()
}

/// Whether something is the caller's on this host.
pub fn is_callers(thing: &Value, dirs: &Dirs) -> bool {
    let config = &thing["config"];
    config[OWNER] == owner(dirs).as_str() && config[HOST] == host().as_str()
}

/// The marks of the caller's machine of a name. `apart`: with nothing of this host.
pub fn marks(dirs: &Dirs, machine: &MachineName, apart: bool) -> Map<String, Value> {
    let mut marks = of_caller(dirs);
    marks.insert(MACHINE.into(), json!(machine));
    if apart {
        marks.insert(APART.into(), json!("true"));
    }
    marks
}

/// Whether an instance is the caller's machine of that name; `apart`: one with nothing of this host.
pub fn is_ours(instance: &Value, dirs: &Dirs, machine: &MachineName, apart: bool) -> bool {
    is_owned(instance, dirs, apart) && instance["config"][MACHINE] == machine.as_str()
}

/// Whether an instance is a machine of the caller's. Others that use the engine may have a user of that number with such settings.
pub fn is_owned(instance: &Value, dirs: &Dirs, apart: bool) -> bool {
    let config = &instance["config"];
    if apart {
        return is_callers(instance, dirs) && config.get(APART).is_some();
    }
    // An earlier Codchi marked no host, and knew no clusters.
    let earlier = config.get(HOST).is_none() && member(instance).is_none();
    let ours = is_callers(instance, dirs) || earlier && config[OWNER] == owner(dirs).as_str();
    ours && config.get(APART).is_none()
}

/// The member of the engine's cluster that has an instance; none where there is no cluster.
pub fn member(instance: &Value) -> Option<&str> {
    instance["location"].as_str().filter(|l| !matches!(*l, "" | "none"))
}

fn managed(instance: &Value) -> Vec<&str> {
    instance["config"][MANAGED].as_str().unwrap_or_default().split(' ').collect()
}

/// What a person added to an instance: keys of its configuration, and devices.
pub fn extras(instance: &Value) -> Vec<String> {
    let managed = managed(instance);
    let engines = ["volatile.", "image.", "user.codchi.", "security.idmap."];
    let is_theirs = |key: &str| !managed.contains(&key) && !engines.iter().any(|e| key.starts_with(e));
    let keys = instance["config"].as_object().into_iter().flat_map(|c| c.keys());
    let mut extras: Vec<String> = keys
        .filter(|k| is_theirs(k))
        .map(|k| format!("the key `{}`", codchi_core::text::printable_line(k)))
        .collect();
    let devices = devices_of_others(instance);
    let devices = devices.keys().filter(|d| *d != "root");
    extras.extend(devices.map(|d| format!("the device `{}`", codchi_core::text::printable_line(d))));
    extras
}

/// The devices of an instance that Codchi does not manage: a person's, and the one with the root file system.
pub fn devices_of_others(instance: &Value) -> Map<String, Value> {
    without_managed(instance, "devices", "device:")
}

/// What is not managed of a part of an instance, which the list of what is names with a prefix.
fn without_managed(instance: &Value, part: &str, prefix: &str) -> Map<String, Value> {
    let managed = managed(instance);
    let all = instance[part].as_object().into_iter().flatten();
    all.filter(|(key, _)| !managed.contains(&format!("{prefix}{key}").as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// What an instance is to have: what was rendered, over what a person added and the engine keeps there. None when it has just
/// that already.
pub fn merged(instance: &Value, settings: &Settings) -> Option<Value> {
    let mut new_config = without_managed(instance, "config", "");
    let mut new_devices = devices_of_others(instance);
    let Settings { config, devices, disk, .. } = settings;
    new_config.extend(config.iter().map(|(key, value)| (key.clone(), json!(value))));
    new_devices.extend(devices.iter().map(|(name, device)| (name.clone(), device.clone())));
    let mut names: Vec<String> = config.keys().cloned().collect();
    names.extend(devices.keys().map(|name| format!("device:{name}")));
    if let Some(root) = new_devices.get_mut("root").and_then(Value::as_object_mut) {
        if let Some(bytes) = disk {
            root.insert("size".into(), json!(bytes.to_string()));
            names.push(SIZE.into());
        } else if managed(instance).contains(&SIZE) {
            root.remove("size");
        }
    }
    new_config.insert(MANAGED.into(), json!(names.join(" ")));
    if instance["config"].as_object() == Some(&new_config)
        && instance["devices"].as_object() == Some(&new_devices)
    {
        return None;
    }
    let mut whole = instance.clone();
    whole["config"] = Value::Object(new_config);
    whole["devices"] = Value::Object(new_devices);
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_added_stays_and_what_codchi_no_longer_renders_goes() {
        let rendered = |settings: Value| -> Settings { serde_json::from_value(settings).unwrap() };
        let first = rendered(json!({
            "version": 1,
            "config": { "limits.memory": "1", "raw.lxc": "a" },
            "devices": { "store": { "type": "disk" } },
            "disk": 4096,
        }));
        let instance =
            json!({"config": {"volatile.x": "1"}, "devices": {"root": {"type": "disk"}}, "profiles": []});
        let mut instance = merged(&instance, &first).unwrap();
        assert_eq!(instance["devices"]["root"]["size"], "4096");
        assert_eq!(merged(&instance, &first), None);
        instance["config"]["boot.autostart"] = json!("true");
        instance["devices"]["mine"] = json!({"type": "nic"});
        let second = rendered(json!({ "version": 1, "config": { "raw.lxc": "b" }, "devices": {} }));
        let after = merged(&instance, &second).unwrap();
        assert_eq!(after["config"]["limits.memory"], Value::Null);
        assert_eq!(after["config"]["boot.autostart"], "true");
        assert_eq!(after["config"]["volatile.x"], "1");
        assert_eq!(after["config"]["raw.lxc"], "b");
        assert_eq!(extras(&after), ["the key `boot.autostart`", "the device `mine`"]);
        // As an instance is that is up to do nothing.
        let others = devices_of_others(&instance);
        assert_eq!(others.keys().collect::<Vec<_>>(), ["mine", "root"]);
        assert_eq!(after["devices"], json!({"root": {"type": "disk"}, "mine": {"type": "nic"}}));
    }
    #[test]
    fn machines_of_other_hosts_and_of_other_ways_are_not_ours() {
        let dirs = Dirs::from_env(&|_| Some("/home/me".into()), 0).unwrap();
        let name: MachineName = "shop".parse().unwrap();
        let instance =
            |marks: Map<String, Value>, location: &str| json!({ "config": marks, "location": location });
        for apart in [false, true] {
            let ours = instance(marks(&dirs, &name, apart), "none");
            assert!(is_ours(&ours, &dirs, &name, apart));
            // What has our folders is no machine on another host, nor the other way round.
            assert!(!is_ours(&ours, &dirs, &name, !apart));
            let mut theirs = marks(&dirs, &name, apart);
            theirs.insert(HOST.into(), json!("another"));
            assert!(!is_ours(&instance(theirs, "none"), &dirs, &name, apart));
        }
        // Of an earlier Codchi, which marked no host.
        let mut earlier = marks(&dirs, &name, false);
        earlier.remove(HOST);
        assert!(is_ours(&instance(earlier.clone(), "none"), &dirs, &name, false));
        assert!(!is_ours(&instance(earlier.clone(), "m2"), &dirs, &name, false));
        assert!(!is_ours(&instance(earlier, "none"), &dirs, &name, true));
    }

    #[test]
    fn a_size_that_a_person_gave_the_root_stays_where_the_machine_asks_for_none() {
        let none: Settings =
            serde_json::from_value(json!({ "version": 1, "config": {}, "devices": {} })).unwrap();
        let root = json!({ "type": "disk", "size": "1GiB" });
        let after = merged(&json!({ "config": {}, "devices": { "root": root } }), &none).unwrap();
        assert_eq!(after["devices"]["root"], root);
    }
}
