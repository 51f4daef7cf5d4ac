//! What a host records of a machine: where it is attached.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::document::{DocumentError, parse_toml};
use crate::folder::OwnFolder;
use crate::name::{DriverName, InputName};
use crate::port::{GuestPort, HostPort, Protocol};
use crate::remote::Remote;

/// The version of `host.toml` this program writes.
pub const HOST_VERSION: u32 = 1;

/// `host.toml`: where the machine is attached on this host. Never evaluated or exported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Host {
    /// [`HOST_VERSION`] of the writer.
    pub version: u32,
    /// What the machine runs on.
    pub driver: DriverName,
    /// The other host on which the driver's engine runs it; none: this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// Where packages and options come from: `nixpkgs` or `debian`. Chosen at creation, never changed by a rebuild.
    pub base: String,
    /// Suite of the built-in base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// Whether the configuration of this computer says what it is made of, instead of a machine flake.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub declared: bool,
    /// Unix time of creation.
    pub created: u64,
    /// The machine's range of ids, as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<IdRange>,
    /// What foreign modules were granted, by content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub granted: Vec<String>,
    /// Inputs of the machine flake that are taken from a checkout in the machine, and the folder that is one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checkouts: BTreeMap<InputName, String>,
    /// Ports in the machine and where they are on the host: the person's own, and answers to what modules ask for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<GuestPort, HostPort>,
    /// Paths in the machine and the host's folders there: the person's own, and answers to what modules ask for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, OwnFolder>,
}

/// A range of user and group ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    /// First id on the host.
    pub base: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// Whether two ranges share an id.
    pub fn overlaps(&self, other: &IdRange) -> bool {
        u64::from(self.base) < u64::from(other.base) + u64::from(other.count)
            && u64::from(other.base) < u64::from(self.base) + u64::from(self.count)
    }
}

/// How many ids a machine has.
pub const IDS: u32 = 65_536;

/// The first range of [`IDS`] ids that overlaps none of `taken`; aligned, and well above ordinary users.
pub fn free_range(taken: &[IdRange]) -> Option<IdRange> {
    // 0x10000000 on: above what useradd gives out as subordinate ids, below the ids that are negative for signed programs.
    (0x1000_0000u32..0x7000_0000)
        .step_by(IDS as usize)
        .map(|base| IdRange { base, count: IDS })
        .find(|r| taken.iter().all(|t| !t.overlaps(r)))
}

/// Parses `/etc/subuid`: name or id, first id, count. Lines that say something else are skipped, as newuidmap does.
pub fn parse_subids(text: &str) -> Vec<(String, IdRange)> {
    text.lines()
        .filter_map(|l| {
            let mut parts = l.trim().split(':');
            let owner = parts.next().filter(|o| !o.is_empty() && !o.starts_with('#'))?;
            let base = parts.next()?.parse().ok()?;
            let count = parts.next()?.parse().ok()?;
            Some((owner.to_string(), IdRange { base, count }))
        })
        .collect()
}

impl Host {
    /// Of a machine that was made at the Unix time `created`, with nothing else of this host yet.
    pub fn new(driver: DriverName, base: &str, suite: Option<String>, created: u64) -> Host {
        Host {
            version: HOST_VERSION,
            driver,
            remote: None,
            base: base.into(),
            suite,
            declared: false,
            created,
            ids: None,
            granted: Vec::new(),
            checkouts: BTreeMap::new(),
            ports: BTreeMap::new(),
            mounts: BTreeMap::new(),
        }
    }

    /// Parses `host.toml`; `file` is named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Host, DocumentError> {
        parse_toml(file, text, HOST_VERSION)
    }

    /// Its text.
    pub fn render(&self) -> String {
        let body = toml_edit::ser::to_string_pretty(self).unwrap_or_default();
        format!(
            "# Where this machine is attached on this host. Codchi writes it; a person may edit it.\n{body}"
        )
    }
}

/// The text of a `host.toml` that is changed in places: what a person wrote beside those stays as it is.
pub struct HostEdit(toml_edit::DocumentMut);

impl HostEdit {
    /// Takes the text of a file that [`Host::parse`] accepts.
    pub fn new(file: &Path, text: &str) -> Result<HostEdit, DocumentError> {
        Host::parse(file, text)?;
        text.parse().map(HostEdit).map_err(|e: toml_edit::TomlError| DocumentError::Syntax {
            file: file.into(),
            line: 1,
            message: e.message().into(),
        })
    }

