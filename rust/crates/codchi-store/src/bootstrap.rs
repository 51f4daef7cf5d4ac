//! Making a store of Codchi's own.
//!
//! The Nix program comes as the official binary tarball, or, where that is out of reach, as the packages of a Debian
//! mirror, whose programs are made to find their libraries where they were unpacked. Either way everything lies in the
//! data directory, and nothing of the host is touched.
//!
//! A bootstrap that is killed leaves a staging folder at most, which the next one removes; `current` is set last.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use codchi_core::dirs::Dirs;
use codchi_core::progress::{Event, Progress};
use codchi_debian::{Fetch, Freshness, Mirror, Record, lent, unpack};
use codchi_nix::Version;

use crate::store::{Kind, Place};
use crate::{Result, StoreError, tarball};

/// The version of the official tarball that is used where no other is asked for.
const NIX: &str = "2.34.8";

/// How long the official server may take to answer before the Debian mirror is used.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// Suites that have a recent enough Nix, the calmest first.
const SUITES: [&str; 3] = ["trixie", "forky", "sid"];

/// What is taken from the mirror: Nix, what patches it, and the shell of build sandboxes.
const PACKAGES: [&str; 3] = ["nix-bin", lent::PATCHER, "bash-static"];

/// Names that Nix's one program answers to.
const NAMES: [&str; 10] = [
    "nix-build",
    "nix-channel",
    "nix-collect-garbage",
    "nix-copy-closure",
    "nix-daemon",
    "nix-env",
    "nix-hash",
    "nix-instantiate",
    "nix-shell",
    "nix-store",
];

/// The public key of the cache of nixpkgs, as the Nix manual gives it.
const CACHE_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// The folder of the programs in use and their version, when a bootstrap was finished.
pub fn installed(dirs: &Dirs) -> Result<Option<(PathBuf, Version)>> {
    let store = dirs.store();
    let Some(link) = codchi_fs::read_link_if_exists(store.join("current"))? else { return Ok(None) };
    let dist = store.join(&link);
    let version = link.file_name().and_then(|n| n.to_str()?.strip_prefix("nix-")?.parse().ok());
    match version {
        Some(v) if dist.join("bin").is_dir() => Ok(Some((dist, v))),
        _ => Ok(None),
    }
}

/// Makes the store.
pub fn run(place: &Place, progress: &dyn Progress) -> Result<()> {
    let settings = &place.settings.store;
    match &settings.nix_tarball {
        // Who names a tarball wants that one.
        Some(url) => from_tarball(place, url, progress),
        None => {
            let url = official();
            if codchi_debian::mirror::reachable(&format!("{url}.sha256"), PATIENCE) {
                return from_tarball(place, &url, progress);
            }
            let debs = fetch_packages(place, progress)?;
            from_packages(place, &debs, progress)
        }
    }
}

/// The official binary tarball for this system.
fn official() -> String {
    format!("https://releases.nixos.org/nix/nix-{NIX}/nix-{NIX}-{}-linux.tar.xz", std::env::consts::ARCH)
}

