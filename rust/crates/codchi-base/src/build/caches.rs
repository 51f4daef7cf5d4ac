//! Caches that Debian's triggers would write when packages are configured. Maintainer scripts do not run here, so the same
//! programs are run once, over the packages of a machine, when its `/usr` is merged.
//!
//! A program that is not among the packages has no one who needs its cache; one that fails costs the cache, not the machine.

use std::path::{Path, PathBuf};

use codchi_fs::Context as _;

use super::loader::{Loader, said};
use super::merge::copy;
use crate::Result;
use crate::machine::say;

/// Modules whose loaders print what they find in the files they are given.
const MODULES: [Modules; 3] = [
    Modules {
        programs: &["gdk-pixbuf-2.0/gdk-pixbuf-query-loaders"],
        folder: "gdk-pixbuf-2.0/2.10.0/loaders",
        cache: "gdk-pixbuf-2.0/2.10.0/loaders.cache",
    },
    Modules {
        programs: &["libgtk-3-0t64/gtk-query-immodules-3.0", "libgtk-3-0/gtk-query-immodules-3.0"],
        folder: "gtk-3.0/3.0.0/immodules",
        cache: "gtk-3.0/3.0.0/immodules.cache",
    },
    Modules {
        programs: &["libgtk2.0-0t64/gtk-query-immodules-2.0", "libgtk2.0-0/gtk-query-immodules-2.0"],
        folder: "gtk-2.0/2.10.0/immodules",
        cache: "gtk-2.0/2.10.0/immodules.cache",
    },
];

struct Modules {
    /// Below the library folder, one of them.
    programs: &'static [&'static str],
    folder: &'static str,
    cache: &'static str,
}

/// The packages of a machine, and where its merged files go.
struct Place<'a> {
    usr: &'a Path,
    debs: &'a [&'a Path],
    loader: Loader,
    /// The library folder, such as `lib/x86_64-linux-gnu`.
    libraries: PathBuf,
    scratch: PathBuf,
}

/// Writes the caches of unpacked packages to the merged tree `usr`.
pub fn write(usr: &Path, debs: &[&Path]) -> Result<()> {
    let Some(loader) = Loader::of(debs.iter().copied())? else { return Ok(()) };
    let triplet = loader.program().parent().and_then(|p| p.file_name()).unwrap_or_default();
    let libraries = Path::new("lib").join(triplet);
    let scratch = std::env::current_dir().at("look at", "the build's folder")?.join("caches");
    let place = Place { usr, debs, loader, libraries, scratch };
    for modules in &MODULES {
        note(modules.cache, place.modules(modules));
    }
    note("gschemas.compiled", place.schemas());
    note("giomodule.cache", place.gio_modules());
    note("mime.cache", place.mime());
    note("mimeinfo.cache", place.desktop_entries());
    note("icon-theme.cache", place.icons());
    Ok(())
}

fn note(what: &str, done: Result<()>) {
    if let Err(e) = done {
        say(format!("no {what}: {e}"));
    }
}

