//! Locking a machine flake so that evaluating it later needs no flags and no network.
//!
//! The base stands in for every nixpkgs: that of Codchi and that of each module, at any depth. In flake.lock `original`
//! stays as the flake.nix says it and `locked` is a store path, which Nix accepts as a lock like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use codchi_core::progress::{Event, Progress};
use serde_json::{Map, Value, json};

use crate::flake::{self, Flake, Input, Reference};
use crate::trace::Label;
use crate::{Nix, NixError, Result, StorePath};

/// Which locks are made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Update {
    /// Only those that are missing.
    #[default]
    Missing,
    /// Those of these inputs.
    Inputs(Vec<String>),
    /// All.
    All,
}

/// What to lock a machine flake to.
#[derive(Clone, Debug, Default)]
pub struct LockRequest {
    /// What stands in for every nixpkgs; `None` leaves them as they are.
    pub base: Option<StorePath>,
    /// What stands in for the input `codchi`; `None` fetches what its URL says.
    pub codchi: Option<StorePath>,
    /// What stands in for inputs of the machine flake: what a checkout of them holds.
    pub checkouts: BTreeMap<String, StorePath>,
    /// Which locks are made anew.
    pub update: Update,
    /// Look again at inputs that are folders of this host, whatever `update` says.
    pub refresh_local: bool,
}

/// A lock that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// The text of flake.lock.
    pub text: String,
    /// Whether it differs from what was there.
    pub changed: bool,
    /// Store paths it refers to. They must be kept from collection for as long as the lock is used.
    pub roots: Vec<StorePath>,
}

/// An input, by the names that lead to it, and the store path it is locked to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Override {
    path: Vec<String>,
    target: StorePath,
    dir: String,
    /// As the flake.nix says it.
    reference: Option<Reference>,
}

impl Nix {
    /// Locks the machine flake in `dir` and writes its flake.lock.
    pub fn lock(&self, dir: &Path, request: &LockRequest, progress: &dyn Progress) -> Result<Locked> {
        progress.report(Event::Phase("locking inputs"));
        let flake = flake::read(dir, "", &dir.to_string_lossy())?;
        let file = dir.join("flake.lock");
        let before = codchi_fs::read_if_exists(&file)?;
        let mut lock = before.as_deref().map(|t| parse(&file, t)).transpose()?.unwrap_or_else(empty);
        match &request.update {
            Update::Missing => {}
            Update::All => lock = empty(),
            Update::Inputs(names) => names.iter().for_each(|n| forget(&mut lock, n)),
        }
        let mut overrides = Vec::new();
        self.collect(&flake, &lock, &[], &BTreeMap::new(), request, &mut overrides, progress)?;

        let scratch = tempfile_dir()?;
        let (old, new) = (scratch.join("old"), scratch.join("new"));
        let made = (|| {
            codchi_fs::write(&old, lock.to_string())?;
            let mut c = self.command(&["flake", "lock"]);
            self.look_anew(&mut c);
            c.arg(format!("path:{}", dir.display()));
            c.arg("--reference-lock-file").arg(&old).arg("--output-lock-file").arg(&new);
            for o in &overrides {
                c.args(["--override-input", &o.path.join("/"), &target(o)]);
            }
            self.run_logged(c, "locking the inputs", progress)?;
            // Nix writes nothing when nothing changed.
            let text = codchi_fs::read_if_exists(&new)?.unwrap_or_else(|| lock.to_string());
            parse(&new, &text)
        })();
        codchi_fs::remove_dir_all(&scratch)?;
        let mut lock = made?;
        self.refuse_taken(&flake, &lock)?;
        for o in &overrides {
            let node = node_of(&lock, &o.path).and_then(|n| lock["nodes"].get(&n)).cloned();
            let Some(reference) =
                node.and_then(|n| (n["original"]["path"] == o.target.as_str()).then_some(&o.reference))
            else {
                continue;
            };
            if let Some(reference) = reference {
                let original = self.original(reference)?;
                set_original(&mut lock, &o.path, original);
            }
        }
        let text = render(&lock);
        let changed = before.as_deref() != Some(text.as_str());
        if changed {
            codchi_fs::write_atomic(&file, &text, 0o644)?;
        }
        Ok(Locked { roots: roots(&lock), text, changed })
    }