/// Makes the store from a binary tarball with its sha256 beside it.
fn from_tarball(place: &Place, url: &str, progress: &dyn Progress) -> Result<()> {
    let sum_url = format!("{url}.sha256");
    // Of a mirror of Debian they say what a person cannot do here.
    let told = |e: codchi_debian::Error| match e {
        codchi_debian::Error::Missing { url, .. } => StoreError::Fetch(format!("`{url}` is not there")),
        codchi_debian::Error::Mismatch { url, reason, .. } => {
            StoreError::Fetch(format!("`{url}` is not what `{sum_url}` says: {reason}"))
        }
        other => other.into(),
    };
    let sum = codchi_debian::mirror::get(&sum_url, 4096).map_err(told)?;
    let sum = String::from_utf8_lossy(&sum).split_whitespace().next().unwrap_or_default().to_owned();
    if sum.len() != 64 || !sum.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(StoreError::Fetch(format!("`{sum_url}` holds no sha256")));
    }
    let file = url.rsplit('/').next().unwrap_or_default();
    let odd = || StoreError::Fetch(format!("`{url}` is not named like a binary tarball of Nix"));
    let version = file.strip_prefix("nix-").and_then(|f| f.split('-').next()).ok_or_else(odd)?;
    let version: Version = version.parse().map_err(|()| odd())?;
    let dest = place.dirs.cache.join("nix").join(file);
    let fetch = Fetch {
        url: url.into(),
        sha256: sum.to_lowercase(),
        size: 0,
        dest: dest.clone(),
        what: "Nix".into(),
    };
    Mirror::discover(&codchi_debian::Settings::default())?.fetch_all(&[fetch], 1, progress).map_err(told)?;

    progress.report(Event::Phase("unpacking Nix"));
    let staging = Staging::new(&place.dirs)?;
    let dist = staging.dist.join(format!("nix-{version}"));
    for dir in ["bin", "libexec"] {
        codchi_fs::create_dir_all(staging.path.join(dir))?;
    }
    // Where programs are in the store is known after unpacking, which only the store's owner can do: a link in the
    // store's own folder leads there.
    for name in std::iter::once("nix").chain(NAMES) {
        codchi_fs::symlink_atomic(
            Path::new(tarball::LINK).join("bin").join(name),
            staging.path.join("bin").join(name),
        )?;
    }
    finish(place, staging, &dist, version, Some(&dest), progress)
}

/// Downloads Nix and what it needs from the first suite that has a recent enough one.
fn fetch_packages(place: &Place, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
    let base = &place.settings.base;
    let settings = codchi_debian::Settings {
        mirror: base.mirror.clone(),
        security_mirror: base.security_mirror.clone(),
        accept_stale: base.accept_expired,
        keyrings: base.keyrings.clone(),
        ..codchi_debian::Settings::default()
    };
    let mirror = Mirror::discover(&settings.with_env())?;
    let system = format!("{}-linux", std::env::consts::ARCH);
    let mut why = None;
    for suite in SUITES {
        let fresh = Freshness::Within(std::time::Duration::from_secs(24 * 3600));
        match lent::records(&mirror, suite, &system, &PACKAGES, &place.dirs.cache, fresh, progress) {
            Ok(records) => {
                let mut records: Vec<Record> = records.into_iter().flatten().collect();
                records.sort_by(|a, b| a.name.cmp(&b.name));
                records.dedup_by(|a, b| a.name == b.name);
                if recent(&records) {
                    let wanted: Vec<Fetch> = records.iter().map(|r| fetch_of(r, place)).collect();
                    mirror.fetch_all(&wanted, 8, progress)?;
                    return Ok(wanted.into_iter().map(|f| f.dest).collect());
                }
            }
            Err(e) => why = why.or(Some(e)),
        }
    }
    Err(why.map_or_else(
        || StoreError::Fetch("no suite of the mirror has Nix 2.18 or later".into()),
        StoreError::Debian,
    ))
}

fn recent(records: &[Record]) -> bool {
    let nix = records.iter().find(|r| r.name == "nix-bin");
    nix.and_then(|r| r.version.split(['+', '-', '~']).next()?.parse::<Version>().ok())
        .is_some_and(|v| v >= Version::FLOOR)
}

fn fetch_of(record: &Record, place: &Place) -> Fetch {
    Fetch {
        url: record.url(),
        sha256: record.sha256.clone(),
        size: record.size,
        dest: place.dirs.deb(&record.sha256),
        what: record.name.clone(),
    }
}

/// Makes the store from Debian packages that were fetched and checked.
pub fn from_packages(place: &Place, debs: &[PathBuf], progress: &dyn Progress) -> Result<()> {
    let staging = Staging::new(&place.dirs)?;
    progress.report(Event::Phase("unpacking Nix"));
    unpack_packages(debs, &staging.path)?;
    let version = program_version(&staging.path)?;
    let dist = staging.dist.join(format!("nix-{version}"));
    link_programs(&staging.path, &dist)?;
    finish(place, staging, &dist, version, None, progress)
}

