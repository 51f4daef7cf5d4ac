//! Against the mirror of this host, where it answers; elsewhere these tests say that they were left out.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_core::progress::{Event, Progress, Silent};
use codchi_debian::index::{self, Tables};
use codchi_debian::{Archive, Fetch, Freshness, Mirror, Settings, State, Suite, mirror, unpack};

/// The mirror, old as it may be, since no test depends on its age.
fn mirror() -> Option<Mirror> {
    let settings = Settings { accept_stale: true, ..Settings::default().with_env() };
    let mirror = Mirror::discover(&settings).unwrap();
    let probe = format!("{}/dists/trixie/Release", mirror.archive(Archive::Main));
    if mirror::reachable(&probe, Duration::from_secs(10)) {
        return Some(mirror);
    }
    assert!(std::env::var_os("CODCHI_TEST_MIRROR").is_none(), "`{mirror}` does not answer");
    eprintln!("left out: `{mirror}` does not answer");
    None
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../lib/base")
}

/// Lists are kept between runs; they are verified each time.
fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("debian-cache")
}

fn load(mirror: &Mirror, suite: &str, roots: &[&str]) -> Suite {
    let state = State::load(mirror, suite, "x86_64-linux", &cache(), Freshness::Check, &Silent).unwrap();
    state.packages(mirror, &cache(), roots, &Silent).unwrap()
}

