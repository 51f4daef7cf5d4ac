//! What a machine mounts on `/usr`: the large packages as overlay layers, the small ones merged into one layer on top.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use codchi_fs::Context as _;
use serde::Deserialize;

use super::package::link;
use super::{DebInfo, caches, ld_cache, version};
use crate::{Error, Result};

/// Request of `merge`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The closure of everything the machine refers to.
    graph: Vec<Reference>,
    /// Packages of at least this many bytes stay layers of their own,
    layer_bytes: u64,
    /// but no more than this many.
    layer_count: usize,
    /// A layer that other machines have too; what is in it is not copied again.
    shared: PathBuf,
}

/// Request of `layer`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    debs: Vec<PathBuf>,
    /// Larger packages are layers of their own.
    layer_bytes: u64,
}

/// Merges small packages into a layer that machines share.
pub fn layer(out: &Path, request: &Layer) -> Result<()> {
    let usr = out.join("usr");
    codchi_fs::create_dir_all(&usr)?;
    let mut list = String::new();
    for raw in &request.debs {
        if DebInfo::of(raw)?.size < request.layer_bytes {
            copy(&raw.join("usr"), &usr)?;
            list.push_str(&format!("{}\n", raw.display()));
        }
    }
    codchi_fs::write(out.join("debs"), list)?;
    Ok(())
}

#[derive(Deserialize)]
struct Reference {
    path: PathBuf,
}

/// Programs whose alternatives cannot be read from their maintainer scripts: name, program that serves it.
const WELL_KNOWN: [(&str, &str); 12] = [
    ("awk", "gawk"),
    ("awk", "mawk"),
    ("vi", "vim.basic"),
    ("vim", "vim.basic"),
    ("vi", "vim.tiny"),
    ("editor", "vim.basic"),
    ("editor", "nano"),
    ("pager", "less"),
    ("nc", "nc.openbsd"),
    ("cc", "gcc"),
    ("c++", "g++"),
    ("which", "which.debianutils"),
];

struct Deb {
    raw: PathBuf,
    info: DebInfo,
}

/// Merges the packages of a machine.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    let mut debs = Vec::new();
    for r in &request.graph {
        if is_unpacked(&r.path) {
            debs.push(Deb { info: DebInfo::of(&r.path)?, raw: r.path.clone() });
        }
    }
    debs.sort_by(|a, b| a.info.name.cmp(&b.info.name).then_with(|| a.raw.cmp(&b.raw)));
    let wrong = conflicts(&debs.iter().map(|d| &d.info).collect::<Vec<_>>());
    if !wrong.is_empty() {
        return Err(Error::Conflict(wrong));
    }

    let usr = out.join("usr");
    codchi_fs::create_dir_all(usr.join("bin"))?;
    codchi_fs::create_dir_all(usr.join("lib/tmpfiles.d"))?;
    let mut by_size: Vec<&Deb> = debs.iter().filter(|d| d.info.size >= request.layer_bytes).collect();
    by_size.sort_by(|a, b| b.info.size.cmp(&a.info.size).then_with(|| a.raw.cmp(&b.raw)));
    by_size.truncate(request.layer_count);
    let layers: BTreeSet<&Path> = by_size.iter().map(|d| d.raw.as_path()).collect();
    let shared = codchi_fs::read_to_string(request.shared.join("debs"))?;
    let shared: BTreeSet<&Path> = shared.lines().map(Path::new).collect();
    for d in debs.iter().filter(|d| !layers.contains(d.raw.as_path()) && !shared.contains(d.raw.as_path())) {
        copy(&d.raw.join("usr"), &usr)?;
    }

    let mut programs = BTreeSet::new();
    for d in &debs {
        let bin = d.raw.join("usr/bin");
        if bin.is_dir() {
            programs.extend(
                codchi_fs::read_dir(bin)?.into_iter().map(|e| e.file_name().to_string_lossy().into_owned()),
            );
        }
    }
    for (path, target) in links(&debs, &programs)? {
        let at = usr.join(path);
        if let Some(parent) = at.parent() {
            codchi_fs::create_dir_all(parent)?;
        }
        link(&target, &at)?;
    }
    for folder in ["sbin", "games"] {
        link(Path::new("bin"), &usr.join(folder))?;
    }
    // Where people install by hand, as Debian's programs expect; it must be writable.
    if usr.join("local").symlink_metadata().is_err() {
        link(Path::new("/var/local"), &usr.join("local"))?;
    }
    codchi_fs::write(usr.join("lib/tmpfiles.d/zz-packages.conf"), tmpfiles(&debs)?)?;

    let raws: Vec<&Path> = debs.iter().map(|d| d.raw.as_path()).collect();
    caches::write(&usr, &raws)?;
    codchi_fs::write(out.join("ld.so.cache"), ld_cache::make(&usr, &raws)?)?;

    // Which package a unit is from: a switch restarts the services of a package that changed.
    let mut units = String::new();
    for d in &debs {
        for kind in ["system", "user"] {
            let dir = d.raw.join("usr/lib/systemd").join(kind);
            if dir.is_dir() {
                for e in codchi_fs::read_dir(&dir)? {
                    units.push_str(&format!(
                        "{kind}/{} {}\n",
                        e.file_name().to_string_lossy(),
                        d.raw.display()
                    ));
                }
            }
        }
    }
    codchi_fs::write(out.join("units"), units)?;

    let list = |paths: &mut dyn Iterator<Item = String>| paths.map(|p| p + "\n").collect::<String>();
    let own = std::iter::once(usr.display().to_string());
    let common = std::iter::once(request.shared.join("usr").display().to_string());
    let others = by_size.iter().map(|d| d.raw.join("usr").display().to_string());
    codchi_fs::write(out.join("layers"), list(&mut own.chain(others).chain(common)))?;
    codchi_fs::write(out.join("debs"), list(&mut debs.iter().map(|d| d.raw.display().to_string())))?;
    codchi_fs::write(
        out.join("packages"),
        list(&mut debs.iter().map(|d| format!("{} {}", d.info.name, d.info.version))),
    )?;
    Ok(())
}