    /// Finds what of `flake` is overridden; `lock` is that flake's own, `overlay` what flakes above say of its inputs.
    #[allow(clippy::too_many_arguments)]
    fn collect(
        &self,
        flake: &Flake,
        lock: &Value,
        prefix: &[String],
        overlay: &BTreeMap<String, Input>,
        request: &LockRequest,
        found: &mut Vec<Override>,
        progress: &dyn Progress,
    ) -> Result<()> {
        // Inputs that lead to themselves do not exist in Nix, but a text can say anything.
        const DEEP: usize = 16;
        for (name, written) in &flake.inputs {
            let above = overlay.get(name);
            let follows = above.and_then(|i| i.follows.as_ref()).or(written.follows.as_ref());
            if follows.is_some() || prefix.len() >= DEEP {
                continue;
            }
            let reference = above.and_then(|i| i.reference.as_ref()).or(written.reference.as_ref());
            let top = prefix.is_empty();
            let mut path = prefix.to_vec();
            path.push(name.clone());
            let mut inner = written.inputs.clone();
            inner.extend(above.map(|i| i.inputs.clone()).unwrap_or_default());
            let put = |target: &StorePath, dir: &str| Override {
                path: path.clone(),
                target: target.clone(),
                dir: dir.into(),
                reference: reference.cloned(),
            };

            if let Some(base) = request.base.as_ref().filter(|_| is_nixpkgs(name, reference)) {
                found.push(put(base, ""));
                continue;
            }
            let source = if let Some(codchi) = request.codchi.as_ref().filter(|_| top && name == "codchi") {
                found.push(put(codchi, ""));
                (codchi.clone(), String::new())
            } else if let Some(checkout) = request.checkouts.get(name).filter(|_| top) {
                let dir = match reference {
                    Some(reference) => self.folder_in(reference)?,
                    None => String::new(),
                };
                found.push(put(checkout, &dir));
                (checkout.clone(), dir)
            } else if let Some(node) = lock["nodes"]["root"]["inputs"][name].as_str().map(str::to_owned)
                && !(top && request.refresh_local && reference.is_some_and(is_local))
                && !(top && self.is_stale(reference, &lock["nodes"][&node]["original"]))
            {
                // Nix keeps that lock, and it says what is below.
                if let Some(base) = &request.base {
                    let mut seen = BTreeSet::new();
                    walk(lock, &node, &path, &inner, base, found, &mut seen);
                }
                continue;
            } else {
                let Some(reference) = reference else { continue };
                let local = top && is_local(reference);
                // What is relative lies in the source that says so, which Nix knows.
                if !local && !written.is_flake || is_relative(reference) {
                    continue;
                }
                let got = self.prefetch(&self.text_of(reference)?, progress)?;
                if local {
                    found.push(put(&got.path, got.dir()));
                }
                if !written.is_flake {
                    continue;
                }
                (got.path.clone(), got.dir().to_owned())
            };
            let (flake, lock) = self.source(&source.0, &source.1, name, &inner, request.base.is_some())?;
            self.collect(&flake, &lock, &path, &inner, request, found, progress)?;
        }
        Ok(())
    }

    /// Reads a source that is another's, and refuses one that wants something of this computer. What flakes above put in the place of its
    /// inputs is theirs to say, and so is every nixpkgs where it is `based`.
    fn source(
        &self,
        path: &StorePath,
        dir: &str,
        name: &str,
        overlay: &BTreeMap<String, Input>,
        based: bool,
    ) -> Result<(Flake, Value)> {
        let source = self.launch().host_path(path);
        let flake = flake::read(&source, dir, name)?;
        refuse_written(name, &flake.inputs, overlay, based)?;
        let file = Path::new(dir).join("flake.lock");
        let lock = codchi_fs::read_beneath(&source, &file, flake::MOST)?
            .map(|t| parse(&Path::new(name).join(&file), &t))
            .transpose()?
            .unwrap_or_else(empty);
        refuse_locked(name, &lock, overlay, based)?;
        Ok((flake, lock))
    }

    /// Refuses a lock that Nix made with something of this computer in it which the machine flake does not name, and what it copied.
    fn refuse_taken(&self, flake: &Flake, lock: &Value) -> Result<()> {
        // What a person replaces for one call is their word.
        if self.options().extra.iter().any(|flag| flag == "--override-input") {
            return Ok(());
        }
        let mut own = BTreeSet::new();
        places(&flake.inputs, &mut own);
        for (input, node) in lock["nodes"].as_object().into_iter().flatten() {
            let taken = [&node["original"], &node["locked"]].into_iter().find_map(host_place);
            let Some(reference) = taken.filter(|place| !own.contains(place)) else { continue };
            let hash = node["locked"]["narHash"].as_str().unwrap_or_default();
            if let Some(copy) = StorePath::of_content(hash, "source") {
                let mut c = self.command(&["store", "delete"]);
                c.arg(copy.as_path());
                // Where something holds it, it was there before.
                let _ = self.run(c, "removing a copy");
            }
            return Err(NixError::HostPath { flake: "a source".into(), input: input.clone(), reference });
        }
        Ok(())
    }

    /// Refuses a machine folder that is another's and, when it is evaluated with the lock that it comes with, would have Nix take
    /// something of this computer.
    pub fn examine_machine(&self, dir: &Path) -> Result<()> {
        let flake = flake::read(dir, "", "the machine flake")?;
        let file = Path::new("flake.lock");
        let text = codchi_fs::read_beneath(dir, file, flake::MOST)?;
        let lock = text.map(|t| parse(file, &t)).transpose()?.unwrap_or_else(empty);
        let refused = |input: &str, reference| {
            Err(NixError::HostPath { flake: "the machine flake".into(), input: input.into(), reference })
        };
        for (name, input) in &flake.inputs {
            let Some(place) = input.reference.as_ref().and_then(place_of) else { continue };
            let node = lock["nodes"]["root"]["inputs"][name].as_str().unwrap_or_default();
            // Nix keeps a lock that was made for what is written, and fetches anything else.
            if self.is_stale(input.reference.as_ref(), &lock["nodes"][node]["original"]) {
                return refused(name, place);
            }
        }
        for (name, node) in lock["nodes"].as_object().into_iter().flatten() {
            if let Some(place) = host_place(&node["locked"]) {
                return refused(name, place);
            }
        }
        Ok(())
    }

