//! Runs programs of unpacked packages in a build, where there is no `/usr`: by the loader of their own C library.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use codchi_fs::Context as _;

use crate::{Error, Result};

/// A C library's loader, and where the libraries are.
pub struct Loader {
    program: PathBuf,
    folders: Vec<PathBuf>,
}

impl Loader {
    /// That of unpacked packages; none where there is no C library among them.
    pub fn of<'a>(packages: impl IntoIterator<Item = &'a Path>) -> Result<Option<Loader>> {
        let mut program = None;
        let mut folders = Vec::new();
        for raw in packages {
            for folder in library_folders(raw)? {
                let mut any = false;
                for entry in codchi_fs::read_dir(&folder)? {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    any |= name.contains(".so");
                    if name.starts_with("ld-linux") {
                        program = Some(entry.path());
                    }
                }
                if any {
                    folders.push(folder);
                }
            }
        }
        Ok(program.map(|program| Loader { program, folders }))
    }

    /// The loader itself.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A command that runs a program.
    pub fn command(&self, program: &Path) -> Command {
        let mut c = Command::new(&self.program);
        c.arg("--library-path").arg(self.path()).arg(program);
        c
    }

    /// The libraries a program needs, as they are found.
    pub fn needs(&self, program: &Path) -> Result<Vec<PathBuf>> {
        let mut c = Command::new(&self.program);
        c.arg("--library-path").arg(self.path()).arg("--list").arg(program);
        let text = said(&mut c, program)?;
        let mut found = Vec::new();
        for line in String::from_utf8_lossy(&text.stdout).lines() {
            let Some((name, place)) = line.split_once(" => ") else { continue };
            let place = place.rsplit_once(" (").map_or(place, |(p, _)| p).trim();
            if !place.starts_with('/') {
                let missing = format!("`{}` needs `{}`, which is not there", program.display(), name.trim());
                return Err(Error::Machine(missing));
            }
            found.push(place.into());
        }
        Ok(found)
    }

    fn path(&self) -> String {
        let all: Vec<_> = self.folders.iter().map(|f| f.to_string_lossy()).collect();
        all.join(":")
    }
}

/// Runs a command to its end; its failure, with what it said, is an error.
pub fn said(command: &mut Command, program: &Path) -> Result<Output> {
    let out = command.output().at("run", program)?;
    if out.status.success() {
        return Ok(out);
    }
    let said = String::from_utf8_lossy(&out.stderr).trim().replace('\n', "; ");
    Err(Error::Program { program: format!("{}: {said}", program.display()), status: out.status.to_string() })
}

/// `usr/lib/TRIPLET` of a package.
pub fn library_folders(raw: &Path) -> Result<Vec<PathBuf>> {
    let lib = raw.join("usr/lib");
    if !lib.is_dir() {
        return Ok(Vec::new());
    }
    let triplet = |name: &str| name.ends_with("-linux-gnu");
    let entries = codchi_fs::read_dir(lib)?.into_iter().map(|e| e.path());
    Ok(entries
        .filter(|p| p.is_dir() && p.file_name().and_then(|n| n.to_str()).is_some_and(triplet))
        .collect())
}
