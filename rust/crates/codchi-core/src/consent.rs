//! What a module asks of the host that only a person can grant, named and remembered by content.
//!
//! What is granted is a line in the machine's `host.toml`: the item's name, and what it stands for. Another folder, port or value
//! behind the same name is another line, so it is asked for again.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::manifest::{Mount, Needs, Port};
use crate::port::Protocol;

/// What becomes of a machine when an item is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// There is no machine without it.
    Needed,
    /// The machine does without, but a person has to say so.
    Choice,
    /// The machine does without; who says nothing has not granted it.
    Optional,
}

/// One thing that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// How `--accept` names it.
    pub name: String,
    /// What it lets the module do, for people: `lets it ...`. Not made printable yet.
    pub what: String,
    /// What else tells it from another of that name.
    content: String,
    /// What becomes of a machine without it.
    pub weight: Weight,
}

/// What a line about something refused begins with.
const REFUSED: &str = "not ";

impl Item {
    fn new(name: String, content: String, what: String, weight: Weight) -> Item {
        Item { name, what, content, weight }
    }

    /// The line that remembers that it is granted.
    pub fn granted(&self) -> String {
        if self.content.is_empty() { self.name.clone() } else { format!("{} = {}", self.name, self.content) }
    }

    /// The line that remembers that it is refused.
    pub fn refused(&self) -> String {
        format!("{REFUSED}{}", self.granted())
    }

    /// Whether one of the person's words means it: its name, or the name of its kind.
    pub fn is_named(&self, words: &[String]) -> bool {
        words.iter().any(|w| *w == self.name || self.name.split_once(':').is_some_and(|(kind, _)| kind == w))
    }
}

/// What the needs of a machine ask for. `hosts` are the servers of its sources.
pub fn of_needs(needs: &Needs, hosts: &[String]) -> Vec<Item> {
    let mut all = Vec::new();
    for (guest, m) in &needs.mounts {
        let (how, short) = if m.read_only { ("read", "ro") } else { ("read and change", "rw") };
        all.push(Item::new(
            format!("mount:{}", m.source),
            format!("{guest} {short}"),
            format!("{how} your folder `{}` (at `{guest}` inside)", m.source),
            Weight::Needed,
        ));
    }
    for (guest, p) in &needs.ports {
        let protocol = p.protocol.as_str();
        all.push(Item::new(
            format!("port:{}", p.host),
            format!("{guest}/{protocol}"),
            format!("be reached at {protocol} port {} of this computer (port {guest} inside)", p.host),
            Weight::Needed,
        ));
    }
    for (name, _) in needs.host_secrets.iter().filter(|(_, on)| **on) {
        all.push(host_secret(name, hosts));
    }
    let by_secret: Vec<&str> =
        needs.host_secrets.iter().filter(|(_, on)| **on).map(|(n, _)| n.as_str()).collect();
    let lists =
        [(&needs.required_capabilities, Weight::Needed), (&needs.optional_capabilities, Weight::Optional)];
    for (list, weight) in lists {
        for name in list.iter().filter(|c| !by_secret.contains(&secret_of(c))) {
            all.push(capability(name, needs, weight));
        }
    }
    for (key, value) in needs.driver_settings.as_object().into_iter().flatten() {
        all.push(Item::new(
            format!("setting:{key}"),
            value.to_string(),
            format!("set `{key}` of the driver to `{value}`"),
            Weight::Needed,
        ));
    }
    all
}

/// The host secret that a capability stands for.
fn secret_of(capability: &str) -> &str {
    match capability {
        "ssh-agent" => "sshAgent",
        "git-credentials" => "gitCredentials",
        other => other,
    }
}

fn host_secret(name: &str, hosts: &[String]) -> Item {
    let (what, content) = match name {
        "certificates" => {
            ("trust the certificate authorities that this computer trusts".into(), String::new())
        }
        "sshAgent" => ("log in to other computers with the keys of your ssh agent".into(), String::new()),
        GIT => {
            let of = if hosts.is_empty() { "no server".into() } else { format!("`{}`", hosts.join("`, `")) };
            (format!("get the passwords that git remembers for {of}"), hosts.join(" "))
        }
        "netrc" => ("read the passwords in your netrc".into(), String::new()),
        other => (format!("use your `{other}`"), String::new()),
    };
    Item::new(format!("host-secret:{name}"), content, what, Weight::Needed)
}

const GIT: &str = "gitCredentials";

