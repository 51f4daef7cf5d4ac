//! Closures, and what changed from one to the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Nix, NixError, Result, StorePath, Version};

/// One path of a closure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The path.
    pub path: StorePath,
    /// Bytes it takes, as an archive.
    pub bytes: u64,
}

/// What a package has in both of two closures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The package's name.
    pub name: String,
    /// Versions before; empty when it was not there. A path without a version counts as `""`.
    pub before: Vec<String>,
    /// Versions after; empty when it is gone.
    pub after: Vec<String>,
    /// Bytes more (or less) than before.
    pub bytes: i64,
}

/// The difference of two closures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// What was added, removed or changed, sorted by name. Rebuilds of the same version within 8 KiB are left out.
    pub changes: Vec<Change>,
    /// Bytes of the closure before.
    pub before: u64,
    /// Bytes of the closure after.
    pub after: u64,
}

impl Nix {
    /// All paths that `path` needs at run time, itself included.
    pub fn closure(&self, path: &StorePath) -> Result<Vec<Member>> {
        let mut c = self.command(&["path-info", "--json", "--recursive"]);
        if self.version() >= (Version { major: 2, minor: 33, patch: 0 }) {
            c.args(["--json-format", "1"]);
        }
        c.arg(path.as_str());
        members(&self.run(c, "reading a closure")?)
    }

    /// How the closure of `new` differs from that of `old` (`None`: from nothing).
    pub fn diff(&self, old: Option<&StorePath>, new: &StorePath) -> Result<Difference> {
        if old == Some(new) {
            let bytes = self.closure(new)?.iter().map(|m| m.bytes).sum();
            return Ok(Difference { changes: Vec::new(), before: bytes, after: bytes });
        }
        let before = old.map(|p| self.closure(p)).transpose()?.unwrap_or_default();
        Ok(diff(&before, &self.closure(new)?))
    }
}

/// Reads `path-info --json`: an object by path since 2.19, a list before.
pub(crate) fn members(text: &str) -> Result<Vec<Member>> {
    let odd = |reason: &str| NixError::Answer { what: "nix path-info".into(), reason: reason.into() };
    let v: Value = serde_json::from_str(text).map_err(|e| odd(&e.to_string()))?;
    let one = |path: &str, info: &Value| {
        let bytes = info["narSize"].as_u64().ok_or_else(|| odd(&format!("`{path}` is not in the store")))?;
        Ok(Member { path: path.parse()?, bytes })
    };
    match &v {
        Value::Object(all) => all.iter().map(|(p, i)| one(p, i)).collect(),
        Value::Array(all) => all.iter().map(|i| one(i["path"].as_str().unwrap_or_default(), i)).collect(),
        _ => Err(odd("neither a list nor an object")),
    }
}

/// Splits `hello-2.12.1` into name and version: the version starts at the first dash that a letter does not follow.
pub fn name_and_version(name: &str) -> (&str, &str) {
    let b = name.as_bytes();
    match (0..b.len()).find(|i| b[*i] == b'-' && b.get(i + 1).is_some_and(|c| !c.is_ascii_alphabetic())) {
        Some(i) => (&name[..i], &name[i + 1..]),
        None => (name, ""),
    }
}

/// How `new` differs from `old`, package by package.
pub fn diff(old: &[Member], new: &[Member]) -> Difference {
    type Side<'a> = BTreeMap<&'a str, (Vec<&'a str>, u64)>;
    fn group(all: &[Member]) -> Side<'_> {
        let mut groups = Side::new();
        for m in all {
            let (name, version) = name_and_version(m.path.name());
            let entry = groups.entry(name).or_default();
            entry.0.push(version);
            entry.1 += m.bytes;
        }
        for (versions, _) in groups.values_mut() {
            versions.sort_unstable();
            versions.dedup();
        }
        groups
    }
    let (a, b) = (group(old), group(new));
    let mut names: Vec<_> = a.keys().chain(b.keys()).copied().collect();
    names.sort_unstable();
    names.dedup();
    let nothing = (Vec::new(), 0);
    let changes = names
        .into_iter()
        .filter_map(|name| {
            let ((before, x), (after, y)) =
                (a.get(name).unwrap_or(&nothing), b.get(name).unwrap_or(&nothing));
            let bytes = *y as i64 - *x as i64;
            let owned = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect();
            (before != after || bytes.unsigned_abs() >= 8192).then(|| Change {
                name: name.into(),
                before: owned(before),
                after: owned(after),
                bytes,
            })
        })
        .collect();
    let sum = |all: &[Member]| all.iter().map(|m| m.bytes).sum();
    Difference { changes, before: sum(old), after: sum(new) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(hash: char, name: &str, bytes: u64) -> Member {
        Member { path: format!("/nix/store/{}-{name}", hash.to_string().repeat(32)).parse().unwrap(), bytes }
    }

    #[test]
    fn names_and_versions() {
        assert_eq!(name_and_version("hello-2.12.1"), ("hello", "2.12.1"));
        assert_eq!(name_and_version("deb-libc6-2.36-9+deb12u9"), ("deb-libc6", "2.36-9+deb12u9"));
        assert_eq!(name_and_version("unit-nginx.service"), ("unit-nginx.service", ""));
        assert_eq!(name_and_version("x-"), ("x-", ""));
    }

    #[test]
    fn packages_are_added_removed_and_changed() {
        let old = [
            member('0', "a-1", 100),
            member('1', "b-1", 10_000),
            member('2', "same-1", 5),
            member('3', "c-1", 7),
        ];
        let new = [
            member('0', "a-1", 100),
            member('4', "b-2", 30_000),
            member('5', "same-1", 6),
            member('6', "d", 9),
        ];
        let d = diff(&old, &new);
        let text: Vec<_> = d
            .changes
            .iter()
            .map(|c| format!("{} {:?}->{:?} {:+}", c.name, c.before, c.after, c.bytes))
            .collect();
        assert_eq!(text, ["b [\"1\"]->[\"2\"] +20000", "c [\"1\"]->[] -7", "d []->[\"\"] +9"]);
        assert_eq!((d.before, d.after), (10_112, 30_115));
    }

    #[test]
    fn both_shapes_of_path_info_are_read() {
        let p = format!("/nix/store/{}-a-1", "0".repeat(32));
        let new = format!(r#"{{"{p}":{{"narSize":7}}}}"#);
        let old = format!(r#"[{{"path":"{p}","narSize":7}}]"#);
        assert_eq!(members(&new).unwrap(), [member('0', "a-1", 7)]);
        assert_eq!(members(&old).unwrap(), [member('0', "a-1", 7)]);
        assert!(members(&format!(r#"{{"{p}":null}}"#)).is_err());
    }
}
