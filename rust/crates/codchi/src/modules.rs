//! What a source offers: found out by reading its flake.nix, by evaluation where that is not enough, and by asking a person where there is
//! a choice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use codchi_core::attr::AttrPath;
use codchi_core::name::InputName;
use codchi_core::report::Kind;
use codchi_core::source::{Look, Source};
use codchi_core::text;
use codchi_nix::flake::Module;
use codchi_nix::{NixError, StorePath};

use crate::app::App;
use crate::failure::{Failure, Result};
use crate::make::Tools;

/// Looks at the disk for sources.
pub struct Disk;

impl Look for Disk {
    fn folder(&self, path: &Path) -> Option<PathBuf> {
        path.canonicalize().ok().filter(|p| p.is_dir())
    }
    fn git_root(&self, folder: &Path) -> Option<PathBuf> {
        folder.ancestors().find(|a| a.join(".git").exists()).map(Into::into)
    }
}

/// What was found out about a source.
pub struct Found {
    /// The modules that are meant.
    pub modules: Vec<AttrPath>,
    /// Settings of Nix that it comes with.
    pub nix_config: BTreeMap<String, String>,
    /// Whether it has an input `nixpkgs`.
    pub has_nixpkgs: bool,
}

/// Fetches a source and finds the modules that are meant. `base` stands in for every nixpkgs.
pub fn look(
    app: &App,
    tools: &Tools,
    source: &Source,
    modules: &[String],
    base: Option<&StorePath>,
) -> Result<Found> {
    let url = &source.url;
    let shown = match &source.folder {
        Some(folder) => app.shown(folder),
        None => text::printable_line(url),
    };
    let fetched = tools.nix.prefetch(url, &app.printer).map_err(|e| {
        let why = match &e {
            NixError::Source { refusal, said, .. } => format!("{}: {said}", refusal.message()),
            other => other.to_string(),
        };
        let mut failure: Failure = e.into();
        failure.message = format!("`{shown}` cannot be fetched: {why}");
        failure
    })?;
    let folder = tools.store_dir().join(fetched.path.base_name());
    let described =
        codchi_nix::flake::read(&folder, fetched.dir(), &shown).map_err(|e| no_flake(e, source))?;
    let nixpkgs: Vec<&String> = described
        .inputs
        .iter()
        .filter(|(name, input)| codchi_nix::lock::is_nixpkgs(name, input.reference.as_ref()))
        .map(|(name, _)| name)
        .collect();
    let overrides: Vec<(String, String)> = match base {
        Some(base) => nixpkgs.iter().map(|name| (name.to_string(), format!("path:{base}"))).collect(),
        None => Vec::new(),
    };
    let there = match described.modules {
        Some(modules) => modules,
        None => tools.nix.module_names(&fetched.path, fetched.dir(), &overrides, &app.printer)?,
    };
    let chosen = choose(app, &there, source, modules, &shown)?;
    hint_untracked(app, source);
    let has_nixpkgs = described.inputs.contains_key("nixpkgs");
    Ok(Found { modules: chosen, nix_config: described.nix_config, has_nixpkgs })
}

/// A name for a source that no other input has.
pub fn free_name(source: &Source, taken: &[String]) -> Result<InputName> {
    let mut name = source.input_name();
    let mut n = 2;
    while taken.iter().any(|other| other == name.as_str()) {
        name = format!("{}-{n}", source.input_name()).parse()?;
        n += 1;
    }
    Ok(name)
}

/// The failure of taking nixpkgs from where there is none.
pub fn no_nixpkgs(input: &InputName) -> Failure {
    Failure::failed(format!("`{input}` has no input `nixpkgs` to use"))
        .hint("the machine then uses that of Codchi, which is the default")
}

/// A folder that is no flake would be copied whole before Nix could say so.
pub fn refuse_plain_folder(app: &App, source: &Source) -> Result<()> {
    let Some(folder) = source.folder.as_ref().filter(|_| Source::is_local(&source.url)) else {
        return Ok(());
    };
    // Another folder or branch of it may be one.
    if folder.join("flake.nix").exists() || source.url.contains('?') {
        return Ok(());
    }
    Err(NixError::NoFlake(app.shown(folder)).into())
}

