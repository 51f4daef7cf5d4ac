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
    let devices = instance["devices"].as_object().into_iter().flat_map(|d| d.keys());
    let devices = devices.filter(|d| *d != "root" && !managed.contains(&format!("device:{d}").as_str()));
    extras.extend(devices.map(|d| format!("the device `{}`", codchi_core::text::printable_line(d))));
    extras
}

/// What an instance is to have: `config` and `devices` as rendered, over what a person added and the engine keeps there.
/// None when it has just that already.
pub fn merged(
    instance: &Value,
    config: &BTreeMap<String, String>,
    devices: &Map<String, Value>,
) -> Option<Value> {
    let empty = Map::new();
    let (old_config, old_devices) =
        (instance["config"].as_object().unwrap_or(&empty), instance["devices"].as_object().unwrap_or(&empty));
    let managed: Vec<&str> =
        old_config.get(MANAGED).and_then(Value::as_str).unwrap_or_default().split(' ').collect();
    let kept = |old: &Map<String, Value>, prefix: &str| -> Map<String, Value> {
        old.iter()
            .filter(|(key, _)| !managed.contains(&format!("{prefix}{key}").as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    let mut new_config = kept(old_config, "");
    let mut new_devices = kept(old_devices, "device:");
    new_config.extend(config.iter().map(|(key, value)| (key.clone(), json!(value))));
    new_devices.extend(devices.iter().map(|(name, device)| (name.clone(), device.clone())));
    let mut names: Vec<String> = config.keys().cloned().collect();
    names.extend(devices.keys().map(|name| format!("device:{name}")));
    new_config.insert(MANAGED.into(), json!(names.join(" ")));
    if &new_config == old_config && &new_devices == old_devices {
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
        assert_eq!(after["devices"], json!({"root": {"type": "disk"}, "mine": {"type": "nic"}}));
    }
}
