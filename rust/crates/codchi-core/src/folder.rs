//! Host folders in a machine: what a module asks for, and what a person says to that.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::manifest;
use crate::port::Origin;
use crate::text::printable_line;

/// A folder or file of the host in a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Folder {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the machine.
    pub target: PathBuf,
    /// Not writable in the machine.
    pub read_only: bool,
    /// The machine does without where the host lacks it.
    pub optional: bool,
}

/// A host folder and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct FolderState {
    /// The folder.
    #[serde(flatten)]
    pub folder: Folder,
    /// Why it is not there; none: it is.
    pub problem: Option<String>,
}

/// What a person says of a path in a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnFolder {
    /// It is this folder of the host.
    Given(Given),
    /// Nothing of the host is there, whatever a module asks for.
    Withheld,
}

/// A folder that a person gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Given {
    /// Path on the host; `~` is the person's home.
    pub source: String,
    /// Not writable in the machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The machine does without where the host lacks it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

impl Serialize for OwnFolder {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            OwnFolder::Given(given) => given.serialize(s),
            OwnFolder::Withheld => s.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for OwnFolder {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<OwnFolder, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = OwnFolder;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table with a `source`, or false")
            }
            fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<OwnFolder, E> {
                if b {
                    Err(E::invalid_value(serde::de::Unexpected::Bool(b), &self))
                } else {
                    Ok(OwnFolder::Withheld)
                }
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<OwnFolder, A::Error> {
                let given = Given::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(OwnFolder::Given(given))
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// Text that names no folder, or a place where none can be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// It has another form.
    #[error("`{}` is not `HOST:GUEST` or `HOST:GUEST:ro`", printable_line(.0))]
    Form(String),
    /// The path in the machine is not one.
    #[error("`{}` is not an absolute path in the machine without `..`", printable_line(.0))]
    Target(String),
    /// Something else is there in every machine.
    #[error("`{}` belongs to the system of the machine", printable_line(.0))]
    Taken(String),
}

/// Places that hold what a machine runs on.
const TAKEN: [&str; 8] =
    ["/nix", "/proc", "/sys", "/dev", "/run/codchi", "/run/systemd", "/etc/static", "/boot"];

/// A path in a machine where a host folder may be, in its plain form.
pub fn target(text: &str) -> Result<PathBuf, FolderError> {
    let path = Path::new(text);
    let plain = |c: &Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(|c| plain(&c)) || text.contains(['\0', '\n']) {
        return Err(FolderError::Target(text.into()));
    }
    let path: PathBuf = path.components().collect();
    let taken = path == Path::new("/") || TAKEN.iter().any(|t| path.starts_with(t));
    // What lies below would be hidden.
    let above = TAKEN.iter().any(|t| Path::new(t).starts_with(&path));
    if taken || above { Err(FolderError::Taken(text.into())) } else { Ok(path) }
}

/// `HOST:GUEST[:ro]`: the path on the host as written, the path in the machine, and whether it is only read.
pub fn parse(text: &str) -> Result<(String, PathBuf, bool), FolderError> {
    let form = || FolderError::Form(text.into());
    let (rest, read_only) = match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, true),
        Some((rest, "rw")) => (rest, false),
        _ => (text, false),
    };
    // A colon is rare in a machine's paths, and may be in the host's.
    let (source, guest) = rest.rsplit_once(':').ok_or_else(form)?;
    if source.is_empty() || guest.is_empty() {
        return Err(form());
    }
    Ok((source.into(), target(guest)?, read_only))
}

/// A path on the host with `~` as the person's home.
pub fn source(text: &str, home: &Path) -> PathBuf {
    match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let rest = rest.trim_start_matches('/');
            if rest.is_empty() { home.into() } else { home.join(rest) }
        }
        _ => PathBuf::from(text),
    }
}

/// The folders that a machine shall have, outer ones first: a module's, unless the person says otherwise, and the person's own.
///
/// # Errors
/// A place of the person's where none can be; a module's fails the evaluation.
pub fn wanted(
    asked: &BTreeMap<String, manifest::Mount>,
    own: &BTreeMap<String, OwnFolder>,
    home: &Path,
) -> Result<Vec<(Folder, Origin)>, FolderError> {
    let mut all: BTreeMap<PathBuf, (Folder, Origin)> = BTreeMap::new();
    for (guest, m) in asked {
        let target = target(guest)?;
        let folder = Folder {
            source: source(&m.source, home),
            target: target.clone(),
            read_only: m.read_only,
            optional: m.optional,
        };
        all.insert(target, (folder, Origin::Module));
    }
    for (guest, own) in own {
        let target = target(guest)?;
        match own {
            OwnFolder::Withheld => drop(all.remove(&target)),
            OwnFolder::Given(g) => {
                let folder = Folder {
                    source: source(&g.source, home),
                    target: target.clone(),
                    read_only: g.read_only,
                    optional: g.optional,
                };
                all.insert(target, (folder, Origin::Person));
            }
        }
    }
    Ok(all.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_as_people_write_it() {
        assert_eq!(parse("/a:/b").unwrap(), ("/a".into(), "/b".into(), false));
        assert_eq!(parse("~/a b:/home/x//y/:ro").unwrap(), ("~/a b".into(), "/home/x/y".into(), true));
        assert_eq!(parse("./c:d:/e:rw").unwrap(), ("./c:d".into(), "/e".into(), false));
        for bad in
            ["", "/a", ":/b", "/a:", "/a:b", "/a:/b/../c", "/a:/", "/a:/nix/store", "/a:/run", "/a:/dev/x"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_person_has_the_last_word() {
        let m = |source: &str| manifest::Mount { source: source.into(), read_only: true, optional: false };
        let asked = BTreeMap::from([("/data".to_string(), m("~/data")), ("/x".to_string(), m("/x"))]);
        let given = Given { source: "/mine".into(), read_only: false, optional: true };
        let own = BTreeMap::from([
            ("/data/sub".to_string(), OwnFolder::Given(given.clone())),
            ("/x".to_string(), OwnFolder::Withheld),
        ]);
        let all = wanted(&asked, &own, Path::new("/home/ann")).unwrap();
        let short: Vec<_> = all.iter().map(|(f, o)| (f.source.to_str().unwrap(), f.read_only, *o)).collect();
        assert_eq!(short, [("/home/ann/data", true, Origin::Module), ("/mine", false, Origin::Person)]);
        let bad = BTreeMap::from([("/proc/1".to_string(), OwnFolder::Given(given))]);
        assert!(wanted(&asked, &bad, Path::new("/")).is_err());
    }
}
