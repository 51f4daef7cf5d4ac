//! Marks in the engine's own metadata: whose an instance is, and what of its configuration is Codchi's.

use std::collections::BTreeMap;

use codchi_core::dirs::Dirs;
use codchi_core::name::MachineName;
use serde_json::{Map, Value, json};

/// The machine's name.
pub const MACHINE: &str = "user.codchi.machine";
/// Whose machine it is: a user of this host and their settings.
pub const OWNER: &str = "user.codchi.owner";
/// The configuration keys and devices that Codchi manages; all others are a person's.
const MANAGED: &str = "user.codchi.managed";

/// What stands for the caller in marks.
pub fn owner(dirs: &Dirs) -> String {
    format!("{}:{}", dirs.uid, dirs.config.display())
}

/// Whether an instance is the caller's machine of that name.
pub fn is_ours(instance: &Value, dirs: &Dirs, machine: &MachineName) -> bool {
    let config = &instance["config"];
    config[OWNER] == owner(dirs).as_str() && config[MACHINE] == machine.as_str()
}

/// What a person added to an instance: keys of its configuration, and devices.
pub fn extras(instance: &Value) -> Vec<String> {
    let managed: Vec<&str> = instance["config"][MANAGED].as_str().unwrap_or_default().split(' ').collect();
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
    let managed: Vec<&str> = instance["config"][MANAGED].as_str().unwrap_or_default().split(' ').collect();
    let all = instance[part].as_object().into_iter().flatten();
    all.filter(|(key, _)| !managed.contains(&format!("{prefix}{key}").as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// What an instance is to have: `config` and `devices` as rendered, over what a person added and the engine keeps there.
/// None when it has just that already.
pub fn merged(
    instance: &Value,
    config: &BTreeMap<String, String>,
    devices: &Map<String, Value>,
) -> Option<Value> {
    let mut new_config = without_managed(instance, "config", "");
    let mut new_devices = devices_of_others(instance);
    new_config.extend(config.iter().map(|(key, value)| (key.clone(), json!(value))));
    new_devices.extend(devices.iter().map(|(name, device)| (name.clone(), device.clone())));
    let mut names: Vec<String> = config.keys().cloned().collect();
    names.extend(devices.keys().map(|name| format!("device:{name}")));
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
        let first =
            BTreeMap::from([("limits.memory".to_string(), "1".to_string()), ("raw.lxc".into(), "a".into())]);
        let devices = json!({"store": {"type": "disk"}}).as_object().unwrap().clone();
        let instance =
            json!({"config": {"volatile.x": "1"}, "devices": {"root": {"type": "disk"}}, "profiles": []});
        let mut instance = merged(&instance, &first, &devices).unwrap();
        assert_eq!(merged(&instance, &first, &devices), None);
        instance["config"]["boot.autostart"] = json!("true");
        instance["devices"]["mine"] = json!({"type": "nic"});
        let second = BTreeMap::from([("raw.lxc".to_string(), "b".to_string())]);
        let after = merged(&instance, &second, &Map::new()).unwrap();
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
}