fn capability(name: &str, needs: &Needs, weight: Weight) -> Item {
    let mut content = String::new();
    let what = match name {
        "display" => {
            content = if needs.displays.is_empty() { "x11 wayland".into() } else { needs.displays.join(" ") };
            let all = if content.contains("x11") {
                " (by X11, it sees and types into all others, too)"
            } else {
                ""
            };
            format!("show windows on your screen{all}")
        }
        "sound" => "play sound, and record".into(),
        "gpu" => "use the graphics processor".into(),
        "usb" => {
            content = needs.usb_devices.join(" ");
            format!("use the USB devices {content}")
        }
        "kvm" => "run virtual machines with hardware virtualisation".into(),
        other => format!("use this computer's `{other}`"),
    };
    Item::new(format!("capability:{name}"), content, what, weight)
}

/// Whether a machine with these needs, and this said of them, has a capability of the host.
pub fn has_capability(needs: &Needs, lines: &[String], name: &str) -> bool {
    let asked = |list: &[String]| list.iter().any(|c| c == name);
    if !asked(&needs.required_capabilities) && !asked(&needs.optional_capabilities) {
        return false;
    }
    let secret = needs.host_secrets.get(secret_of(name)).is_some_and(|on| *on);
    if secret {
        let name = format!("host-secret:{}", secret_of(name));
        // That of git goes with the servers it is for.
        return lines.iter().any(|l| l.split(" = ").next() == Some(&name));
    }
    lines.contains(&capability(name, needs, Weight::Optional).granted())
}

/// What is remembered together with `now`, of what was granted `before`: a machine that goes back to an earlier system has what that
/// one, whose needs are among `earlier`, asks for. What is said now of the same thing counts more, and so does a word of refusal.
pub fn kept(before: &[String], now: Vec<String>, earlier: &[Needs], refuse: &[String]) -> Vec<String> {
    let name = |line: &str| line.split(" = ").next().unwrap_or_default().to_owned();
    let git = format!("host-secret:{GIT}");
    let mut all = now;
    for item in earlier.iter().flat_map(|needs| of_needs(needs, &[])) {
        let by_name = item.name.starts_with("host-secret:");
        if !by_name && !item.name.starts_with("capability:") || item.is_named(refuse) {
            continue;
        }
        // Which servers it is for is not among the needs; they are not to become more than those that were said now.
        if item.name == git && all.iter().any(|l| name(l) == git) {
            continue;
        }
        let line = before.iter().find(|l| **l == item.granted() || by_name && name(l) == item.name);
        if let Some(line) = line.filter(|l| !all.contains(l) && !all.contains(&item.refused())) {
            all.push(line.clone());
        }
    }
    all.sort();
    all
}

/// The servers for which a machine may have the passwords that git remembers.
pub fn git_hosts(lines: &[String]) -> Vec<String> {
    let start = format!("host-secret:{GIT} = ");
    lines
        .iter()
        .filter_map(|l| l.strip_prefix(&start))
        .flat_map(str::split_whitespace)
        .map(String::from)
        .collect()
}

/// Settings of Nix that can be granted: where to download from, and how patiently. Others make the host run programs, or take down
/// what stands between it and builds.
const SETTINGS: [&str; 9] = [
    "connect-timeout",
    "download-attempts",
    "extra-substituters",
    "extra-trusted-public-keys",
    "http-connections",
    "narinfo-cache-negative-ttl",
    "stalled-download-timeout",
    "substituters",
    "trusted-public-keys",
];

/// What to do about a setting of Nix in a flake's `nixConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NixSetting {
    /// It is so anyway.
    Nothing,
    /// It can be granted.
    Ask(Item),
    /// Nobody can grant it.
    Never,
}

/// What to do about a setting of Nix in a flake's `nixConfig`.
pub fn nix_setting(name: &str, value: &str) -> NixSetting {
    let words = || value.split_whitespace();
    if name.ends_with("experimental-features") && words().all(|w| w == "flakes" || w == "nix-command") {
        // They are on.
        return NixSetting::Nothing;
    }
    if !SETTINGS.contains(&name) {
        return NixSetting::Never;
    }
    let what = match name.trim_start_matches("extra-") {
        "substituters" => format!("have Nix download from `{value}`"),
        "trusted-public-keys" => format!("have Nix trust packages signed by `{value}`"),
        _ => format!("set Nix's `{name}` to `{value}`"),
    };
    NixSetting::Ask(Item::new(format!("nix-config:{name}"), value.into(), what, Weight::Choice))
}

/// The settings of Nix that lines say are granted: names and values.
pub fn granted_nix_settings(lines: &[String]) -> impl Iterator<Item = (&str, &str)> {
    lines
        .iter()
        .filter_map(|l| l.strip_prefix("nix-config:")?.split_once(" = "))
        .filter(|(name, _)| SETTINGS.contains(name))
}