    /// Refuses a source that, when it is evaluated, would have Nix take something of this computer, whether itself or by one of its
    /// inputs. Those that are replaced are not looked at.
    pub fn examine(
        &self,
        path: &StorePath,
        dir: &str,
        replaced: &[&str],
        progress: &dyn Progress,
    ) -> Result<()> {
        let replacement = Input { follows: Some(Vec::new()), ..Input::default() };
        let overlay = replaced.iter().map(|name| ((*name).to_owned(), replacement.clone())).collect();
        let (flake, lock) = self.source(path, dir, "the source", &overlay, false)?;
        let top = ["source".to_owned()];
        self.collect(&flake, &lock, &top, &overlay, &LockRequest::default(), &mut Vec::new(), progress)
    }

    /// Where the store has the flake that an input of a machine flake is locked to, and the folder in it; fetched where it is not
    /// there any more. Nothing for what is no flake.
    pub fn locked_source(
        &self,
        text: &str,
        input: &str,
        progress: &dyn Progress,
    ) -> Result<Option<(StorePath, String)>> {
        let lock = parse(Path::new("flake.lock"), text)?;
        let node = node_of(&lock, &[input.to_owned()]).and_then(|n| lock["nodes"].get(&n)).cloned();
        let Some(node) = node.filter(|n| n["flake"] != false) else { return Ok(None) };
        let locked = &node["locked"];
        if let Some(path) = locked["path"].as_str().and_then(StorePath::containing) {
            return Ok(Some((path, locked["dir"].as_str().unwrap_or_default().to_owned())));
        }
        let Some(attrs) = locked.as_object() else { return Ok(None) };
        let got = self.prefetch(&self.text_of(&Reference::Attrs(attrs.clone()))?, progress)?;
        Ok(Some((got.path.clone(), got.dir().to_owned())))
    }

    /// Whether a lock was made for something else than what the flake.nix says now.
    fn is_stale(&self, reference: Option<&Reference>, original: &Value) -> bool {
        reference.is_some_and(|r| self.original(r).is_ok_and(|now| now != *original))
    }

    /// The folder of the source that a reference means.
    fn folder_in(&self, reference: &Reference) -> Result<String> {
        Ok(self.original(reference)?["dir"].as_str().unwrap_or_default().to_owned())
    }

    fn text_of(&self, reference: &Reference) -> Result<String> {
        match reference {
            Reference::Url(u) => Ok(u.clone()),
            Reference::Attrs(a) => {
                let v =
                    self.eval_expr(&format!("builtins.flakeRefToString (builtins.fromJSON {})", quote(a)))?;
                Ok(v.as_str().unwrap_or_default().to_owned())
            }
        }
    }

    fn original(&self, reference: &Reference) -> Result<Value> {
        match reference {
            Reference::Url(u) => self.eval_expr(&format!("builtins.parseFlakeRef {}", nix_string(u))),
            Reference::Attrs(a) => Ok(Value::Object(a.clone())),
        }
    }
}

/// A Nix string that holds `text` as it is.
pub fn nix_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '$' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn quote(attrs: &Map<String, Value>) -> String {
    nix_string(&Value::Object(attrs.clone()).to_string())
}

fn target(o: &Override) -> String {
    if o.dir.is_empty() { format!("path:{}", o.target) } else { format!("path:{}?dir={}", o.target, o.dir) }
}

/// A folder of our own for the lock on its way; not in the machine's folder, whose content Nix copies.
fn tempfile_dir() -> Result<std::path::PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("codchi-lock-{}-{n}", std::process::id()));
    codchi_fs::remove_dir_all(&dir)?;
    codchi_fs::create_private_dir(&dir)?;
    Ok(dir)
}

/// Whether an input is a nixpkgs, by its name or by where it comes from.
pub fn is_nixpkgs(name: &str, reference: Option<&Reference>) -> bool {
    if name == "nixpkgs" || name.starts_with("nixpkgs-") || name.starts_with("nixpkgs_") {
        return true;
    }
    match reference {
        Some(Reference::Url(u)) => {
            let u = u.to_ascii_lowercase();
            let path = u.split(['?', '#']).next().unwrap_or_default();
            ["github:nixos/nixpkgs", "flake:nixpkgs"]
                .iter()
                .any(|p| path.strip_prefix(p).is_some_and(|r| r.is_empty() || r.starts_with('/')))
                || path == "nixpkgs"
                || path.starts_with("nixpkgs/")
                || [
                    "github.com/nixos/nixpkgs",
                    "//channels.nixos.org/",
                    "//releases.nixos.org/nixos",
                    "//releases.nixos.org/nixpkgs",
                    "flakehub.com/f/nixos/nixpkgs",
                ]
                .iter()
                .any(|p| path.contains(p))
        }
        Some(Reference::Attrs(a)) => original_is_nixpkgs(&Value::Object(a.clone())),
        None => false,
    }
}

