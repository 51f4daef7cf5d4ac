//! A whole suite: its packages with their dependencies resolved.

use std::io::BufReader;
use std::path::Path;
use std::time::SystemTime;

use codchi_core::progress::{Event, Progress};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fetch::holds;
use crate::hash::{self, Hasher};
use crate::http::Trouble;
use crate::mirror::Mirror;
use crate::nearest;
use crate::openpgp::{Keyring, SignatureError};
use crate::packages::{Archive, Id, Packages};
use crate::release::{Freshness, Release, Source};
use crate::resolve::{self, Resolution};

/// What is known of a suite from the start.
struct Known {
    name: &'static str,
    /// The release's number; the suite's name where it has none.
    release: &'static str,
    label: &'static str,
    /// Whether there are `-updates` and `-security`.
    extras: bool,
}

const SUITES: &[Known] = &[
    Known { name: "bookworm", release: "12", label: "Debian 12 (bookworm)", extras: true },
    Known { name: "trixie", release: "13", label: "Debian 13 (trixie)", extras: true },
    Known { name: "forky", release: "14", label: "Debian 14 (forky)", extras: true },
    Known { name: "sid", release: "sid", label: "Debian unstable (sid)", extras: false },
];

/// Debian's name of a Nix system. A suite that has nothing for it says so in its Release file.
pub fn architecture(system: &str) -> &str {
    match system {
        "x86_64-linux" => "amd64",
        "aarch64-linux" => "arm64",
        other => other.strip_suffix("-linux").unwrap_or(other),
    }
}

/// What people call a suite, such as `Debian 13 (trixie)`.
pub fn label(suite: &str) -> Result<&'static str> {
    Ok(known(suite)?.label)
}

fn known(suite: &str) -> Result<&'static Known> {
    SUITES.iter().find(|k| k.name == suite).ok_or_else(|| Error::NoSuite(suite.into()))
}

/// The verified state of a mirror for one suite: cheap to have, and enough to know whether anything changed.
pub struct State {
    known: &'static Known,
    system: String,
    architecture: String,
    releases: Vec<Release>,
    fingerprint: String,
}

