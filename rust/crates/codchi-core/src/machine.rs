//! What a host records of a machine: where it is attached.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::document::{DocumentError, parse_toml};
use crate::name::DriverName;

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
    /// Where packages and options come from: `nixpkgs` or `debian`. Chosen at creation, never changed by a rebuild.
    pub base: String,
    /// Suite of the built-in base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// Unix time of creation.
    pub created: u64,
    /// The machine's range of ids, as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<IdRange>,
    /// What foreign modules were granted, by content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub granted: Vec<String>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_file_is_read_back_as_written() {
        let host = Host {
            version: 1,
            driver: "native".parse().unwrap(),
            base: "debian".into(),
            suite: Some("bookworm".into()),
            created: 1,
            ids: Some(IdRange { base: 0x1000_0000, count: IDS }),
            granted: vec![],
        };
        let text = host.render();
        assert_eq!(Host::parse(Path::new("host.toml"), &text).unwrap(), host, "{text}");
        let e = Host::parse(Path::new("host.toml"), "version = 1\ndriver = \"X\"\n").unwrap_err();
        assert!(e.to_string().contains("line 2"), "{e}");
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