impl Place<'_> {
    /// A file of a package, by its path below `/usr`.
    fn find(&self, below: &Path) -> Option<PathBuf> {
        self.debs.iter().map(|raw| raw.join("usr").join(below)).find(|p| p.is_file())
    }

    /// A folder of the build with everything that packages have in a folder below `/usr`; none where that is nothing.
    fn gathered(&self, below: &Path) -> Result<Option<PathBuf>> {
        let farm = self.scratch.join(below);
        let mut any = false;
        for raw in self.debs {
            let from = raw.join("usr").join(below);
            if from.is_dir() {
                codchi_fs::create_dir_all(&farm)?;
                copy(&from, &farm)?;
                any = true;
            }
        }
        Ok(any.then_some(farm))
    }

    /// The place of a file in the merged tree, with its folder made.
    fn target(&self, below: &Path) -> Result<PathBuf> {
        let to = self.usr.join(below);
        if let Some(parent) = to.parent() {
            codchi_fs::create_dir_all(parent)?;
        }
        Ok(to)
    }

    fn modules(&self, modules: &Modules) -> Result<()> {
        let programs = modules.programs.iter().map(|p| self.libraries.join(p));
        let Some(program) = programs.filter_map(|p| self.find(&p)).next() else { return Ok(()) };
        let mut files = Vec::new();
        for raw in self.debs {
            let folder = raw.join("usr").join(&self.libraries).join(modules.folder);
            if folder.is_dir() {
                files.extend(codchi_fs::read_dir(&folder)?.into_iter().map(|e| (*raw, e.path())));
            }
        }
        files.retain(|(_, path)| path.extension().is_some_and(|x| x == "so"));
        let mut c = self.loader.command(&program);
        let out = said(c.args(files.iter().map(|(_, path)| path)), &program)?;
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        // They name the files as they were given, which in a machine are below /usr; comments tell of this build.
        for (raw, _) in &files {
            text = text.replace(&format!("{}/usr/", raw.display()), "/usr/");
        }
        let lines: String = text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        Ok(codchi_fs::write(self.target(&self.libraries.join(modules.cache))?, lines)?)
    }

    fn schemas(&self) -> Result<()> {
        let below = Path::new("share/glib-2.0/schemas");
        let Some(program) = self.find(&self.libraries.join("glib-2.0/glib-compile-schemas")) else {
            return Ok(());
        };
        let Some(farm) = self.gathered(below)? else { return Ok(()) };
        let to = self.target(&below.join("gschemas.compiled"))?;
        let mut c = self.loader.command(&program);
        c.arg(format!("--targetdir={}", to.parent().unwrap_or(self.usr).display()));
        said(c.arg(farm), &program).map(drop)
    }

    fn gio_modules(&self) -> Result<()> {
        let below = self.libraries.join("gio/modules");
        let Some(program) = self.find(&self.libraries.join("glib-2.0/gio-querymodules")) else {
            return Ok(());
        };
        let Some(farm) = self.gathered(&below)? else { return Ok(()) };
        said(self.loader.command(&program).arg(&farm), &program)?;
        self.keep(&farm.join("giomodule.cache"), &below.join("giomodule.cache"))
    }

    fn mime(&self) -> Result<()> {
        let below = Path::new("share/mime");
        let Some(program) = self.find(Path::new("bin/update-mime-database")) else { return Ok(()) };
        let Some(farm) = self.gathered(&below.join("packages"))? else { return Ok(()) };
        let farm = farm.parent().unwrap_or(&farm);
        said(self.loader.command(&program).arg(farm), &program)?;
        codchi_fs::remove_dir_all(farm.join("packages"))?;
        codchi_fs::create_dir_all(self.usr.join(below))?;
        copy(farm, &self.usr.join(below))
    }

    fn desktop_entries(&self) -> Result<()> {
        let below = Path::new("share/applications");
        let Some(program) = self.find(Path::new("bin/update-desktop-database")) else { return Ok(()) };
        let Some(farm) = self.gathered(below)? else { return Ok(()) };
        said(self.loader.command(&program).arg("--quiet").arg(&farm), &program)?;
        self.keep(&farm.join("mimeinfo.cache"), &below.join("mimeinfo.cache"))
    }

    fn icons(&self) -> Result<()> {
        let below = Path::new("share/icons");
        let programs =
            ["bin/gtk-update-icon-cache", "bin/gtk-update-icon-cache-3.0", "bin/gtk4-update-icon-cache"];
        let Some(program) = programs.iter().find_map(|p| self.find(Path::new(p))) else { return Ok(()) };
        let Some(farm) = self.gathered(below)? else { return Ok(()) };
        for theme in codchi_fs::read_dir(&farm)? {
            if !theme.path().join("index.theme").is_file() {
                continue;
            }
            let mut c = self.loader.command(&program);
            said(c.args(["--quiet", "--force"]).arg(theme.path()), &program)?;
            let name = Path::new(&theme.file_name()).join("icon-theme.cache");
            self.keep(&farm.join(&name), &below.join(&name))?;
        }
        Ok(())
    }

    /// Takes a file that a program wrote into the merged tree; a program may find that there is nothing to write.
    fn keep(&self, made: &Path, below: &Path) -> Result<()> {
        if !made.is_file() {
            return Ok(());
        }
        let to = self.target(below)?;
        std::fs::copy(made, &to).at("copy", made)?;
        Ok(())
    }
}