impl State {
    /// Gets and verifies the suite's Release files. `cache` is Codchi's cache folder.
    pub fn load(
        mirror: &Mirror,
        suite: &str,
        system: &str,
        cache: &Path,
        freshness: Freshness,
        progress: &dyn Progress,
    ) -> Result<State> {
        let mut keyring = Keyring::debian().map_err(keyring_error)?;
        for path in &mirror.keyrings {
            let data = codchi_fs::read(path)?;
            keyring.add(&data).map_err(|source| Error::Keyring { path: path.clone(), source })?;
        }
        State::load_with(mirror, &keyring, SystemTime::now(), suite, system, cache, freshness, progress)
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn load_with(
        mirror: &Mirror,
        keyring: &Keyring,
        now: SystemTime,
        suite: &str,
        system: &str,
        cache: &Path,
        freshness: Freshness,
        progress: &dyn Progress,
    ) -> Result<State> {
        let known = known(suite)?;
        let architecture = architecture(system);
        let mut wanted = vec![(Archive::Main, suite.to_owned())];
        if known.extras {
            wanted.push((Archive::Main, format!("{suite}-updates")));
            wanted.push((Archive::Security, format!("{suite}-security")));
        }
        let lists = cache.join("lists");
        let source = Source { mirror, keyring, lists: &lists, architecture, freshness, now, progress };
        let results: Vec<Result<Release>> =
            parallel(&wanted, |(archive, suite)| source.release(*archive, suite));
        let releases = results.into_iter().collect::<Result<Vec<_>>>()?;
        let mut hasher = Hasher::default();
        for release in &releases {
            hasher
                .update(format!("{} {} {architecture}\n", release.archive.host(), release.suite).as_bytes());
            hasher.update(&release.sum);
        }
        let fingerprint = hash::to_hex(&hasher.finish());
        Ok(State { known, system: system.into(), architecture: architecture.into(), releases, fingerprint })
    }

    /// A sum of all verified Release files: equal when nothing changed.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Reads the packages, downloading the indexes that changed, and resolves. `roots` are packages each machine has.
    pub fn packages(
        self,
        mirror: &Mirror,
        cache: &Path,
        roots: &[&str],
        progress: &dyn Progress,
    ) -> Result<Suite> {
        let packages = self.read(mirror, cache, progress)?;
        let resolution = resolve::resolve(&packages, &self.architecture, roots);
        Ok(Suite { state: self, packages, resolution })
    }

    /// Reads the packages, and gives of each name the package with all it needs, sorted by name. Nothing else is resolved.
    pub fn closures(
        &self,
        names: &[&str],
        mirror: &Mirror,
        cache: &Path,
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<Record>>> {
        let packages = self.read(mirror, cache, progress)?;
        let closure = |name: &&str| {
            let id = find(&packages, self.known.name, name)?;
            let found = resolve::resolve_some(&packages, &self.architecture, [id]);
            let mut records: Vec<_> =
                found.iter().map(|(id, depends)| record(&packages, *id, depends, None)).collect();
            records.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(records)
        };
        names.iter().map(closure).collect()
    }

    fn read(&self, mirror: &Mirror, cache: &Path, progress: &dyn Progress) -> Result<Packages> {
        let folder = cache.join("lists").join("by-hash");
        codchi_fs::create_dir_all(&folder)?;
        let fetched: Vec<Result<()>> = parallel(&self.releases, |release| {
            let path = folder.join(hash::to_hex(&release.packages.sha256));
            if holds(&path, release.packages.size, &release.packages.sha256) {
                return Ok(());
            }
            progress.report(Event::Started(&format!("package index of {}", release.suite)));
            fetch_index(mirror, release, &path)
        });
        fetched.into_iter().collect::<Result<()>>()?;
        let mut packages = Packages::default();
        for release in &self.releases {
            let bad = |reason: String| Error::BadIndex {
                url: format!("{}/{}", release.suite, release.packages.path),
                reason,
            };
            let path = folder.join(hash::to_hex(&release.packages.sha256));
            let file = BufReader::with_capacity(128 * 1024, codchi_fs::open(&path)?);
            let mut decoder = liblzma::bufread::XzDecoder::new_multi_decoder(file);
            // Decompressing costs as much as reading, so each gets a thread.
            let (output, mut input) = std::io::pipe().map_err(|e| bad(e.to_string()))?;
            let (read, written) = std::thread::scope(|scope| {
                let writer = scope.spawn(move || std::io::copy(&mut decoder, &mut input));
                let mut output = BufReader::with_capacity(64 * 1024, output);
                let read = packages.read(&mut output, release.archive);
                // To the end, so that the writer never writes into a closed pipe.
                let _ = std::io::copy(&mut output, &mut std::io::sink());
                (read, writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            });
            // What the reader found wrong says more than that nobody took the rest.
            read.map_err(|e| bad(e.to_string()))?;
            written.map_err(|e| bad(e.to_string()))?;
        }
        self.remove_old_indexes(&folder);
        Ok(packages)
    }

    /// Indexes that no kept Release file names any more are removed after a week: other suites use the same folder.
    fn remove_old_indexes(&self, folder: &Path) {
        const WEEK: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);
        let used: Vec<_> = self.releases.iter().map(|r| hash::to_hex(&r.packages.sha256)).collect();
        for entry in codchi_fs::read_dir(folder).unwrap_or_default() {
            let old = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if old.is_some_and(|age| age > WEEK) && !used.iter().any(|u| entry.file_name() == u.as_str()) {
                let _ = codchi_fs::remove_if_exists(entry.path());
            }
        }
    }
}

fn keyring_error(source: SignatureError) -> Error {
    Error::Signature { url: "the keys that come with this program".into(), source }
}

fn fetch_index(mirror: &Mirror, release: &Release, dest: &Path) -> Result<()> {
    let Release { archive, suite, packages, .. } = release;
    let (folder, _) = packages.path.rsplit_once('/').unwrap_or_default();
    let plain = mirror.at(*archive, &format!("dists/{suite}/{}", packages.path));
    let sum = hash::to_hex(&packages.sha256);
    let by_hash = mirror.at(*archive, &format!("dists/{suite}/{folder}/by-hash/SHA256/{sum}"));
    let get =
        |address| mirror.download(address, &packages.sha256, Some(packages.size), dest, None, &mut |_, _| {});
    let result = match release.by_hash {
        // Not every mirror that copies the Release file copies the folder it promises.
        true => match get(&by_hash) {
            Err(Trouble::Missing | Trouble::Refused(_)) => get(&plain),
            other => other,
        },
        false => get(&plain),
    };
    result.map_err(|t| Error::download(t, &format!("the package index of `{suite}`"), &plain))
}

/// Runs a function on each item, each in a thread of its own; results in the order of the items.
pub(crate) fn parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || work(item))).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// A package of a suite, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The file below the archive, such as `pool/main/b/bash/bash_5.2.15-2_amd64.deb`.
    pub file: String,
    /// The archive.
    pub archive: Archive,
    /// SHA-256 of the file in hexadecimal digits.
    pub sha256: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// Names of the packages it needs directly, sorted.
    pub depends: Vec<String>,
    /// Why it cannot work in this suite, if so.
    pub broken: Option<String>,
}