/// Builds while evaluating: modules from these addresses run programs of their choice before anything was shown of what they ask for.
pub fn import_from_derivation(addresses: &[String]) -> Item {
    Item::new(
        "import-from-derivation".into(),
        addresses.join(" "),
        "build packages while it is evaluated, before you see what it asks for".into(),
        Weight::Needed,
    )
}

/// What modules that a person wrote literally in the machine flake ask for: their text counts as their word. `modules` are their
/// attributes as far as they are written out; what is computed is not their word.
pub fn written<'a>(
    modules: impl IntoIterator<Item = &'a Value>,
    driver: &str,
    hosts: &[String],
) -> Vec<Item> {
    let mut needs = Needs::default();
    let mut settings = serde_json::Map::new();
    for module in modules {
        for codchi in [&module["codchi"], &module["config"]["codchi"]] {
            let entries = |v: &Value| v.as_object().cloned().unwrap_or_default();
            for (guest, m) in entries(&codchi["mounts"]) {
                let Some(source) = m["source"].as_str() else { continue };
                let flag = |name: &str| m[name].as_bool().unwrap_or(false);
                let mount =
                    Mount { source: source.into(), read_only: flag("readOnly"), optional: flag("optional") };
                needs.mounts.insert(guest, mount);
            }
            for (guest, p) in entries(&codchi["ports"]) {
                let host = p["host"].as_u64().or_else(|| guest.parse().ok());
                let Some(host) = host.and_then(|h| u16::try_from(h).ok()) else { continue };
                let protocol = if p["protocol"] == "udp" { Protocol::Udp } else { Protocol::Tcp };
                needs.ports.insert(guest, Port { host, protocol });
            }
            for (name, secret) in entries(&codchi["hostSecrets"]) {
                if secret["enable"] == true {
                    needs.host_secrets.insert(name, true);
                }
            }
            for list in ["requiredCapabilities", "optionalCapabilities"] {
                let names = codchi[list].as_array().into_iter().flatten();
                needs.required_capabilities.extend(names.filter_map(|n| n.as_str().map(String::from)));
            }
            for protocol in ["x11", "wayland"] {
                if codchi["display"][protocol]["enable"] == true {
                    needs.displays.push(protocol.into());
                }
            }
            let devices = codchi["usb"]["devices"].as_array().into_iter().flatten();
            needs.usb_devices.extend(devices.filter_map(|d| d.as_str().map(String::from)));
            for (path, capability) in ENABLES {
                if codchi.pointer(path) == Some(&Value::Bool(true)) {
                    needs.required_capabilities.push(capability.into());
                }
            }
            settings.extend(entries(&codchi["driver"]["settings"][driver]));
        }
    }
    needs.driver_settings = Value::Object(settings);
    if !needs.usb_devices.is_empty() {
        needs.required_capabilities.push("usb".into());
    }
    of_needs(&needs, hosts)
}

/// Options that ask for a capability.
const ENABLES: [(&str, &str); 6] = [
    ("/display/x11/enable", "display"),
    ("/display/wayland/enable", "display"),
    ("/sound/enable", "sound"),
    ("/gpu/enable", "gpu"),
    ("/usb/enable", "usb"),
    ("/kvm/enable", "kvm"),
];

/// What is said of items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Lines to remember, of what is granted and what is refused.
    pub lines: Vec<String>,
    /// What nobody has said anything about.
    pub open: Vec<Item>,
    /// What is refused and cannot be done without.
    pub impossible: Vec<Item>,
}