/// A folder for what is being made; only one at a time.
struct Staging {
    path: PathBuf,
    dist: PathBuf,
    _lock: codchi_fs::Lock,
}

impl Staging {
    fn new(dirs: &Dirs) -> Result<Staging> {
        codchi_fs::create_private_dir(&dirs.data)?;
        let store = dirs.store();
        codchi_fs::create_dir_all(&store)?;
        let who = format!("making the store (process {})", std::process::id());
        let lock = codchi_fs::Lock::try_take(store.join("lock"), &who)?;
        let dist = store.join("dist");
        codchi_fs::create_dir_all(&dist)?;
        let path = dist.join("staging");
        // With the lock held, what is there was left by one that was killed.
        codchi_fs::remove_dir_all(&path)?;
        codchi_fs::create_dir_all(&path)?;
        Ok(Staging { path, dist, _lock: lock })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next bootstrap.
        let _ = codchi_fs::remove_dir_all(&self.path);
    }
}

/// Takes programs to `bin`, libraries to `lib`, the sandbox's shell to `libexec/sh`.
fn unpack_packages(debs: &[PathBuf], staging: &Path) -> Result<()> {
    for sub in ["bin", "lib", "libexec"] {
        codchi_fs::create_dir_all(staging.join(sub))?;
    }
    let options = unpack::Options::default();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // Decompression takes most of the time, and packages do not depend on one another.
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        let (next, options) = (&next, &options);
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || -> Result<()> {
                    while let Some(deb) = debs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        take(deb, staging, options)?;
                    }
                    Ok(())
                })
            })
            .collect();
        for w in workers {
            w.join().unwrap_or_else(|_| Err(StoreError::Fetch("unpacking stopped".into())))?;
        }
        Ok(())
    })
}

fn take(deb: &Path, staging: &Path, options: &unpack::Options) -> Result<()> {
    let name = deb.file_name().unwrap_or_default();
    let tree = staging.join("unpacked").join(name);
    unpack::extract(deb, &tree, options)?;
    let lib = tree.join("usr/lib");
    let triplets = codchi_fs::read_dir(&lib).unwrap_or_default();
    for dir in triplets.iter().map(|e| e.path()).filter(|p| p.is_dir()) {
        for entry in codchi_fs::read_dir(&dir)? {
            let name = entry.file_name();
            if name.to_str().is_some_and(|n| n.contains(".so")) {
                codchi_fs::rename(entry.path(), staging.join("lib").join(name))?;
            }
        }
    }
    for (from, to) in [("nix", "bin/nix"), ("patchelf", "libexec/patchelf"), ("bash-static", "libexec/sh")] {
        let program = tree.join("usr/bin").join(from);
        if program.is_file() {
            codchi_fs::rename(program, staging.join(to))?;
        }
    }
    Ok(codchi_fs::remove_dir_all(&tree)?)
}

fn loader(lib: &Path) -> Result<PathBuf> {
    let entries = codchi_fs::read_dir(lib)?;
    let found = entries
        .iter()
        .map(|e| e.path())
        .find(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("ld-linux")));
    found.ok_or_else(|| StoreError::Package { path: lib.into(), reason: "it has no dynamic loader".into() })
}

/// Asks the unpacked program, by its own loader, for its version.
fn program_version(staging: &Path) -> Result<Version> {
    let mut c = by_loader(staging, &staging.join("bin/nix"))?;
    let text = said(c.arg("--version"))?;
    Version::from_banner(&text).ok_or(StoreError::DoesNotRun(text))
}

fn by_loader(staging: &Path, program: &Path) -> Result<Command> {
    let lib = staging.join("lib");
    let mut c = Command::new(loader(&lib)?);
    c.arg("--library-path").arg(&lib).arg(program);
    Ok(c)
}

fn said(c: &mut Command) -> Result<String> {
    let out = c.stdin(Stdio::null()).output().map_err(|e| StoreError::DoesNotRun(e.to_string()))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(StoreError::DoesNotRun(String::from_utf8_lossy(&out.stderr).trim().to_owned()))
    }
}