fn original_is_nixpkgs(original: &Value) -> bool {
    let is = |key: &str, value: &str| original[key].as_str().is_some_and(|v| v.eq_ignore_ascii_case(value));
    is("type", "indirect") && is("id", "nixpkgs")
        || is("owner", "nixos") && is("repo", "nixpkgs")
        || original["url"].as_str().is_some_and(|u| is_nixpkgs("", Some(&Reference::Url(u.into()))))
}

/// Whether a reference is a folder of this host.
pub fn is_local(reference: &Reference) -> bool {
    match reference {
        Reference::Url(u) => {
            let rest = u
                .strip_prefix("path:")
                .or_else(|| u.strip_prefix("git+file:"))
                .or_else(|| u.strip_prefix("git+file+"));
            // What is relative lies in the machine's own folder, which Nix copies whole.
            let path = rest.unwrap_or(u);
            let path = path.strip_prefix("//").unwrap_or(path);
            path.starts_with('/') && !path.starts_with("/nix/store/")
        }
        Reference::Attrs(a) => local_original(&Value::Object(a.clone())).is_some(),
    }
}

/// Refuses inputs that a source takes from this computer, or has inputs of its inputs take.
fn refuse_written(
    source: &str,
    inputs: &BTreeMap<String, Input>,
    overlay: &BTreeMap<String, Input>,
    based: bool,
) -> Result<()> {
    let none = BTreeMap::new();
    for (name, input) in inputs {
        let above = overlay.get(name);
        let is_replaced = is_replaced(above) || based && is_nixpkgs(name, input.reference.as_ref());
        if let Some(reference) = input.reference.as_ref().filter(|_| !is_replaced).and_then(place_of) {
            return Err(NixError::HostPath { flake: source.into(), input: name.clone(), reference });
        }
        refuse_written(source, &input.inputs, above.map_or(&none, |i| &i.inputs), based)?;
    }
    Ok(())
}

/// Refuses a lock that a source comes with and that names something of this computer.
fn refuse_locked(source: &str, lock: &Value, overlay: &BTreeMap<String, Input>, based: bool) -> Result<()> {
    let none = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![("root", overlay)];
    while let Some((node, overlay)) = open.pop() {
        for (name, to) in lock["nodes"][node]["inputs"].as_object().into_iter().flatten() {
            let above = overlay.get(name);
            let Some(to) = to.as_str().filter(|_| !is_replaced(above)) else { continue };
            let node = &lock["nodes"][to];
            if based && (is_nixpkgs(name, None) || original_is_nixpkgs(&node["original"])) {
                continue;
            }
            if let Some(reference) = [&node["original"], &node["locked"]].into_iter().find_map(host_place) {
                return Err(NixError::HostPath { flake: source.into(), input: name.clone(), reference });
            }
            let below = above.map_or(&none, |i| &i.inputs);
            // With nothing said of what is below, once is enough.
            if !below.is_empty() || seen.insert(to) {
                open.push((to, below));
            }
        }
    }
    Ok(())
}

fn is_replaced(above: Option<&Input>) -> bool {
    above.is_some_and(|i| i.reference.is_some() || i.follows.is_some())
}

/// All that inputs name of this computer.
fn places(inputs: &BTreeMap<String, Input>, all: &mut BTreeSet<String>) {
    for input in inputs.values() {
        all.extend(input.reference.as_ref().and_then(place_of));
        places(&input.inputs, all);
    }
}

/// What a reference names of this computer, outside the store.
fn place_of(reference: &Reference) -> Option<String> {
    match reference {
        Reference::Url(url) => place(url),
        Reference::Attrs(attributes) => host_place(&Value::Object(attributes.clone())),
    }
}

/// What of this computer the attributes of a reference name, outside the store.
fn host_place(attributes: &Value) -> Option<String> {
    match attributes["type"].as_str() {
        Some("path") => attributes["path"].as_str().and_then(outside),
        _ => attributes["url"].as_str().and_then(place),
    }
}

/// What an address names of this computer, outside the store. What is relative stays within the source that says so.
fn place(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    let scheme = scheme.to_ascii_lowercase();
    // `tarball+file://` and their like, too.
    let of_file = scheme.split('+').any(|part| part == "file");
    if !of_file && scheme != "path" && !scheme.is_empty() {
        return None;
    }
    let path = codchi_core::source::decode(rest.split(['?', '#']).next().unwrap_or_default());
    let path = path.strip_prefix("//").filter(|_| !scheme.is_empty()).unwrap_or(&path);
    // A host may stand before it, which can only be this one.
    if of_file && !path.starts_with('/') {
        return Some(path.to_owned());
    }
    outside(path)
}

/// A path that leads out of a source, and not to the store.
fn outside(path: &str) -> Option<String> {
    let stored = path.starts_with("/nix/store/") && !path.split('/').any(|part| part == "..");
    (path.starts_with(['/', '~']) && !stored).then(|| path.to_owned())
}

/// Whether a reference names a folder beside the flake that says so.
fn is_relative(reference: &Reference) -> bool {
    match reference {
        Reference::Url(url) => {
            let path = url.strip_prefix("path:").unwrap_or(url);
            let of_path = path.len() < url.len() || path.is_empty() || path.starts_with(['.', '?']);
            of_path && !codchi_core::source::decode(path).starts_with('/')
        }
        Reference::Attrs(a) => {
            a.get("type").is_some_and(|t| t == "path")
                && a.get("path").and_then(Value::as_str).is_some_and(|p| !p.starts_with('/'))
        }
    }
}

