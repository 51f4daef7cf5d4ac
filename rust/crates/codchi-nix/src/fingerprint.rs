//! Whether anything a rebuild reads has changed, told in milliseconds.
//!
//! Pure evaluation reads nothing but the machine's folder, what its lock names by hash, and, of inputs that are folders
//! of this host, their files: so a hash over those, the versions and the settings stands for the result.
//!
//! What the file system says of the files (size, times, inode) is compared first. While that is as it was, no file is read, and
//! what was found then holds.

use std::cell::{LazyCell, RefCell};
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use codchi_fs::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{NixError, Result, lock};

/// What goes into a fingerprint besides files.
#[derive(Clone)]
pub struct Inputs<'a> {
    /// The machine's folder.
    pub machine: &'a Path,
    /// Names in it that no evaluation reads.
    pub unread: &'a [&'a str],
    /// Versions and settings, each with its name.
    pub facts: Vec<(&'a str, String)>,
    /// Where what was found is remembered; may be lost at any time. Of a machine that is not there yet nothing is.
    pub cache: Option<&'a Path>,
    /// What was looked at for other machines.
    pub looks: &'a Looks,
}

/// Folders of this host as they were looked at, as a work tree of git's or whole: machines that have one in common look at it once. It is as old as the first
/// look.
#[derive(Default)]
pub struct Looks(RefCell<BTreeMap<(PathBuf, bool), Rc<Look>>>);

/// A folder of this host.
struct Look {
    seen: Seen,
    /// [`Seen::state`] of it.
    state: String,
    /// What git tracks, where it is a work tree.
    tree: Option<Tree>,
}

impl Looks {
    /// A folder; of a work tree, `last` is what git told before.
    fn at(
        &self,
        dir: &Path,
        git: bool,
        looked: i64,
        last: impl FnOnce() -> Option<Tree>,
    ) -> Result<Rc<Look>> {
        let key = (dir.to_owned(), git);
        if let Some(look) = self.0.borrow().get(&key) {
            return Ok(look.clone());
        }
        let mut seen = Seen::default();
        let tree = match git {
            true => {
                let tree = tracked(dir, last(), looked)?;
                seen.files(dir, &tree.files)?;
                Some(tree)
            }
            false => {
                seen.tree(dir, &[])?;
                None
            }
        };
        let look = Rc::new(Look { state: seen.state(), seen, tree });
        self.0.borrow_mut().insert(key, look.clone());
        Ok(look)
    }
}

/// What the file system says of a file. Its change time moves with whatever is done to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stat {
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    inode: u64,
}

impl Stat {
    fn of(meta: &Metadata) -> Stat {
        Stat {
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            inode: meta.ino(),
        }
    }

    fn is_settled(&self, read: i64) -> bool {
        is_settled(self.ctime.0, read)
    }
}

/// The last fingerprint, and the state of the file system that it stands for.
#[derive(Default, Serialize, Deserialize)]
struct Last {
    /// When the files were looked at, in seconds since 1970.
    looked: i64,
    /// Hash over all that was seen without reading files.
    state: String,
    fingerprint: String,
}

/// The files of each git work tree.
type Trees = BTreeMap<PathBuf, Tree>;

/// What git tracks in a work tree.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Tree {
    /// When it was asked, in seconds since 1970.
    asked: i64,
    /// Where git keeps the list, and its state then.
    index: (PathBuf, Stat),
    /// What leads there.
    link: Option<Stat>,
    files: Vec<PathBuf>,
}

/// The hash of each file, and its state when it was read.
#[derive(Default, Serialize, Deserialize)]
struct Hashes {
    /// When they were looked at, in seconds since 1970.
    looked: i64,
    files: BTreeMap<PathBuf, (Stat, String)>,
}

/// How many files at least are worth a thread.
const SHARE: usize = 2000;

/// The fingerprint, in hexadecimal.
pub fn compute(inputs: &Inputs<'_>) -> Result<String> {
    compute_at(inputs, now())
}