/// Sorts out what is said of items: by the person's own text, by `--accept` and `--refuse` now, or before.
pub fn sort(
    wanted: Vec<Item>,
    before: &[String],
    own: &[Item],
    accept: &[String],
    refuse: &[String],
) -> Said {
    let mut said = Said::default();
    let own: BTreeMap<String, &Item> = own.iter().map(|i| (i.granted(), i)).collect();
    for item in wanted {
        let (yes, no) = (item.granted(), item.refused());
        if item.is_named(refuse) {
            match item.weight {
                Weight::Needed => said.impossible.push(item),
                _ => said.lines.push(no),
            }
        } else if item.is_named(accept) || before.contains(&yes) {
            said.lines.push(yes);
        } else if before.contains(&no) && item.weight != Weight::Needed {
            // What was refused while it was optional is no answer once there is no machine without it.
            said.lines.push(no);
        } else if own.contains_key(&yes) {
            said.lines.push(yes);
        } else {
            said.open.push(item);
        }
    }
    said.lines.sort();
    said.lines.dedup();
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn needs(value: Value) -> Needs {
        let mut all = json!({
            "secrets": {}, "requiredCapabilities": [], "optionalCapabilities": [], "hostSecrets": {},
            "mounts": {}, "ports": {}, "driverSettings": {}
        });
        for (k, v) in value.as_object().unwrap() {
            all[k] = v.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn names(items: &[Item]) -> Vec<&str> {
        items.iter().map(|i| i.name.as_str()).collect()
    }

    fn words(w: &[&str]) -> Vec<String> {
        w.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn a_grant_is_for_the_content_and_not_for_the_name() {
        let mount = |guest: &str, read_only: bool| {
            let mount = json!({"source": "~/x", "readOnly": read_only, "optional": false});
            of_needs(&needs(json!({"mounts": {guest: mount}})), &[])
        };
        let granted = sort(mount("/data", true), &[], &[], &words(&["mount:~/x"]), &[]).lines;
        assert_eq!(granted, ["mount:~/x = /data ro"]);
        assert!(sort(mount("/data", true), &granted, &[], &[], &[]).open.is_empty());
        for other in [mount("/data", false), mount("/other", true)] {
            assert_eq!(names(&sort(other, &granted, &[], &[], &[]).open), ["mount:~/x"]);
        }
        let setting = |v: Value| of_needs(&needs(json!({"driverSettings": {"devices": v}})), &[]);
        let granted = sort(setting(json!(["a"])), &[], &[], &words(&["setting"]), &[]).lines;
        assert_eq!(sort(setting(json!(["a", "b"])), &granted, &[], &[], &[]).open.len(), 1);
    }

    #[test]
    fn what_the_person_wrote_out_is_granted_and_nothing_else_is() {
        let wanted = of_needs(
            &needs(json!({
                "mounts": {"/a": {"source": "~/a", "readOnly": false, "optional": true},
                           "/b": {"source": "~/b", "readOnly": false, "optional": false}},
                "ports": {"80": {"host": 80, "protocol": "tcp"}, "53": {"host": 53, "protocol": "udp"}},
                "optionalCapabilities": ["gpu", "sound"], "requiredCapabilities": ["kvm"],
                "hostSecrets": {"sshAgent": true, "netrc": false},
                "driverSettings": {"x": {"y": 1}}
            })),
            &[],
        );
        let own = written(
            &[
                json!({"codchi": {"mounts": {"/a": {"source": "~/a"}, "/b": {"source": "~/other"}}, "ports": {"80": {}}}}),
                json!({"config": {"codchi": {"gpu": {"enable": true}, "requiredCapabilities": ["kvm"],
                    "driver": {"settings": {"native": {"x": {"y": 1}}, "other": {"z": 1}}}}}}),
            ],
            "native",
            &[],
        );
        let said = sort(wanted, &[], &own, &[], &[]);
        assert_eq!(names(&said.open), ["mount:~/b", "port:53", "host-secret:sshAgent", "capability:sound"]);
    }

    #[test]
    fn what_is_refused_stays_refused_until_it_is_accepted() {
        let wanted = |value: &str| match nix_setting("extra-substituters", value) {
            NixSetting::Ask(item) => vec![item],
            other => panic!("{other:?}"),
        };
        let no = sort(wanted("https://c"), &[], &[], &[], &words(&["nix-config"]));
        assert_eq!(no.lines, ["not nix-config:extra-substituters = https://c"]);
        let still = sort(wanted("https://c"), &no.lines, &wanted("https://c"), &[], &[]);
        assert_eq!(still, no);
        assert_eq!(sort(wanted("https://d"), &no.lines, &[], &[], &[]).open.len(), 1);
        let yes = sort(wanted("https://c"), &no.lines, &[], &words(&["nix-config:extra-substituters"]), &[]);
        assert_eq!(
            granted_nix_settings(&yes.lines).collect::<Vec<_>>(),
            [("extra-substituters", "https://c")]
        );
        assert_eq!(granted_nix_settings(&no.lines).count(), 0);
        let needed = vec![import_from_derivation(&words(&["git+https://h/x"]))];
        assert_eq!(sort(needed, &[], &[], &[], &words(&["import-from-derivation"])).impossible.len(), 1);
    }

    #[test]
    fn what_was_refused_while_it_was_optional_is_asked_for_once_it_is_required() {
        let gpu = |list: &str| of_needs(&needs(json!({list: ["gpu"]})), &[]);
        let no = sort(gpu("optionalCapabilities"), &[], &[], &[], &words(&["capability:gpu"])).lines;
        assert_eq!(no, ["not capability:gpu"]);
        let required = gpu("requiredCapabilities");
        let said = sort(required.clone(), &no, &[], &[], &[]);
        assert_eq!((said.lines, names(&said.open)), (vec![], vec!["capability:gpu"]));
        assert_eq!(sort(required.clone(), &no, &[], &words(&["capability"]), &[]).lines, ["capability:gpu"]);
        // What the person writes later is their word, too.
        assert_eq!(sort(required.clone(), &no, &required, &[], &[]).lines, ["capability:gpu"]);
    }

    #[test]
    fn what_an_earlier_system_was_granted_is_kept_for_a_rollback() {
        let earlier = [needs(json!({
            "optionalCapabilities": ["gpu", "sound", "git-credentials"],
            "hostSecrets": {"netrc": true, "gitCredentials": true},
            "mounts": {"/a": {"source": "~/a", "readOnly": false, "optional": true}}
        }))];
        let before = words(&[
            "capability:gpu",
            "capability:kvm",
            "host-secret:gitCredentials = a.org",
            "host-secret:netrc",
            "mount:~/a = /a rw",
            "not capability:sound",
        ]);
        // Folders come with the system itself; nothing asks for the last capability any more.
        let all = ["capability:gpu", "host-secret:gitCredentials = a.org", "host-secret:netrc"];
        assert_eq!(kept(&before, vec![], &earlier, &[]), all);
        assert_eq!(kept(&before, words(&all), &earlier, &[]), all);
        assert_eq!(kept(&before, vec![], &[], &[]), Vec::<String>::new());
        assert_eq!(kept(&before, vec![], &earlier, &words(&["host-secret"])), ["capability:gpu"]);
        // The word that counts is the last.
        let now = words(&["host-secret:gitCredentials = b.org", "not capability:gpu"]);
        assert_eq!(
            kept(&before, now, &earlier, &[]),
            ["host-secret:gitCredentials = b.org", "host-secret:netrc", "not capability:gpu"]
        );
    }

    #[test]
    fn no_setting_that_makes_the_host_run_something_can_be_granted() {
        for bad in ["post-build-hook", "sandbox", "trusted-users", "plugin-files", "builders", "build-hook"] {
            assert_eq!(nix_setting(bad, "x"), NixSetting::Never);
        }
        assert_eq!(nix_setting("extra-experimental-features", "nix-command flakes"), NixSetting::Nothing);
        assert_eq!(nix_setting("experimental-features", "impure-derivations"), NixSetting::Never);
        // A line in a file that a person may edit is no way round.
        assert_eq!(granted_nix_settings(&words(&["nix-config:sandbox = false"])).count(), 0);
    }

    #[test]
    fn a_capability_is_there_when_it_is_asked_for_and_granted() {
        let n =
            needs(json!({"optionalCapabilities": ["gpu", "ssh-agent"], "hostSecrets": {"sshAgent": true}}));
        let has = |lines: &[&str], name| has_capability(&n, &words(lines), name);
        assert!(has(&["capability:gpu"], "gpu") && !has(&["not capability:gpu"], "gpu") && !has(&[], "gpu"));
        assert!(has(&["host-secret:sshAgent"], "ssh-agent") && !has(&["capability:ssh-agent"], "ssh-agent"));
        assert!(!has(&["capability:kvm"], "kvm"));
        // One question for both.
        assert_eq!(names(&of_needs(&n, &[])), ["host-secret:sshAgent", "capability:gpu"]);
    }

    #[test]
    fn passwords_of_git_are_for_the_servers_of_the_sources() {
        let n = needs(
            json!({"optionalCapabilities": ["git-credentials"], "hostSecrets": {"gitCredentials": true}}),
        );
        let asked = |hosts: &[&str]| of_needs(&n, &words(hosts));
        let lines = sort(asked(&["a.org"]), &[], &[], &words(&["host-secret"]), &[]).lines;
        assert!(has_capability(&n, &lines, "git-credentials"));
        assert_eq!(git_hosts(&lines), ["a.org"]);
        assert_eq!(sort(asked(&["a.org", "b.org"]), &lines, &[], &[], &[]).open.len(), 1);
    }

    #[test]
    fn a_display_of_another_kind_is_another_question() {
        let n = |displays: &[&str]| needs(json!({"optionalCapabilities": ["display"], "displays": displays}));
        let lines = sort(of_needs(&n(&["wayland"]), &[]), &[], &[], &words(&["capability"]), &[]).lines;
        assert!(has_capability(&n(&["wayland"]), &lines, "display"));
        assert!(!has_capability(&n(&["x11", "wayland"]), &lines, "display"));
    }
}