fn no_flake(error: NixError, source: &Source) -> Failure {
    let is_none = matches!(error, NixError::NoFlake(_));
    let mut failure: Failure = error.into();
    if is_none && source.url.starts_with("git+file:") {
        failure.hints.insert(0, "of a repository only what git tracks counts: `git add flake.nix`".into());
    }
    failure
}

/// The modules that are meant, as attribute paths of the flake.
fn choose(
    app: &App,
    there: &[Module],
    source: &Source,
    modules: &[String],
    shown: &str,
) -> Result<Vec<AttrPath>> {
    let path = |m: &Module| AttrPath::new([m.set.clone(), m.name.clone()]);
    let list = || there.iter().filter_map(path).map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
    let named: Vec<AttrPath> = match &source.attr {
        Some(attr) => vec![attr.clone()],
        None => modules
            .iter()
            .map(|m| m.parse().map_err(|e| Failure::usage(format!("{e}"))))
            .collect::<Result<_>>()?,
    };
    if !named.is_empty() {
        return named
            .iter()
            .map(|attr| {
                let found = match attr.names() {
                    [name] => there.iter().find(|m| m.name == *name),
                    [set, name] => there.iter().find(|m| m.set == *set && m.name == *name),
                    _ => None,
                };
                // A module deeper down, or in another set, is a person's explicit word: the evaluation tells.
                let deep = attr.names().len() > 2;
                found.and_then(path).or_else(|| deep.then(|| attr.clone())).ok_or_else(|| {
                    let failure = Failure::failed(format!("`{shown}` has no module `{attr}`"));
                    let last = attr.names().last().map(String::as_str).unwrap_or_default();
                    match text::nearest(last, there.iter().map(|m| m.name.as_str()), 1).first() {
                        Some(near) => failure.hint(format!("did you mean `{near}`?")),
                        None if there.is_empty() => failure,
                        None => failure.hint(format!("it has {}", list())),
                    }
                })
            })
            .collect();
    }
    match there {
        [] => Err(Failure::failed(format!(
            "`{shown}` has no module: neither `nixosModules` nor `codchiModules`"
        ))
        .hint("add `nixosModules.default` to its outputs; the templates of Codchi show how")),
        [one] => Ok(path(one).into_iter().collect()),
        several => {
            if let Some(default) = several.iter().find(|m| m.name == "default") {
                return Ok(path(default).into_iter().collect());
            }
            if !app.can_ask() {
                return Err(Failure::new(
                    Kind::Declined,
                    format!("`{shown}` has several modules: {}", list()),
                )
                .hint("name those you want after the source, or write `SOURCE#MODULE`"));
            }
            app.printer.say(&format!("`{shown}` has several modules:"));
            for (i, m) in several.iter().enumerate() {
                app.printer.say(&format!("  {}  {}", i + 1, m.name));
            }
            let answer =
                app.printer.ask("which ones? (numbers or names, with blanks between)").unwrap_or_default();
            let mut chosen = Vec::new();
            for word in answer.split([' ', ',']).filter(|w| !w.is_empty()) {
                let by_number = word.parse::<usize>().ok().and_then(|n| several.get(n.wrapping_sub(1)));
                let module = by_number.or_else(|| several.iter().find(|m| m.name == word));
                chosen.push(module.and_then(path).ok_or_else(|| {
                    Failure::new(Kind::Declined, format!("`{}` is none of them", text::printable_line(word)))
                        .hint(format!("it has {}", list()))
                })?);
            }
            if chosen.is_empty() {
                Err(Failure::new(Kind::Declined, "no module was chosen").hint(format!("it has {}", list())))
            } else {
                Ok(chosen)
            }
        }
    }
}

/// Names files that a person may expect to count, and that git does not know.
fn hint_untracked(app: &App, source: &Source) {
    let Some(folder) = source.folder.as_ref().filter(|_| source.url.starts_with("git+file:")) else { return };
    let listed = std::process::Command::new("git")
        // A hook or monitor of the repository has no business here.
        .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"])
        .arg("-C")
        .arg(folder)
        .args(["ls-files", "--others", "--exclude-standard", "--", "*.nix"])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .output();
    let Ok(listed) = listed else { return };
    let files: Vec<String> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .take(5)
        .map(|l| format!("`{}`", text::printable_line(l)))
        .collect();
    if !files.is_empty() {
        app.printer.hint(&format!(
            "git does not track {}, so the machine does not see them: `git add` them",
            files.join(", ")
        ));
    }
}