/// The same, `looked` being the time, in seconds since 1970.
fn compute_at(inputs: &Inputs<'_>, looked: i64) -> Result<String> {
    let last: Last = inputs.cache.map(remembered).unwrap_or_default();
    let told =
        LazyCell::new(|| inputs.cache.map(|c| remembered::<Trees>(&trees_file(c))).unwrap_or_default());
    let mut own = Seen::default();
    for (name, value) in &inputs.facts {
        own.word(name.as_bytes());
        own.word(value.as_bytes());
    }
    own.tree(inputs.machine, inputs.unread)?;
    let mut looks = Vec::new();
    for (dir, git) in local_inputs(inputs.machine)? {
        own.word(dir.as_os_str().as_bytes());
        let look = inputs.looks.at(&dir, git, looked, || told.get(&dir).cloned())?;
        looks.push((dir, look));
    }
    let parts = || std::iter::once(&own).chain(looks.iter().map(|(_, look)| &look.seen));
    let state = together([own.state()].iter().chain(looks.iter().map(|(_, look)| &look.state)));
    let is_settled = |read| parts().all(|part| part.newest.is_none_or(|newest| is_settled(newest, read)));
    if is_settled(last.looked) && state == last.state {
        return Ok(last.fingerprint);
    }
    let mut new = BTreeMap::new();
    let known_file = inputs.cache.map(|cache| cache.with_extension("hashes.json"));
    let known: Hashes = known_file.as_deref().map(remembered).unwrap_or_default();
    let sums = parts().map(|part| part.contents(&known, &mut new)).collect::<Result<Vec<_>>>()?;
    let fingerprint = together(&sums);
    let (Some(cache), Some(known_file)) = (inputs.cache, known_file) else { return Ok(fingerprint) };
    if let Some(parent) = cache.parent() {
        codchi_fs::create_private_dir(parent)?;
    }
    // What may change again unseen is read each time: there is no use in remembering it.
    let settled = is_settled(looked);
    if new != known.files || settled {
        remember(&known_file, &Hashes { looked, files: new })?;
    }
    let trees: Trees = looks.into_iter().filter_map(|(dir, look)| Some((dir, look.tree.clone()?))).collect();
    if trees != *told {
        remember(&trees_file(cache), &trees)?;
    }
    if settled {
        remember(cache, &Last { looked, state, fingerprint: fingerprint.clone() })?;
    }
    Ok(fingerprint)
}

fn trees_file(cache: &Path) -> PathBuf {
    cache.with_extension("trees.json")
}

/// Hash over hashes.
fn together<'a>(sums: impl IntoIterator<Item = &'a String>) -> String {
    let mut sum = Sha256::new();
    sums.into_iter().for_each(|s| field(&mut sum, s.as_bytes()));
    hex(&sum.finalize())
}

