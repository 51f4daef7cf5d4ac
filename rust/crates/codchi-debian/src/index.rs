//! The index of a suite that the base's Nix code reads, and the tables of the base that decide what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use codchi_core::progress::{Event, Progress};
use codchi_fs::Context as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::hash::{self, Hasher};
use crate::lent;
use crate::mirror::Mirror;
use crate::packages::{Archive, Id};
use crate::release::Freshness;
use crate::suite::{self, Record, State, Suite};

/// Changes when the same mirror would give another index.
const FORMAT: &str = "codchi index 2\n";

/// A set of packages in one suite.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Debs {
    /// Names of Debian packages.
    pub debs: Vec<String>,
    /// The program, where it is another one in this suite.
    #[serde(default)]
    pub main_program: Option<String>,
    /// The suite that lends it; where the mirror does not have that one, the alias means what it means elsewhere.
    #[serde(default)]
    pub from: Option<String>,
}

/// What a name of nixpkgs stands for; also the shape of the list of the base system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Alias {
    /// In every suite that is not named.
    #[serde(default)]
    pub debs: Option<Vec<String>>,
    /// The program, where it is not called like the alias.
    #[serde(default)]
    pub main_program: Option<String>,
    /// Programs that Debian calls otherwise: nixpkgs' name to Debian's.
    #[serde(default)]
    pub programs: BTreeMap<String, String>,
    /// Of the base system: packages that building needs, but no machine has.
    #[serde(default)]
    pub build: Vec<String>,
    /// In bookworm.
    #[serde(default)]
    pub bookworm: Option<Debs>,
    /// In trixie.
    #[serde(default)]
    pub trixie: Option<Debs>,
    /// In forky.
    #[serde(default)]
    pub forky: Option<Debs>,
    /// In sid.
    #[serde(default)]
    pub sid: Option<Debs>,
}

impl Alias {
    fn own(&self, suite: &str) -> Option<&Debs> {
        match suite {
            "bookworm" => self.bookworm.as_ref(),
            "trixie" => self.trixie.as_ref(),
            "forky" => self.forky.as_ref(),
            "sid" => self.sid.as_ref(),
            _ => None,
        }
    }

    /// The packages in a suite; `None` when the suite has none.
    pub fn debs(&self, suite: &str) -> Option<&[String]> {
        let own = self.own(suite).filter(|d| d.from.is_none());
        own.map(|d| &d.debs).or(self.debs.as_ref()).map(Vec::as_slice)
    }

    /// The suite that lends a suite this, and the packages there.
    pub fn lent(&self, suite: &str) -> Option<(&str, &[String])> {
        let own = self.own(suite)?;
        Some((own.from.as_deref()?, &own.debs))
    }
}

/// The tables of the base: `pkgs/aliases.json` and `pkgs/system.json`.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// What names of nixpkgs stand for. A name with a `*` is a pattern.
    pub aliases: BTreeMap<String, Alias>,
    /// What each machine has.
    pub base_system: Alias,
    sum: [u8; 32],
}

impl Tables {
    /// Reads both from the base's folder.
    pub fn read(base: &Path) -> Result<Tables> {
        fn parse<T: for<'de> Deserialize<'de>>(path: &Path, text: &str) -> Result<T> {
            Ok(serde_json::from_str(text).map_err(io::Error::from).at("read", path)?)
        }
        let (aliases, system) = (base.join("pkgs/aliases.json"), base.join("pkgs/system.json"));
        let (aliases_text, system_text) =
            (codchi_fs::read_to_string(&aliases)?, codchi_fs::read_to_string(&system)?);
        let mut hasher = Hasher::default();
        for text in [&aliases_text, &system_text] {
            hasher.update(&hash::sha256(text.as_bytes()));
        }
        Ok(Tables {
            aliases: parse(&aliases, &aliases_text)?,
            base_system: parse(&system, &system_text)?,
            sum: hasher.finish(),
        })
    }

    /// All packages that the tables name for a suite, patterns left out.
    fn named(&self, suite: &str) -> BTreeSet<&str> {
        self.aliases
            .values()
            .filter_map(|alias| alias.debs(suite))
            .flatten()
            .map(String::as_str)
            .filter(|name| !name.contains('*'))
            .collect()
    }
}

