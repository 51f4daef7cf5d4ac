//! A package as modules see it: `bin` and the folders of its unpacked files, and the closure it needs in `/usr`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use codchi_fs::Context as _;
use serde::Deserialize;

use super::{CLOSURE, DebInfo, version};
use crate::{Error, Result};

/// Request of `package`.
#[derive(Deserialize)]
pub struct Request {
    /// The unpacked packages it is made of.
    debs: Vec<PathBuf>,
    /// Those and all they depend on.
    closure: Vec<PathBuf>,
    /// Programs that Debian calls otherwise: the name wanted to the name there.
    #[serde(default)]
    programs: BTreeMap<String, String>,
}

/// Folders in which packages keep programs that Debian does not put on the search path as such.
pub(super) const PROGRAM_FOLDERS: [(&str, &str); 2] = [("usr/lib/jvm", "bin"), ("usr/lib/postgresql", "bin")];

/// Makes one package.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    codchi_fs::create_dir_all(out.join("nix-support"))?;
    let mut text = String::new();
    for p in &request.closure {
        text.push_str(&format!("{}\n", p.display()));
    }
    codchi_fs::write(out.join(CLOSURE), text)?;

    let with = providers(request)?;
    let mut programs = BTreeMap::new();
    for raw in &with {
        for (name, path) in programs_of(raw)? {
            programs.entry(name).or_insert(path);
        }
    }
    for (name, there) in &request.programs {
        if let Some(path) = programs.get(there).cloned() {
            programs.entry(name.clone()).or_insert(path);
        }
    }
    if !programs.is_empty() {
        codchi_fs::create_dir_all(out.join("bin"))?;
        for (name, path) in programs {
            link(&path, &out.join("bin").join(name))?;
        }
        link(Path::new("bin"), &out.join("sbin"))?;
    }
    for top in ["lib", "share", "include", "libexec"] {
        let from: Vec<PathBuf> =
            with.iter().map(|d| d.join("usr").join(top)).filter(|p| p.is_dir()).collect();
        overlay(&from, &out.join(top))?;
    }
    let etc: Vec<PathBuf> = with.iter().map(|d| d.join("etc")).filter(|p| p.is_dir()).collect();
    overlay(&etc, &out.join("etc"))
}

/// The packages whose files count as the package's own: the named ones, those they depend on that come from the same
/// source (`python3` needs `python3-minimal`), and for a package without programs what it stands for.
fn providers(request: &Request) -> Result<Vec<PathBuf>> {
    let mut infos = BTreeMap::new();
    for raw in &request.closure {
        infos.insert(raw.clone(), DebInfo::of(raw)?);
    }
    let by_name: BTreeMap<&str, &PathBuf> = infos.iter().map(|(p, i)| (i.name.as_str(), p)).collect();
    let mut with: Vec<PathBuf> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut todo: Vec<PathBuf> = request.debs.iter().rev().cloned().collect();
    while let Some(raw) = todo.pop() {
        if !seen.insert(raw.clone()) {
            continue;
        }
        let Some(info) = infos.get(&raw) else { continue };
        let stands_for_others = programs_of(&raw)?.is_empty() && !raw.join("usr/lib").exists();
        let depends = info.control.iter().filter(|(k, _)| k.ends_with("Depends")).map(|(_, v)| v.as_str());
        for relation in depends.flat_map(version::relations) {
            if let Some(p) = by_name.get(relation.name)
                && let Some(other) = infos.get(*p)
                && (stands_for_others || other.source == info.source)
            {
                todo.push((*p).clone());
            }
        }
        with.push(raw);
    }
    Ok(with)
}

/// The programs of an unpacked package, by the path they have in a machine.
fn programs_of(raw: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let bin = raw.join("usr/bin");
    if bin.is_dir() {
        for e in codchi_fs::read_dir(&bin)? {
            let name = e.file_name().to_string_lossy().into_owned();
            found.push((name.clone(), Path::new("/usr/bin").join(name)));
        }
    }
    for (folder, bin) in PROGRAM_FOLDERS {
        let folder = raw.join(folder);
        if !folder.is_dir() {
            continue;
        }
        for version in codchi_fs::read_dir(&folder)? {
            let dir = version.path().join(bin);
            if version.path().is_symlink() || !dir.is_dir() {
                continue;
            }
            let inside = dir.strip_prefix(raw).unwrap_or(&dir).to_owned();
            for e in codchi_fs::read_dir(&dir)? {
                found.push((
                    e.file_name().to_string_lossy().into_owned(),
                    Path::new("/").join(&inside).join(e.file_name()),
                ));
            }
        }
    }
    for a in DebInfo::of(raw)?.alternatives {
        if let Some(name) = a.link.strip_prefix("/usr/bin/").or_else(|| a.link.strip_prefix("/bin/")) {
            found.push((name.to_owned(), super::merge::placed(&a.target)));
        }
    }
    Ok(found)
}

/// Links folders into one: a folder that only one of them has is a single link.
fn overlay(from: &[PathBuf], to: &Path) -> Result<()> {
    let [first, rest @ ..] = from else { return Ok(()) };
    if rest.is_empty() || !first.is_dir() || first.is_symlink() {
        return link(first, to);
    }
    codchi_fs::create_dir_all(to)?;
    let mut names: BTreeMap<_, Vec<PathBuf>> = BTreeMap::new();
    for dir in from.iter().filter(|d| d.is_dir() && !d.is_symlink()) {
        for e in codchi_fs::read_dir(dir)? {
            names.entry(e.file_name()).or_default().push(e.path());
        }
    }
    for (name, paths) in names {
        overlay(&paths, &to.join(name))?;
    }
    Ok(())
}

pub(super) fn link(target: &Path, at: &Path) -> Result<()> {
    symlink(target, at).at("create link", at)?;
    Ok(())
}

/// Request of `tools`.
#[derive(Deserialize)]
pub struct Tools {
    bash: PathBuf,
    busybox: PathBuf,
}

/// Static tools for builds that run a shell.
pub fn tools(out: &Path, request: &Tools) -> Result<()> {
    let bin = out.join("bin");
    codchi_fs::create_dir_all(&bin)?;
    let list =
        std::process::Command::new(&request.busybox).arg("--list").output().at("run", &request.busybox)?;
    if !list.status.success() {
        return Err(Error::Program { program: "busybox --list".into(), status: list.status.to_string() });
    }
    for name in String::from_utf8_lossy(&list.stdout).lines().filter(|n| *n != "sh" && *n != "bash") {
        link(&request.busybox, &bin.join(name))?;
    }
    link(&request.bash, &bin.join("bash"))?;
    link(&request.bash, &bin.join("sh"))
}