/// The folder of this host an `original` of a lock means, and whether it is a git work tree.
pub fn local_original(original: &Value) -> Option<(String, bool)> {
    match original["type"].as_str()? {
        "path" => {
            original["path"].as_str().filter(|p| !p.starts_with("/nix/store/")).map(|p| (p.to_owned(), false))
        }
        "git" => original["url"].as_str()?.strip_prefix("file://").map(|p| (p.to_owned(), true)),
        _ => None,
    }
}

/// The lock after an input of the machine flake got another name; what is no lock stays as it is.
pub fn renamed(text: &str, old: &str, new: &str) -> String {
    let Ok(mut lock) = parse(Path::new("flake.lock"), text) else { return text.to_owned() };
    if let Some(inputs) = lock["nodes"]["root"]["inputs"].as_object_mut()
        && let Some(node) = inputs.remove(old)
    {
        inputs.insert(new.to_owned(), node);
    }
    // What follows says so from the top.
    for node in lock["nodes"].as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        for input in node["inputs"].as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
            if let Some(first) = input.as_array_mut().and_then(|a| a.first_mut()).filter(|f| *f == old) {
                *first = new.into();
            }
        }
    }
    render(&lock)
}

/// The revision that a lock has for an input of the machine flake; of what has none, its hash.
pub fn revision(text: &str, input: &str) -> Option<String> {
    let lock = parse(Path::new("flake.lock"), text).ok()?;
    let locked = &lock["nodes"][node_of(&lock, &[input.to_owned()])?]["locked"];
    locked["rev"].as_str().or(locked["dirtyRev"].as_str()).or(locked["narHash"].as_str()).map(str::to_owned)
}

/// Whether a lock has an input at this path.
pub fn has_input(text: &str, path: &[&str]) -> bool {
    let path: Vec<String> = path.iter().map(|s| s.to_string()).collect();
    parse(Path::new("flake.lock"), text).is_ok_and(|lock| node_of(&lock, &path).is_some())
}

fn empty() -> Value {
    json!({ "nodes": { "root": {} }, "root": "root", "version": 7 })
}

fn parse(file: &Path, text: &str) -> Result<Value> {
    if text.is_empty() {
        return Ok(empty());
    }
    let bad = |line, reason| NixError::Parse { path: file.into(), line, reason };
    let mut lock: Value = serde_json::from_str(text).map_err(|e| bad(e.line(), e.to_string()))?;
    if !matches!(lock["version"].as_u64(), Some(5..=7)) {
        return Err(bad(1, format!("version {} of lock files is not known", lock["version"])));
    }
    // The root node has a name that can be chosen; everything here calls it `root`.
    let root = lock["root"].as_str().unwrap_or("root").to_owned();
    if !lock["nodes"][&root].is_object() {
        return Err(bad(1, "it has no root node".into()));
    }
    if let Some((name, _)) = lock["nodes"].as_object().into_iter().flatten().find(|(_, n)| !n.is_object()) {
        return Err(bad(1, format!("its node `{}` is none", codchi_core::text::printable_line(name))));
    }
    if root != "root" {
        lock["nodes"]["root"] = lock["nodes"][&root].clone();
        lock["root"] = "root".into();
    }
    Ok(lock)
}

fn render(lock: &Value) -> String {
    // serde_json's map is sorted, as Nix writes it.
    serde_json::to_string_pretty(lock).map(|t| t + "\n").unwrap_or_default()
}

fn forget(lock: &mut Value, input: &str) {
    if let Some(inputs) = lock["nodes"]["root"]["inputs"].as_object_mut() {
        inputs.remove(input);
    }
}

/// More steps than any lock needs to say where an input leads. A hostile one makes each way follow two others.
const STEPS: u32 = 10_000;

/// The name of the node an input path leads to, through `follows` as well.
fn node_of(lock: &Value, path: &[String]) -> Option<String> {
    fn go(lock: &Value, path: &[String], depth: usize, steps: &mut u32) -> Option<String> {
        let mut node = "root".to_owned();
        for name in path {
            *steps = steps.checked_sub(1)?;
            node = match &lock["nodes"][&node]["inputs"][name] {
                Value::String(s) => s.clone(),
                Value::Array(a) if depth < 32 => {
                    let path: Option<Vec<String>> = a.iter().map(|s| s.as_str().map(str::to_owned)).collect();
                    go(lock, &path?, depth + 1, steps)?
                }
                _ => return None,
            };
        }
        Some(node)
    }
    go(lock, path, 0, &mut { STEPS })
}

fn set_original(lock: &mut Value, path: &[String], original: Value) {
    if let Some(node) = node_of(lock, path)
        && let Some(n) = lock["nodes"].get_mut(&node)
    {
        n["original"] = original;
    }
}

