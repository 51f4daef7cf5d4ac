//! Packages that one suite lends another: programs that run beside that suite's own C library, so they come with every
//! library they need and nothing else.

use std::path::Path;
use std::time::Duration;

use codchi_core::progress::Progress;

use crate::error::Result;
use crate::mirror::Mirror;
use crate::release::Freshness;
use crate::suite::{Record, State};

/// What patches the programs.
pub const PATCHER: &str = "patchelf";

/// For each name, the package of that suite and the libraries it needs, by name. Closures are kept in Codchi's cache folder
/// `cache` for the state of the suite they are of, since reading a whole suite for some packages is what takes the time.
pub fn records(
    mirror: &Mirror,
    suite: &str,
    system: &str,
    names: &[&str],
    cache: &Path,
    freshness: Freshness,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Record>>> {
    let state = State::load(mirror, suite, system, cache, freshness, progress)?;
    let folder = cache.join("lent");
    let dir = folder.join(format!("{suite}-{system}-{}", &state.fingerprint()[..32]));
    let kept = |name: &str| -> Option<Vec<Record>> {
        let text = codchi_fs::read_if_exists(dir.join(format!("{name}.json"))).ok()??;
        serde_json::from_str(&text).ok()
    };
    let all: Option<Vec<Vec<Record>>> = names.iter().map(|n| kept(n)).collect();
    let mut all = match all {
        Some(all) => all,
        None => {
            let all = state.closures(names, mirror, cache, progress)?;
            codchi_fs::create_dir_all(&dir)?;
            for (name, records) in names.iter().zip(&all) {
                let text = serde_json::to_string(records).unwrap_or_default();
                codchi_fs::write_atomic(dir.join(format!("{name}.json")), text, 0o644)?;
            }
            remove_old(&folder, &dir);
            all
        }
    };
    for (name, records) in names.iter().zip(&mut all) {
        records.retain(|r| r.name == *name || is_library(&r.name));
    }
    Ok(all)
}

/// What else packages depend on (accounts, configuration, Perl) is of no use where nothing is installed.
fn is_library(name: &str) -> bool {
    let library = name.starts_with("lib") || name == "zlib1g";
    library && !name.contains("perl") && !name.starts_with("libpam")
}

fn remove_old(folder: &Path, current: &Path) {
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    for entry in codchi_fs::read_dir(folder).unwrap_or_default() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if entry.path() != current && age.is_some_and(|a| a > WEEK) {
            let _ = codchi_fs::remove_dir_all(entry.path());
        }
    }
}