/// Whether what was read at a time holds of a file that changed at another, both in seconds since 1970: one that changed in the
/// second before may change again without a new time.
fn is_settled(changed: i64, read: i64) -> bool {
    changed < read - 1
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

fn remembered<T: Default + DeserializeOwned>(file: &Path) -> T {
    let text = codchi_fs::read_if_exists(file).ok().flatten();
    text.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default()
}

fn remember<T: Serialize>(file: &Path, what: &T) -> Result<()> {
    // A name that is no text is looked at anew each time.
    match serde_json::to_string(what) {
        Ok(text) => Ok(codchi_fs::write_cache(file, text, 0o600)?),
        Err(_) => Ok(codchi_fs::remove_if_exists(file)?),
    }
}

/// Removes what [`compute`] remembers.
pub fn forget(cache: &Path) -> Result<()> {
    codchi_fs::remove_if_exists(cache.with_extension("hashes.json"))?;
    codchi_fs::remove_if_exists(trees_file(cache))?;
    Ok(codchi_fs::remove_if_exists(cache)?)
}

/// The folders of this host that a machine's lock names, and whether each is a git work tree.
pub fn local_inputs(machine: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let file = machine.join("flake.lock");
    let Some(text) = codchi_fs::read_if_exists(&file)? else { return Ok(Vec::new()) };
    let v: Value = serde_json::from_str(&text).map_err(|e| NixError::Parse {
        path: file,
        line: e.line(),
        reason: e.to_string(),
    })?;
    let nodes = v["nodes"].as_object();
    let mut all: Vec<(PathBuf, bool)> = nodes
        .into_iter()
        .flatten()
        .filter_map(|(_, n)| {
            // A commit that is pinned does not change with the files.
            if n["original"].get("rev").is_some() {
                return None;
            }
            let (path, git) = lock::local_original(&n["original"])?;
            path.starts_with('/').then(|| (path.into(), git))
        })
        .collect();
    all.sort();
    all.dedup();
    Ok(all)
}

/// The files git tracks, as Nix sees a work tree. Git is asked when the list may be another than last time.
fn tracked(dir: &Path, last: Option<Tree>, asked: i64) -> Result<Tree> {
    let stat = |path: &Path| path.symlink_metadata().ok();
    // Of a folder only which one it is: what git does in it is no news.
    let link = stat(&dir.join(".git")).map(|meta| match meta.is_dir() {
        true => Stat { size: 0, mtime: (0, 0), ctime: (0, 0), inode: meta.ino() },
        false => Stat::of(&meta),
    });
    if let Some(last) = last.filter(|l| l.link == link)
        && let Some(index) = stat(&last.index.0).map(|meta| Stat::of(&meta))
        && index == last.index.1
        && index.is_settled(last.asked)
    {
        return Ok(last);
    }
    let folder = git(dir, &["rev-parse", "--absolute-git-dir"])?;
    let folder = folder.strip_suffix(b"\n").unwrap_or(&folder);
    let index = Path::new(std::ffi::OsStr::from_bytes(folder)).join("index");
    // Without one nothing is tracked: as far as anyone knows, it is made any moment.
    let before =
        stat(&index).map_or(Stat { size: 0, mtime: (0, 0), ctime: (asked, 0), inode: 0 }, |m| Stat::of(&m));
    let out = git(dir, &["ls-files", "-z", "--cached"])?;
    let names = out.split(|b| *b == 0).filter(|f| !f.is_empty());
    let mut files: Vec<PathBuf> = names.map(|f| PathBuf::from(std::ffi::OsStr::from_bytes(f))).collect();
    files.sort();
    Ok(Tree { asked, index: (index, before), link, files })
}

/// What git answers about a work tree.
fn git(dir: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let mut c = Command::new("git");
    // A hook or monitor of the repository has no business here.
    c.args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C"]).arg(dir);
    c.args(args).stdin(Stdio::null());
    let out = c.output().map_err(|source| NixError::Spawn { program: "git".into(), source })?;
    if !out.status.success() {
        let message = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        return Err(NixError::Command { what: format!("listing the files of `{}`", dir.display()), message });
    }
    Ok(out.stdout)
}

/// What there is, in order, before any file is read.
#[derive(Default)]
struct Seen {
    all: Vec<Item>,
    /// When the last of its files changed, in seconds since 1970.
    newest: Option<i64>,
}

enum Item {
    /// A name, or what kind of thing is there.
    Word(Vec<u8>),
    /// A file, its state, and whether it is a program.
    File(PathBuf, Stat, bool),
}

/// Adds bytes so that no two lists of fields give the same stream.
fn field(sum: &mut Sha256, bytes: &[u8]) {
    sum.update((bytes.len() as u64).to_le_bytes());
    sum.update(bytes);
}

impl Seen {
    fn word(&mut self, bytes: &[u8]) {
        self.all.push(Item::Word(bytes.to_owned()));
    }

    /// A folder; names at its top that are `unread` are passed over.
    fn tree(&mut self, dir: &Path, unread: &[&str]) -> Result<()> {
        let entries = match codchi_fs::read_dir(dir) {
            Ok(e) => e,
            Err(e) if e.is_not_found() => {
                self.word(b"missing");
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        for entry in entries {
            let path = entry.path();
            if unread.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            let kind = entry.file_type().at("stat", &path)?;
            // Sockets and the like are nothing Nix would read.
            if !kind.is_dir() && !kind.is_file() && !kind.is_symlink() {
                continue;
            }
            self.word(entry.file_name().as_bytes());
            if kind.is_dir() {
                self.word(b"{");
                self.tree(&path, &[])?;
                self.word(b"}");
            } else {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// Files below a folder, in their order. A work tree may have tens of thousands: each processor looks at its share.
    fn files(&mut self, dir: &Path, files: &[PathBuf]) -> Result<()> {
        let look = |files: &[PathBuf]| -> Result<Seen> {
            let mut seen = Seen::default();
            for file in files {
                seen.word(file.as_os_str().as_bytes());
                seen.file(&dir.join(file))?;
            }
            Ok(seen)
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let share = files.len().div_ceil(processors).max(SHARE);
        let parts = std::thread::scope(|scope| {
            let mut shares = files.chunks(share);
            let own = shares.next().unwrap_or_default();
            let others: Vec<_> = shares.map(|files| scope.spawn(move || look(files))).collect();
            let mut parts = vec![look(own)];
            let ended = |t: std::thread::ScopedJoinHandle<'_, _>| {
                t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            parts.extend(others.into_iter().map(ended));
            parts
        });
        for part in parts {
            let part = part?;
            self.all.extend(part.all);
            self.newest = self.newest.max(part.newest);
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let meta = match path.symlink_metadata() {
            Ok(m) => m,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.word(b"missing");
                return Ok(());
            }
            Err(e) => return Err(e).at("stat", path).map_err(Into::into),
        };
        if meta.is_symlink() {
            let to = codchi_fs::read_link_if_exists(path)?.unwrap_or_default();
            self.word(b"link");
            self.word(to.as_os_str().as_bytes());
        } else if meta.is_file() {
            let stat = Stat::of(&meta);
            self.newest = self.newest.max(Some(stat.ctime.0));
            self.all.push(Item::File(path.to_owned(), stat, meta.mode() & 0o100 != 0));
        } else {
            // A submodule is a directory here.
            self.word(b"other");
        }
        Ok(())
    }

    /// Hash over what the file system says.
    fn state(&self) -> String {
        let mut sum = Sha256::new();
        for item in &self.all {
            match item {
                Item::Word(word) => field(&mut sum, word),
                Item::File(_, s, program) => {
                    let numbers = [
                        s.size as i64,
                        s.mtime.0,
                        s.mtime.1,
                        s.ctime.0,
                        s.ctime.1,
                        s.inode as i64,
                        i64::from(*program),
                    ];
                    numbers.iter().for_each(|n| sum.update(n.to_le_bytes()));
                }
            }
        }
        hex(&sum.finalize())
    }

    /// Hash over what is in the files; those that are as they were are not read again.
    fn contents(&self, known: &Hashes, new: &mut BTreeMap<PathBuf, (Stat, String)>) -> Result<String> {
        let mut sum = Sha256::new();
        for item in &self.all {
            let (path, stat, program) = match item {
                Item::Word(word) => {
                    field(&mut sum, word);
                    continue;
                }
                Item::File(path, stat, program) => (path, stat, *program),
            };
            let old = known.files.get(path).filter(|(s, _)| s == stat && s.is_settled(known.looked));
            let hash = match old {
                Some((_, hash)) => hash.clone(),
                None => hex(&Sha256::digest(codchi_fs::read(path)?)),
            };
            field(&mut sum, if program { b"program" } else { b"file" });
            field(&mut sum, hash.as_bytes());
            new.insert(path.clone(), (stat.clone(), hash));
        }
        Ok(hex(&sum.finalize()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        /// How many seconds after now it is.
        later: std::cell::Cell<i64>,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            for d in ["machine", "repo/sub"] {
                codchi_fs::create_dir_all(dir.path().join(d)).unwrap();
            }
            let p = Place { dir, later: Default::default() };
            p.put("machine/flake.nix", "{ }");
            p.put("repo/a", "one");
            p.put("repo/sub/b", "two");
            p
        }
        fn put(&self, path: &str, text: &str) {
            codchi_fs::write(self.dir.path().join(path), text).unwrap();
        }
        fn lock(&self, original: Value) {
            let v = serde_json::json!({ "version": 7, "root": "root", "nodes": { "root": {}, "x": { "original": original } } });
            self.put("machine/flake.lock", &v.to_string());
        }
        fn path(&self, p: &str) -> String {
            self.dir.path().join(p).to_str().unwrap().to_owned()
        }
        fn sum(&self, fact: &str) -> String {
            let machine = self.dir.path().join("machine");
            let cache = self.dir.path().join("cache/f.json");
            let inputs = Inputs {
                machine: &machine,
                unread: &["host.toml"],
                facts: vec![("codchi", fact.into())],
                cache: Some(&cache),
                looks: &Looks::default(),
            };
            compute_at(&inputs, now() + self.later.get()).unwrap()
        }
        /// As if the files were looked at a while later.
        fn wait(&self) {
            self.later.set(self.later.get() + 10);
        }
        /// What is remembered as the last fingerprint.
        fn remember(&self, fingerprint: &str) {
            let path = self.path("cache/f.json");
            let mut v: Value = serde_json::from_str(&codchi_fs::read_to_string(&path).unwrap()).unwrap();
            v["fingerprint"] = fingerprint.into();
            codchi_fs::write(path, v.to_string()).unwrap();
        }
        fn git(&self, args: &[&str]) {
            let mut c = Command::new("git");
            c.args(["-C", &self.path("repo")]).args(args).stdout(Stdio::null());
            assert!(c.status().unwrap().success());
        }
    }

    #[test]
    fn it_changes_with_everything_a_rebuild_reads_and_with_nothing_else() {
        let p = Place::new();
        p.lock(serde_json::json!({ "type": "path", "path": p.path("repo") }));
        let first = p.sum("1");
        assert_eq!(p.sum("1"), first);
        p.put("machine/host.toml", "[ports]\n");
        assert_eq!(p.sum("1"), first);
        assert_ne!(p.sum("2"), first);
        p.put("elsewhere", "x");
        assert_eq!(p.sum("1"), first);
        p.put("repo/sub/b", "TWO");
        let second = p.sum("1");
        assert_ne!(second, first);
        p.put("repo/new", "");
        assert_ne!(p.sum("1"), second);
        codchi_fs::remove_file(p.path("repo/new")).unwrap();
        p.put("repo/sub/b", "two");
        assert_eq!(p.sum("1"), first);
        p.put("machine/flake.nix", "{  }");
        assert_ne!(p.sum("1"), first);
    }

    #[test]
    fn of_a_work_tree_only_tracked_files_count() {
        let p = Place::new();
        p.git(&["init", "-q"]);
        p.git(&["add", "a"]);
        p.lock(serde_json::json!({ "type": "git", "url": format!("file://{}", p.path("repo")) }));
        let first = p.sum("1");
        p.put("repo/sub/b", "not tracked");
        p.git(&["commit", "-q", "--allow-empty", "-m", "x", "--author", "a <a@b>"].map(|s| s));
        assert_eq!(p.sum("1"), first);
        p.put("repo/a", "ONE");
        assert_ne!(p.sum("1"), first);
        p.put("repo/a", "one");
        p.git(&["add", "sub/b"]);
        assert_ne!(p.sum("1"), first);
    }

    #[test]
    fn while_the_file_system_says_the_same_no_file_is_read() {
        let p = Place::new();
        p.git(&["init", "-q"]);
        p.git(&["add", "a"]);
        p.lock(serde_json::json!({ "type": "git", "url": format!("file://{}", p.path("repo")) }));
        p.later.set(-1);
        let first = p.sum("1");
        // They were written just now: a change may leave the same times.
        assert!(!Path::new(&p.path("cache/f.json")).exists());
        p.wait();
        assert_eq!(p.sum("1"), first);
        p.remember("remembered");
        assert_eq!(p.sum("1"), "remembered");
        assert_ne!(p.sum("2"), "remembered");
        assert_eq!(p.sum("1"), first);
        p.wait();
        p.put("repo/a", "two");
        let second = p.sum("1");
        assert_ne!(second, first);
        p.wait();
        assert_eq!(p.sum("1"), second);
        p.git(&["add", "sub/b"]);
        assert_ne!(p.sum("1"), second);
    }

    #[test]
    fn of_many_files_each_counts() {
        let p = Place::new();
        p.git(&["init", "-q"]);
        for i in 0..SHARE + 5 {
            p.put(&format!("repo/{i}"), "");
        }
        p.git(&["add", "."]);
        p.lock(serde_json::json!({ "type": "git", "url": format!("file://{}", p.path("repo")) }));
        let first = p.sum("1");
        assert_eq!(p.sum("1"), first);
        // In the order of their names, these are among the first and among the last.
        for file in ["0", "999"] {
            p.put(&format!("repo/{file}"), "x");
            assert_ne!(p.sum("1"), first, "{file}");
            p.put(&format!("repo/{file}"), "");
            assert_eq!(p.sum("1"), first);
        }
    }

    #[test]
    fn machines_look_at_what_they_share_once() {
        let p = Place::new();
        p.lock(serde_json::json!({ "type": "path", "path": p.path("repo") }));
        let machine = p.dir.path().join("machine");
        let looks = Looks::default();
        let sum = || {
            compute(&Inputs { machine: &machine, unread: &[], facts: Vec::new(), cache: None, looks: &looks })
                .unwrap()
        };
        let first = sum();
        p.put("repo/c", "not seen");
        assert_eq!(sum(), first);
        p.put("machine/flake.nix", "{ } ");
        assert_ne!(sum(), first);
    }

    #[test]
    fn a_lost_or_broken_cache_does_not_matter() {
        let p = Place::new();
        let first = p.sum("1");
        p.put("cache/f.json", "{");
        assert_eq!(p.sum("1"), first);
        codchi_fs::remove_file(p.path("cache/f.json")).unwrap();
        assert_eq!(p.sum("1"), first);
    }

    #[test]
    fn a_file_of_the_same_size_and_second_is_seen() {
        let p = Place::new();
        let first = p.sum("1");
        p.put("machine/flake.nix", "{}\n");
        assert_ne!(p.sum("1"), first);
    }
}