    /// What the machine runs on, and its range of ids there.
    pub fn driver(&mut self, driver: &DriverName, ids: Option<IdRange>) {
        self.0["driver"] = toml_edit::value(driver.as_str());
        match ids {
            None => drop(self.0.remove("ids")),
            Some(range) => {
                let mut table = toml_edit::InlineTable::new();
                table.insert("base", i64::from(range.base).into());
                table.insert("count", i64::from(range.count).into());
                self.0["ids"] = toml_edit::value(table);
            }
        }
    }

    /// Where in the machine an input is taken from; none: from its address.
    pub fn checkout(&mut self, input: &InputName, folder: Option<&str>) {
        self.entry("checkouts", input.as_str(), folder.map(toml_edit::Value::from));
    }

    /// What foreign modules were granted.
    pub fn granted(&mut self, granted: &[String]) {
        if granted.is_empty() {
            self.0.remove("granted");
        } else {
            self.0["granted"] = toml_edit::value(granted.iter().collect::<toml_edit::Array>());
        }
    }

    /// Where a port of the machine is on the host; none: what a module says.
    pub fn port(&mut self, guest: GuestPort, host: Option<HostPort>) {
        // It may be written without its protocol.
        let short = guest.port.to_string();
        let old = self.0.get("ports").and_then(|t| t.as_table_like()).and_then(|t| {
            let same = |k: &str| k.parse() == Ok(guest);
            t.iter().map(|(k, _)| k.to_string()).find(|k| same(k))
        });
        let key = old.unwrap_or(if guest.protocol == Protocol::Tcp { short } else { guest.to_string() });
        let value = host.map(|h| match h {
            HostPort::Port(n) => toml_edit::Value::from(i64::from(n)),
            HostPort::Withheld => toml_edit::Value::from(false),
        });
        self.entry("ports", &key, value);
    }

    /// What folder of the host is at a path of the machine; none: what a module says.
    pub fn mount(&mut self, target: &Path, folder: Option<&OwnFolder>) {
        let same = |k: &str| crate::folder::target(k).is_ok_and(|t| t == target);
        let old = self
            .0
            .get("mounts")
            .and_then(|t| t.as_table_like())
            .and_then(|t| t.iter().map(|(k, _)| k.to_string()).find(|k| same(k)));
        let key = old.unwrap_or_else(|| target.display().to_string());
        let value = folder.map(|f| match f {
            OwnFolder::Withheld => toml_edit::Value::from(false),
            OwnFolder::Given(g) => {
                let mut table = toml_edit::InlineTable::new();
                table.insert("source", g.source.as_str().into());
                for (key, on) in [("read-only", g.read_only), ("optional", g.optional)] {
                    if on {
                        table.insert(key, on.into());
                    }
                }
                toml_edit::Value::from(table)
            }
        });
        self.entry("mounts", &key, value);
    }

    /// Sets an entry of a table, or removes it, and the table with its last one.
    fn entry(&mut self, table: &str, key: &str, value: Option<toml_edit::Value>) {
        let there = self.0.entry(table).or_insert_with(toml_edit::table);
        let Some(entries) = there.as_table_like_mut() else { return };
        match (value, entries.get_mut(key).and_then(|i| i.as_value_mut())) {
            (Some(mut value), Some(old)) => {
                *value.decor_mut() = old.decor().clone();
                *old = value;
            }
            (Some(value), None) => drop(entries.insert(key, toml_edit::Item::Value(value))),
            (None, _) => drop(entries.remove(key)),
        }
        if entries.is_empty() {
            self.0.remove(table);
        }
    }