#[test]
fn every_alias_and_the_base_system_resolve_on_both_suites() {
    let Some(mirror) = mirror() else { return };
    let tables = Tables::read(&base()).unwrap();
    let mut on_both = 0;
    let mut problems = Vec::new();
    let suites = ["bookworm", "trixie"].map(|name| {
        let roots: Vec<&str> = tables.base_system.debs(name).unwrap().iter().map(String::as_str).collect();
        let suite = load(&mirror, name, &roots);
        assert!(suite.names().len() > 50_000);
        assert!(suite.broken_count() < 50, "{} of {name} are broken", suite.broken_count());
        (suite, roots)
    });
    for (suite, roots) in &suites {
        for record in suite.closure(roots).unwrap() {
            problems.extend(record.broken.map(|b| format!("base system: {}: {b}", record.name)));
        }
    }
    for (name, alias) in &tables.aliases {
        let mut found = 0;
        for (suite, _) in &suites {
            let Some(debs) = alias.debs(suite.name()) else { continue };
            if debs.iter().any(|d| d.contains('*')) {
                continue;
            }
            found += 1;
            match suite.closure(debs) {
                Err(e) => problems.push(format!("{name}: {e}")),
                Ok(records) => problems.extend(records.into_iter().filter_map(|r| {
                    let broken = r.broken?;
                    Some(format!("{name} on {}: {}: {broken}", suite.name(), r.name))
                })),
            }
        }
        on_both += usize::from(found == 2);
        if found == 0 && alias.debs("sid").is_none() {
            problems.push(format!("{name}: in no suite"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(on_both >= 170, "only {on_both} names on both suites");
}

#[test]
fn the_base_system_resolves_on_other_processors() {
    let Some(mirror) = mirror() else { return };
    let tables = Tables::read(&base()).unwrap();
    let roots: Vec<&str> = tables.base_system.debs("trixie").unwrap().iter().map(String::as_str).collect();
    let state = State::load(&mirror, "trixie", "aarch64-linux", &cache(), Freshness::Check, &Silent).unwrap();
    let suite = state.packages(&mirror, &cache(), &roots, &Silent).unwrap();
    let closure = suite.closure(&roots).unwrap();
    assert!(closure.iter().all(|r| r.broken.is_none()));
    assert!(closure.iter().any(|r| r.name == "libc6" && r.file.ends_with("_arm64.deb")));
}

#[test]
fn an_index_is_made_once_and_holds_every_package() {
    let Some(mirror) = mirror() else { return };
    let temp = tempfile::tempdir().unwrap();
    // A cache of its own, with the lists of the shared one where they are there.
    let make = |freshness| {
        index::ensure(&mirror, "bookworm", "x86_64-linux", &base(), temp.path(), freshness, &Silent).unwrap()
    };
    let first = make(Freshness::Check);
    assert!(first.rebuilt);
    let start = Instant::now();
    assert_eq!(make(Freshness::Offline), index::Index { rebuilt: false, ..first.clone() });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(first.dir.join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("suite.json")["label"], "Debian 12 (bookworm)");
    let names = read("names.json");
    let names = names.as_array().unwrap();
    let core = read("core.json");
    let sharded: usize =
        (0..256).map(|i| read(&format!("shards/{i:02x}.json")).as_object().unwrap().len()).sum();
    assert_eq!(names.len(), core.as_object().unwrap().len() + sharded);
    let bash = &core["bash"];
    assert!(bash["f"].as_str().unwrap().starts_with("pool/main/b/bash/bash_"), "{bash}");
    assert_eq!(bash["h"].as_str().unwrap().len(), 64);
    assert!(bash["d"].as_array().unwrap().iter().any(|d| d == "libc6"), "{bash}");
    // Nix is lent by a newer suite, with that suite's C library and what patches it, and nothing but libraries else.
    let nix = &read("lent.json")["nix"];
    assert_eq!(nix["label"], "Debian 13 (trixie)");
    assert!(nix["records"]["nix-bin"]["v"].as_str().unwrap().starts_with("2.26"), "{nix}");
    assert_ne!(nix["records"]["libc6"]["h"], core["libc6"]["h"]);
    let lent: Vec<&str> = nix["records"].as_object().unwrap().keys().map(String::as_str).collect();
    assert!(lent.contains(&"zlib1g") && lent.contains(&"patchelf") && !lent.contains(&"perl"), "{lent:?}");
    // Everything the core needs is in the core: Nix reads no shard for what the base has names for.
    for (name, record) in core.as_object().unwrap() {
        for needed in record["d"].as_array().unwrap() {
            assert!(core.get(needed.as_str().unwrap()).is_some(), "{name} needs {needed}");
        }
    }
}

#[test]
fn packages_are_downloaded_checked_and_unpacked() {
    let Some(mirror) = mirror() else { return };
    struct Last(std::sync::Mutex<(u64, u64, u64, u64)>);
    impl Progress for Last {
        fn report(&self, event: Event<'_>) {
            if let Event::Items { done, total, bytes, total_bytes, .. } = event {
                *self.0.lock().unwrap() = (done, total, bytes, total_bytes);
            }
        }
    }
    let suite = load(&mirror, "bookworm", &[]);
    let temp = tempfile::tempdir().unwrap();
    let fetches: Vec<Fetch> = suite
        .closure(&["bash"])
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(i, r)| Fetch {
            url: r.url(),
            sha256: r.sha256.clone(),
            // Known or not, the progress ends at the same numbers.
            size: if i % 2 == 0 { r.size } else { 0 },
            dest: temp.path().join(format!("{}.deb", r.name)),
            what: r.name,
        })
        .collect();
    let progress = Last(Default::default());
    mirror.fetch_all(&fetches, 4, &progress).unwrap();
    let (done, total, bytes, total_bytes) = *progress.0.lock().unwrap();
    assert_eq!((done, bytes), (total, total_bytes));
    let on_disk: u64 = fetches.iter().map(|f| std::fs::metadata(&f.dest).unwrap().len()).sum();
    assert_eq!(bytes, on_disk);
    for fetch in &fetches {
        let out = temp.path().join(&fetch.what);
        let done = unpack::extract(&fetch.dest, &out, &unpack::Options::default()).unwrap();
        assert_eq!(done.control.field("Package"), Some(fetch.what.as_str()));
    }
    assert!(temp.path().join("bash/usr/bin/bash").exists());
    assert!(!temp.path().join("bash/bin").exists());
}