impl Record {
    /// The address that [`Mirror::fetch_all`] understands, with no mirror's name in it.
    pub fn url(&self) -> String {
        format!("mirror://{}/{}", self.archive.host(), self.file)
    }
}

/// A suite with everything resolved.
pub struct Suite {
    state: State,
    packages: Packages,
    resolution: Resolution,
}

impl Suite {
    /// Verifies, reads and resolves a suite.
    pub fn load(
        mirror: &Mirror,
        suite: &str,
        system: &str,
        cache: &Path,
        freshness: Freshness,
        progress: &dyn Progress,
    ) -> Result<Suite> {
        State::load(mirror, suite, system, cache, freshness, progress)?.packages(mirror, cache, &[], progress)
    }

    /// The suite's name.
    pub fn name(&self) -> &'static str {
        self.state.known.name
    }

    /// The release's number, such as `12`.
    pub fn release(&self) -> &'static str {
        self.state.known.release
    }

    /// What people call it, such as `Debian 12 (bookworm)`.
    pub fn label(&self) -> &'static str {
        self.state.known.label
    }

    /// The Nix system.
    pub fn system(&self) -> &str {
        &self.state.system
    }

    /// A sum of all verified Release files.
    pub fn fingerprint(&self) -> &str {
        &self.state.fingerprint
    }

    /// Names of all packages, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.packages.ids().map(|id| self.packages.name(id)).collect();
        names.sort_unstable();
        names
    }

    /// How many packages cannot work, for lack of something they need.
    pub fn broken_count(&self) -> usize {
        self.resolution.broken_count()
    }

    /// One package.
    pub fn find(&self, name: &str) -> Option<Record> {
        self.packages.find(name).map(|id| self.record(id))
    }

    /// The packages and all they need, sorted by name.
    pub fn closure<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<Record>> {
        let roots = names.iter().map(|n| self.id(n.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut records: Vec<_> =
            self.resolution.closure(roots).into_iter().map(|id| self.record(id)).collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    pub(crate) fn id(&self, name: &str) -> Result<Id> {
        find(&self.packages, self.name(), name)
    }

    pub(crate) fn parts(&self) -> (&Packages, &Resolution) {
        (&self.packages, &self.resolution)
    }

    fn record(&self, id: Id) -> Record {
        record(&self.packages, id, self.resolution.depends(id), self.resolution.broken(id))
    }
}

fn find(packages: &Packages, suite: &str, name: &str) -> Result<Id> {
    packages.find(name).ok_or_else(|| {
        let names: Vec<_> = packages.ids().map(|id| packages.name(id)).collect();
        Error::NoPackage {
            suite: suite.into(),
            name: name.into(),
            nearest: nearest::nearest_or_provided(&names, resolve::provided(packages), name),
        }
    })
}

fn record(packages: &Packages, id: Id, depends: &[Id], broken: Option<&str>) -> Record {
    let p = packages;
    Record {
        name: p.name(id).into(),
        version: p.version(id).into(),
        file: p.file(id).into_owned(),
        archive: p.archive(id),
        sha256: hash::to_hex(p.sha256(id)),
        size: p.size(id),
        depends: depends.iter().map(|d| p.name(*d).to_owned()).collect(),
        broken: broken.map(str::to_owned),
    }
}