fn is_unpacked(path: &Path) -> bool {
    path.file_name()
        .and_then(|n| n.to_str())
        .and_then(|n| n.get(32..))
        .is_some_and(|n| n.starts_with("-deb-"))
        && path.join(super::INFO).exists()
}

/// Where a path of a maintainer script lies once `/usr` is merged.
pub fn placed(path: &str) -> PathBuf {
    for (from, to) in [
        ("/usr/sbin/", "/usr/bin/"),
        ("/usr/games/", "/usr/bin/"),
        ("/bin/", "/usr/bin/"),
        ("/sbin/", "/usr/bin/"),
        ("/lib/", "/usr/lib/"),
    ] {
        if let Some(rest) = path.strip_prefix(from) {
            return Path::new(to).join(rest);
        }
    }
    path.into()
}

/// Pairs of packages that say they cannot be together.
pub fn conflicts(all: &[&DebInfo]) -> Vec<String> {
    let mut offered: BTreeMap<&str, Vec<(&DebInfo, Option<&str>)>> = BTreeMap::new();
    for info in all {
        offered.entry(&info.name).or_default().push((info, Some(&info.version)));
        for r in info.control.get("Provides").into_iter().flat_map(|p| version::relations(p)) {
            offered.entry(r.name).or_default().push((info, r.version.map(|(_, v)| v)));
        }
    }
    let mut wrong = Vec::new();
    for info in all {
        for field in ["Conflicts", "Breaks"] {
            for r in info.control.get(field).into_iter().flat_map(|c| version::relations(c)) {
                for (other, offers) in offered.get(r.name).into_iter().flatten() {
                    let hit = match offers {
                        Some(v) => r.accepts(v),
                        None => r.version.is_none(),
                    };
                    if hit && other.name != info.name {
                        let version = r.version.map(|(op, v)| format!(" ({op} {v})")).unwrap_or_default();
                        wrong.push(format!(
                            "`{}` {} and `{}` {}: the first says `{field}: {}{version}`",
                            info.name, info.version, other.name, other.version, r.name
                        ));
                    }
                }
            }
        }
    }
    let mut names: BTreeMap<&str, &DebInfo> = BTreeMap::new();
    for info in all {
        if let Some(first) = names.insert(&info.name, info)
            && first.version != info.version
        {
            wrong.push(format!("`{}` in two versions: {} and {}", info.name, first.version, info.version));
        }
    }
    wrong
}