/// Finds the nixpkgs inputs below a node of a lock.
fn walk(
    lock: &Value,
    node: &str,
    path: &[String],
    overlay: &BTreeMap<String, Input>,
    base: &StorePath,
    found: &mut Vec<Override>,
    seen: &mut BTreeSet<String>,
) {
    if !seen.insert(node.to_owned()) {
        return;
    }
    for (name, to) in lock["nodes"][node]["inputs"].as_object().into_iter().flatten() {
        let above = overlay.get(name);
        // An array is a `follows`.
        let (Value::String(to), None) = (to, above.and_then(|i| i.follows.as_ref())) else { continue };
        let mut path = path.to_vec();
        path.push(name.clone());
        let original = &lock["nodes"][to]["original"];
        let reference = above
            .and_then(|i| i.reference.clone())
            .or_else(|| original.as_object().map(|o| Reference::Attrs(o.clone())));
        if is_nixpkgs(name, reference.as_ref()) || original_is_nixpkgs(original) {
            found.push(Override { path, target: base.clone(), dir: String::new(), reference });
        } else {
            let none = BTreeMap::new();
            walk(lock, to, &path, above.map_or(&none, |i| &i.inputs), base, found, seen);
        }
    }
    seen.remove(node);
}

/// Whose files are whose, for messages about a machine that is locked like this: Codchi and every nixpkgs are not the
/// person's, and each other source is called what its flake.nix calls it.
pub fn labels(text: &str) -> Vec<Label> {
    let lock: Value = serde_json::from_str(text).unwrap_or_default();
    let codchi = lock["nodes"]["root"]["inputs"]["codchi"].as_str();
    let mut all = Vec::new();
    for (name, node) in lock["nodes"].as_object().into_iter().flatten() {
        let original = &node["original"];
        let shown = if Some(name.as_str()) == codchi
            || name.starts_with("nixpkgs")
            || original_is_nixpkgs(original)
        {
            None
        } else {
            Some(shown(original).unwrap_or_else(|| name.clone()))
        };
        let hash = node["locked"]["narHash"].as_str().unwrap_or_default();
        let source = StorePath::of_content(hash, "source");
        let copy = node["locked"]["path"].as_str().and_then(|p| p.parse::<StorePath>().ok());
        for path in source.into_iter().chain(copy) {
            all.push(Label { prefix: path.to_string(), shown: shown.clone() });
        }
    }
    // A path may be a person's by one input and not by another: not to be shown is stronger.
    all.sort_by_key(|l| l.shown.is_some());
    all
}

/// A source as a person would name it.
fn shown(original: &Value) -> Option<String> {
    if let Some((path, _)) = local_original(original) {
        return Some(path);
    }
    let text = |k: &str| original[k].as_str();
    text("url")
        .map(str::to_owned)
        .or_else(|| Some(format!("{}:{}/{}", text("type")?, text("owner")?, text("repo")?)))
}

