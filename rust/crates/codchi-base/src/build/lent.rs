//! A package of another suite: a tree of its own with every library it needs, whose programs name their own loader. So two
//! C libraries are in one machine without ever meeting.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use codchi_debian::unpack;
use codchi_fs::Context as _;
use serde::Deserialize;

use super::loader::{Loader, said};
use super::merge::copy;
use crate::{Error, Result};

/// Request of `lent`.
#[derive(Deserialize)]
pub struct Request {
    /// The `.deb` files whose programs are wanted.
    debs: Vec<PathBuf>,
    /// Those with what they need, and with `patchelf`.
    libraries: Vec<PathBuf>,
}

/// Makes the tree.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    let missing = |what: &str| Error::Machine(format!("no package of the other suite has {what}"));
    // In the build's own folder, where nothing is kept: what is needed of them is copied.
    let place = std::env::current_dir().at("look at", "the build's folder")?.join("unpacked");
    let files: Vec<&Path> = request.debs.iter().chain(&request.libraries).map(PathBuf::as_path).collect();
    let unpacked = unpack_all(&files, &place)?;
    let (debs, libraries) = unpacked.split_at(request.debs.len());
    let loader = Loader::of(unpacked.iter().map(PathBuf::as_path))?.ok_or_else(|| missing("a C library"))?;
    let patcher = libraries.iter().map(|raw| raw.join("usr/bin/patchelf")).find(|p| p.is_file());
    let patcher = patcher.ok_or_else(|| missing("`patchelf`"))?;
    for raw in debs {
        for top in ["bin", "libexec", "share"] {
            let from = raw.join("usr").join(top);
            if from.is_dir() {
                codchi_fs::create_dir_all(out.join(top))?;
                copy(&from, &out.join(top))?;
            }
        }
    }
    let lib = out.join("lib");
    codchi_fs::create_dir_all(&lib)?;
    let interpreter = lib.join(loader.program().file_name().unwrap_or_default());
    std::fs::copy(loader.program(), &interpreter).at("copy", loader.program())?;
    let mut programs = Vec::new();
    for top in ["bin", "libexec"] {
        binaries(&out.join(top), &mut programs)?;
    }
    for program in programs {
        for needed in loader.needs(&program)? {
            let to = lib.join(needed.file_name().unwrap_or_default());
            if !to.exists() {
                std::fs::copy(&needed, &to).at("copy", &needed)?;
            }
        }
        codchi_fs::set_mode(&program, 0o755)?;
        let mut c = loader.command(&patcher);
        c.arg("--set-interpreter").arg(&interpreter).arg("--force-rpath").arg("--set-rpath").arg(&lib);
        said(c.arg(&program), &patcher)?;
    }
    Ok(())
}

/// Unpacks packages, each into a folder of its own, in the order given.
fn unpack_all(files: &[&Path], place: &Path) -> Result<Vec<PathBuf>> {
    let folders: Vec<PathBuf> = (0..files.len()).map(|i| place.join(i.to_string())).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let (Some(file), Some(folder)) = (files.get(i), folders.get(i)) else { return Ok(()) };
            unpack::extract(file, folder, &unpack::Options::default())?;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for other in others {
            done = done.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    })?;
    Ok(folders)
}

/// The programs below a folder that are not scripts.
fn binaries(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for e in codchi_fs::read_dir(dir)? {
        let path = e.path();
        let meta = path.symlink_metadata().at("look at", &path)?;
        if meta.is_dir() {
            binaries(&path, found)?;
        } else if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
            let mut magic = [0; 4];
            let read = codchi_fs::open(&path)?.read_exact(&mut magic);
            if read.is_ok() && magic == *b"\x7fELF" {
                found.push(path);
            }
        }
    }
    Ok(())
}