    /// The text.
    pub fn text(&self) -> String {
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Given;

    #[test]
    fn a_host_file_is_read_back_as_written() {
        let host = Host {
            version: 1,
            driver: "native".parse().unwrap(),
            remote: Some("lab:m1".parse().unwrap()),
            base: "debian".into(),
            suite: Some("bookworm".into()),
            declared: false,
            created: 1,
            ids: Some(IdRange { base: 0x1000_0000, count: IDS }),
            granted: vec![],
            checkouts: BTreeMap::from([("my-project".parse().unwrap(), "/home/codchi/project".into())]),
            ports: BTreeMap::from([
                ("80/tcp".parse().unwrap(), HostPort::Port(8080)),
                ("53/udp".parse().unwrap(), HostPort::Withheld),
            ]),
            mounts: BTreeMap::from([
                ("/gone".into(), OwnFolder::Withheld),
                (
                    "/data".into(),
                    OwnFolder::Given(Given { source: "~/data".into(), read_only: true, optional: false }),
                ),
            ]),
        };
        let text = host.render();
        assert_eq!(Host::parse(Path::new("host.toml"), &text).unwrap(), host, "{text}");
        let e = Host::parse(Path::new("host.toml"), "version = 1\ndriver = \"X\"\n").unwrap_err();
        assert!(e.to_string().contains("line 2"), "{e}");
    }

    #[test]
    fn an_edit_keeps_what_a_person_wrote() {
        let text = "# mine\nversion = 1\ndriver = \"native\"\nbase = \"debian\"\ncreated = 1 # long ago\n\n[ports]\n# the page\n80 = 8080 # free\n";
        let file = Path::new("host.toml");
        let mut edit = HostEdit::new(file, text).unwrap();
        edit.port("80".parse().unwrap(), Some(HostPort::Port(18080)));
        edit.port("53/udp".parse().unwrap(), Some(HostPort::Withheld));
        let done = edit.text();
        assert_eq!(done, text.replace("8080", "18080") + "\"53/udp\" = false\n");
        let host = Host::parse(file, &done).unwrap();
        assert_eq!(host.ports.len(), 2);
        let mut edit = HostEdit::new(file, &done).unwrap();
        edit.port("80/tcp".parse().unwrap(), None);
        edit.port("53/udp".parse().unwrap(), None);
        edit.granted(&["x".into()]);
        edit.checkout(&"a".parse().unwrap(), Some("/a"));
        edit.checkout(&"b".parse().unwrap(), Some("/b"));
        edit.checkout(&"a".parse().unwrap(), None);
        let given = Given { source: "/a b".into(), read_only: true, optional: false };
        edit.mount(Path::new("/data"), Some(&OwnFolder::Given(given)));
        edit.mount(Path::new("/x"), Some(&OwnFolder::Withheld));
        edit.mount(Path::new("/x"), None);
        let done = edit.text();
        assert!(done.ends_with("[mounts]\n\"/data\" = { source = \"/a b\", read-only = true }\n"), "{done}");
        assert!(!done.contains("ports") && done.contains("# long ago\n"), "{done}");
        let host = Host::parse(file, &done).unwrap();
        assert_eq!((host.granted, host.checkouts.len()), (vec!["x".to_owned()], 1));
        for bad in ["80 = 0", "80 = true", "80 = 70000", "x = 1"] {
            let e = Host::parse(file, &format!("{text}{}\n", bad.replacen("80", "81", 1))).unwrap_err();
            assert!(e.to_string().contains("line 10") || e.to_string().contains("line 8"), "{e}");
        }
    }

    #[test]
    fn a_range_is_free_when_it_meets_no_other() {
        let first = free_range(&[]).unwrap();
        let second = free_range(&[first, IdRange { base: first.base + IDS + 5, count: 1 }]).unwrap();
        assert_eq!(second.base, first.base + 2 * IDS);
        assert_eq!(free_range(&[IdRange { base: 0, count: u32::MAX }]), None);
    }

    #[test]
    fn subordinate_ids_are_read_and_other_lines_skipped() {
        let got = parse_subids("# c\na:100000:65536\n\nbad\n1000:1:x\nb:200000:10");
        assert_eq!(
            got,
            [
                ("a".into(), IdRange { base: 100_000, count: 65_536 }),
                ("b".into(), IdRange { base: 200_000, count: 10 })
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn overlap_is_symmetric_and_true_exactly_when_an_id_is_shared(a in 0u32..40, n in 1u32..9, b in 0u32..40, m in 1u32..9) {
            let (x, y) = (IdRange { base: a, count: n }, IdRange { base: b, count: m });
            let shared = (a..a + n).any(|i| (b..b + m).contains(&i));
            assert_eq!(x.overlaps(&y), shared);
            assert_eq!(y.overlaps(&x), shared);
        }
    }
}