/// All store paths a lock refers to.
fn roots(lock: &Value) -> Vec<StorePath> {
    let mut all: Vec<StorePath> = lock["nodes"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, n)| n["locked"]["path"].as_str()?.parse().ok())
        .collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(p: &str) -> Vec<String> {
        p.split('/').map(str::to_owned).collect()
    }

    fn sample() -> Value {
        json!({ "version": 7, "root": "root", "nodes": {
            "root": { "inputs": { "mod": "mod", "nixpkgs": ["mod", "nixpkgs"] } },
            "mod": { "inputs": { "nixpkgs": "nixpkgs", "utils": "utils", "mine": ["nixpkgs"], "stable": "stable" },
                     "locked": { "type": "path", "path": "/home/x" }, "original": { "type": "path", "path": "/home/x" } },
            "utils": { "inputs": { "nixpkgs-lib": "lib", "loop": "mod" }, "original": { "type": "github", "owner": "n", "repo": "u" } },
            "lib": { "original": { "type": "github", "owner": "n", "repo": "nixpkgs.lib" } },
            "stable": { "original": { "type": "github", "owner": "NixOS", "repo": "nixpkgs", "ref": "x" } },
            "nixpkgs": { "locked": { "type": "path", "path": "/nix/store/00000000000000000000000000000000-base" },
                         "original": { "type": "path", "path": "/nix/store/00000000000000000000000000000000-base" } } } })
    }

    fn base() -> StorePath {
        "/nix/store/11111111111111111111111111111111-base".parse().unwrap()
    }

    #[test]
    fn a_lock_whose_ways_double_at_each_step_is_given_up() {
        // Each `a(n)` is reached over `a(n+1)` and then again over `a(n+1)`, which all lead to the root.
        let mut inputs = serde_json::Map::new();
        for n in 0..30 {
            inputs.insert(format!("a{n}"), json!([format!("a{}", n + 1), format!("a{}", n + 1)]));
        }
        inputs.insert("a30".into(), "root".into());
        let lock = json!({ "nodes": { "root": { "inputs": inputs } }, "root": "root", "version": 7 });
        assert!(!has_input(&lock.to_string(), &["a0"]));
        assert!(has_input(&lock.to_string(), &["a25"]));
    }

    #[test]
    fn every_nixpkgs_below_a_locked_input_is_found_once() {
        let mut found = Vec::new();
        walk(&sample(), "mod", &path("mod"), &BTreeMap::new(), &base(), &mut found, &mut BTreeSet::new());
        let paths: Vec<_> = found.iter().map(|o| o.path.join("/")).collect();
        assert_eq!(paths, ["mod/nixpkgs", "mod/stable", "mod/utils/nixpkgs-lib"]);
    }

    #[test]
    fn what_the_flake_above_lets_follow_is_left_alone() {
        let overlay =
            BTreeMap::from([("nixpkgs".into(), Input { follows: Some(path("x")), ..Input::default() })]);
        let mut found = Vec::new();
        walk(&sample(), "mod", &path("mod"), &overlay, &base(), &mut found, &mut BTreeSet::new());
        assert!(!found.iter().any(|o| o.path == path("mod/nixpkgs")));
    }

    #[test]
    fn originals_are_set_through_follows_and_nothing_else_changes() {
        let mut lock = sample();
        set_original(&mut lock, &path("nixpkgs"), json!({ "type": "indirect", "id": "nixpkgs" }));
        assert_eq!(lock["nodes"]["nixpkgs"]["original"]["id"], "nixpkgs");
        lock["nodes"]["nixpkgs"]["original"] = sample()["nodes"]["nixpkgs"]["original"].clone();
        assert_eq!(lock, sample());
        assert_eq!(roots(&lock).len(), 1);
    }

    #[test]
    fn sources_are_called_what_the_person_calls_them() {
        let hash = "sha256-ikYNZP4FwwPyQStcXQNVtdhzxE6Pm0cZlT/2v8INyMU=";
        let source = "/nix/store/5g7f9wfihq2x6xq79dy1zypwr6r2vvs6-source";
        let of = |name: &str, original: Value| {
            let nodes = json!({ "root": { "inputs": { name: name } }, name: { "original": original, "locked": { "narHash": hash } } });
            let l = labels(&json!({ "nodes": nodes }).to_string());
            assert_eq!(l[0].prefix, source);
            l[0].shown.clone()
        };
        assert_eq!(of("codchi", json!({ "type": "github", "owner": "codchi", "repo": "codchi" })), None);
        assert_eq!(of("pkgs", json!({ "type": "github", "owner": "NixOS", "repo": "nixpkgs" })), None);
        assert_eq!(
            of("m", json!({ "type": "git", "url": "file:///home/me/x" })).as_deref(),
            Some("/home/me/x")
        );
        assert_eq!(
            of("m", json!({ "type": "github", "owner": "a", "repo": "b" })).as_deref(),
            Some("github:a/b")
        );
        assert!(labels("nonsense").is_empty());
    }

    #[test]
    fn nixpkgs_is_known_by_name_or_origin() {
        let url = |u: &str| Some(Reference::Url(u.into()));
        for (name, u) in [
            ("nixpkgs", "path:./x"),
            ("nixpkgs-unstable", "x:y"),
            ("pkgs", "github:NixOS/nixpkgs/nixos-24.05"),
            ("pkgs", "github:nixos/nixpkgs?ref=x"),
            ("pkgs", "https://github.com/NixOS/nixpkgs/archive/master.tar.gz"),
            ("pkgs", "https://channels.nixos.org/nixos-unstable/nixexprs.tar.xz"),
            ("pkgs", "git+https://github.com/NixOS/nixpkgs?shallow=1"),
            ("pkgs", "nixpkgs/nixos-24.05"),
        ] {
            assert!(is_nixpkgs(name, url(u).as_ref()), "{name} {u}");
        }
        for (name, u) in [
            ("utils", "github:numtide/flake-utils"),
            ("x", "github:nixos/nixpkgs-fmt"),
            ("nixpkgsish", "path:/x"),
        ] {
            assert!(!is_nixpkgs(name, url(u).as_ref()), "{name} {u}");
        }
    }

    #[test]
    fn only_the_machine_flake_may_name_what_is_on_this_computer() {
        let none = BTreeMap::new();
        for url in [
            "path:/home/me/.ssh",
            "path:///home/me/.ssh",
            "path:%2Fhome%2Fme%2F.ssh",
            "path:/nix/store/%2e%2e/%2e%2e/home/me",
            "PATH:/home/me",
            "/home/me/.ssh",
            "~/.ssh",
            "path:/nix/store/../../home/me",
            "file:///home/me/.ssh/id",
            "FILE:///home/me/.ssh/id",
            "file://localhost/home/me/.ssh/id",
            "git+file:///home/me/r?dir=x",
            "git+file:/home/me/r",
            "tarball+file:///home/me/a.tar",
            "file+file:///etc/shadow",
            "hg+file:///home/me/r",
        ] {
            assert!(place(url).is_some(), "{url}");
            let written =
                format!("{{ inputs.x = {{ url = \"{url}\"; flake = false; }}; outputs = _: {{ }}; }}");
            let flake = flake::parse(&written).unwrap();
            assert!(refuse_written("f", &flake.inputs, &none, false).is_err(), "{url}");
            // Where a flake above says what is there instead, that counts.
            assert!(refuse_written("f", &flake.inputs, &flake.inputs, false).is_ok(), "{url}");
            let deep = format!("{{ inputs.a.inputs.x.url = \"{url}\"; outputs = _: {{ }}; }}");
            let deep = flake::parse(&deep).unwrap();
            assert!(refuse_written("f", &deep.inputs, &none, false).is_err(), "{url}");
        }
        for url in [
            "path:/nix/store/00000000000000000000000000000000-source",
            "path:./sub",
            "path:../other",
            "./sub",
            "github:o/r",
            "https://h/file.tar.gz",
            "git+https://h/r?ref=file",
            "git+ssh://git@h/r",
            "nixpkgs",
            "flake:nixpkgs/nixos",
        ] {
            assert_eq!(place(url), None, "{url}");
        }
        let nodes = |attributes: Value| {
            let inputs = |name: &str| json!({ name: name });
            json!({ "nodes": { "root": { "inputs": inputs("a") }, "a": { "inputs": inputs("b") }, "b": { "locked": attributes } } })
        };
        for attributes in [
            json!({ "type": "path", "path": "/home/me" }),
            json!({ "type": "git", "url": "file:///home/me" }),
            json!({ "type": "git", "url": "/home/me" }),
            json!({ "type": "tarball", "url": "file:///home/me/a.tar" }),
        ] {
            assert!(host_place(&attributes).is_some(), "{attributes}");
            assert!(refuse_locked("f", &nodes(attributes), &none, false).is_err());
        }
        let fine = json!({ "type": "github", "owner": "o", "repo": "r" });
        assert_eq!(host_place(&fine), None);
        assert!(refuse_locked("f", &nodes(fine), &none, false).is_ok());
        let relative = |url: &str| is_relative(&Reference::Url(url.into()));
        assert!(["path:./sub", "path:../x", ".", "./x", "?dir=x", "path:sub", ""].into_iter().all(relative));
        assert!(!["path:/x", "path:%2Fx", "github:o/r", "nixpkgs", "/x"].into_iter().any(relative));
    }

    #[test]
    fn folders_of_the_host_are_local() {
        let local = |u: &str| is_local(&Reference::Url(u.into()));
        assert!(local("path:/x") && local("/x") && local("git+file:///x") && local("git+file:/x"));
        assert!(
            !local("./x")
                && !local("path:./x")
                && !local("path:/nix/store/x")
                && !local("github:a/b")
                && !local("git+ssh://h/x")
        );
    }

    #[test]
    fn a_lock_that_is_none_is_an_error() {
        let file = Path::new("flake.lock");
        assert!(parse(file, "{").is_err());
        assert!(parse(file, "{}").is_err());
        assert!(parse(file, r#"{"version":7,"root":"r","nodes":{}}"#).is_err());
        assert!(parse(file, r#"{"version":99,"root":"root","nodes":{"root":{}}}"#).is_err());
        assert_eq!(parse(file, r#"{"version":7,"root":"r","nodes":{"r":{}}}"#).unwrap()["root"], "root");
    }

    fn name() -> impl Strategy<Value = String> {
        "[a-d]"
    }

    fn any_lock() -> impl Strategy<Value = Value> {
        let to = prop_oneof![
            name().prop_map(Value::from),
            proptest::collection::vec(name(), 0..3).prop_map(Value::from),
        ];
        let inputs = proptest::collection::btree_map(name(), to, 0..4);
        proptest::collection::btree_map(prop_oneof![name(), Just("root".to_owned())], inputs, 1..5).prop_map(
            |nodes| {
                let mut lock = empty();
                for (n, inputs) in nodes {
                    lock["nodes"][n] = json!({ "inputs": inputs, "original": { "type": "x" } });
                }
                lock
            },
        )
    }

    proptest! {
        #[test]
        fn any_graph_ends(lock in any_lock(), p in proptest::collection::vec(name(), 0..4)) {
            let _ = node_of(&lock, &p);
            let mut found = Vec::new();
            walk(&lock, "root", &[], &BTreeMap::new(), &base(), &mut found, &mut BTreeSet::new());
        }

        #[test]
        fn rewriting_touches_one_original_only(lock in any_lock(), p in proptest::collection::vec(name(), 1..4)) {
            let mut after = lock.clone();
            set_original(&mut after, &p, json!({ "type": "new" }));
            match node_of(&lock, &p) {
                Some(n) if lock["nodes"].get(&n).is_some() => {
                    prop_assert_eq!(&after["nodes"][&n]["original"]["type"], "new");
                    after["nodes"][&n]["original"] = lock["nodes"][&n]["original"].clone();
                    if lock["nodes"][&n].get("original").is_none() {
                        after["nodes"][&n].as_object_mut().unwrap().remove("original");
                    }
                    prop_assert_eq!(after, lock);
                }
                _ => prop_assert_eq!(after, lock),
            }
        }

        #[test]
        fn strings_for_nix_hold_no_interpolation(text in ".{0,30}") {
            let s = nix_string(&text);
            let parsed = rnix::Root::parse(&s);
            prop_assert!(parsed.errors().is_empty());
            let Some(rnix::ast::Expr::Str(s)) = parsed.tree().expr() else { panic!("no string") };
            let parts = s.normalized_parts();
            let read: String = parts.into_iter().map(|p| match p {
                rnix::ast::InterpolPart::Literal(t) => t,
                rnix::ast::InterpolPart::Interpolation(_) => panic!("interpolation"),
            }).collect();
            prop_assert_eq!(read, text);
        }
    }
}