/// Makes the program find its loader and libraries where it will be, and gives it all its names.
fn link_programs(staging: &Path, dist: &Path) -> Result<()> {
    let lib = dist.join("lib");
    let loader = loader(&staging.join("lib"))?;
    let interpreter = lib.join(loader.file_name().unwrap_or_default());
    let mut c = by_loader(staging, &staging.join("libexec/patchelf"))?;
    c.arg("--set-interpreter").arg(interpreter).arg("--force-rpath").arg("--set-rpath").arg(&lib);
    said(c.arg(staging.join("bin/nix")))?;
    codchi_fs::remove_file(staging.join("libexec/patchelf"))?;
    codchi_fs::remove_dir_all(staging.join("unpacked"))?;
    for name in NAMES {
        codchi_fs::symlink_atomic("nix", staging.join("bin").join(name))?;
    }
    for program in ["bin/nix", "libexec/sh"] {
        codchi_fs::set_mode(staging.join(program), 0o755)?;
    }
    Ok(())
}

/// Puts what was made in its place, makes the store's folders, and sets `current`.
fn finish(
    place: &Place,
    staging: Staging,
    dist: &Path,
    version: Version,
    tarball: Option<&Path>,
    progress: &dyn Progress,
) -> Result<()> {
    progress.report(Event::Phase("setting up the store"));
    let store_dir = place.dirs.store();
    codchi_fs::remove_dir_all(dist)?;
    codchi_fs::rename(&staging.path, dist)?;
    // The sandbox's shell must be where a build user gets to, which is not so below a person's home. Nix of the tarball
    // has one built in.
    let shell = store_dir.join("nix/libexec/sh");
    codchi_fs::create_dir_all(store_dir.join("nix/libexec"))?;
    codchi_fs::remove_if_exists(&shell)?;
    if tarball.is_none() {
        codchi_fs::link_or_copy(dist.join("libexec/sh"), &shell)?;
    }
    write_conf(place)?;
    let store = place.store(Kind::Own { dist: dist.into(), version });
    // As the owner of the store, Nix itself makes its folders and data base.
    said(store.initialiser(tarball, &dist.join("bin/nix-store")).arg("--init"))?;
    let name = dist.file_name().unwrap_or_default();
    codchi_fs::symlink_atomic(Path::new("dist").join(name), store_dir.join("current"))?;
    Ok(())
}

/// Writes the store's nix.conf when it is not what the settings say.
pub(crate) fn write_conf(place: &Place) -> Result<()> {
    let dir = place.dirs.store().join("etc");
    let file = dir.join("nix.conf");
    let shell = place.dirs.store().join("nix/libexec/sh").exists();
    let text = conf(shell, place.settings.store.nix_conf.as_deref());
    if codchi_fs::read_if_exists(&file)?.as_deref() != Some(&text) {
        codchi_fs::create_dir_all(&dir)?;
        codchi_fs::write_atomic(&file, text, 0o644)?;
    }
    Ok(())
}

fn conf(shell: bool, more: Option<&str>) -> String {
    let mut text = format!(
        "# Written by Codchi from its settings (`store.nix-conf`); changes here are lost.\n\
         allowed-users = *\n\
         build-dir = /nix/var/nix/builds\n\
         build-users-group = nixbld\n\
         connect-timeout = 5\n\
         download-attempts = 2\n\
         experimental-features = nix-command flakes\n\
         fsync-metadata = true\n\
         max-jobs = auto\n\
         sandbox = true\n\
         sandbox-fallback = false\n\
         substituters = https://cache.nixos.org\n\
         trusted-public-keys = {CACHE_KEY}\n\
         trusted-users = root\n"
    );
    if shell {
        text.push_str("sandbox-paths = /bin/sh=/nix/libexec/sh\n");
    }
    if let Some(more) = more {
        text.push_str(more);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persons_lines_come_last_and_so_win() {
        let text = conf(true, Some("substituters ="));
        assert!(text.ends_with("substituters =\n") && text.contains("sandbox-fallback = false\n"));
    }
}