/// What another suite lends: packages with the libraries they need.
#[derive(Debug, Serialize)]
pub struct Lent {
    label: &'static str,
    debs: Vec<String>,
    /// Those packages, their libraries, and what patches programs to find them.
    records: BTreeMap<String, Entry<String>>,
}

impl Tables {
    /// What other suites lend a suite, by alias. What the mirror does not have is left out with a warning.
    fn lent(
        &self,
        mirror: &Mirror,
        suite: &str,
        system: &str,
        cache: &Path,
        freshness: Freshness,
        progress: &dyn Progress,
    ) -> Result<BTreeMap<&str, Lent>> {
        let mut all = BTreeMap::new();
        for (name, alias) in &self.aliases {
            let Some((from, debs)) = alias.lent(suite) else { continue };
            let mut names: Vec<&str> = debs.iter().map(String::as_str).collect();
            names.push(lent::PATCHER);
            let records = match lent::records(mirror, from, system, &names, cache, freshness, progress) {
                Ok(records) => records.into_iter().flatten(),
                Err(e @ Error::Missing { .. }) => {
                    progress.report(Event::Warning(&format!("`{name}` is that of `{suite}`: {e}")));
                    continue;
                }
                Err(e) => return Err(e),
            };
            let records = records.map(|r| (r.name.clone(), Entry::from(r))).collect();
            all.insert(name.as_str(), Lent { label: suite::label(from)?, debs: debs.to_vec(), records });
        }
        Ok(all)
    }
}

/// An index on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The folder with `suite.json`, `core.json`, `names.json` and `shards/`.
    pub dir: PathBuf,
    /// The suite.
    pub suite: String,
    /// A sum of the verified Release files it is made from.
    pub fingerprint: String,
    /// Whether it was made by this call.
    pub rebuilt: bool,
}

/// The index of a suite for the base in the folder `base`, made when the mirror or the base changed.
pub fn ensure(
    mirror: &Mirror,
    suite: &str,
    system: &str,
    base: &Path,
    cache: &Path,
    freshness: Freshness,
    progress: &dyn Progress,
) -> Result<Index> {
    let tables = Tables::read(base)?;
    let state = State::load(mirror, suite, system, cache, freshness, progress)?;
    let lent = tables.lent(mirror, suite, system, cache, freshness, progress)?;
    let mut hasher = Hasher::default();
    hasher.update(FORMAT.as_bytes());
    hasher.update(state.fingerprint().as_bytes());
    hasher.update(&tables.sum);
    hasher.update(&to_json(Path::new("lent.json"), &lent)?);
    let key = hash::to_hex(&hasher.finish());
    let folder = cache.join("index");
    let dir = folder.join(format!("{suite}-{system}-{}", &key[..32]));
    let fingerprint = state.fingerprint().to_owned();
    let index =
        |rebuilt| Index { dir: dir.clone(), suite: suite.into(), fingerprint: fingerprint.clone(), rebuilt };
    // `suite.json` is there only when all else is: the folder is renamed to its place as a whole.
    if dir.join("suite.json").exists() {
        return Ok(index(false));
    }
    progress.report(Event::Phase("resolving packages"));
    let roots: Vec<&str> =
        tables.base_system.debs(suite).unwrap_or_default().iter().map(String::as_str).collect();
    let resolved = state.packages(mirror, cache, &roots, progress)?;
    codchi_fs::create_dir_all(&folder)?;
    let temp = folder.join(format!(".new-{}-{}", std::process::id(), &key[..8]));
    codchi_fs::remove_dir_all(&temp)?;
    let written = write(&resolved, &tables, &lent, &temp, progress).and_then(|()| {
        match codchi_fs::rename(&temp, &dir) {
            // Another process made the same one meanwhile.
            Err(_) if dir.join("suite.json").exists() => Ok(()),
            other => Ok(other?),
        }
    });
    // After a rename there is nothing left to remove.
    let _ = codchi_fs::remove_dir_all(&temp);
    written?;
    remove_old(&folder, &dir);
    Ok(index(true))
}