/// Links for alternatives, by path below `/usr`: the highest priority whose target is there; a package's own file wins.
fn links(debs: &[Deb], programs: &BTreeSet<String>) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let exists = |path: &Path| {
        let below = path.strip_prefix("/").unwrap_or(path);
        debs.iter().any(|d| d.raw.join(below).symlink_metadata().is_ok())
    };
    let mut best: BTreeMap<PathBuf, (i64, PathBuf)> = BTreeMap::new();
    let mut offer = |link: PathBuf, target: PathBuf, priority: i64| {
        if best.get(&link).is_none_or(|(p, _)| *p < priority) && !exists(&Path::new("/usr").join(&link)) {
            best.insert(link, (priority, target));
        }
    };
    for a in debs.iter().flat_map(|d| &d.info.alternatives) {
        let (link, target) = (placed(&a.link), placed(&a.target));
        if let Ok(below) = link.strip_prefix("/usr")
            && !below.starts_with("share/man")
            && exists(&target)
        {
            offer(below.to_owned(), target, a.priority);
        }
    }
    for (rank, (name, program)) in WELL_KNOWN.iter().enumerate() {
        if programs.contains(*program) {
            offer(Path::new("bin").join(name), (*program).into(), -1000 - i64::try_from(rank).unwrap_or(0));
        }
    }
    for d in debs {
        for (folder, bin) in super::package::PROGRAM_FOLDERS {
            let dir = d.raw.join(folder);
            if !dir.is_dir() {
                continue;
            }
            for v in codchi_fs::read_dir(&dir)? {
                if v.path().is_symlink() || !v.path().join(bin).is_dir() {
                    continue;
                }
                let number = v.file_name().to_string_lossy().parse().unwrap_or(0i64);
                for e in codchi_fs::read_dir(v.path().join(bin))? {
                    let target =
                        Path::new("/").join(folder).join(v.file_name()).join(bin).join(e.file_name());
                    offer(Path::new("bin").join(e.file_name()), target, -100_000 + number);
                }
            }
        }
    }
    Ok(best.into_iter().map(|(n, (_, t))| (n, t)).collect())
}

/// Folders below `/var` that packages own and that their own tmpfiles.d(5) does not make.
fn tmpfiles(debs: &[Deb]) -> Result<String> {
    let mut made = BTreeSet::new();
    for d in debs {
        let dir = d.raw.join("usr/lib/tmpfiles.d");
        if !dir.is_dir() {
            continue;
        }
        for e in codchi_fs::read_dir(&dir)? {
            for line in codchi_fs::read_to_string(e.path())?.lines() {
                made.extend(line.split_whitespace().nth(1).map(|p| p.trim_end_matches('/').to_owned()));
            }
        }
    }
    // Places that every machine has, and a package manager's own.
    let known = [
        "/var",
        "/var/backups",
        "/var/lib/misc",
        "/var/local",
        "/var/lock",
        "/var/mail",
        "/var/opt",
        "/var/run",
    ];
    let mut lines = BTreeMap::new();
    for (path, mode, user, group) in debs.iter().flat_map(|d| &d.info.var) {
        if !known.contains(&path.as_str())
            && !made.contains(path)
            && !path.starts_with("/var/run/")
            && !path.starts_with("/var/lib/dpkg")
        {
            lines.entry(path).or_insert_with(|| format!("d {path} {mode} {user} {group} -\n"));
        }
    }
    Ok(lines.into_values().collect())
}

/// Copies a tree into another; what is there already stays.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    for e in codchi_fs::read_dir(from)? {
        let (source, target) = (e.path(), to.join(e.file_name()));
        let kind = e.file_type().at("look at", &source)?;
        if kind.is_dir() {
            codchi_fs::create_dir_all(&target)?;
            copy(&source, &target)?;
        } else if target.symlink_metadata().is_ok() {
            continue;
        } else if kind.is_symlink() {
            link(&std::fs::read_link(&source).at("read link", &source)?, &target)?;
        } else {
            std::fs::copy(&source, &target).at("copy", &source)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deb(name: &str, version: &str, fields: &[(&str, &str)]) -> DebInfo {
        DebInfo {
            name: name.into(),
            version: version.into(),
            control: fields.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            ..DebInfo::default()
        }
    }

    #[test]
    fn packages_that_exclude_each_other_are_named() {
        let exim = deb(
            "exim4",
            "4.96",
            &[("Conflicts", "mail-transport-agent"), ("Provides", "mail-transport-agent")],
        );
        let postfix = deb("postfix", "3.7", &[("Provides", "mail-transport-agent")]);
        let libc = deb("libc6", "2.36", &[("Breaks", "exim4 (<< 4.0)")]);
        assert!(conflicts(&[&exim, &libc]).is_empty(), "a package may provide what it conflicts with");
        let wrong = conflicts(&[&exim, &postfix, &libc]);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains("`exim4`") && wrong[0].contains("`postfix`"), "{}", wrong[0]);
    }

    #[test]
    fn two_versions_of_a_package_are_refused() {
        assert_eq!(conflicts(&[&deb("a", "1", &[]), &deb("a", "2", &[])]).len(), 1);
    }
}