/// Removes indexes (finished or not) that were made over a week ago, since another process may be reading a younger one.
fn remove_old(folder: &Path, current: &Path) {
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    for entry in codchi_fs::read_dir(folder).unwrap_or_default() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if entry.path() != current && age.is_some_and(|a| a > WEEK) {
            let _ = codchi_fs::remove_dir_all(entry.path());
        }
    }
}

/// A package as Nix reads it; the names are short because there are tens of thousands.
#[derive(Debug, Serialize)]
struct Entry<T, F = T> {
    v: T,
    f: F,
    a: Archive,
    h: String,
    s: u64,
    d: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<T>,
}

impl From<Record> for Entry<String> {
    fn from(r: Record) -> Self {
        Entry { v: r.version, f: r.file, a: r.archive, h: r.sha256, s: r.size, d: r.depends, b: r.broken }
    }
}

/// Some packages of a suite, by name; each becomes text by itself, so that no second copy of the suite is ever in memory.
struct Entries<'a> {
    suite: &'a Suite,
    /// Sorted by name.
    ids: &'a [Id],
}

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let (packages, resolution) = self.suite.parts();
        serializer.collect_map(self.ids.iter().map(|&id| {
            let entry = Entry {
                v: packages.version(id),
                f: packages.file(id),
                a: packages.archive(id),
                h: hash::to_hex(packages.sha256(id)),
                s: packages.size(id),
                d: resolution.depends(id).iter().map(|d| packages.name(*d)).collect(),
                b: resolution.broken(id),
            };
            (packages.name(id), entry)
        }))
    }
}

/// Writes the index of a resolved suite into a new folder.
pub fn write(
    suite: &Suite,
    tables: &Tables,
    lent: &BTreeMap<&str, Lent>,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let (packages, resolution) = suite.parts();
    let mut roots = Vec::new();
    let system = tables.base_system.debs(suite.name()).unwrap_or_default();
    for name in system.iter().chain(&tables.base_system.build) {
        roots.push(suite.id(name)?);
    }
    for name in tables.named(suite.name()) {
        match packages.find(name) {
            Some(id) => roots.push(id),
            // A mirror may drop a package; only who asks for it needs to know.
            None => progress.report(Event::Warning(&format!(
                "`{name}`, which the base has a name for, is not in Debian's `{}`",
                suite.name()
            ))),
        }
    }
    let core: BTreeSet<Id> = resolution.closure(roots).into_iter().collect();
    let mut shards: Vec<Vec<Id>> = vec![Vec::new(); 256];
    let mut all: Vec<Id> = packages.ids().collect();
    all.sort_unstable_by_key(|id| packages.name(*id));
    let (core, rest): (Vec<Id>, Vec<Id>) = all.iter().partition(|id| core.contains(id));
    for id in rest {
        shards[usize::from(hash::sha256(packages.name(id).as_bytes())[0])].push(id);
    }
    codchi_fs::create_dir_all(dir.join("shards"))?;
    for (i, shard) in shards.iter().enumerate() {
        put(&dir.join(format!("shards/{i:02x}.json")), &Entries { suite, ids: shard })?;
    }
    put(&dir.join("core.json"), &Entries { suite, ids: &core })?;
    put(&dir.join("names.json"), &all.iter().map(|id| packages.name(*id)).collect::<Vec<_>>())?;
    put(&dir.join("lent.json"), lent)?;
    put(
        &dir.join("suite.json"),
        &serde_json::json!({
            "version": 1,
            "suite": suite.name(),
            "release": suite.release(),
            "label": suite.label(),
            "system": suite.system(),
            "archives": { "main": Archive::Main.host(), "security": Archive::Security.host() },
            "fingerprint": suite.fingerprint(),
        }),
    )
}

fn put(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut file = BufWriter::new(codchi_fs::create(path)?);
    serde_json::to_writer(&mut file, value)
        .map_err(io::Error::from)
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.flush())
        .at("write", path)?;
    Ok(())
}

fn to_json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(value).map_err(io::Error::from).at("write", path)?;
    text.push(b'\n');
    Ok(text)
}
